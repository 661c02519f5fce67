"""What the ``ngsgd`` command does with model files: of this project, and Kaldi's nnet2."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ngsgd.data.kaldi_features import Features
from ngsgd.errors import DataError, ModelError, UtteranceError
from ngsgd.files import atomic_write, require_regular_file
from ngsgd.kaldi.nnet2 import read_nnet2, write_nnet2
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import Array
from ngsgd.kaldi.tables import Script, matrix, read_archive
from ngsgd.kaldi.transition import read_transition_model
from ngsgd.network.affine import Affine
from ngsgd.network.components import Splice
from ngsgd.network.model import AcousticModel, load_model
from ngsgd.network.nnet2 import TRANSITIONS, from_nnet2, to_nnet2
from ngsgd.network.storage import Rows
from ngsgd.training.average import mean

log = logging.getLogger(__name__)

SAFETENSORS, NNET2 = ".safetensors", ".mdl"


def load(path: str | os.PathLike[str]) -> AcousticModel:
    """A model of this project or of Kaldi's, by what its file begins with.

    Raises:
        ModelError: the file is missing, damaged, or of another kind.
    """
    try:
        require_regular_file(path)
        with open(path, "rb") as f:
            begin = f.read(64).lstrip()
    except OSError as e:
        raise ModelError(f"{os.fspath(path)}: {e.strerror}") from None
    if begin.startswith((b"\0B", b"<")):
        return from_nnet2(read_nnet2(path), path)
    return load_model(path).float().eval()


def save(model: AcousticModel, path: Path, name: str, transition_model: str | None, *, text: bool) -> None:
    """Writes a model in the format that the path's ending names: ``.safetensors`` or ``.mdl``.

    Args:
        model: the model.
        path: where it is to be written.
        name: what errors call the model.
        transition_model: for ``.mdl``, a Kaldi model with it; None for that in the model.
        text: whether an ``.mdl`` is written as text.

    Raises:
        ModelError: another ending, or no transition model that fits.
        OSError: the file cannot be written.
    """
    if path.suffix == SAFETENSORS:
        model.save(path)
    elif path.suffix == NNET2:
        transitions = read_transition_model(transition_model) if transition_model else None
        write_nnet2(to_nnet2(model, transitions, name), path, binary=not text)
    else:
        raise ModelError(f"{path}: the name of a model must end with {SAFETENSORS} or {NNET2}")


def average(paths: Sequence[str]) -> AcousticModel:
    """The average of some models' parameters, priors and statistics; its history is the first one's.

    Raises:
        ModelError: a model cannot be read, or is of another architecture than the first.
    """
    model = load(paths[0])

    models: list[tuple[str, Mapping[str, Rows]]] = []
    for path in paths:
        other = load(path)
        if other.architecture() != model.architecture():
            raise ModelError(f"{path}: of another architecture than {paths[0]}")
        models.append((path, {name: tensor.numpy() for name, tensor in other.state_dict().items()}))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in mean(models).items()})
    model.history = model.history | {"averaged": len(paths)}
    return model


def describe(model: AcousticModel, name: str) -> str:
    """What is in a model of some name, for reading: a line a component, and what it is used for.

    Raises:
        ModelError: its history is malformed.
    """
    lines = []
    for own_name, component in zip(model.components.keys(), model.chain(), strict=True):
        size = sum(p.numel() for p in component.parameters())
        detail = f" {component.offsets}" if isinstance(component, Splice) else ""
        if isinstance(component, Affine):
            W = component.weight.detach()
            detail = f" {size:,} parameters, deviation {float(W.double().square().mean().sqrt()):.4g}"
        lines.append(f"{own_name:16} {component.kind:13} {component.input_dim:6} -> {component.output_dim:6}{detail}")
    kaldi, iterations = model.history.get("kaldi", {}), model.history.get("iterations", [])
    try:
        trained = f"{len(iterations)} iterations, {sum(entry['frames'] for entry in iterations):,} frames"
        transitions = "given" if TRANSITIONS in kaldi else "not given"
    except (TypeError, KeyError):
        raise ModelError(f"{name}: its history is malformed") from None
    lines += [
        f"features         {model.input_dim} dimensions, {model.left_context} frames before and "
        f"{model.right_context} after",
        f"classes          {model.num_classes}, priors {'given' if model.priors is not None else 'not given'}",
        f"parameters       {sum(p.numel() for p in model.parameters()):,}",
        f"history          {trained}",
        f"transition model {transitions}",
    ]
    return "\n".join(lines)


def compute(model: AcousticModel, matrices: Iterator[tuple[str, Array]], features: Features, output: Path) -> int:
    """Writes the log-likelihoods of utterances as an archive for Kaldi's decoders.

    Args:
        model: a model with priors.
        matrices: name and raw features of each utterance; see `read_features`.
        features: what is done to them.
        output: the archive (float32 matrices, frames x pdf-ids).

    Returns:
        How many utterances were written; others are dropped with a warning.

    Raises:
        DataError: not a single one could be used.
        ModelError: the model has no priors, or parameters that are not finite.
    """
    if bad := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ModelError(f"{bad[0]} of the model is not finite")
    done = 0
    with atomic_write(output) as temporary, open(temporary, "wb") as f:
        for name, raw in matrices:
            try:
                x, _ = features.of(name, raw)
                if x.shape[1] != model.input_dim:
                    raise UtteranceError(f"features of dimension {x.shape[1]}, the model takes {model.input_dim}")
                if not torch.isfinite(torch.from_numpy(x)).all():
                    raise UtteranceError("features that are not finite")
            except UtteranceError as e:
                log.warning("utterance %s dropped: %s", name, e)
                continue
            out = Output(binary=True)
            out.array(model.log_likelihoods(torch.from_numpy(x)).numpy())
            f.write(name.encode() + b" " + out.bytes())
            done += 1
        if not done:
            raise DataError(f"{output}: no utterance could be used")
    return done


def read_features(path: str, root: Path, *, allow_pipes: bool) -> Iterator[tuple[str, Array]]:
    """The matrices of an ``.scp`` or of an archive, which may be given as Kaldi's ``scp:`` and ``ark:``.

    Raises:
        DataError: it cannot be read, or is a command.
    """
    kind, separator, rest = path.partition(":")
    if separator and kind in ("scp", "ark"):
        path = rest
    else:
        kind = "scp" if path.endswith(".scp") else "ark"
    if "|" in path:
        raise DataError(f"{path}: a command, which is not run; give its output as a file")
    if kind == "ark":
        yield from read_archive(path, matrix)
        return
    script = Script(path, root, allow_pipes=allow_pipes)
    for name in script.entries:
        try:
            yield name, script.read(name)
        except DataError as e:
            log.warning("utterance %s dropped: %s", name, e)
