"""Reads and writes Kaldi's nnet2 models, ``<iteration>.mdl``, component by component.

A component is a record of fields, in the order of the file; `ngsgd.network` interprets them. The old forms that Kaldi
still reads are converted to the current one.

Source: ``nnet2/nnet-component.cc``, ``nnet2/nnet-nnet.cc``, ``nnet2/am-nnet.cc``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ngsgd.errors import ModelError
from ngsgd.files import atomic_write
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import Array, Input, open_input
from ngsgd.kaldi.transition import TransitionModel, read_transitions, write_transitions

Fields = dict[str, Any]

AFFINE = {"LearningRate": "float", "LinearParams": "matrix", "BiasParams": "vector"}
NONLINEAR = {"Dim": "integer", "ValueSum": "vector", "DerivSum": "vector", "Count": "double"}

# The fields of each type of component, in order, and their types.
COMPONENTS: dict[str, dict[str, str]] = {
    "SpliceComponent": {"InputDim": "integer", "Context": "integers", "ConstComponentDim": "integer"},
    "FixedAffineComponent": {"LinearParams": "matrix", "BiasParams": "vector"},
    "AffineComponent": AFFINE | {"IsGradient": "boolean"},
    "AffineComponentPreconditioned": AFFINE | {"Alpha": "float", "MaxChange": "float"},
    "AffineComponentPreconditionedOnline": AFFINE | {
        "RankIn": "integer", "RankOut": "integer", "UpdatePeriod": "integer", "NumSamplesHistory": "float",
        "Alpha": "float", "MaxChangePerSample": "float",
    },
    "PnormComponent": {"InputDim": "integer", "OutputDim": "integer", "P": "float"},
    "NormalizeComponent": NONLINEAR,
    "RectifiedLinearComponent": NONLINEAR,
    "TanhComponent": NONLINEAR,
    "SigmoidComponent": NONLINEAR,
    "SoftmaxComponent": NONLINEAR,
    "FixedScaleComponent": {"Scales": "vector"},
    "SumGroupComponent": {"Sizes": "integers"},
    "DropoutComponent": {"Dim": "integer", "DropoutScale": "float", "DropoutProportion": "float"},
}  # fmt: skip

# Fields of old files that are skipped, and defaults of fields that old files lack.
DISCARDED = {"AvgInput": "vector", "AvgInputCount": "float"}
DEFAULTS: Fields = {
    "IsGradient": False, "MaxChange": np.float32(0.0), "UpdatePeriod": 1, "ValueSum": np.zeros(0, np.float32),
    "DerivSum": np.zeros(0, np.float32), "Count": np.float64(0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A component of a model file.

    Attributes:
        kind: Kaldi's name of the component type.
        fields: values by Kaldi's names: ints, bools, numpy numbers and arrays.
    """

    kind: str
    fields: Fields


@dataclass(frozen=True)
class Nnet2:
    """A model file.

    Attributes:
        transitions: the transition model; None if the file has only a network, as written by ``nnet-init``.
        components: the components, from input to output.
        priors: (pdfs,) prior probabilities; empty if there are none.
    """

    transitions: TransitionModel | None
    components: tuple[Record, ...]
    priors: Array


def read_nnet2(path: str | os.PathLike[str]) -> Nnet2:
    """Reads a model file, binary or text.

    Raises:
        ModelError: the file is missing, truncated or of another type, or has an unsupported component.
    """
    with open_input(path, ModelError) as source:
        source.start()
        first_token = source.peek_token()
        transitions = read_transitions(source) if first_token == "<TransitionModel>" else None
        if (found := source.peek_token()) != "<Nnet>":
            other = {"<Nnet3>": "an nnet3 model", "<DIMENSION>": "a GMM"}.get(found, f"{found!r:.60}")
            source.fail(f"expected an nnet2 model, found {other}")
        source.expect("<Nnet>", "<NumComponents>")
        count = source.integer()
        source.expect("<Components>")
        components = tuple(_read_component(source) for _ in range(count))
        source.expect("</Components>", "</Nnet>")
        priors = source.array(1).astype(np.float32) if transitions else np.zeros(0, np.float32)
        if not source.at_end():
            source.fail("something follows the model; the file is damaged")
        return Nnet2(transitions, components, priors)


def write_nnet2(model: Nnet2, path: str | os.PathLike[str], *, binary: bool) -> None:
    """Writes a model file atomically, in the format of Kaldi 5.5.

    Raises:
        OSError: the file cannot be written.
    """
    out = Output(binary=binary)
    if model.transitions:
        write_transitions(model.transitions, out)
    out.token("<Nnet>", "<NumComponents>")
    out.integer(len(model.components))
    out.token("<Components>")
    for record in model.components:
        out.token(f"<{record.kind}>")
        for name, type_ in COMPONENTS[record.kind].items():
            out.token(f"<{name}>")
            _WRITE[type_](out, record.fields[name])
        out.token(f"</{record.kind}>")
        out.end_line()
    out.token("</Components>", "</Nnet>")
    if model.transitions:
        out.array(model.priors)
    with atomic_write(path) as temporary:
        temporary.write_bytes(out.bytes())


def _read_component(source: Input) -> Record:
    kind = source.token().strip("<>")
    if kind not in COMPONENTS:
        known = ", ".join(name.removesuffix("Component") for name in COMPONENTS)
        source.fail(f"a component of type {kind!r:.60}, which is not supported; supported are {known}")
    expected = COMPONENTS[kind]
    fields: Fields = {}
    while (token := source.token()) != f"</{kind}>":
        name = token.strip("<>")
        if kind == "SumGroupComponent" and fields and name == kind:  # old versions close it with the opening token
            break
        if name in DISCARDED and kind == "AffineComponent":
            _READ[DISCARDED[name]](source)
        elif name == "Counts" and "ValueSum" in expected:
            fields["ValueSum"] = source.array(1).astype(np.float32)
            fields["Count"] = np.float64(fields["ValueSum"].sum(dtype=np.float64))
        elif name == "Rank" and "RankIn" in expected:
            fields["RankIn"] = fields["RankOut"] = source.integer()
        elif name == "LeftContext" and kind == "SpliceComponent":
            left = source.integer()
            source.expect("<RightContext>")
            right = source.integer()
            if not 0 <= left < 10000 or not 0 <= right < 10000:
                source.fail(f"{kind}: a context of {left} and {right} frames")
            fields["Context"] = np.arange(-left, right + 1, dtype=np.int32)
        elif name in expected and name not in fields:
            fields[name] = _READ[expected[name]](source)
        else:
            source.fail(f"{kind}: unexpected {token!r:.60}")
    for name, value in fields.items():
        number = expected[name] in ("float", "double") or name in ("ValueSum", "DerivSum")
        if number and not np.isfinite(value).all():
            source.fail(f"{kind}: <{name}> is not finite")
    for name in expected:
        if name not in fields:
            if name not in DEFAULTS:
                source.fail(f"{kind}: <{name}> is missing")
            fields[name] = DEFAULTS[name]
    return Record(kind, fields)


_READ: dict[str, Callable[[Input], Any]] = {
    "integer": Input.integer,
    "float": lambda source: np.float32(source.real()),
    "double": lambda source: np.float64(source.real()),
    "boolean": Input.boolean,
    "integers": Input.integers,
    "vector": lambda source: source.array(1).astype(np.float32),
    "matrix": lambda source: source.array(2).astype(np.float32),
}
_WRITE: dict[str, Callable[[Output, Any], None]] = {
    "integer": Output.integer,
    "float": Output.real,
    "double": Output.real,
    "boolean": Output.boolean,
    "integers": Output.integers,
    "vector": Output.array,
    "matrix": Output.array,
}
