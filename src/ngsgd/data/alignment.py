"""Left-to-right Viterbi alignment of frames to a chain of states, and word models trained with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats

from ngsgd.data.corpus import Float32s, Int32s, WordModel

MAX_ROUNDS = 100
VARIANCE_FLOOR = 0.01  # smallest variance of a state, as a share of the variance over all frames
MIN_PROBABILITY = 0.01  # smallest probability of staying in or of leaving a state

Floats = npt.NDArray[np.float64]
States = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


def equal_segments(num_frames: int, num_states: int) -> States:
    """Returns states (num_frames,) of a uniform segmentation: each state in turn, for nearly equally many frames."""
    return np.arange(num_frames, dtype=np.int64) * num_states // num_frames


def viterbi(scores: Floats, log_stay: Floats, log_leave: Floats) -> tuple[float, States]:
    """Finds the best path through a chain, from its first state to its last, with at least one frame in each.

    Args:
        scores: (T, S) log-likelihood of each frame in each state, T >= S.
        log_stay, log_leave: (S,) log-probabilities of the two transitions of each state.

    Returns:
        The path's log-likelihood, including the transition out of the last state, and the states (T,).
    """
    T, S = scores.shape
    best = np.full(S, -np.inf)
    best[0] = scores[0, 0]
    entered = np.zeros((T, S), dtype=np.bool_)  # whether the state was entered at this frame
    entering = np.full(S, -np.inf)
    for t in range(1, T):
        staying = best + log_stay
        entering[1:] = best[:-1] + log_leave[:-1]
        entered[t] = entering > staying
        best = np.maximum(entering, staying) + scores[t]
    states = np.empty(T, np.int64)
    s = S - 1
    for t in range(T - 1, -1, -1):
        states[t] = s
        s -= int(entered[t, s])
    return float(best[-1] + log_leave[-1]), states


@dataclass(frozen=True)
class Chain:
    """A model of one word: a left-to-right chain of states, each with a diagonal-covariance Gaussian.

    Attributes:
        means, deviations: (S, dim) means and standard deviations of the Gaussians.
        log_stay, log_leave: (S,) log-probabilities of the two transitions of each state.
    """

    means: Floats
    deviations: Floats
    log_stay: Floats
    log_leave: Floats

    @classmethod
    def estimate(cls, features: Sequence[Float32s], paths: Sequence[States], num_states: int, floor: Floats) -> Chain:
        """Returns the maximum-likelihood chain for aligned frames; ``floor`` (dim,) is the smallest variance."""
        frames, states = np.concatenate(features).astype(np.float64), np.concatenate(paths)
        own = [frames[states == s] for s in range(num_states)]
        means = np.array([f.mean(axis=0) for f in own])
        deviations = np.sqrt(np.maximum([f.var(axis=0) for f in own], floor))
        leave = np.clip(len(paths) / np.array([len(f) for f in own]), MIN_PROBABILITY, 1.0 - MIN_PROBABILITY)
        return cls(means, deviations, np.log1p(-leave), np.log(leave))

    def align(self, features: Sequence[Float32s]) -> list[States]:
        """Returns the state of each frame of some recordings, which must have at least as many frames as states."""
        frames = np.concatenate(features).astype(np.float64)[:, None]
        scores = np.asarray(scipy.stats.norm.logpdf(frames, self.means, self.deviations)).sum(axis=2)
        ends = np.cumsum([len(f) for f in features])[:-1]
        return [viterbi(part, self.log_stay, self.log_leave)[1] for part in np.split(scores, ends)]


def train_chain(features: Sequence[Float32s], num_states: int, floor: Floats) -> Chain:
    """Trains the chain of one word: starts from equal segments, then realigns until the alignment does not change.

    Args:
        features: (frames, dim) for each of the word's recordings, each with at least num_states frames.
        num_states: S, number of states.
        floor: (dim,) smallest variance.
    """
    paths = [equal_segments(len(f), num_states) for f in features]
    for round_ in range(MAX_ROUNDS):
        chain = Chain.estimate(features, paths, num_states, floor)
        new = chain.align(features)
        if all(np.array_equal(a, b) for a, b in zip(paths, new, strict=True)):
            log.info("alignment converged in round %d", round_)
            return chain
        paths = new
    log.warning("alignment did not converge in %d rounds; the last one is used", MAX_ROUNDS)
    return chain


def realign_labels(labels: Int32s, log_likelihoods: npt.NDArray[np.floating]) -> Int32s:
    """Realigns an utterance's labels: keeps the sequence of classes, each with at least one frame.

    Args:
        labels: (T,) current labels.
        log_likelihoods: (T, C) log-likelihood of each frame for each class.

    Returns:
        (T,) the new labels.
    """
    sequence = labels[np.concatenate(([0], np.flatnonzero(np.diff(labels)) + 1))]
    free = np.zeros(len(sequence))
    return sequence[viterbi(log_likelihoods[:, sequence].astype(np.float64), free, free)[1]]


def decode_word(log_likelihoods: npt.NDArray[np.floating], words: Sequence[WordModel]) -> str:
    """Recognises an isolated word.

    Args:
        log_likelihoods: (T, C) log-likelihood of each frame for each class.
        words: the candidates; words with more states than there are frames are skipped.

    Returns:
        The word whose model has the highest likelihood; empty if all candidates are too long.
    """
    scored = [
        (
            viterbi(log_likelihoods[:, m.classes].astype(np.float64), np.array(m.log_stay), np.array(m.log_leave))[0],
            m.word,
        )
        for m in words
        if len(m.classes) <= len(log_likelihoods)
    ]
    return max(scored)[1] if scored else ""
