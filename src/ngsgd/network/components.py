"""The components of a network: what Kaldi's ``nnet2/nnet-component.h`` calls by the same names.

A component maps (B, T, D_in) to (B, T', D_out): B examples, T frame positions. Only `Splice` looks at several
positions and changes their number; which positions there are is the model's business. Every component can be made
again from its ``spec``, a dictionary of what JSON can hold.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ngsgd.network.affine import Affine
from ngsgd.network.norms import Normalized, TwoNorm

MAX_OFFSET = 10000  # frames
BATCHNORM_EPSILON = 1.0e-3
BATCHNORM_MOMENTUM = 0.1  # share of a minibatch in the running statistics


class Component(nn.Module):
    """A component whose output has as many positions as its input."""

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
    """Puts the frames at ``offsets`` from a position side by side, the earliest first.

    The last ``const_dim`` dimensions, such as an i-vector's, are not spliced but appended once. As in the reference,
    where they come from is a matter of counting and not of time: for the i-th output, from the i-th input. In
    examples all frames have the same.
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
        """The frames at each output position side by side.

        Args:
            x: (B, T, D).
            rows: the T-index of each offset for each output position, (T', K); or T', where all of the input's
                positions in order are what is to be put side by side.

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
    """y = W x + b with W and b that are not trained."""

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
        fused: whether the component below does so already; see `AcousticModel.training_layout`.
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
        fused: whether the component below does so already; see `AcousticModel.training_layout`.
    """

    kind = "normalize"
    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return x
        y: Tensor = Normalized.apply(x)  # type: ignore[no-untyped-call]
        return y


class BatchNorm(Elementwise):
    """Scales each dimension to mean 0 and variance 1, over the minibatch's rows or, in use, over those of training.

    The running mean and variance are buffers of the model: averaging models averages them.
    """

    kind = "batchnorm"

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(input_dim))
        self.register_buffer("running_var", torch.ones(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        # Not nn.BatchNorm1d, which keeps a count of minibatches that has no meaning in an average of models. A single
        # row, as the last minibatch of an archive may be, has no variance: it is taken as in use.
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
    """The *logarithm* of the softmax: what comes out are log posteriors."""

    kind = "softmax"

    def forward(self, x: Tensor) -> Tensor:
        # The objective is not to have the precision of products.
        return torch.log_softmax(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dim=-1)


class SumGroup(Component):
    """The logarithm of the sum of the probabilities in each group of successive inputs: it stands above `Softmax`."""

    kind = "sum_group"

    def __init__(self, input_dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__(input_dim, len(sizes))
        if sum(sizes) != input_dim or min(sizes) < 1:
            raise ValueError(f"sum-group: sizes that add up to {sum(sizes)}, input dimension {input_dim}")
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
    """The component that a specification describes, its parameters and buffers zero.

    Raises:
        ValueError: the specification is not one of a component.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "name")}
    kind = KINDS.get(str(spec.get("kind")))
    if kind is None:
        raise ValueError(f"unknown kind of component {spec.get('kind')!r}")
    for key in ("offsets", "sizes"):
        listed = arguments.get(key)
        if listed is not None:
            if not isinstance(listed, list) or not listed or not all(_is_int(o) for o in listed):
                raise ValueError(f"{kind.kind}: {key} must be a list of integers, got {listed!r}")
            arguments[key] = tuple(listed)
    for key in ("input_dim", "output_dim", "const_dim"):
        if key in arguments and not (_is_int(arguments[key]) and 0 < arguments[key] < 2**31):
            raise ValueError(f"{kind.kind}: {key} must be a positive integer, got {arguments[key]!r}")
    try:
        return kind(**arguments)
    except TypeError as e:
        raise ValueError(f"{kind.kind}: {e}") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
