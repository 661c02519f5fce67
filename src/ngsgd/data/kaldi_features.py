"""Feature processing of Kaldi's recipes: CMVN, deltas or splice + transform, fMLLR, i-vectors.

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
from ngsgd.kaldi.stream import Array, open_input
from ngsgd.kaldi.tables import Locations, Script, matrix, read_archive, read_lines

DELTA_WINDOW = 2
VARIANCE_FLOOR = 1.0e-20
MAX_PERIOD = 10000  # frames per i-vector
SPLICE_CONTEXT = 4  # frames on each side without splice_opts, as in splice-feats

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CmvnOptions:
    """Options of ``apply-cmvn``."""

    norm_means: bool = True
    norm_vars: bool = False
    skip_dims: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, where: str, locations: Locations) -> CmvnOptions:
        """Parses a command line such as ``--norm-means=false --norm-vars=false``; errors call it ``where``.

        Raises:
            ConfigError: an option is invalid, a file of ``--config`` cannot be read, or variances are normalised
                without means.
        """
        for name in config_files(text):
            text = text.replace(f"--config={name}", _read_config(locations.resolve(name), where))
        parsed = _options(
            text, where, {"norm-means": "true|false", "norm-vars": "true|false", "skip-dims": r"(\d{1,6}(:\d{1,6})*)?"}
        )
        options = cls(
            norm_means=parsed.get("norm-means", "true") == "true",
            norm_vars=parsed.get("norm-vars", "false") == "true",
            skip_dims=tuple(int(d) for d in parsed.get("skip-dims", "").split(":") if d),
        )
        if options.norm_vars and not options.norm_means:
            raise ConfigError(f"{where}: --norm-vars=true needs --norm-means=true")
        return options

    def apply(self, features: Floats, stats: Array) -> Floats:
        """Normalises the means, and if asked the variances, of features (T, D) with CMVN statistics (2, D + 1).

        Raises:
            UtteranceError: the statistics have another dimension or no frames, or are not finite.
        """
        if not self.norm_means:
            return features
        dim = features.shape[1]
        if stats.shape[1] != dim + 1 or len(stats) < (2 if self.norm_vars else 1):
            raise UtteranceError(f"CMVN statistics of shape {stats.shape} for features of dimension {dim}")
        count = float(stats[0, -1])
        if not count >= 1.0 or not np.isfinite(stats).all():
            raise UtteranceError(f"CMVN statistics are not finite or of too few frames ({count:g})")
        mean = stats[0, :-1] / count
        skipped = [d for d in self.skip_dims if d < dim]
        mean[skipped] = 0.0
        if not self.norm_vars:
            return features - mean
        variance = np.maximum(stats[1, :-1] / count - mean**2, VARIANCE_FLOOR)
        variance[skipped] = 1.0
        return (features - mean) / np.sqrt(variance)


def config_files(text: str) -> list[str]:
    """Returns the files that a command line names with ``--config``."""
    return re.findall(r"--config=(\S+)", text)


def _read_config(path: Path, where: str) -> str:
    """Reads a file of options, one on each line, with comments after ``#``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as e:
        raise ConfigError(f"{where}: --config={path} cannot be read ({e})") from None
    return " ".join(line.partition("#")[0].strip() for line in lines)


def _options(text: str, where: str, known: dict[str, str]) -> dict[str, str]:
    parsed = {}
    for word in text.split():
        match = re.fullmatch(r"--([a-z-]+)(?:=(\S*))?", word)
        value = "true" if match and match[2] is None else match[2] if match else ""  # an option without value is true
        if not match or match[1] not in known or not re.fullmatch(known[match[1]], value):
            raise ConfigError(f"{where}: {word!r} is not a valid option; known are --{', --'.join(known)}")
        parsed[match[1]] = value
    return parsed


def add_deltas(features: Floats, order: int) -> Floats:
    """Appends the first ``order`` time derivatives to features (T, D) and returns (T, D (order + 1))."""
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
    """Splices frames (T, D), earliest first, to (T, D (left + 1 + right)); the first and last frames are repeated."""
    rows = np.arange(len(features))[:, None] + np.arange(-left, right + 1)
    spliced: Floats = features[np.clip(rows, 0, len(features) - 1)].reshape(len(features), -1)
    return spliced


def transform(features: Floats, T: Array) -> Floats:
    """Applies a linear (D', D) or affine (D', D + 1) transform to features (T, D).

    Raises:
        UtteranceError: the dimensions do not match.
    """
    dim = features.shape[1]
    if T.shape[1] == dim:
        return features @ T.T
    if T.shape[1] == dim + 1:
        return features @ T[:, :-1].T + T[:, -1]
    raise UtteranceError(f"a transform of {T.shape[0]} x {T.shape[1]} for features of dimension {dim}")


@dataclass(frozen=True)
class FeatureOptions:
    """Options of feature processing.

    Attributes:
        locations: how paths, also those inside ``.scp`` files, are looked up.
        cmvn: options of ``apply-cmvn``; None to read them from the alignment directory's ``cmvn_opts``, if it exists.
        feature_type: ``raw``, or ``lda`` for splice and the alignment directory's ``final.mat``; None for ``lda`` if
            that file exists and there are no ``raw_trans.*``.
        delta_order: number of time derivatives added to raw features.
    """

    locations: Locations
    cmvn: str | None = None
    feature_type: str | None = None
    delta_order: int = 0


class Features:
    """Processes raw features into network input, utterance by utterance.

    Args:
        cmvn: ``cmvn.scp``, statistics per speaker; None for no CMVN.
        utt2spk: ``utt2spk``; None if each utterance has its own speaker.
        alignment: directory in which ``final.mat``, ``splice_opts`` and ``cmvn_opts`` are looked for, or None.
        transforms: directory with ``trans.*`` (fMLLR; ``raw_trans.*`` for raw features), or None.
        own_transforms: directory whose transforms, if it has any, are used when ``transforms`` is None.
        ivectors: directory with ``ivector_online.scp`` and ``ivector_period``, or None.
        options: options of feature processing.

    Attributes:
        transforms_folder: directory whose fMLLR transforms are applied, or None.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: an option in ``cmvn_opts`` or ``splice_opts`` is invalid, or delta_order does not match.
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
            return Script(path, options.locations)

        def text(name: str) -> str | None:
            path = alignment / name if alignment else None
            if path is None or not path.exists():
                return None
            try:
                return path.read_text(encoding="utf-8-sig").strip()
            except (OSError, ValueError) as e:
                raise DataError(f"{path}: cannot be read ({e})") from None

        self._speakers = dict(read_lines(utt2spk)) if utt2spk else None
        cmvn_opts = text("cmvn_opts") or "" if options.cmvn is None else options.cmvn
        self._cmvn = CmvnOptions.parse(cmvn_opts, "cmvn_opts", options.locations)
        self._stats: Script | None = None
        if cmvn and self._cmvn.norm_means:
            if not cmvn.exists():
                raise DataError(
                    f"{cmvn}: no such file; to use the features as they are, set cmvn_opts: --norm-means=false "
                    "(--cmvn-opts of ngsgd compute)"
                )
            self._stats = script(cmvn)
        self._cached_stats: tuple[str | None, Array] = (None, np.zeros(0))
        final_mat = alignment / "final.mat" if alignment else None
        if options.feature_type is None:
            _check_final_mat(alignment)
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
                raise ConfigError(
                    f"delta_order: deltas cannot be added to features transformed by {final_mat}; set "
                    "feature_type: raw or delta_order: 0"
                )
            parsed = _options(
                text("splice_opts") or "", "splice_opts", dict.fromkeys(("left-context", "right-context"), r"\d{1,2}")
            )
            self._context = tuple(int(parsed.get(f"{side}-context", SPLICE_CONTEXT)) for side in ("left", "right"))
            with open_input(final_mat) as source:
                source.start()
                self._final_mat = source.array(2)
        self._transforms: dict[str, Array] | None = None
        stem = "trans" if lda else "raw_trans"
        if transforms is None and _has(own_transforms, stem):
            transforms = own_transforms
        self.transforms_folder = transforms
        if transforms:
            archives = numbered(transforms, stem)
            self._transforms = {key: value for path in archives for key, value in read_archive(path, matrix)}
        self._ivectors: Script | None = None
        if ivectors:
            self._ivectors = script(ivectors / "ivector_online.scp")
            period = ivectors / "ivector_period"
            try:
                self._period = int(period.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError) as e:
                raise DataError(f"{period}: not a number of frames ({e})") from None
            if not 0 < self._period < MAX_PERIOD:
                raise DataError(f"{period}: {self._period} is not a number of frames from 1 to {MAX_PERIOD - 1}")

    def speaker(self, utterance: str) -> str:
        """Returns the speaker of an utterance; its own name if it has none in ``utt2spk``."""
        return (self._speakers or {}).get(utterance) or utterance

    def process(self, utterance: str, raw: Array) -> tuple[Float32s, int]:
        """Processes one utterance.

        Args:
            utterance: name of the utterance.
            raw: (T, D) extracted features.

        Returns:
            The features (T, dim) for the network, and how many of the trailing dimensions are the i-vector.

        Raises:
            UtteranceError: speaker, statistics, transform or i-vectors are missing or do not match the features.
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
            raise UtteranceError(f"{len(features)} frames of features, but i-vectors for {len(repeated)}")
        length = min(len(repeated), len(features))
        joined = np.concatenate((features[:length], repeated[:length]), axis=1)
        return joined.astype(np.float32), ivectors.shape[1]

    def _speaker_stats(self, speaker: str) -> Array:
        assert self._stats is not None
        if self._cached_stats[0] != speaker:  # consecutive utterances usually have the same speaker
            if speaker not in self._stats:
                raise UtteranceError(f"no CMVN statistics for {speaker}")
            self._cached_stats = (speaker, self._stats.read(speaker).astype(np.float64))
        return self._cached_stats[1]


def _check_final_mat(alignment: Path | None) -> None:
    """Checks that a directory whose features were transformed by ``final.mat`` still has that file.

    Raises:
        DataError: ``final.mat`` is a link to a missing file, or there is only a ``splice_opts``.
    """
    if alignment is None or (alignment / "final.mat").exists():
        return
    if (alignment / "final.mat").is_symlink():
        raise DataError(
            f"{alignment / 'final.mat'}: a link to {os.readlink(alignment / 'final.mat')}, which does not exist; copy "
            "the file there, or set feature_type: raw to use the features without it"
        )
    if (alignment / "splice_opts").exists():
        raise DataError(
            f"{alignment}: splice_opts, but no final.mat; copy the file from the directory of the model, or set "
            "feature_type: raw to use the features without it"
        )


def _has(directory: Path | None, stem: str) -> bool:
    return directory is not None and any(directory.glob(f"{stem}.*"))


def numbered(directory: str | os.PathLike[str], stem: str) -> list[Path]:
    """Lists the files ``stem.1``, ``stem.2``, ... of a directory, gzipped or not, in numerical order.

    If the directory has a file ``num_jobs``, higher numbers are ignored: they are left over from an earlier run.

    Raises:
        DataError: there are no such files, or fewer than ``num_jobs``.
    """
    found = [
        (int(match[1]), path)
        for path in Path(directory).glob(f"{stem}.*")
        if (match := re.fullmatch(rf"{stem}\.(\d+)(\.gz)?", path.name))
    ]
    num_jobs = Path(directory) / "num_jobs"
    if num_jobs.exists():
        try:
            last = int(num_jobs.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as e:
            raise DataError(f"{num_jobs}: not a number ({e})") from None
        found = [(number, path) for number, path in found if number <= last]
        if len(found) != last:
            raise DataError(
                f"{os.fspath(directory)}: {len(found)} files {stem}.1, ..., where num_jobs says {last}; align again"
            )
    if not found:
        raise DataError(f"{os.fspath(directory)}: no file {stem}.1 or {stem}.1.gz")
    return [path for _, path in sorted(found)]
