"""What happens to speech on its way to a microphone: another speed, a room, noise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, signal

Floats = npt.NDArray[np.float32]

HALF_WIDTH = 10  # zero crossings of the resampling filter on each side
KAISER = 5.0


@lru_cache(maxsize=8)
def _filter(up: int, down: int) -> Any:
    widest = max(up, down)
    taps = signal.firwin(2 * HALF_WIDTH * widest + 1, 1.0 / widest, window=("kaiser", KAISER))
    return np.asarray(taps, np.float32)


def resample(samples: Floats, rate: int, new_rate: int) -> Floats:
    """Samples (n,) at another rate, a second; told a false rate, it makes speech faster or slower."""
    common = int(np.gcd(rate, new_rate))
    up, down = new_rate // common, rate // common
    return np.asarray(signal.resample_poly(samples, up, down, window=_filter(up, down)), np.float32)


def reverberate(samples: Floats, rate: int, seconds: float, share: float, rng: np.random.Generator) -> Floats:
    """Samples (n,) as they sound in a room; what comes directly is not delayed.

    Args:
        samples: dry.
        rate: of them, a second.
        seconds: T60, in which the room's answer falls by 60 dB.
        share: energy of what the walls send back, of that which comes directly.
        rng: makes the room, an exponentially falling noise.
    """
    length = int(seconds * rate)
    decay = 10.0 ** (-3.0 * np.arange(length) / length)
    walls = rng.standard_normal(length) * decay
    walls *= np.sqrt(share / np.square(walls).sum())
    walls[0] += 1.0
    n = fft.next_fast_len(len(samples) + length - 1, real=True)
    wet = fft.irfft(fft.rfft(samples, n) * fft.rfft(walls, n), n)[: len(samples)]
    return wet.astype(np.float32)


def add_noise(samples: Floats, slope: float, snr_db: float, rng: np.random.Generator) -> Floats:
    """Samples (n,) with noise.

    Args:
        samples: without.
        slope: its power falls as the frequency to this power: 0 is white, 1 pink, 2 brown.
        snr_db: energy of the samples to that of the noise, decibels.
        rng: makes it.
    """
    n = fft.next_fast_len(len(samples), real=True)
    spectrum = rng.standard_normal(n // 2 + 1) + 1j * rng.standard_normal(n // 2 + 1)
    spectrum *= np.maximum(np.arange(n // 2 + 1), 1.0) ** (-slope / 2.0)
    noise = fft.irfft(spectrum, n)[: len(samples)]
    noise *= np.sqrt(np.square(samples, dtype=np.float64).sum() / np.square(noise).sum() / 10.0 ** (snr_db / 10.0))
    return (samples + noise).astype(np.float32)
