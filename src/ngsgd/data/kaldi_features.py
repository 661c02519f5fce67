"""Features as Kaldi's recipes feed them to a network: CMVN, deltas or splice + transform, fMLLR, i-vectors.

Source: ``steps/nnet2/get_egs2.sh``; ``apply-cmvn``, ``add-deltas``, ``splice-feats``, ``transform-feats``,
``subsample-feats`` and ``paste-feats``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ngsgd.data.corpus import Float32s
from ngsgd.errors import ConfigError, DataError, UtteranceError
from ngsgd.files import resolve_path
from ngsgd.kaldi.stream import Array, open_input
from ngsgd.kaldi.tables import Script, matrix, read_archive, read_lines

DELTA_WINDOW = 2
VARIANCE_FLOOR = 1.0e-20
MAX_PERIOD = 10000  # frames of an i-vector
SPLICE_CONTEXT = 4  # frames on each side where splice_opts does not say

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CmvnOptions:
    """Options of ``apply-cmvn``."""

    norm_means: bool = True
    norm_vars: bool = False
    skip_dims: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str) -> CmvnOptions:
        """From a command line such as ``--norm-means=false --norm-vars=false``.

        Raises:
            ConfigError: an option is unknown, or variances are to be normalised without means.
        """
        given = _options(
            text, where, {"norm-means": "true|false", "norm-vars": "true|false", "skip-dims": r"(\d{1,6}(:\d{1,6})*)?"}
        )
        options = cls(
            norm_means=given.get("norm-means", "true") == "true",
            norm_vars=given.get("norm-vars", "false") == "true",
            skip_dims=tuple(int(d) for d in given.get("skip-dims", "").split(":") if d),
        )
        if options.norm_vars and not options.norm_means:
            raise ConfigError(f"{where}: --norm-vars=true needs --norm-means=true")
        return options

    def apply(self, features: Floats, stats: Array) -> Floats:
        """Features (T, D) with the mean, and if asked the variance, of statistics (2, D + 1) taken out.

        Raises:
            UtteranceError: the statistics are of another dimension, or of no frame.
        """
        if not self.norm_means:
            return features
        dim = features.shape[1]
        if stats.shape[1] != dim + 1 or len(stats) < (2 if self.norm_vars else 1):
            raise UtteranceError(f"CMVN statistics of shape {stats.shape} for features of dimension {dim}")
        count = float(stats[0, -1])
        if not count >= 1.0 or not np.isfinite(stats).all():
            raise UtteranceError(f"CMVN statistics of {count:g} frames, or not finite")
        mean = stats[0, :-1] / count
        skipped = [d for d in self.skip_dims if d < dim]
        mean[skipped] = 0.0
        if not self.norm_vars:
            return features - mean
        variance = np.maximum(stats[1, :-1] / count - mean**2, VARIANCE_FLOOR)
        variance[skipped] = 1.0
        return (features - mean) / np.sqrt(variance)


def _options(text: str, where: str, known: dict[str, str]) -> dict[str, str]:
    given = {}
    for word in text.split():
        match = re.fullmatch(r"--([a-z-]+)(?:=(\S*))?", word)
        value = "true" if match and match[2] is None else match[2] if match else ""  # a bare option is a true one
        if not match or match[1] not in known or not re.fullmatch(known[match[1]], value):
            raise ConfigError(f"{where}: {word!r} is not understood; known are --{', --'.join(known)}")
        given[match[1]] = value
    return given


def add_deltas(features: Floats, order: int) -> Floats:
    """Features (T, D) with their first ``order`` time derivatives beside them (T, D (order + 1))."""
    offsets = np.arange(-DELTA_WINDOW, DELTA_WINDOW + 1, dtype=np.float64)
    filters = [np.ones(1)]
    for _ in range(order):
        filters.append(np.convolve(filters[-1], offsets) / (offsets**2).sum())
    blocks = []
    for taps in filters:
        reach = len(taps) // 2
        rows = np.arange(len(features))[:, None] + np.arange(-reach, reach + 1)
        blocks.append(np.einsum("tjd,j->td", features[np.clip(rows, 0, len(features) - 1)], taps))
    return np.concatenate(blocks, axis=1)


def splice(features: Floats, left: int, right: int) -> Floats:
    """Each frame with those around it, edges repeated: (T, D) to (T, D (left + 1 + right)), the earliest first."""
    rows = np.arange(len(features))[:, None] + np.arange(-left, right + 1)
    spliced: Floats = features[np.clip(rows, 0, len(features) - 1)].reshape(len(features), -1)
    return spliced


def transform(features: Floats, T: Array) -> Floats:
    """Features (T, D) times a linear (D', D) or affine (D', D + 1) transform.

    Raises:
        UtteranceError: it is of another dimension.
    """
    dim = features.shape[1]
    if T.shape[1] == dim:
        return features @ T.T
    if T.shape[1] == dim + 1:
        return features @ T[:, :-1].T + T[:, -1]
    raise UtteranceError(f"a transform of {T.shape[0]} x {T.shape[1]} for features of dimension {dim}")


@dataclass(frozen=True)
class FeatureOptions:
    """What is done to a data directory's features.

    Attributes:
        root: the folder to which paths that do not exist as they stand are relative.
        cmvn: options of ``apply-cmvn``; None for what the alignment directory's ``cmvn_opts`` says, if it is there.
        feature_type: ``raw``, or ``lda`` for splice and the alignment directory's ``final.mat``; None for ``lda``
            where there is such a file.
        delta_order: time derivatives added to raw features.
        allow_pipes: whether commands in ``.scp`` files are run.
    """

    root: Path
    cmvn: str | None
    feature_type: str | None
    delta_order: int
    allow_pipes: bool


class Features:
    """What is done to features, utterance by utterance, before a network sees them.

    Args:
        cmvn: ``cmvn.scp``, by speaker; None where the means are not to be taken out.
        utt2spk: the speaker of each utterance; None where each is a speaker of its own.
        alignment: directory with ``final.mat``, ``splice_opts`` and ``cmvn_opts``, those that there are; or None.
        transforms: directory with ``trans.*`` (fMLLR; ``raw_trans.*`` for raw features), or None.
        own_transforms: directory from which they are taken otherwise, if it has any.
        ivectors: directory with ``ivector_online.scp`` and ``ivector_period``, or None.
        options: what is done.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: an options file has an option that nobody knows.
    """

    def __init__(
        self,
        cmvn: Path | None,
        utt2spk: Path | None,
        alignment: Path | None,
        transforms: Path | None,
        own_transforms: Path | None,
        ivectors: Path | None,
        options: FeatureOptions,
    ) -> None:
        def script(path: Path) -> Script:
            return Script(path, options.root, allow_pipes=options.allow_pipes)

        def text(name: str) -> str | None:
            path = alignment / name if alignment else None
            if path is None or not path.exists():
                return None
            try:
                return path.read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as e:
                raise DataError(f"{path}: cannot be read ({e})") from None

        self._speakers = dict(read_lines(utt2spk)) if utt2spk else None
        cmvn_opts = text("cmvn_opts") or "" if options.cmvn is None else options.cmvn
        self._cmvn = CmvnOptions.parse(cmvn_opts, "cmvn_opts")
        self._stats = script(cmvn) if cmvn and self._cmvn.norm_means else None
        self._stats_of: tuple[str | None, Array] = (None, np.zeros(0))
        final_mat = alignment / "final.mat" if alignment else None
        lda = options.feature_type == "lda" or (
            options.feature_type is None
            and bool(final_mat and final_mat.exists())
            and not _has(transforms or own_transforms, "raw_trans")
        )
        self._delta_order = options.delta_order
        self._final_mat: Array | None = None
        if lda:
            if final_mat is None or not final_mat.exists():
                raise DataError(f"feature_type: lda needs {final_mat or 'final.mat in the alignment directory'}")
            if options.delta_order:
                raise ConfigError(f"delta_order: features through {final_mat} have no deltas; feature_type: raw has")
            given = _options(
                text("splice_opts") or "", "splice_opts", dict.fromkeys(("left-context", "right-context"), r"\d{1,2}")
            )
            self._context = tuple(int(given.get(f"{side}-context", SPLICE_CONTEXT)) for side in ("left", "right"))
            with open_input(final_mat) as source:
                source.start()
                self._final_mat = source.array(2)
        self._transforms: dict[str, Array] | None = None
        stem = "trans" if lda else "raw_trans"
        if transforms is None and _has(own_transforms, stem):
            transforms = own_transforms
        if transforms:
            archives = numbered(transforms, stem)
            self._transforms = {key: value for path in archives for key, value in read_archive(path, matrix)}
        self._ivectors: Script | None = None
        if ivectors:
            self._ivectors = script(ivectors / "ivector_online.scp")
            period = resolve_path(ivectors / "ivector_period", options.root)
            try:
                self._period = int(period.read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise DataError(f"{period}: not a number of frames ({e})") from None
            if not 0 < self._period < MAX_PERIOD:
                raise DataError(f"{period}: not a number of frames ({self._period})")

    def of(self, utterance: str, raw: Array) -> tuple[Float32s, int]:
        """The features (T, dim) as the network takes them, and how many of the dimensions are the i-vector's.

        Args:
            utterance: its name.
            raw: (T, D) as they were extracted.

        Raises:
            UtteranceError: what belongs to the utterance is missing, or does not fit.
        """
        try:
            features = raw.astype(np.float64)
            if not len(features):
                raise UtteranceError("no frames")
            speaker = utterance
            if self._speakers is not None and not (self._stats is None and self._transforms is None):
                if utterance not in self._speakers:
                    raise UtteranceError("it is not in utt2spk")
                speaker = self._speakers[utterance]
                if not speaker:
                    raise UtteranceError("it has no speaker in utt2spk")
            if self._stats is not None:
                features = self._cmvn.apply(features, self._speaker_stats(speaker))
            if self._delta_order:
                features = add_deltas(features, self._delta_order)
            if self._final_mat is not None:
                features = transform(splice(features, *self._context), self._final_mat)
            if self._transforms is not None:
                if speaker not in self._transforms:
                    raise UtteranceError(f"no fMLLR transform for {speaker}")
                features = transform(features, self._transforms[speaker])
            if self._ivectors is None:
                return features.astype(np.float32), 0
            if utterance not in self._ivectors:
                raise UtteranceError("it has no i-vectors")
            ivectors = self._ivectors.read(utterance)
        except DataError as e:
            raise UtteranceError(str(e)) from None
        repeated = np.repeat(ivectors, self._period, axis=0)
        if abs(len(repeated) - len(features)) > self._period:
            raise UtteranceError(f"{len(features)} frames of features, i-vectors for {len(repeated)}")
        length = min(len(repeated), len(features))
        joined = np.concatenate((features[:length], repeated[:length]), axis=1)
        return joined.astype(np.float32), ivectors.shape[1]

    def _speaker_stats(self, speaker: str) -> Array:
        assert self._stats is not None
        if self._stats_of[0] != speaker:  # a speaker's utterances stand together
            if speaker not in self._stats:
                raise UtteranceError(f"no CMVN statistics for {speaker}")
            self._stats_of = (speaker, self._stats.read(speaker).astype(np.float64))
        return self._stats_of[1]


def _has(directory: Path | None, stem: str) -> bool:
    return directory is not None and any(directory.glob(f"{stem}.*"))


def numbered(directory: str | os.PathLike[str], stem: str) -> list[Path]:
    """The files ``stem.1``, ``stem.2``, ... of a directory, gzipped or not, in the order of their numbers.

    Where the directory has a file ``num_jobs``, as many; others are left from an earlier run.

    Raises:
        DataError: there is none.
    """
    found = [
        (int(match[1]), path)
        for path in Path(directory).glob(f"{stem}.*")
        if (match := re.fullmatch(rf"{stem}\.(\d+)(\.gz)?", path.name))
    ]
    num_jobs = Path(directory) / "num_jobs"
    if num_jobs.exists():
        try:
            last = int(num_jobs.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise DataError(f"{num_jobs}: not a number ({e})") from None
        found = [(number, path) for number, path in found if number <= last]
        if len(found) != last:
            raise DataError(f"{os.fspath(directory)}: {len(found)} files {stem}.1, ..., where num_jobs says {last}")
    if not found:
        raise DataError(f"{os.fspath(directory)}: no {stem}.1 or {stem}.1.gz there")
    return [path for _, path in sorted(found)]
