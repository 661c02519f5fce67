"""Components that are passed through at once: affine ones with the norms that they make themselves (see `Norm`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from ngsgd.network.affine import Affine, pass_through
from ngsgd.network.components import Component, Normalize, PNorm, Splice


class Stack:
    """Affine components one above the other, with nothing in between but what the lower ones do, and splices.

    Where an optimiser watches all of them, nobody else does by hooks, and the splices just put side by side what there
    is, they are one compiled piece, and their modules are not called.
    """

    def __init__(self, components: Sequence[Component | Affine]) -> None:
        self.components = components
        self.affines = [c for c in components if isinstance(c, Affine)]
        self.num_splices = sum(isinstance(c, Splice) for c in components)

    def __call__(self, x: Tensor, rows: Iterator[Tensor | int]) -> Tensor:
        """What comes out, (B, T', D_out), of x (B, T, D_in), with the splices' rows, see `Splice`."""
        chosen = [next(rows) for _ in range(self.num_splices)]
        plain = all(isinstance(those, int) for those in chosen) and not any(_has_hooks(c) for c in self.components)
        if plain and (y := pass_through(x, self.affines)) is not None:
            return y
        return run(self.components, x, iter(chosen))


def _has_hooks(component: nn.Module) -> bool:
    hooks = component._forward_hooks, component._forward_pre_hooks, component._backward_hooks
    return any(hooks) or bool(component._backward_pre_hooks)


def run(parts: Iterable[Component | Affine | Stack], x: Tensor, rows: Iterator[Tensor | int]) -> Tensor:
    """Passes x through one part after the other; each splice takes its rows from those that are given."""
    for part in parts:
        match part:
            case Stack():
                x = part(x, rows)
            case Splice():
                x = part(x, next(rows))
            case _:
                x = part(x)
    return x


def stacked(chain: Iterable[Component | Affine]) -> list[Component | Affine | Stack]:
    """The same chain, with stacks of its components where there may be such."""
    parts: list[Component | Affine | Stack] = []
    pile: list[Component | Affine] = []  # on a first affine component

    def finish() -> None:
        above = []
        while pile and isinstance(pile[-1], Splice):
            above.append(pile.pop())
        parts.extend([Stack(tuple(pile))] if pile else [])
        parts.extend(reversed(above))
        pile.clear()

    for component in chain:
        done = isinstance(component, PNorm | Normalize) and component.done_below
        plain = isinstance(component, Splice) and not component.const_dim
        if isinstance(component, Affine) or (pile and (done or plain)):
            pile.append(component)
        else:
            finish()
            parts.append(component)
    finish()
    return parts
