"""Decoding to phones, without words: any phone may follow any other, as likely as in the training labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Subset

BLOCK = 1 << 20  # labels counted at a time

Doubles = npt.NDArray[np.float64]


class PhoneLoop:
    """A hidden Markov model whose states are the classes: those of the first phone, those of the second, and so on.

    Args:
        training: the subset whose labels say what follows what. Besides, each phone may follow each, as if that had
            been seen once.
        phones: the names; the first is silence.
        num_classes: as many for each phone.
    """

    def __init__(self, training: Subset, phones: Sequence[str], num_classes: int) -> None:
        self.phones = phones
        self.num_states = num_classes // len(phones)
        counts = np.zeros(num_classes**2, np.int64)
        ends = training.starts[1:-1] - 1  # from the end of an utterance to the next one's begin is no transition
        for first in range(0, len(training.labels) - 1, BLOCK):
            block = np.array(training.labels[first : first + BLOCK + 1], np.int64)
            pairs = np.delete(
                block[:-1] * num_classes + block[1:], ends[(ends >= first) & (ends < first + BLOCK)] - first
            )
            counts += np.bincount(pairs, minlength=len(counts))
        seen = counts.reshape(num_classes, num_classes).astype(np.float64)
        seen[self.num_states - 1 :: self.num_states, :: self.num_states] += 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            # [i, j]: of going to i from j, so that what leads to one class lies together.
            self._log_transitions: Doubles = np.ascontiguousarray(np.log(seen / seen.sum(axis=1, keepdims=True)).T)
        self._log_transitions[np.isnan(self._log_transitions)] = -np.inf  # of classes that were never seen

    def decode(self, log_likelihoods: npt.NDArray[np.floating], scale: float) -> list[str]:
        """The phones of an utterance, silence left out.

        Args:
            log_likelihoods: (T, C) of the frames, up to a constant for each; T at least 1.
            scale: by which they are multiplied against the transitions.
        """
        scores = np.asarray(log_likelihoods, np.float64) * scale
        T, C = scores.shape
        came_from = np.empty((T, C), np.int64)
        best, every = scores[0], np.arange(C)
        for t in range(1, T):
            reached = self._log_transitions + best
            came_from[t] = reached.argmax(axis=1)
            best = reached[every, came_from[t]] + scores[t]
        path = [int(best.argmax())]
        for t in range(T - 1, 0, -1):
            path.append(int(came_from[t, path[-1]]))
        return self.collapse(path[::-1])

    def collapse(self, path: Sequence[int]) -> list[str]:
        """The phones of a sequence of classes, silence left out: a new one begins where the states do not go on."""
        found: list[int] = []
        last = -1
        for label in path:
            phone = label // self.num_states
            if last < 0 or phone != last // self.num_states or label < last:
                found.append(phone)
            last = label
        return [self.phones[phone] for phone in found if phone]
