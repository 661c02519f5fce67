"""Features of audio, by Lhotse's extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s
from ngsgd.errors import ConfigError, UtteranceError
from ngsgd.files import resolve_path


class Extractor:
    """An extractor by its name, for audio of any sampling rate.

    Args:
        name: ``kaldi-fbank``, ``kaldi-mfcc``, or a file of settings as Lhotse writes it.
        root: folder to which such a file's path is relative.
    """

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root
        self._made: dict[int, Any] = {}

    def __call__(self, samples: npt.NDArray[np.float32], sampling_rate: int) -> Float32s:
        """The features (T, dim) of samples (n,) or (1, n).

        Raises:
            ConfigError: there is no such extractor.
            UtteranceError: it has no features.
        """
        if sampling_rate not in self._made:
            self._made[sampling_rate] = self._make(sampling_rate)
        try:
            features = self._made[sampling_rate].extract(samples, sampling_rate)
        except Exception as e:  # whatever audio that is too short, or not audio, makes Lhotse raise
            raise UtteranceError(f"no features of its audio ({one_line(e)})") from None
        return floats(features)

    def _make(self, sampling_rate: int) -> Any:
        import lhotse
        import torch

        torch.set_num_threads(1)  # sums differ in their last bits with the number
        if self._name == "kaldi-fbank":
            return lhotse.Fbank(lhotse.FbankConfig(sampling_rate=sampling_rate))
        if self._name == "kaldi-mfcc":
            return lhotse.Mfcc(lhotse.MfccConfig(sampling_rate=sampling_rate))
        path = resolve_path(self._name, self._root)
        try:
            return lhotse.FeatureExtractor.from_yaml(path)
        except Exception as e:  # whatever a malformed file makes Lhotse raise
            raise ConfigError(
                f"feature_extractor: neither kaldi-fbank, kaldi-mfcc nor a file of one's settings ({path}: "
                f"{one_line(e)})"
            ) from None


def floats(array: Any) -> Float32s:
    """An array of floating-point numbers as float32.

    Raises:
        UtteranceError: it is none.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UtteranceError(f"features of type {getattr(array, 'dtype', type(array))!s:.60}")
    return array.astype(np.float32)


def one_line(error: Exception) -> str:
    """What another library's exception says, in short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
