"""Feature extraction from audio with Lhotse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s
from ngsgd.errors import ConfigError, UtteranceError
from ngsgd.files import resolve_path


class Extractor:
    """A Lhotse feature extractor for audio of any sampling rate.

    Args:
        name: ``kaldi-fbank``, ``kaldi-mfcc``, or a YAML file of extractor settings written by Lhotse.
        root: folder for a relative path to that file that does not exist in the working directory.
    """

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root
        self._extractors: dict[int, Any] = {}

    def __call__(self, samples: npt.NDArray[np.float32], sampling_rate: int) -> Float32s:
        """Returns the features (T, dim) of samples (n,) or (1, n).

        Raises:
            ConfigError: the extractor does not exist.
            UtteranceError: the features cannot be computed.
        """
        if sampling_rate not in self._extractors:
            self._extractors[sampling_rate] = self._create(sampling_rate)
        try:
            features = self._extractors[sampling_rate].extract(samples, sampling_rate)
        except Exception as e:  # Lhotse raises various types for audio that is too short or damaged
            raise UtteranceError(f"no features can be computed from its audio ({one_line(e)})") from None
        return floats(features)

    def _create(self, sampling_rate: int) -> Any:
        import lhotse
        import torch

        torch.set_num_threads(1)  # the last bits of sums depend on the number of threads
        if self._name == "kaldi-fbank":
            return lhotse.Fbank(lhotse.FbankConfig(sampling_rate=sampling_rate))
        if self._name == "kaldi-mfcc":
            return lhotse.Mfcc(lhotse.MfccConfig(sampling_rate=sampling_rate))
        path = resolve_path(self._name, self._root)
        try:
            return lhotse.FeatureExtractor.from_yaml(path)
        except Exception as e:  # Lhotse raises various types for a malformed file
            raise ConfigError(
                f"feature_extractor: neither kaldi-fbank, kaldi-mfcc nor a file of extractor settings ({path}: "
                f"{one_line(e)})"
            ) from None


def floats(array: Any) -> Float32s:
    """Converts an array of floating-point numbers to float32.

    Raises:
        UtteranceError: the object is not an array of floating-point numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UtteranceError(
            f"expected features of a floating-point type, found {getattr(array, 'dtype', type(array))!s:.60}"
        )
    return array.astype(np.float32)


def one_line(error: Exception) -> str:
    """Returns an exception's type and message as one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
