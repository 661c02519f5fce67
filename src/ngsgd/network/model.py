"""The acoustic model: a chain of components that computes each layer only at the frame positions it needs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngsgd.errors import ModelError
from ngsgd.network.affine import Affine
from ngsgd.network.components import Component, Normalize, PNorm, Splice, from_spec
from ngsgd.network.fused import FusedNetwork, fuse, has_hooks, run_chain
from ngsgd.network.storage import FORMAT, Header, read_model, write_model
from ngsgd.ops import Norm

LOG_FLOOR = math.log(1.0e-20)
PRIOR_FLOOR = 1.0e-20
NO_LABEL = torch.iinfo(torch.int64).min


@functools.lru_cache(maxsize=64)
def splice_positions(
    offsets: tuple[tuple[int, ...], ...], num_frames: int, device: torch.device
) -> tuple[Tensor | int, ...]:
    """Computes which input positions each splice of a chain reads.

    Args:
        offsets: offsets of each splice, from the input to the output of the network.
        num_frames: T, number of successive frames to compute the output for.
        device: device of the indices.

    Returns:
        For each splice a tensor (T', K) of indices into the sorted positions that its input is computed at, for T'
        output positions and K offsets; or the number T', if these indices are all positions in order. For the chain
        -2:-1:0:1:2, -2:1, -3:3 and T = 1, T' is 4, 2 and 1, and the second and third splice get a number.
    """
    needed = list(range(num_frames))
    rows: list[Tensor | int] = []
    for depth, layer in reversed(list(enumerate(offsets))):
        below = sorted({t + o for t in needed for o in layer})
        if depth == 0:  # an example holds contiguous frames, even if some are not needed
            below = list(range(below[0], below[-1] + 1))
        index = {t: i for i, t in enumerate(below)}
        chosen = [[index[t + o] for o in layer] for t in needed]
        in_order = list(itertools.chain(*chosen)) == list(range(len(below)))
        rows.append(len(needed) if in_order else torch.tensor(chosen, device=device))
        needed = below
    return tuple(reversed(rows))


class AcousticModel(nn.Module):
    """A chain of components from features to log posteriors over the classes (pdf-ids).

    Args:
        components: name and component, from the input to the output, which gives log posteriors.
        history: record of the training, a dictionary that JSON can hold; saved with the model.

    Attributes:
        left_context, right_context: number of frames needed before and after a frame to classify it.
        priors: (C,) class probabilities, by which posteriors are divided for decoding; or None.

    Raises:
        ValueError: the chain is empty, or two neighbours differ in dimension.
    """

    def __init__(
        self, components: Iterable[tuple[str, Component | Affine]], history: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.components = nn.ModuleDict(dict(components))
        self.history: dict[str, Any] = {"iterations": []} if history is None else history
        self.priors: Tensor | None
        self.register_buffer("priors", None)
        chain = self.chain()
        if not chain:
            raise ValueError("a network has at least one component")
        for below, above in itertools.pairwise(chain):
            if below.output_dim != above.input_dim:
                raise ValueError(
                    f"{below.kind} gives {below.output_dim} dimensions, {above.kind} takes {above.input_dim}"
                )
        self._fused: FusedNetwork | None = None  # inside a training_layout block, if the chain can be fused
        self._offsets = tuple(c.offsets for c in chain if isinstance(c, Splice))
        self.left_context = -sum(min(o) for o in self._offsets)
        self.right_context = sum(max(o) for o in self._offsets)
        self.input_dim = chain[0].input_dim
        self.num_classes = chain[-1].output_dim

    def chain(self) -> list[Component | Affine]:
        """The components in order."""
        return list(self.components.values())  # type: ignore[arg-type]  # ModuleDict knows only Module

    def forward(self, x: Tensor) -> Tensor:
        """Computes log posteriors of the frames that have full context.

        Args:
            x: (B, left_context + T + right_context, D) features.

        Returns:
            (B, T, C).

        Raises:
            ValueError: the features have another dimension, or are too few.
        """
        return run_chain(self.chain(), x, self._positions(x))

    def backpropagate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the loss, minus the log posteriors of the frames' labels, summed, and its derivatives.

        In a `training_layout` block, with an optimiser that has hooks on all affine components, as `NGSGD` does, one
        operation computes everything, without autograd. Otherwise, and under autocast, this is ``loss.backward()``. The
        optimiser receives the same in both cases, up to rounding.

        Args:
            x: as for `forward`.
            labels: (B, T) or, of one frame each, (B,): pdf-ids, int64.

        Returns:
            The loss, 0-d, and how many labels are the most likely class, 0-d.

        Raises:
            ValueError: the features have another dimension, or are too few, or there is another number of labels.
            IndexError: a label is out of range.
        """
        kind = x.device.type
        if self._fused is not None and not torch.is_autocast_enabled(kind) and not has_hooks(self):
            result = self._fused.forward_backward(x, self._positions(x), labels)
            if result is not None:
                return result
        log_posteriors, classes = self(x).flatten(0, 1), labels.reshape(-1)
        with torch.autocast(kind, enabled=False):
            # ignore_index must not hide a label that is out of range.
            summed = nn.functional.nll_loss(log_posteriors, classes, ignore_index=NO_LABEL, reduction="sum")
            torch.autograd.backward(summed)
            return summed.detach(), (log_posteriors.detach().argmax(dim=1) == classes).sum()

    def _positions(self, x: Tensor) -> Iterator[Tensor | int]:
        """The positions of each splice, for features (B, left_context + T + right_context, D)."""
        if x.dim() != 3 or x.shape[2] != self.input_dim:
            raise ValueError(f"expected features (B, T, {self.input_dim}), got shape {tuple(x.shape)}")
        num_frames = x.shape[1] - self.left_context - self.right_context
        if num_frames < 1:
            raise ValueError(f"{x.shape[1]} frames are fewer than the network's context")
        return iter(splice_positions(self._offsets, num_frames, x.device))

    @torch.no_grad()
    def log_posteriors(self, features: Tensor) -> Tensor:
        """Computes log posteriors of all frames of an utterance; the first and last frame are repeated for context.

        Args:
            features: (T, D).

        Returns:
            (T, C).
        """
        before = features[:1].expand(self.left_context, -1)
        after = features[-1:].expand(self.right_context, -1)
        y: Tensor = self(torch.cat((before, features, after))[None])
        return y[0]

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Computes log-likelihoods (T, C) for decoding: log posteriors minus log priors, normalised per frame.

        Posteriors are floored to 1e-20, the quotients of each frame are normalised to sum to one, and are floored to
        1e-20 again. Source: ``nnet-am-compute --divide-by-priors --apply-log``.

        Raises:
            ModelError: the model has no priors; only a final model has.
        """
        if self.priors is None:
            raise ModelError("the model has no priors, which decoding needs; use the run's final model")
        likelihoods = self.log_posteriors(features).clamp(min=LOG_FLOOR) - self.priors.clamp(min=PRIOR_FLOOR).log()
        return torch.log_softmax(likelihoods, dim=-1).clamp(min=LOG_FLOOR)

    @contextlib.contextmanager
    def training_layout(self) -> Iterator[None]:
        """Stores the parameters as training is fastest, for the duration of a block.

        - The outputs of affine components below 2-norms are reordered so that the members of a group are far apart:
          with (B, T, k, G) instead of (B, T, G, k) the norm takes a third of the time. These components compute the
          norms, and their normalisation, themselves.
        - On the CPU the bias of each affine component becomes a column of its weight matrix.
        - A chain that can be fused is computed by one operation; see `backpropagate`.

        The model computes the same up to rounding. At the end of the block everything is as before; the model cannot
        be saved inside it. An optimiser may be made before the block or in it, but its steps must be all inside the
        block or all outside. Components must not be replaced inside it, and a graph can be used for one backward pass
        only, because that overwrites the outputs of affine components.
        """
        chain = self.chain()
        # On a GPU products may be rounded to tf32, which biases must not be.
        affines = [c for c in chain if isinstance(c, Affine) and c.weight.is_cpu]
        above = [*chain[2:], None, None]
        norms = [
            (affine, pnorm, follower if isinstance(follower, Normalize) else None)
            for affine, pnorm, follower in zip(chain, chain[1:], above, strict=False)
            if isinstance(affine, Affine) and isinstance(pnorm, PNorm) and pnorm.p == 2.0
        ]
        try:
            for affine, pnorm, normalize in norms:
                order = np.arange(pnorm.input_dim).reshape(pnorm.output_dim, -1).T
                affine.reorder_outputs(tuple(order.flatten().tolist()))
                affine.norm = Norm(len(order), normalized=normalize is not None)
                pnorm.fused = True
                if normalize is not None:
                    normalize.fused = True
            for affine in affines:
                affine.fuse_bias(True)
            self._fused = fuse(chain)
            yield
        finally:
            self._fused = None
            for affine in affines:
                affine.fuse_bias(False)
            for affine, pnorm, normalize in norms:
                affine.reorder_outputs(None)
                affine.norm = None
                pnorm.fused = False
                if normalize is not None:
                    normalize.fused = False

    def architecture(self) -> list[dict[str, Any]]:
        if any(isinstance(component, Affine) and component.output_order for component in self.chain()):
            raise RuntimeError("the model's parameters are in training layout: leave that block before saving it")
        named = zip(self.components.keys(), self.chain(), strict=True)
        return [{"name": name} | component.spec() for name, component in named]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model whole or not at all; the same model gives the same bytes.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        write_model(path, arrays, Header(format=FORMAT, architecture=self.architecture(), history=self.history))


def load_model(path: str | os.PathLike[str]) -> AcousticModel:
    """Loads a model from its file; no code from the file is run.

    Raises:
        ModelError: the file is missing, truncated, not a model, or its arrays do not match its architecture.
    """
    arrays, header = read_model(path)
    try:
        # No memory is allocated before the arrays are checked against the architecture.
        with torch.device("meta"):
            names = [str(spec.get("name")) for spec in header["architecture"]]
            if len(set(names)) != len(names):
                raise ValueError("two components have the same name")
            components = zip(names, map(from_spec, header["architecture"]), strict=True)
            model = AcousticModel(components, header["history"])
            if "priors" in arrays:
                model.register_buffer("priors", torch.empty(model.num_classes))
    except (ValueError, KeyError, RuntimeError, TypeError) as e:
        raise ModelError(f"{os.fspath(path)}: malformed architecture: {e}") from None
    state = model.state_dict()
    dtypes = {array.dtype for array in arrays.values()}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        found = ", ".join(sorted(map(str, dtypes)))
        raise ModelError(f"{os.fspath(path)}: arrays of type {found}, expected all float32 or all float64")
    for name in sorted(state.keys() | arrays.keys()):
        if name not in arrays or name not in state:
            raise ModelError(f"{os.fspath(path)}: array {name} is {'missing' if name in state else 'not expected'}")
        if arrays[name].shape != tuple(state[name].shape):
            raise ModelError(
                f"{os.fspath(path)}: array {name} is {arrays[name].shape}, its architecture says "
                f"{tuple(state[name].shape)}"
            )
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
    return model
