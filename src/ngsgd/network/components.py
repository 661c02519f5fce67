"""Components of a network, named as in Kaldi's ``nnet2/nnet-component.h``.

A component maps (B, T, D_in) to (B, T', D_out): B examples, T frame positions. Only `Splice` reads several positions
and changes their number; `AcousticModel` chooses the positions. `from_spec` rebuilds a component from its ``spec``, a
dictionary that JSON can hold.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ngsgd.network.affine import Affine
from ngsgd.network.norms import Normalized, TwoNorm

MAX_OFFSET = 10000  # frames
BATCHNORM_EPSILON = 1.0e-3
BATCHNORM_MOMENTUM = 0.1  # weight of a minibatch in the running statistics


class Component(nn.Module):
    """Base class of components; all but `Splice` keep the number of positions."""

    kind: ClassVar[str]

    def __init__(self, input_dim: int, output_dim: int | None = None) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = input_dim if output_dim is None else output_dim

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "output_dim": self.output_dim}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.spec().items() if key != "kind")


class Splice(Component):
    """Concatenates the frames at ``offsets`` from each output position, the earliest first.

    The last ``const_dim`` dimensions, such as an i-vector's, are not spliced but appended once. As in Kaldi, the i-th
    output takes them from the i-th input, whatever its time; all frames of an example have the same values there.
    """

    kind = "splice"

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


class Elementwise(Component):
    """A component whose output has the dimension of its input."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim}


class FixedAffine(Component):
    """y = W x + b, with W and b that are not trained."""

    kind = "fixed_affine"

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__(input_dim, output_dim)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(output_dim, input_dim))
        self.register_buffer("bias", torch.zeros(output_dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class PNorm(Component):
    """The p-norm of each group of input_dim / output_dim successive inputs.

    Attributes:
        fused: whether the component below already computes this; see `AcousticModel.training_layout`.
    """

    kind = "pnorm"
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


class Normalize(Elementwise):
    """Scales each row to root-mean-square 1.

    Attributes:
        fused: whether the component below already computes this; see `AcousticModel.training_layout`.
    """

    kind = "normalize"
    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return x
        y: Tensor = Normalized.apply(x)  # type: ignore[no-untyped-call]
        return y


class BatchNorm(Elementwise):
    """Scales each dimension to mean 0 and variance 1, over the minibatch in training, else by running statistics.

    The running mean and variance are buffers, so that averaging models averages them too.
    """

    kind = "batchnorm"

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


class ReLU(Elementwise):
    kind = "relu"

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Tanh(Elementwise):
    kind = "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class Sigmoid(Elementwise):
    kind = "sigmoid"

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class FixedScale(Elementwise):
    """Multiplies each dimension by a number that is not trained."""

    kind = "fixed_scale"

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.scales: Tensor
        self.register_buffer("scales", torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales


class Softmax(Elementwise):
    """The *logarithm* of the softmax; its output is log posteriors."""

    kind = "softmax"

    def forward(self, x: Tensor) -> Tensor:
        # The objective needs float32 under autocast.
        return torch.log_softmax(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dim=-1)


class SumGroup(Component):
    """The logarithm of the summed probabilities of each group of successive inputs. It follows `Softmax`."""

    kind = "sum_group"

    def __init__(self, input_dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__(input_dim, len(sizes))
        if sum(sizes) != input_dim or min(sizes) < 1:
            raise ValueError(f"sum-group: sizes must be positive and add up to {input_dim}, got {list(sizes)!s:.60}")
        self.sizes = sizes

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "input_dim": self.input_dim, "sizes": list(self.sizes)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([group.logsumexp(dim=-1) for group in torch.split(x, list(self.sizes), dim=-1)], dim=-1)


KINDS: dict[str, type[Component] | type[Affine]] = {
    kind.kind: kind
    for kind in (
        Splice, FixedAffine, Affine, PNorm, Normalize, BatchNorm, ReLU, Tanh, Sigmoid, FixedScale, Softmax,
        SumGroup,
    )
}  # fmt: skip


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
