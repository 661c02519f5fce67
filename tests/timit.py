"""Makes a TIMIT of synthesised speech, and the manifests and features that Lhotse's recipe and icefall make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
from lhotse import CutSet, Fbank, FbankConfig, LilcomChunkyWriter
from lhotse.recipes.timit import get_phonemes, prepare_timit

from ngsgd.data.synthetic.espeak import PHONES, RATE, SILENCE, Voice, package, say
from ngsgd.data.synthetic.rooms import resample
from ngsgd.errors import NgsgdError

TIMIT_PHONES = sorted(set(get_phonemes(48)) - {"h#", "pau", "sil"})
TIMIT_RATE = 16000  # Hz
COLOURS = ("red", "green", "blue", "grey", "white", "yellow", "purple", "orange")


def make_timit(folder: Path, speakers: Mapping[str, Sequence[str]], sentences: int) -> None:
    """Writes SPHERE files and alignments as the real TIMIT has them, with phones of another language.

    Args:
        folder: becomes the folder ``TIMIT``.
        speakers: names of the speakers for each of ``TRAIN`` and ``TEST``.
        sentences: number of sentences of each speaker.
    """
    pytest.importorskip("lilcom", reason="needs lilcom to compress features")
    try:
        package()
    except NgsgdError as e:
        pytest.skip(str(e))
    for side, names in speakers.items():
        for number, speaker in enumerate(names):
            directory = folder / "data" / side / "DR1" / speaker
            directory.mkdir(parents=True)
            for i in range(sentences):
                text = f"number {i} is {COLOURS[(number + i) % len(COLOURS)]}"
                voice = Voice("en-us", speed=150 + 10 * (number % 5), pitch=30 + 5 * (number % 8), pitch_range=50)
                speech = say(text, voice)
                samples = resample(speech.samples, RATE, TIMIT_RATE)
                soundfile.write(directory / f"SX{i}.WAV", samples, TIMIT_RATE, format="NIST")
                begins = [begin * TIMIT_RATE // RATE for begin in speech.begins]
                ends = [*begins[1:], len(samples)]
                phones = [
                    f"{start} {end} {'h#' if PHONES[p] == SILENCE else TIMIT_PHONES[p]}\n"
                    for p, start, end in zip(speech.phones, begins, ends, strict=True)
                ]
                (directory / f"SX{i}.PHN").write_text("".join(phones))
                (directory / f"SX{i}.WRD").write_text(f"0 {ends[-1]} number\n")
                (directory / f"SX{i}.TXT").write_text(f"0 {ends[-1]} {text}\n")


def prepare_cuts(timit: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes cuts with ``lilcom_chunky`` features and a table of the phones.

    Returns:
        The manifests of the recipe, and the settings that name the files.
    """
    manifests: dict[str, Any] = prepare_timit(timit, folder / "manifests", num_phones=48)
    extractor = Fbank(FbankConfig(sampling_rate=TIMIT_RATE))
    for side, part in (("train", "TRAIN"), ("test", "TEST")):
        cuts = CutSet.from_manifests(**manifests[part]).compute_and_store_features(
            extractor, folder / f"{side}_feats", storage_type=LilcomChunkyWriter, progress_bar=False
        )
        cuts.to_file(folder / f"{side}_cuts.jsonl.gz")
    symbols = sorted(set(get_phonemes(48).values()) - {"", "sil"})
    (folder / "phones.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(["sil", *symbols])))
    return manifests, {
        "corpus": "lhotse",
        "experiment": str(folder),
        "train_cuts": "train_cuts.jsonl.gz",
        "test_cuts": "test_cuts.jsonl.gz",
        "alignment_symbols": "phones.txt",
        "states_per_symbol": 2,
    }
