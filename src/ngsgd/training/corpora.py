"""The source of data that a run's settings name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngsgd.data.parts import Corpus
from ngsgd.files import resolve_path


def open_corpus(s: Mapping[str, Any]) -> Corpus:
    """The corpus of a run, one that is prepared in parts.

    Args:
        s: the settings of the corpus, as `Settings.of_corpus` gives them.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: a setting does not go with the data.
    """
    return {"kaldi": _kaldi, "lhotse": _lhotse, "synthetic": _synthetic}[s["corpus"]](s)


def _path(s: Mapping[str, Any], name: str) -> Path | None:
    return None if s[name] is None else resolve_path(s[name], Path(s["experiment"]))


def _kaldi(s: Mapping[str, Any]) -> Corpus:
    from ngsgd.data.kaldi import Directories, KaldiCorpus
    from ngsgd.data.kaldi_features import FeatureOptions

    def directories(side: str) -> Directories:
        data, alignment = _path(s, f"{side}_data"), _path(s, f"{side}_alignment")
        assert data is not None
        assert alignment is not None
        return Directories(data, alignment, _path(s, f"{side}_transforms"), _path(s, f"{side}_ivectors"))

    return KaldiCorpus(
        directories("train"),
        directories("test"),
        FeatureOptions(
            root=Path(s["experiment"]),
            cmvn=s["cmvn_opts"],
            feature_type=s["feature_type"],
            delta_order=s["delta_order"],
            allow_pipes=s["allow_pipes"],
        ),
        _path(s, "valid_utterances"),
        s["num_valid_utterances"],
        s["silence_phones"],
    )


def _lhotse(s: Mapping[str, Any]) -> Corpus:
    # Brings in Lhotse and torch.
    from ngsgd.data.lhotse import LabelOptions, LhotseCorpus, Manifests

    train, test = (
        Manifests(*(_path(s, f"{side}_{kind}") for kind in ("cuts", "recordings", "supervisions")))
        for side in ("train", "test")
    )
    labels = LabelOptions(s["label_array"], s["alignment_type"], _path(s, "alignment_symbols"), s["states_per_symbol"])
    return LhotseCorpus(
        train,
        test,
        Path(s["experiment"]),
        s["feature_extractor"],
        labels,
        _path(s, "valid_utterances"),
        s["num_valid_utterances"],
        allow_pipes=s["allow_pipes"],
    )


def _synthetic(s: Mapping[str, Any]) -> Corpus:
    from ngsgd.data.synthetic.corpus import SyntheticCorpus

    return SyntheticCorpus(
        s["hours"],
        s["num_valid_utterances"],
        s["num_test_utterances"],
        s["feature_extractor"],
        Path(s["experiment"]),
        s["states_per_symbol"],
        s["corpus_seed"],
    )
