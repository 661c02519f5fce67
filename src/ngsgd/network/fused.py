"""A network whose trained part is a stack of affine components, computed by one operation forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ngsgd.network.affine import Affine
from ngsgd.network.components import Component, FixedAffine, FixedScale, Normalize, PNorm, Softmax, Splice
from ngsgd.ops import InputTransform, OutputLoss, forward_backward

#: The positions of its input that a splice concatenates; see `Splice.forward`.
Positions = Tensor | int

Kind = TypeVar("Kind", bound=nn.Module)


class FusedNetwork(NamedTuple):
    """A chain of components whose trained part is affine components, one above the other.

    `forward_backward` computes it without calling a module. That needs an optimiser that has hooks on all affine
    components, and no other hooks on any component.

    Attributes:
        below: components below the rest that are neither trained nor changed by training.
        splice: the splice below the fixed transform, or None.
        transform: the fixed affine component below the trained ones, or None.
        trained: the affine components, with the norms that they compute themselves and the splices between them.
        scale: the fixed scale below the softmax, or None.
        softmax: the end of the network.
    """

    below: tuple[Component | Affine, ...]
    splice: Splice | None
    transform: FixedAffine | None
    trained: tuple[Component | Affine, ...]
    scale: FixedScale | None
    softmax: Softmax

    def forward_backward(
        self, x: Tensor, positions: Iterator[Positions], labels: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Computes the loss and passes the rows of each affine component to its gradient hooks.

        Args:
            x: features (B, T, D).
            positions: for each splice of the chain, from the input to the output.
            labels: pdf-ids, int64, one for each row of the output.

        Returns:
            The loss and the number of correctly classified rows, both 0-d; None if autograd is needed: for a derivative
            with respect to x, a component without optimiser, or other hooks.
        """
        affines = [component for component in self.trained if isinstance(component, Affine)]
        layers = [layer for affine in affines if (layer := affine.hooked_layer()) is not None]
        needs_autograd = x.requires_grad or not (x.numel() and torch.is_grad_enabled())
        if needs_autograd or len(layers) < len(affines) or self._has_hooks():
            return None
        if self.below:
            with torch.no_grad():
                x = run_chain(self.below, x, positions)
        spliced = None if self.splice is None else next(positions)
        if isinstance(spliced, int):  # all of the input, in order
            x, spliced = x.reshape(len(x), spliced, -1), None
        depth = 0
        for component in self.trained:
            if isinstance(component, Affine):
                depth += 1
            elif isinstance(component, Splice) and isinstance(chosen := next(positions), Tensor):
                layers[depth] = layers[depth]._replace(positions=chosen)
        fixed = (None, None) if self.transform is None else (self.transform.weight, self.transform.bias)
        output = OutputLoss(None if self.scale is None else self.scale.scales, labels.reshape(-1))
        result = forward_backward(x.contiguous(), layers, InputTransform(spliced, *fixed), output)
        # From the uppermost component on, as autograd does.
        for affine, (inputs, dz) in zip(reversed(affines), reversed(result.rows), strict=True):
            affine.on_backward(inputs, dz)
        return result.loss, result.correct

    def _has_hooks(self) -> bool:
        parts = (*self.below, self.splice, self.transform, *self.trained, self.scale, self.softmax)
        return any(map(has_hooks, parts)) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def fuse(chain: Sequence[Component | Affine]) -> FusedNetwork | None:
    """Returns a chain of components as a fused network; None if its components are not of that form."""
    rest = list(chain)
    softmax, scale = _pop(rest, Softmax), _pop(rest, FixedScale)
    trained: list[Component | Affine] = []
    while rest and _may_be_between(rest[-1]):
        trained.insert(0, rest.pop())
    while trained and isinstance(trained[0], Splice):
        rest.append(trained.pop(0))
    if softmax is None or not trained or not isinstance(trained[-1], Affine) or trained[-1].norm is not None:
        return None
    if any(isinstance(a, Splice) and isinstance(b, Splice) for a, b in itertools.pairwise(trained)):
        return None
    transform = _pop(rest, FixedAffine)
    splice = _pop(rest, Splice) if rest and _splices_all(rest[-1]) else None
    if not all(isinstance(component, Splice | FixedAffine | FixedScale) for component in rest):
        return None
    return FusedNetwork(tuple(rest), splice, transform, tuple(trained), scale, softmax)


def _pop(rest: list[Component | Affine], kind: type[Kind]) -> Kind | None:
    """Removes and returns the uppermost component if it is of that kind, else returns None."""
    if not rest or not isinstance(component := rest[-1], kind):
        return None
    rest.pop()
    return component


def _may_be_between(component: Component | Affine) -> bool:
    is_fused_norm = isinstance(component, PNorm | Normalize) and component.fused
    return isinstance(component, Affine) or is_fused_norm or _splices_all(component)


def _splices_all(component: Component | Affine) -> bool:
    """Whether a component is a splice of all dimensions."""
    return isinstance(component, Splice) and not component.const_dim


def has_hooks(module: nn.Module | None) -> bool:
    return module is not None and bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def run_chain(chain: Iterable[Component | Affine], x: Tensor, positions: Iterator[Positions]) -> Tensor:
    """Passes x through the components one after the other; each splice takes the next of the positions."""
    for component in chain:
        x = component(x, next(positions)) if isinstance(component, Splice) else component(x)
    return x
