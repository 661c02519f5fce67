"""Conversion between Kaldi's nnet2 models and acoustic models.

The parts of a Kaldi model that are not used here (learning rates, optimiser settings, statistics, the transition model)
are kept in the model's history under ``kaldi``, so that converting back restores them.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import numpy as np
import torch

from ngsgd.errors import ModelError
from ngsgd.kaldi.nnet2 import COMPONENTS, Fields, Nnet2, Record
from ngsgd.kaldi.transition import TransitionModel, transitions_from_text, transitions_to_text
from ngsgd.network import components as c
from ngsgd.network.affine import Affine
from ngsgd.network.forms import to_array
from ngsgd.network.model import AcousticModel

HISTORY_KEY = "kaldi"  # key of the model's history
TRANSITION_MODEL = "transition_model"

# Fields that are arrays or arguments of a component here, and so are not kept in the history.
COMPONENT_FIELDS = {
    "InputDim", "OutputDim", "Dim", "P", "Context", "ConstComponentDim", "Sizes", "Scales", "LinearParams",
    "BiasParams",
}  # fmt: skip

# Fields of models that do not come from Kaldi: the defaults of the reference.
NEW_COMPONENT_FIELDS: Fields = {
    "LearningRate": np.float32(0.001), "RankIn": 20, "RankOut": 80, "UpdatePeriod": 4,
    "NumSamplesHistory": np.float32(2000.0), "Alpha": np.float32(4.0), "MaxChangePerSample": np.float32(0.075),
    "ValueSum": np.zeros(0, np.float32), "DerivSum": np.zeros(0, np.float32), "Count": np.float64(0.0),
    "IsGradient": False, "MaxChange": np.float32(0.0),
}  # fmt: skip


log = logging.getLogger(__name__)


def from_nnet2(source: Nnet2, name: str | os.PathLike[str]) -> AcousticModel:
    """Converts a Kaldi model to an acoustic model.

    Args:
        source: as `ngsgd.kaldi.nnet2.read_nnet2` returns it.
        name: of the model, for errors.

    Raises:
        ModelError: the components do not fit together, or do not make a classifier.
    """
    named: list[tuple[str, c.Component | Affine]] = []
    kept: dict[str, dict[str, Any]] = {}
    numbers: Counter[str] = Counter()
    for index, record in enumerate(source.components):
        if record.kind == "DropoutComponent":
            log.warning("%s: component %d, dropout, is left out", os.fspath(name), index)
            continue
        try:
            component = _component(record)
        except (ValueError, KeyError) as e:
            raise ModelError(f"{os.fspath(name)}: component {index}, {record.kind}: {e}") from None
        if isinstance(component, c.SumGroup) and not (named and isinstance(named[-1][1], c.Softmax)):
            raise ModelError(f"{os.fspath(name)}: component {index}: a sum-group must follow a softmax")
        own_name = f"{component.kind}{numbers[component.kind]}"
        numbers[component.kind] += 1
        named.append((own_name, component))
        kept[own_name] = {"kind": record.kind} | {
            field: _to_json(value) for field, value in record.fields.items() if field not in COMPONENT_FIELDS
        }
    if not named or not isinstance(named[-1][1], c.Softmax | c.SumGroup):
        raise ModelError(f"{os.fspath(name)}: the network does not end with a softmax, so that it gives no posteriors")
    if any(isinstance(component, c.Softmax) for _, component in named[:-2]):
        raise ModelError(f"{os.fspath(name)}: a softmax in the middle of the network is not supported")
    kaldi: dict[str, Any] = {"components": kept}
    if source.transitions:
        kaldi[TRANSITION_MODEL] = transitions_to_text(source.transitions)
    try:
        model = AcousticModel(named, {"iterations": [], HISTORY_KEY: kaldi})
    except ValueError as e:
        raise ModelError(f"{os.fspath(name)}: {e}") from None
    if len(source.priors):
        if len(source.priors) != model.num_classes:
            raise ModelError(
                f"{os.fspath(name)}: {len(source.priors)} priors, the network has {model.num_classes} outputs"
            )
        model.priors = torch.from_numpy(np.array(source.priors))
    return model.eval()


def to_nnet2(model: AcousticModel, transitions: TransitionModel | None, name: str | os.PathLike[str]) -> Nnet2:
    """Converts an acoustic model to a Kaldi model.

    nnet2 has no batch normalisation; it becomes a fixed affine component with the running statistics.

    Args:
        model: the model.
        transitions: transition model of the Kaldi experiment; None for the one in the model's history.
        name: of the model, for errors.

    Raises:
        ModelError: there is no transition model, or the numbers of pdf-ids and of the model's outputs differ.
    """
    kaldi = model.history.get(HISTORY_KEY, {})
    if not isinstance(kaldi, dict):
        raise ModelError(f"{os.fspath(name)}: the Kaldi part of its history is malformed")
    if transitions is None and TRANSITION_MODEL in kaldi:
        transitions = transitions_from_text(kaldi[TRANSITION_MODEL], name)
    bare = transitions is None and bool(kaldi.get("components"))  # read from a network without transition model
    if transitions is None and not bare:
        raise ModelError(
            f"{os.fspath(name)}: the model was not trained on Kaldi's pdf-ids, or does not know their transition "
            "model; give the final.mdl of the alignments with --transition-model"
        )
    if transitions and transitions.num_pdfs != model.num_classes:
        raise ModelError(
            f"{os.fspath(name)}: the model has {model.num_classes} outputs, the transition model "
            f"{transitions.num_pdfs} pdf-ids"
        )
    kept = kaldi.get("components", {})
    named = zip(model.components.keys(), model.chain(), strict=True)
    try:
        records = tuple(_record(component, kept.get(own_name, {})) for own_name, component in named)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise ModelError(f"{os.fspath(name)}: the Kaldi part of its history is malformed ({e!r})") from None
    priors = np.zeros(0, np.float32) if model.priors is None else to_array(model.priors)
    return Nnet2(transitions, records, priors)


def _component(record: Record) -> c.Component | Affine:
    return c.KALDI_KINDS[record.kind].from_kaldi(record.fields)


def _record(component: c.Component | Affine, kept: dict[str, Any]) -> Record:
    own: Fields = {"InputDim": component.input_dim, "OutputDim": component.output_dim, "Dim": component.input_dim}
    own |= component.kaldi_fields()
    kind = str(kept.get("kind", component.kaldi_kind))
    if kind not in (component.kaldi_kind, *component.kaldi_kinds_read):
        raise ValueError(f"a {component.kind} cannot be {kind!r:.60}")
    fields = {
        name: own[name] if name in own else _from_json(name, kept, type_) for name, type_ in COMPONENTS[kind].items()
    }
    return Record(kind, fields)


def _to_json(value: Any) -> Any:
    """Converts a field to its exact value in JSON."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _from_json(name: str, kept: dict[str, Any], type_: str) -> Any:
    if name not in kept:
        return NEW_COMPONENT_FIELDS[name]
    value = kept[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_ in ("float", "double") and is_number:
        return np.float32(value) if type_ == "float" else np.float64(value)
    if type_ == "vector" and isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return np.array(value, np.float32)
    if type_ == "boolean" and isinstance(value, bool):
        return value
    if type_ == "integer" and is_number and isinstance(value, int) and abs(value) < 2**31:
        return value
    raise ValueError(f"{name} is {value!r:.60}, expected a {type_}")
