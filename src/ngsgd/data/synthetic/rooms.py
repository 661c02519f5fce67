"""Augmentation of speech: resampling and speed, reverberation, noise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

HALF_WIDTH = 10  # zero crossings of the resampling filter on each side
KAISER = 5.0


@lru_cache(maxsize=8)
def _filter(up: int, down: int) -> Any:
    from scipy import signal  # takes a second, and every call of the workflow imports this module

    widest = max(up, down)
    taps = signal.firwin(2 * HALF_WIDTH * widest + 1, 1.0 / widest, window=("kaiser", KAISER))
    return np.asarray(taps, np.float32)


def resample(samples: Floats, rate: int, new_rate: int) -> Floats:
    """Resamples (n,) from one rate to another (Hz); a false ``rate`` changes the speed of speech."""
    from scipy import signal  # takes a second, and every call of the workflow imports this module

    common = int(np.gcd(rate, new_rate))
    up, down = new_rate // common, rate // common
    return np.asarray(signal.resample_poly(samples, up, down, window=_filter(up, down)), np.float32)


def reverberate(samples: Floats, rate: int, seconds: float, share: float, rng: np.random.Generator) -> Floats:
    """Adds reverberation to samples (n,); the direct sound is not delayed.

    Args:
        samples: dry speech.
        rate: sampling rate, Hz.
        seconds: T60, the time in which the impulse response decays by 60 dB.
        share: energy of the reflections relative to that of the direct sound.
        rng: generates the impulse response, exponentially decaying noise.
    """
    from scipy import fft  # takes a second, and every call of the workflow imports this module

    length = int(seconds * rate)
    decay = 10.0 ** (-3.0 * np.arange(length) / length)
    response = rng.standard_normal(length) * decay
    response *= np.sqrt(share / np.square(response).sum())
    response[0] += 1.0
    n = fft.next_fast_len(len(samples) + length - 1, real=True)
    wet = fft.irfft(fft.rfft(samples, n) * fft.rfft(response, n), n)[: len(samples)]
    return wet.astype(np.float32)


def add_noise(samples: Floats, slope: float, snr_db: float, rng: np.random.Generator) -> Floats:
    """Adds noise to samples (n,).

    Args:
        samples: clean speech.
        slope: exponent with which the noise power falls over frequency: 0 is white, 1 pink, 2 brown.
        snr_db: signal-to-noise ratio, dB.
        rng: generates the noise.
    """
    from scipy import fft  # takes a second, and every call of the workflow imports this module

    n = fft.next_fast_len(len(samples), real=True)
    spectrum = rng.standard_normal(n // 2 + 1) + 1j * rng.standard_normal(n // 2 + 1)
    spectrum *= np.maximum(np.arange(n // 2 + 1), 1.0) ** (-slope / 2.0)
    noise = fft.irfft(spectrum, n)[: len(samples)]
    noise *= np.sqrt(np.square(samples, dtype=np.float64).sum() / np.square(noise).sum() / 10.0 ** (snr_db / 10.0))
    return (samples + noise).astype(np.float32)
