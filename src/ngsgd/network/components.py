"""Components of a network, named as in Kaldi's ``nnet2/nnet-component.h``.

A component maps (B, T, D_in) to (B, T', D_out): B examples, T frame positions. Only `Splice` reads several positions
and changes their number; `AcousticModel` chooses the positions. `from_spec` rebuilds a component from its ``spec``, a
dictionary that JSON can hold.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ngsgd import registry
from ngsgd.network.affine import Affine, AffineForms
from ngsgd.network.forms import TO_THE_END, KaldiFields, OnnxGraph, positive, to_array
from ngsgd.network.norms import Normalized, TwoNorm
from ngsgd.ops.records import NORM_FLOOR

MAX_OFFSET = 10000  # frames
MAX_BATCHNORM = 10_000  # dimensions of a batch normalisation that Kaldi gets as a matrix
BATCHNORM_EPSILON = 1.0e-3
BATCHNORM_MOMENTUM = 0.1  # weight of a minibatch in the running statistics


KINDS: dict[str, type[Component] | type[Affine]] = {Affine.kind: Affine}
KALDI_KINDS: dict[str, type[Component] | type[Affine]] = dict.fromkeys(Affine.kaldi_kinds_read, Affine)

ComponentType = TypeVar("ComponentType", bound="type[Component]")


def register_component(component: ComponentType) -> ComponentType:
    """Registers the decorated class by its kind, and by the kinds of Kaldi components that it reads."""
    registry.add(KINDS, component.kind, component)
    for kind in component.kaldi_kinds_read:
        registry.add(KALDI_KINDS, kind, component)
    return component


class Component(nn.Module):
    """Base class of components; all but `Splice` keep the number of positions.

    Attributes:
        kind: name of the component in the model's file.
        kaldi_kind: name of the Kaldi component that it is written as.
        kaldi_kinds_read: names of the Kaldi components that it is made from.
        onnx_kind: the ONNX operator that it is, if it is a single one.
    """

    kind: ClassVar[str]
    kaldi_kind: ClassVar[str]
    kaldi_kinds_read: ClassVar[tuple[str, ...]]
    onnx_kind: ClassVar[str]

    def __init__(self, input_dim: int, output_dim: int | None = None) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = input_dim if output_dim is None else output_dim

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "output_dim": self.output_dim}

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        """Makes the component from the fields of a Kaldi component; the default is one with a dimension and no more.

        Raises:
            ValueError: a field is malformed.
        """
        return cls(positive(fields["Dim"]))

    def kaldi_fields(self) -> KaldiFields:
        """The component's own fields as a Kaldi component, apart from its dimensions.

        Raises:
            ValueError: Kaldi cannot hold the component.
        """
        return {}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        """Adds the component to an ONNX graph; the default is the operator `onnx_kind`.

        Args:
            graph: the graph.
            x: name of the input (positions, dim).

        Returns:
            The name of the output.
        """
        return graph.node(self.onnx_kind, x)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.spec().items() if key != "kind")


@register_component
class Splice(Component):
    """Concatenates the frames at ``offsets`` from each output position, the earliest first.

    The last ``const_dim`` dimensions, such as an i-vector's, are not spliced but appended once. As in Kaldi, the i-th
    output takes them from the i-th input, whatever its time; all frames of an example have the same values there.
    """

    kind = "splice"
    kaldi_kind = "SpliceComponent"
    kaldi_kinds_read = ("SpliceComponent",)

    def __init__(self, input_dim: int, offsets: tuple[int, ...], const_dim: int = 0) -> None:
        if not 0 <= const_dim < input_dim:
            raise ValueError(f"splice: const_dim {const_dim} of an input dimension {input_dim}")
        if list(offsets) != sorted(set(offsets)) or not -MAX_OFFSET < offsets[0] <= 0 <= offsets[-1] < MAX_OFFSET:
            raise ValueError(f"splice: offsets must rise across 0, below {MAX_OFFSET}, got {list(offsets)!s:.60}")
        super().__init__(input_dim, (input_dim - const_dim) * len(offsets) + const_dim)
        self.offsets = offsets
        self.const_dim = const_dim

    def spec(self) -> dict[str, Any]:
        const = {"const_dim": self.const_dim} if self.const_dim else {}
        return {"kind": self.kind, "input_dim": self.input_dim, "offsets": list(self.offsets)} | const

    def forward(self, x: Tensor, rows: Tensor | int) -> Tensor:
        """Concatenates the frames for each output position.

        Args:
            x: (B, T, D).
            rows: (T', K), the index into T of each offset for each output position; or the number T', if these indices
                are 0, 1, ... T - 1 in order, so that a reshape is enough.

        Returns:
            (B, T', D').
        """
        if isinstance(rows, int):
            length, frames = rows, x
        else:
            length, frames = len(rows), x.index_select(1, rows.flatten())
        if not self.const_dim:
            return frames.reshape(len(x), length, self.output_dim)
        spliced = frames[:, :, : -self.const_dim].reshape(len(x), length, -1)
        return torch.cat((spliced, x[:, :length, -self.const_dim :]), dim=2)

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        return cls(positive(fields["InputDim"]), tuple(fields["Context"].tolist()) or (1,), fields["ConstComponentDim"])

    def kaldi_fields(self) -> KaldiFields:
        return {"Context": np.array(self.offsets, np.int32), "ConstComponentDim": self.const_dim}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        """Splices all positions that have full context, which are as many fewer as the range of the offsets."""
        first, last = self.offsets[0], self.offsets[-1]
        dim = self.input_dim - self.const_dim
        frames = graph.slice(x, 1, 0, dim) if self.const_dim else x
        parts = [graph.slice(frames, 0, o - first, o - last if o < last else TO_THE_END) for o in self.offsets]
        if self.const_dim:
            const = graph.slice(x, 1, dim, TO_THE_END)
            parts.append(graph.slice(const, 0, 0, first - last if first < last else TO_THE_END))
        return graph.node("Concat", *parts, axis=1)


class Elementwise(Component):
    """A component whose output has the dimension of its input."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim}


@register_component
class FixedAffine(AffineForms, Component):
    """y = W x + b, with W and b that are not trained."""

    kind = "fixed_affine"
    kaldi_kind = "FixedAffineComponent"
    kaldi_kinds_read = ("FixedAffineComponent",)

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(output_dim, input_dim))
        self.register_buffer("bias", torch.zeros(output_dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@register_component
class PNorm(Component):
    """The p-norm of each group of input_dim / output_dim successive inputs.

    Attributes:
        fused: whether the component below already computes this; see `AcousticModel.training_layout`.
    """

    kind = "pnorm"
    kaldi_kind = "PnormComponent"
    kaldi_kinds_read = ("PnormComponent",)
    fused = False

    def __init__(self, input_dim: int, output_dim: int, p: float = 2.0) -> None:
        super().__init__(input_dim, output_dim)
        if input_dim % output_dim:
            raise ValueError(f"p-norm: output dimension {output_dim} does not divide input dimension {input_dim}")
        if not 1.0 <= p < float("inf"):
            raise ValueError(f"p-norm: p must be at least 1 and finite, got {p}")
        self.p = p

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"p": self.p}

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return x
        groups = x.reshape(*x.shape[:-1], self.output_dim, self.input_dim // self.output_dim)
        if self.p != 2.0:
            norm: Tensor = torch.linalg.vector_norm(groups, ord=self.p, dim=-1)
            return norm
        y: Tensor = TwoNorm.apply(groups)  # type: ignore[no-untyped-call]
        return y

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        return cls(positive(fields["InputDim"]), positive(fields["OutputDim"]), float(fields["P"]))

    def kaldi_fields(self) -> KaldiFields:
        return {"P": np.float32(self.p)}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        groups = graph.node("Reshape", x, graph.integers(-1, self.output_dim, self.input_dim // self.output_dim))
        if self.p == 2.0:
            return graph.node("ReduceL2", groups, graph.integers(2), keepdims=0)
        power = graph.node("Pow", graph.node("Abs", groups), graph.constant(np.array(self.p, np.float32)))
        total = graph.node("ReduceSum", power, graph.integers(2), keepdims=0)
        return graph.node("Pow", total, graph.constant(np.array(1.0 / self.p, np.float32)))


@register_component
class Normalize(Elementwise):
    """Scales each row to root-mean-square 1.

    Attributes:
        fused: whether the component below already computes this; see `AcousticModel.training_layout`.
    """

    kind = "normalize"
    kaldi_kind = "NormalizeComponent"
    kaldi_kinds_read = ("NormalizeComponent",)
    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return x
        y: Tensor = Normalized.apply(x)  # type: ignore[no-untyped-call]
        return y

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        mean = graph.node("ReduceMean", graph.node("Mul", x, x), graph.integers(1), keepdims=1)
        floored = graph.node("Max", mean, graph.constant(np.array(NORM_FLOOR, np.float32)))
        return graph.node("Div", x, graph.node("Sqrt", floored))


@register_component
class BatchNorm(Elementwise):
    """Scales each dimension to mean 0 and variance 1, over the minibatch in training, else by running statistics.

    The running mean and variance are buffers, so that averaging models averages them too.
    """

    kind = "batchnorm"
    kaldi_kind = "FixedAffineComponent"
    kaldi_kinds_read = ()

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(input_dim))
        self.register_buffer("running_var", torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        # nn.BatchNorm1d is not used since it counts minibatches, and an averaged count has no meaning. A single row, as
        # the last minibatch of an archive may be, has no variance and is scaled by the running statistics.
        rows = x.reshape(-1, x.shape[-1])
        y = nn.functional.batch_norm(
            rows,
            self.running_mean,
            self.running_var,
            training=self.training and len(rows) > 1,
            momentum=BATCHNORM_MOMENTUM,
            eps=BATCHNORM_EPSILON,
        )
        return y.reshape(x.shape)

    def kaldi_fields(self) -> KaldiFields:
        """The fixed affine component that batch normalisation is after training; nnet2 has no such component."""
        if self.input_dim > MAX_BATCHNORM:
            raise ValueError(f"batch normalisation of {self.input_dim} dimensions is too large for a matrix")
        scale = (self.running_var.double() + BATCHNORM_EPSILON).rsqrt()
        bias = -self.running_mean.double() * scale
        return {"LinearParams": to_array(torch.diag(scale)), "BiasParams": to_array(bias)}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        scale = (self.running_var + BATCHNORM_EPSILON).rsqrt()
        scaled = graph.node("Mul", x, graph.constant(to_array(scale)))
        return graph.node("Sub", scaled, graph.constant(to_array(self.running_mean * scale)))


@register_component
class ReLU(Elementwise):
    kind = "relu"
    kaldi_kind = "RectifiedLinearComponent"
    kaldi_kinds_read = ("RectifiedLinearComponent",)
    onnx_kind = "Relu"

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@register_component
class Tanh(Elementwise):
    kind = "tanh"
    kaldi_kind = "TanhComponent"
    kaldi_kinds_read = ("TanhComponent",)
    onnx_kind = "Tanh"

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@register_component
class Sigmoid(Elementwise):
    kind = "sigmoid"
    kaldi_kind = "SigmoidComponent"
    kaldi_kinds_read = ("SigmoidComponent",)
    onnx_kind = "Sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@register_component
class FixedScale(Elementwise):
    """Multiplies each dimension by a number that is not trained."""

    kind = "fixed_scale"
    kaldi_kind = "FixedScaleComponent"
    kaldi_kinds_read = ("FixedScaleComponent",)

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.scales: Tensor
        self.register_buffer("scales", torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        component = cls(positive(len(fields["Scales"])))
        component.scales = torch.from_numpy(np.array(fields["Scales"]))
        return component

    def kaldi_fields(self) -> KaldiFields:
        return {"Scales": to_array(self.scales)}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        return graph.node("Mul", x, graph.constant(to_array(self.scales)))


@register_component
class Softmax(Elementwise):
    """The *logarithm* of the softmax; its output is log posteriors."""

    kind = "softmax"
    kaldi_kind = "SoftmaxComponent"
    kaldi_kinds_read = ("SoftmaxComponent",)

    def forward(self, x: Tensor) -> Tensor:
        # The objective needs float32 under autocast.
        return torch.log_softmax(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dim=-1)

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        return graph.node("LogSoftmax", x, axis=1)


@register_component
class SumGroup(Component):
    """The logarithm of the summed probabilities of each group of successive inputs. It follows `Softmax`."""

    kind = "sum_group"
    kaldi_kind = "SumGroupComponent"
    kaldi_kinds_read = ("SumGroupComponent",)

    def __init__(self, input_dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__(input_dim, len(sizes))
        if sum(sizes) != input_dim or min(sizes) < 1:
            raise ValueError(f"sum-group: sizes must be positive and add up to {input_dim}, got {list(sizes)!s:.60}")
        self.sizes = sizes

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "sizes": list(self.sizes)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([group.logsumexp(dim=-1) for group in torch.split(x, list(self.sizes), dim=-1)], dim=-1)

    @classmethod
    def from_kaldi(cls, fields: KaldiFields) -> Self:
        return cls(int(fields["Sizes"].sum()), tuple(fields["Sizes"].tolist()) or (0,))

    def kaldi_fields(self) -> KaldiFields:
        return {"Sizes": np.array(self.sizes, np.int32)}

    def to_onnx(self, graph: OnnxGraph, x: str) -> str:
        ends = np.cumsum(self.sizes)
        groups = [graph.slice(x, 1, int(e) - n, int(e)) for e, n in zip(ends, self.sizes, strict=True)]
        sums = [graph.node("ReduceLogSumExp", group, graph.integers(1), keepdims=1) for group in groups]
        return graph.node("Concat", *sums, axis=1)


def from_spec(spec: dict[str, Any]) -> Component | Affine:
    """Makes a component from its specification; its arrays have their initial values.

    Raises:
        ValueError: the specification is malformed, or its kind is unknown.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "name")}
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        raise ValueError(f"unknown kind of component {spec.get('kind')!r}")
    for key in ("offsets", "sizes"):
        values = arguments.get(key)
        if values is not None:
            if not isinstance(values, list) or not values or not all(_is_int(value) for value in values):
                raise ValueError(f"{kind.kind}: {key} must be a list of integers, got {values!r}")
            arguments[key] = tuple(values)
    for key in ("input_dim", "output_dim", "const_dim"):
        if key in arguments and not (_is_int(arguments[key]) and 0 < arguments[key] < 2**31):
            raise ValueError(f"{kind.kind}: {key} must be a positive integer, got {arguments[key]!r}")
    try:
        return kind(**arguments)
    except TypeError as e:
        raise ValueError(f"{kind.kind}: {e}") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
