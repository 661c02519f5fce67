"""A network as one compiled piece: its affine components, and what stands below, between and above them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ngsgd.kernels.stack import Base, Top, there_and_back
from ngsgd.network.affine import Affine
from ngsgd.network.components import Component, FixedAffine, FixedScale, Normalize, PNorm, Softmax, Splice

#: Which positions of a splice's input it puts side by side, see `Splice`.
Rows = Tensor | int

Kind = TypeVar("Kind", bound=nn.Module)


class Stack(NamedTuple):
    """A network of which all that is trained is affine components one above the other.

    Where an optimiser watches all of these, and nobody else looks at a component by hooks, the way through them and
    back is one compiled piece: no module is called.

    Attributes:
        below: what is no part of it: components that are neither trained nor changed by training.
        splice, fixed: what stands below the affine components, if there is such.
        middle: the affine ones, with the norms that they make themselves (see `Norm`) and splices in between.
        scale: what stands above them, if there is such, below the softmax.
        softmax: the end of the network.
    """

    below: tuple[Component | Affine, ...]
    splice: Splice | None
    fixed: FixedAffine | None
    middle: tuple[Component | Affine, ...]
    scale: FixedScale | None
    softmax: Softmax

    def backpropagate(self, x: Tensor, rows: Iterator[Rows], labels: Tensor) -> tuple[float, int] | None:
        """The loss of features x (B, T, D), and how many labels are right; None where that cannot be done at once.

        Those who watch the affine components are given their rows.
        """
        affines = [c for c in self.middle if isinstance(c, Affine)]
        layers = [layer for affine in affines if (layer := affine.trained()) is not None]
        wanted = x.requires_grad or not (x.numel() and torch.is_grad_enabled())
        if wanted or len(layers) < len(affines) or self._is_looked_at():
            return None
        if self.below:
            with torch.no_grad():
                x = run(self.below, x, rows)
        chosen = None if self.splice is None else next(rows)
        if isinstance(chosen, int):  # all of the input, in its order
            x, chosen = x.reshape(len(x), chosen, -1), None
        depth = 0
        for component in self.middle:
            if isinstance(component, Affine):
                depth += 1
            elif isinstance(component, Splice) and isinstance(those := next(rows), Tensor):
                layers[depth] = layers[depth]._replace(chosen=those)
        fixed = (None, None) if self.fixed is None else (self.fixed.weight, self.fixed.bias)
        top = Top(None if self.scale is None else self.scale.scales, labels.reshape(-1))
        passed = there_and_back(x.contiguous(), layers, Base(chosen, *fixed), top)
        if passed is None:
            return None
        # From the uppermost on, as autograd would.
        for affine, (inputs, dz) in zip(reversed(affines), reversed(passed.rows), strict=True):
            affine.seen(inputs, dz)
        return passed.loss, passed.correct

    def _is_looked_at(self) -> bool:
        parts = (*self.below, self.splice, self.fixed, *self.middle, self.scale, self.softmax)
        return any(map(has_hooks, parts)) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def stack_of(chain: Sequence[Component | Affine]) -> Stack | None:
    """A chain of components as a stack, if it is one."""
    rest = list(chain)
    softmax, scale = _taken(rest, Softmax), _taken(rest, FixedScale)
    middle: list[Component | Affine] = []
    while rest and _belongs_between(rest[-1]):
        middle.insert(0, rest.pop())
    while middle and isinstance(middle[0], Splice):
        rest.append(middle.pop(0))
    if softmax is None or not middle or not isinstance(middle[-1], Affine) or middle[-1].norm is not None:
        return None
    if any(isinstance(a, Splice) and isinstance(b, Splice) for a, b in itertools.pairwise(middle)):
        return None
    fixed = _taken(rest, FixedAffine)
    splice = _taken(rest, Splice) if rest and _is_plain(rest[-1]) else None
    if not all(isinstance(component, Splice | FixedAffine | FixedScale) for component in rest):
        return None
    return Stack(tuple(rest), splice, fixed, tuple(middle), scale, softmax)


def _taken(rest: list[Component | Affine], kind: type[Kind]) -> Kind | None:
    """The uppermost component, which is taken off, if it is of that kind."""
    if not rest or not isinstance(component := rest[-1], kind):
        return None
    rest.pop()
    return component


def _belongs_between(component: Component | Affine) -> bool:
    done = isinstance(component, PNorm | Normalize) and component.fused
    return isinstance(component, Affine) or done or _is_plain(component)


def _is_plain(component: Component | Affine) -> bool:
    return isinstance(component, Splice) and not component.const_dim


def has_hooks(module: nn.Module | None) -> bool:
    return module is not None and bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def run(chain: Iterable[Component | Affine], x: Tensor, rows: Iterator[Rows]) -> Tensor:
    """Passes x through one component after the other; each splice takes its rows from those that are given."""
    for component in chain:
        x = component(x, next(rows)) if isinstance(component, Splice) else component(x)
    return x
