"""Phone recognition with a phone-bigram loop estimated from the training labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Subset

BLOCK = 1 << 20  # labels counted at a time, to bound memory

Doubles = npt.NDArray[np.float64]


class PhoneLoop:
    """A hidden Markov model whose states are the classes, ordered by phone.

    Args:
        training: subset from whose labels the transitions are counted. Each transition from a phone's last state to a
            phone's first state gets one count more, so that any phone may follow any other.
        phones: phone names; the first is silence.
        num_classes: number of classes, a multiple of the number of phones; each phone has equally many.
    """

    def __init__(self, training: Subset, phones: Sequence[str], num_classes: int) -> None:
        self.phones = phones
        self.num_states = num_classes // len(phones)
        counts = np.zeros(num_classes**2, np.int64)
        ends = training.starts[1:-1] - 1  # the step to the next utterance is not a transition
        for first in range(0, len(training.labels) - 1, BLOCK):
            block = np.array(training.labels[first : first + BLOCK + 1], np.int64)
            pairs = np.delete(
                block[:-1] * num_classes + block[1:], ends[(ends >= first) & (ends < first + BLOCK)] - first
            )
            counts += np.bincount(pairs, minlength=len(counts))
        weights = counts.reshape(num_classes, num_classes).astype(np.float64)
        weights[self.num_states - 1 :: self.num_states, :: self.num_states] += 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            # [i, j] is the transition from j to i: transposed, so that those into one class are contiguous.
            self._log_transitions: Doubles = np.ascontiguousarray(
                np.log(weights / weights.sum(axis=1, keepdims=True)).T
            )
        self._log_transitions[np.isnan(self._log_transitions)] = -np.inf  # 0 / 0 for classes without training frames

    def decode(self, log_likelihoods: npt.NDArray[np.floating], scale: float) -> list[str]:
        """Returns the phones of an utterance, without silence.

        Args:
            log_likelihoods: (T, C) log-likelihood of each frame for each class, up to a constant per frame; T >= 1.
            scale: acoustic scale, the factor for the log-likelihoods.
        """
        scores = np.asarray(log_likelihoods, np.float64) * scale
        T, C = scores.shape
        previous = np.empty((T, C), np.int64)
        best, all_states = scores[0], np.arange(C)
        for t in range(1, T):
            scored = self._log_transitions + best
            previous[t] = scored.argmax(axis=1)
            best = scored[all_states, previous[t]] + scores[t]
        path = [int(best.argmax())]
        for t in range(T - 1, 0, -1):
            path.append(int(previous[t, path[-1]]))
        return collapse(path[::-1], self.phones, self.num_states)


def collapse(path: Sequence[int], phones: Sequence[str], num_states: int) -> list[str]:
    """Converts a sequence of classes to phones, without silence.

    A new phone starts where the phone changes or the state number falls.

    Args:
        path: the classes, ordered by phone.
        phones: phone names; the first is silence.
        num_states: number of classes of each phone.
    """
    found: list[int] = []
    last = -1
    for label in path:
        phone = label // num_states
        if last < 0 or phone != last // num_states or label < last:
            found.append(phone)
        last = label
    return [phones[phone] for phone in found if phone]
