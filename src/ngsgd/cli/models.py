"""Reads, writes, averages, describes and applies model files: this project's and Kaldi's nnet2."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ngsgd.data.kaldi_features import Features
from ngsgd.errors import DataError, ModelError, UtteranceError
from ngsgd.files import require_regular_file
from ngsgd.kaldi.nnet2 import read_nnet2, write_nnet2
from ngsgd.kaldi.specifiers import ArchiveWriter, Rspecifier, Wspecifier, open_archive_input
from ngsgd.kaldi.stream import Array
from ngsgd.kaldi.tables import Locations, Script, matrix, read_entries
from ngsgd.kaldi.transition import read_transition_model
from ngsgd.network.affine import Affine
from ngsgd.network.components import Splice
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.network.nnet2 import TRANSITION_MODEL, from_nnet2, to_nnet2
from ngsgd.network.storage import Rows
from ngsgd.training.model_mean import mean

log = logging.getLogger(__name__)

SAFETENSORS, NNET2 = ".safetensors", ".mdl"


def load(path: str | os.PathLike[str]) -> AcousticModel:
    """Reads a model of this project or of Kaldi, recognised by the first bytes of the file.

    Raises:
        ModelError: the file is missing, damaged, or not a model.
    """
    try:
        require_regular_file(path)
        with open(path, "rb") as f:
            start = f.read(64).lstrip()
    except OSError as e:
        raise ModelError(f"{os.fspath(path)}: {e.strerror}") from None
    if start.startswith((b"\0B", b"<")):
        return from_nnet2(read_nnet2(path), path)
    return load_model(path).float().eval()


def save(model: AcousticModel, path: Path, name: str, transition_model: str | None, *, text: bool) -> None:
    """Writes a model in the format given by the extension of the path: ``.safetensors`` or ``.mdl``.

    Args:
        model: the model.
        path: file to be written.
        name: name of the model in error messages.
        transition_model: for ``.mdl``, path of a Kaldi model with the transition model; None to use the one that the
            model's history keeps.
        text: whether ``.mdl`` is written in text format.

    Raises:
        ModelError: the extension is unknown, or there is no matching transition model.
        OSError: the file cannot be written.
    """
    if path.suffix == SAFETENSORS:
        model.save(path)
    elif path.suffix == NNET2:
        transitions = read_transition_model(transition_model) if transition_model else None
        write_nnet2(to_nnet2(model, transitions, name), path, binary=not text)
    else:
        raise ModelError(f"{path}: the file name must end with {SAFETENSORS} or {NNET2}")


def average(paths: Sequence[str]) -> AcousticModel:
    """Averages the parameters, priors and batch statistics of models; the history is the first model's.

    Raises:
        ModelError: a model cannot be read, or its architecture differs from the first model's.
    """
    model = load(paths[0])

    models: list[tuple[str, Mapping[str, Rows]]] = []
    for path in paths:
        other = load(path)
        if other.architecture() != model.architecture():
            raise ModelError(f"{path}: its architecture differs from that of {paths[0]}")
        models.append((path, {name: tensor.numpy() for name, tensor in other.state_dict().items()}))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in mean(models).items()})
    model.history = model.history | {"averaged": len(paths)}
    return model


def describe(model: AcousticModel, name: str) -> str:
    """Describes a model: one line per component, then dimensions, size and history.

    Raises:
        ModelError: the history is malformed; the message contains ``name``.
    """
    lines = []
    for component_name, component in zip(model.components.keys(), model.chain(), strict=True):
        size = sum(p.numel() for p in component.parameters())
        detail = f" {component.offsets}" if isinstance(component, Splice) else ""
        if isinstance(component, Affine):
            W = component.weight.detach()
            detail = f" {size:,} parameters, deviation {float(W.double().square().mean().sqrt()):.4g}"
        lines.append(
            f"{component_name:16} {component.kind:13} {component.input_dim:6} -> {component.output_dim:6}{detail}"
        )
    kaldi, iterations = model.history.get("kaldi", {}), model.history.get("iterations", [])
    try:
        trained = f"{len(iterations)} iterations, {sum(entry['frames'] for entry in iterations):,} frames"
        transitions = "present" if TRANSITION_MODEL in kaldi else "missing"
    except (TypeError, KeyError):
        raise ModelError(f"{name}: the history is malformed") from None
    lines += [
        f"features         {model.input_dim} dimensions, {model.left_context} frames before and "
        f"{model.right_context} after",
        f"classes          {model.num_classes}, priors {'present' if model.priors is not None else 'missing'}",
        f"parameters       {sum(p.numel() for p in model.parameters()):,}",
        f"history          {trained}",
        f"transition model {transitions}",
    ]
    return "\n".join(lines)


def compute(model: AcousticModel, matrices: Iterator[tuple[str, Array]], features: Features, output: Wspecifier) -> int:
    """Writes log-likelihoods of utterances as a table for Kaldi's decoders.

    Args:
        model: model with priors.
        matrices: name and raw features of each utterance, see `read_features`.
        features: processing of the features.
        output: table to be written (float32 matrices, frames x pdf-ids).

    Returns:
        Number of utterances written. Bad utterances are dropped with a warning.

    Raises:
        DataError: no utterance could be used.
        ModelError: the model has no priors, or parameters that are not finite.
    """
    if bad := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ModelError(f"the model's {bad[0]} is not finite")
    done = 0
    with ArchiveWriter(output) as writer:
        for name, raw in matrices:
            try:
                x, _ = features.process(name, raw)
                if x.shape[1] != model.input_dim:
                    raise UtteranceError(f"features have dimension {x.shape[1]}, the model expects {model.input_dim}")
                if not torch.isfinite(torch.from_numpy(x)).all():
                    raise UtteranceError("features are not finite")
            except UtteranceError as e:
                log.warning("utterance %s dropped: %s", name, e)
                continue
            writer.write(name, model.log_likelihoods(torch.from_numpy(x)).numpy())
            done += 1
        if not done:
            raise DataError(f"{output.archive}: not written, no utterance could be used; see the warnings")
    return done


def read_features(table: Rspecifier, locations: Locations) -> Iterator[tuple[str, Array]]:
    """Yields name and matrix of each utterance of a table.

    Raises:
        DataError: the file cannot be read.
    """
    with open_archive_input(table.path) as source:
        if not table.is_script:
            yield from read_entries(source, matrix)
            return
        script = Script(table.path, locations, source)
    for name in script.entries:
        try:
            yield name, script.read(name)
        except DataError as e:
            log.warning("utterance %s dropped: %s", name, e)
