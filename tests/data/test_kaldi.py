"""Tests of Kaldi's data directories: the feature pipeline, labels, subsets, and faults."""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch

from ngsgd.data import egs
from ngsgd.data.corpora import check_unchanged, corpus_key, open_corpus
from ngsgd.data.corpora.kaldi import DataPaths, KaldiCorpus, KaldiSettings
from ngsgd.data.corpus import NO_CLASS, SUBSET_FILES, Subset, read_info
from ngsgd.data.kaldi_features import FeatureOptions, Features
from ngsgd.data.parts import assemble, prepare_part
from ngsgd.data.transform import LdaStatistics, estimate_transform
from ngsgd.errors import ConfigError, DataError, NgsgdError
from ngsgd.kaldi.output import Output
from ngsgd.kaldi.stream import open_input
from ngsgd.kaldi.tables import Locations, Script
from ngsgd.kaldi.transition import TransitionModel, write_transitions
from ngsgd.network.topology import HiddenLayers, initial_model

from ..experiment import digit_transitions

RNG = np.random.default_rng(0)
NAMES = [f"s{s}-{i:02d}" for s in range(3) for i in range(40)]
DIM = 4


def write_data(folder: Path, names: list[str]) -> None:
    """Writes a data directory with paths relative to its parent."""
    folder.mkdir(parents=True)
    matrices = {name: (RNG.normal(size=(10 + len(name) % 3, DIM)) + 5).astype(np.float32) for name in names}
    kaldiio.save_ark(str(folder / "feats.ark"), matrices, scp=str(folder / "feats.scp"), compression_method=2)
    speakers = {name: name.split("-")[0] for name in names}
    stats = {}
    for speaker in sorted(set(speakers.values())):
        frames = np.concatenate([kaldiio.load_mat(f"{folder}/feats.ark:{len(names[0]) + 1}")])
        frames = np.concatenate([m for n, m in kaldiio.load_ark(str(folder / "feats.ark")) if speakers[n] == speaker])
        sums = np.vstack((np.append(frames.sum(0), len(frames)), np.append((frames.astype(np.float64) ** 2).sum(0), 0)))
        stats[speaker] = sums.astype(np.float64)
    kaldiio.save_ark(str(folder / "cmvn.ark"), stats, scp=str(folder / "cmvn.scp"))
    for scp in ("feats.scp", "cmvn.scp"):
        (folder / scp).write_text((folder / scp).read_text().replace(f"{folder.parent}/", ""))
    (folder / "utt2spk").write_text("".join(f"{name} {speakers[name]}\n" for name in names))
    (folder / "text").write_text("".join(f"{name} WORD  {name[-1]}\n" for name in names))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes an experiment with pdf-ids as labels; tests that change it use the copy `root`."""
    root = tmp_path_factory.mktemp("experiment")
    for side, names in (("train", NAMES), ("test", [f"t0-{i}" for i in range(10, 20)])):
        write_data(root / side, names)
        labels = {
            n: RNG.integers(0, 6, len(m)).astype(np.int32) for n, m in kaldiio.load_ark(f"{root}/{side}/feats.ark")
        }
        kaldiio.save_ark(str(root / f"{side}.pdfs"), labels)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "experiment"))


def corpus(root: Path, *, valid: Path | None = None, num_valid: int = 12, pipes: bool = False, **more) -> KaldiCorpus:
    options = FeatureOptions(Locations(root, allow_pipes=pipes), **more)
    return KaldiCorpus(*paths(root), options, valid, num_valid, None)


def paths(root: Path, **test) -> tuple[DataPaths, DataPaths]:
    """The data directories and archives of pdf-ids of `root`; keyword arguments replace those of the test data."""
    train = DataPaths("train", root / "train", root / "train.pdfs")
    return train, DataPaths(**({"name": "test", "data": root / "test", "alignment": root / "test.pdfs"} | test))


def prepare(root: Path, num_parts: int = 1, share: float = 0.01, unaligned: float = 0.5, **options):
    source = corpus(root, **options)
    parts = [root / "parts" / f"{num_parts}.{k}" for k in range(num_parts)]
    for k, part in enumerate(parts):
        prepare_part(source, part, k, num_parts)
    assemble(parts, root / f"corpus{num_parts}", share, unaligned)
    return read_info(root / f"corpus{num_parts}")


def test_corpus_does_not_depend_on_the_number_of_parts(root: Path) -> None:
    infos = [prepare(root, num_parts) for num_parts in (1, 3, 7)]
    assert infos[0] == infos[1] == infos[2]
    assert infos[0].num_utterances == {"train": 108, "valid": 12, "test": 10}
    assert infos[0].class_counts == np.bincount(Subset(root / "corpus3", "train").labels).tolist()
    for part in SUBSET_FILES:
        assert (root / "corpus1" / f"train.{part}").read_bytes() == (root / "corpus7" / f"train.{part}").read_bytes()
    assert Subset(root / "corpus1", "test").texts[0] == "WORD 0"


def test_labels_and_mean_normalised_features(root: Path) -> None:
    prepare(root)
    train = Subset(root / "corpus1", "train")
    expected = dict(kaldiio.load_ark(str(root / "train/feats.ark")))
    labels = dict(kaldiio.load_ark(str(root / "train.pdfs")))
    speaker_frames = np.concatenate([m for name, m in expected.items() if name.startswith("s1-")])
    i = next(i for i, name in enumerate(train.names) if name.startswith("s1-"))
    x, y = train.utterance(i)
    np.testing.assert_allclose(x, expected[train.names[i]] - speaker_frames.mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(y, labels[train.names[i]])


def test_validation_utterances(root: Path) -> None:
    (root / "valid").write_text("s0-03\ns2-39\n")
    prepare(root, valid=root / "valid")
    assert Subset(root / "corpus1", "valid").names == ["s0-03", "s2-39"]
    (root / "valid").write_text("nobody\n")
    with pytest.raises(DataError, match="none of its utterances is in"):
        corpus(root, valid=root / "valid")
    with pytest.raises(ConfigError, match="120 of 120 utterances leave nothing"):
        corpus(root, num_valid=120)


@pytest.mark.parametrize("listed", [False, True])
def test_copies_of_an_utterance_are_in_the_same_subset(root: Path, listed: bool) -> None:
    uniq = {name: name[:-1] for name in NAMES}  # ten copies of each
    (root / "train/utt2uniq").write_text("".join(f"{name} {original}\n" for name, original in uniq.items()))
    (root / "valid").write_text("s0-03\n")
    prepare(root, valid=root / "valid" if listed else None)
    valid = set(Subset(root / "corpus1", "valid").names)
    assert len(valid) == (10 if listed else 20)
    assert not {uniq[n] for n in valid} & {uniq[n] for n in Subset(root / "corpus1", "train").names}


def features(root: Path, **options) -> Features:
    alignment, transforms, own, ivectors = (
        options.pop(key, None) for key in ("alignment", "transforms", "own", "ivectors")
    )
    utt2spk = root / "train/utt2spk"
    processing = FeatureOptions(Locations(root), **options)
    return Features(root / "train/cmvn.scp", utt2spk, alignment, transforms, own, ivectors, processing)


X = RNG.normal(size=(9, DIM))


def test_variances_and_skipped_dimensions(root: Path) -> None:
    x = np.concatenate([m for n, m in kaldiio.load_ark(f"{root}/train/feats.ark") if n.startswith("s0-")])
    found, _ = features(root, cmvn="--norm-means=true --norm-vars=true --skip-dims=1:3").process("s0-00", x)
    np.testing.assert_allclose(found[:, [0, 2]].mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(found[:, [0, 2]].std(axis=0), 1.0, atol=1e-3)
    np.testing.assert_allclose(found[:, [1, 3]], x[:, [1, 3]], atol=1e-6)
    found, _ = features(root, cmvn="--norm-means=false").process("s0-00", x)
    np.testing.assert_array_equal(found, x)
    for wrong in ("--norm-var=true", "--norm-vars=yes", "norm-vars", "--norm-means=false --norm-vars=true"):
        with pytest.raises(ConfigError, match="cmvn_opts: "):
            features(root, cmvn=wrong)


def test_deltas(root: Path) -> None:
    """Compares with the definition: a regression over two frames on each side, with edges repeated."""
    found, _ = features(root, cmvn="--norm-means=false", delta_order=2).process("s0-00", X)

    def at(t: int) -> np.ndarray:
        return X[min(max(t, 0), len(X) - 1)]

    first = [sum(j * at(t + j) for j in range(-2, 3)) / 10 for t in range(len(X))]
    weights = np.array([4, 4, 1, -4, -10, -4, 1, 4, 4]) / 100
    second = [sum(w * at(t + j) for w, j in zip(weights, range(-4, 5), strict=True)) for t in range(len(X))]
    np.testing.assert_allclose(found, np.hstack((X, first, second)), atol=1e-6)


def test_splice_and_transforms(root: Path) -> None:
    alignment, transforms = root / "ali", root / "trans"
    alignment.mkdir()
    transforms.mkdir()
    T, fmllr = RNG.normal(size=(5, 3 * DIM)), RNG.normal(size=(5, 6))
    kaldiio.save_mat(str(alignment / "final.mat"), T)
    (alignment / "splice_opts").write_text("--left-context=2 --right-context=0\n")
    (alignment / "cmvn_opts").write_text("--norm-means=false\n")
    kaldiio.save_ark(str(transforms / "trans.1"), {"s1": fmllr + 1})
    kaldiio.save_ark(str(transforms / "trans.2"), {"s0": fmllr})
    spliced = np.array([np.concatenate([X[max(t - 2, 0)], X[max(t - 1, 0)], X[t]]) for t in range(len(X))])
    expected = spliced @ T.T
    found, _ = features(root, alignment=alignment).process("s0-00", X)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found, _ = features(root, alignment=alignment, transforms=transforms).process("s0-00", X)
    np.testing.assert_allclose(found, expected @ fmllr[:, :-1].T + fmllr[:, -1], atol=1e-5)
    (alignment / "trans.1").write_bytes((transforms / "trans.2").read_bytes())
    assert np.array_equal(features(root, alignment=alignment, own=alignment).process("s0-00", X)[0], found)
    with pytest.raises(DataError, match="no fMLLR transform for s2"):
        features(root, alignment=alignment, transforms=transforms).process("s2-00", X)
    found, _ = features(root, alignment=alignment, feature_type="raw").process("s0-00", X)
    np.testing.assert_allclose(found, X, atol=1e-6)
    with pytest.raises(ConfigError, match="delta_order"):
        features(root, alignment=alignment, delta_order=1)


def test_ivectors(root: Path) -> None:
    folder = root / "ivectors"
    folder.mkdir()
    ivectors = RNG.normal(size=(3, 2)).astype(np.float32)
    kaldiio.save_ark(
        str(folder / "i.ark"), {"s0-00": ivectors, "s0-01": ivectors[:1]}, scp=str(folder / "ivector_online.scp")
    )
    (folder / "ivector_period").write_text("4\n")
    found, const_dim = features(root, cmvn="--norm-means=false", ivectors=folder).process("s0-00", X)
    assert const_dim == 2
    np.testing.assert_allclose(found, np.hstack((X, np.repeat(ivectors, 4, axis=0)[:9])), atol=1e-6)
    for name, reason in (("s0-01", "i-vectors for 4"), ("s0-02", "it has no i-vectors")):
        with pytest.raises(DataError, match=reason):
            features(root, ivectors=folder).process(name, X)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def replace_labels(path: Path, name: str, array: np.ndarray | None) -> None:
    """Replaces the labels of an utterance in an archive, or removes them if `array` is None."""
    entries = dict(kaldiio.load_ark(str(path)))
    entries.pop(name)
    kaldiio.save_ark(str(path), entries | ({} if array is None else {name: array}))


def write_features(root: Path, name: str, array: np.ndarray) -> None:
    kaldiio.save_ark(str(root / "other.ark"), {name: array.astype(np.float32)})
    scp = root / "train/feats.scp"
    lines = [f"{name} other.ark:{len(name) + 1}" if n.startswith(name) else n for n in scp.read_text().splitlines()]
    scp.write_text("\n".join(lines) + "\n")


def negative(root: Path) -> np.ndarray:
    labels = dict(kaldiio.load_ark(str(root / "train.pdfs")))["s1-07"].copy()
    labels[3] = -3
    return labels


NAN = np.where(np.arange(12 * DIM).reshape(12, DIM) == 7, np.nan, 1.0)
FAULTS = {
    "no speaker": (lambda r: replace(r / "train/utt2spk", "s1-07", "z1-07"), "it is not in utt2spk"),
    "no statistics": (lambda r: replace(r / "train/utt2spk", "s1-07 s1", "s1-07 s9"), "no CMVN statistics for s9"),
    "no text": (lambda r: replace(r / "train/text", "s1-07", "z1-07"), "it has no line in text"),
    "length": (
        lambda r: replace_labels(r / "train.pdfs", "s1-07", np.zeros(3, np.int32)),
        "frames of features, 3 labels",
    ),
    "labels beyond": (lambda r: replace_labels(r / "train.pdfs", "s1-07", negative(r)), "label -3 is outside"),
    "nowhere": (
        lambda r: replace(r / "train/feats.scp", "s1-07 train/", "s1-07 nowhere/"),
        "no such file; if it is a path",
    ),
    "no matrix": (lambda r: replace(r / "train/feats.scp", "s1-07 train/feats.ark", "s1-07 train/text"), "text"),
    "dimension": (lambda r: write_features(r, "s1-07", np.ones((12, 5))), "CMVN statistics of shape"),
    "NaN": (lambda r: write_features(r, "s1-07", NAN), "not finite"),
    "empty": (lambda r: write_features(r, "s1-07", np.zeros((0, DIM))), "no frames"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_utterance_is_dropped_and_counted(root: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = FAULTS[fault]
    damage(root)
    info = prepare(root, share=0.02)
    assert reason in info.dropped["s1-07"]
    assert f"utterance s1-07 dropped: {info.dropped['s1-07']}" in caplog.text
    assert sum(info.num_utterances.values()) == 129
    with pytest.raises(DataError, match=r"max_bad_utterance_share = 0\.005; the first is"):
        assemble([root / "parts/1.0"], root / "again", 0.005)


def test_data_directory_says_which_utterances_there_are(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Alignments of other utterances are counted; utterances without alignment have a limit of their own."""
    lines = (root / "train/feats.scp").read_text().splitlines(keepends=True)
    (root / "train/feats.scp").write_text("".join(lines[10:]))
    for name in ("s1-07", "s1-08"):
        replace_labels(root / "train.pdfs", name, None)
    info = prepare(root, share=0.0)
    assert sum(info.num_utterances.values()) == 118
    assert info.dropped == {"s1-07": "it has no alignment", "s1-08": "it has no alignment"}
    assert "10 of 118 alignments are not used" in caplog.text
    assert "the first: s0-00, s0-01, s0-02" in caplog.text
    assert "2 of 120 utterances have no alignment; the first are s1-07; s1-08" in caplog.text


def test_test_utterances_need_no_alignment(root: Path) -> None:
    infos = []
    for number, test in ((1, {"alignment": None}), (3, {"alignment": None}), (1, {})):
        if not test:
            replace_labels(root / "test.pdfs", "t0-14", None)
        source = KaldiCorpus(*paths(root, **test), FeatureOptions(Locations(root)), None, 12, None)
        folders = [root / f"part{k}" for k in range(number)]
        for k, folder in enumerate(folders):
            prepare_part(source, folder, k, number)
        assemble(folders, root / "all", 0.0)
        subset, info = Subset(root / "all", "test"), read_info(root / "all")
        assert sorted(subset.names) == [f"t0-{i}" for i in range(10, 20)]
        without = {name for i, name in enumerate(subset.names) if (subset.utterance(i)[1] == NO_CLASS).all()}
        assert without == (set(subset.names) if test else {"t0-14"})
        infos.append(info)
    assert infos[0] == infos[1]


def test_speakers_and_words_are_split_at_ascii_white_space_only(root: Path) -> None:
    """U+00A0 and U+3000 are parts of words; a byte-order mark is no part of the first name."""
    text = root / "train/text"
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"WORD", "a\u00a0b\u3000c\td".encode(), 1))
    prepare(root, share=0.0)
    (found,) = (s for s in (Subset(root / "corpus1", name) for name in ("train", "valid")) if "s0-00" in s.names)
    assert found.texts[found.names.index("s0-00")] == "a\u00a0b\u3000c d 0"
    assert found.speakers[found.names.index("s0-00")] == "s0"


def test_names_may_have_spaces_that_are_not_ascii(root: Path) -> None:
    name = "s0\u00a000"
    for file in ("feats.scp", "utt2spk", "text"):
        replace(root / "train" / file, "s0-00", name)
    labels = dict(kaldiio.load_ark(str(root / "train.pdfs")))
    with open(root / "train.pdfs", "wb") as f:
        for key, array in labels.items():
            f.write((name if key == "s0-00" else key).encode() + b" " + b" ".join(b"%d" % i for i in array) + b"\n")
    assert prepare(root, share=0.0, unaligned=0.0).dropped == {}


def ali_directories(root: Path) -> list[DataPaths]:
    """Makes alignment directories of the archives of pdf-ids, which are taken for transition-ids."""
    for side in ("train", "test"):
        (root / f"ali_{side}").mkdir()
        entries = {name: 1 + array for name, array in kaldiio.load_ark(str(root / f"{side}.pdfs"))}
        kaldiio.save_ark(str(root / f"ali_{side}/ali.1"), entries)
        write_model(root / f"ali_{side}/final.mdl", digit_transitions())
    return [DataPaths(side, root / side, root / f"ali_{side}") for side in ("train", "test")]


def write_model(path: Path, model: TransitionModel) -> None:
    out = Output(binary=True)
    write_transitions(model, out)
    path.write_bytes(out.bytes())


def open_aligned(root: Path, sides: list[DataPaths], silence: str | None = None, **options) -> KaldiCorpus:
    return KaldiCorpus(*sides, FeatureOptions(Locations(root), **options), None, 12, silence)


def write_transforms(folder: Path, speakers: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    kaldiio.save_ark(str(folder / "raw_trans.1"), {s: np.eye(DIM, DIM + 1) + 1 for s in speakers})


def test_training_and_test_data_are_transformed_alike(root: Path) -> None:
    train, test = ali_directories(root)
    write_transforms(root / "ali_train", ("s0", "s1", "s2"))
    message = r"train \(train_data\) is .* of .*ali_train, .*: set test_transforms to .* or train_transforms: none"
    with pytest.raises(DataError, match=message):
        open_aligned(root, [train, test])
    with pytest.raises(DataError, match="set test_transforms"):
        open_aligned(root, [train, dataclasses.replace(test, alignment=None)])
    plain = dataclasses.replace(train, no_transforms=True)
    open_aligned(root, [plain, test])
    write_transforms(root / "decode", ("t0",))
    transformed = dataclasses.replace(test, transforms=root / "decode")
    open_aligned(root, [train, transformed])
    with pytest.raises(DataError, match=r"test \(test_data\) is transformed .* set train_transforms"):
        open_aligned(root, [plain, transformed])


def test_final_mat_of_the_test_alignment_is_that_of_the_training_alignment(root: Path) -> None:
    sides = ali_directories(root)
    kaldiio.save_mat(str(root / "ali_train/final.mat"), np.ones((3, 9 * DIM)))
    for wrong in (None, np.zeros((3, 9 * DIM))):
        if wrong is not None:
            kaldiio.save_mat(str(root / "ali_test/final.mat"), wrong)
        with pytest.raises(DataError, match=r"ali_train/final.mat .* and .*ali_test/final.mat .* differ"):
            open_aligned(root, sides)
        open_aligned(root, sides, feature_type="raw")
    shutil.copy(root / "ali_train/final.mat", root / "ali_test")
    open_aligned(root, sides)


def test_missing_final_mat_is_an_error(root: Path) -> None:
    sides = ali_directories(root)
    (root / "ali_train/final.mat").symlink_to("../gone/final.mat")
    with pytest.raises(DataError, match=r"ali_train/final.mat: a link to \.\./gone/final.mat, which does not exist; "):
        open_aligned(root, sides)
    open_aligned(root, sides, feature_type="raw")
    (root / "ali_train/final.mat").unlink()
    (root / "ali_train/splice_opts").write_text("--left-context=3\n")
    with pytest.raises(DataError, match=r"ali_train: splice_opts, but no final\.mat"):
        open_aligned(root, sides)


def test_alignments_of_different_trees_are_refused(root: Path) -> None:
    sides = ali_directories(root)
    model = digit_transitions()
    swapped = model.tuples.copy()
    swapped[:2, 2:] = swapped[1::-1, 2:]
    write_model(root / "ali_test/final.mdl", dataclasses.replace(model, tuples=swapped))
    with pytest.raises(DataError, match=r"ali_test: its model .* set test_alignment: null"):
        open_aligned(root, sides)


def test_silence_goes_by_the_phone_and_not_by_the_pdf(root: Path) -> None:
    """As in Kaldi's weight-silence-post, where phones 1 and 2 share their pdf-ids and phone 1 is silence."""
    sides = ali_directories(root)
    model = digit_transitions()
    shared = model.tuples.copy()
    shared[shared[:, 0] == 2, 2:] = shared[shared[:, 0] == 1, 2:]
    for side, low in (("train", 1), ("test", 1)):
        write_model(root / f"ali_{side}/final.mdl", dataclasses.replace(model, tuples=shared))
        entries = {name: low + RNG.integers(0, 12, len(a)) for name, a in kaldiio.load_ark(f"{root}/{side}.pdfs")}
        kaldiio.save_ark(str(root / f"ali_{side}/ali.1"), {name: ids.astype(np.int32) for name, ids in entries.items()})
    ids = dict(kaldiio.load_ark(str(root / "ali_train/ali.1")))
    both = 0
    for utterance in open_aligned(root, sides, silence="1").read("train", 0, 1, print):
        assert utterance.silence is not None
        assert utterance.labels is not None
        np.testing.assert_array_equal(utterance.silence, model.id_phones[ids[utterance.name]] == 1)
        both += len(set(utterance.labels[utterance.silence]) & set(utterance.labels[~utterance.silence]))
    assert both > 0


def test_paths_of_another_machine_are_replaced(root: Path) -> None:
    scp = root / "train/feats.scp"
    scp.write_text(scp.read_text().replace(" train/", " /mnt/c/egs/s5/train/"))
    with pytest.raises(DataError, match=r"/mnt/c/egs/s5/train/feats\.ark: no such file; .* path_map"):
        corpus(root)
    options = FeatureOptions(Locations(root, {"/mnt/c/egs": "nowhere", "/mnt/c/egs/s5/": "."}))
    assert KaldiCorpus(*paths(root), options, None, 12, None).dim == DIM


def test_commands_run_in_the_folder_of_the_experiment(root: Path) -> None:
    scp = root / "train/feats.scp"
    scp.write_text("s0-00 tail -c +7 /elsewhere/train/feats.ark |\n")
    expected = next(m for _, m in kaldiio.load_ark(str(root / "train/feats.ark")))
    locations = Locations(root, {"/elsewhere": "."}, allow_pipes=True)
    np.testing.assert_array_equal(Script(scp, locations).read("s0-00"), expected)


def test_options_of_cmvn_can_be_in_a_file(root: Path) -> None:
    (root / "conf").mkdir()
    (root / "conf/cmvn.conf").write_text("# comment\n--norm-means=false  # another\n")
    found, _ = features(root, cmvn="--config=conf/cmvn.conf").process("s0-00", X)
    np.testing.assert_allclose(found, X, atol=1e-6)
    with pytest.raises(ConfigError, match=r"cmvn_opts: --config=.*conf/gone.conf cannot be read"):
        features(root, cmvn="--config=conf/gone.conf")


def test_missing_cmvn_scp_says_how_to_do_without(root: Path) -> None:
    (root / "train/cmvn.scp").unlink()
    with pytest.raises(DataError, match=r"train/cmvn\.scp: no such file; .* set cmvn_opts: --norm-means=false"):
        corpus(root)
    (root / "test/cmvn.scp").unlink()
    assert corpus(root, cmvn="--norm-means=false").dim == DIM


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


BROKEN = {
    "truncated labels": (lambda r: truncate(r / "train.pdfs"), r"train\.pdfs: the file is truncated"),
    "non-UTF-8": (lambda r: (r / "test/text").write_bytes(b"t0-10 \xff\n"), "text: line 1 is not UTF-8"),
    "pipe": (lambda r: (r / "train/feats.scp").write_text("s0-00 touch pwned |\n"), "allow_pipes"),
    "no scp": (lambda r: (r / "train/feats.scp").unlink(), "feats.scp: No such file"),
    "no labels": (lambda r: (r / "test.pdfs").unlink(), "no such alignment directory"),
    "nothing": (lambda r: (r / "train/cmvn.scp").write_text(""), "none of its first utterances can be read"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_corpus_is_refused(root: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(root)
    with pytest.raises(NgsgdError, match=message):
        prepare(root)
    assert not (root / "corpus1/corpus.json").exists()


def test_last_utterance_of_truncated_features_is_dropped(root: Path) -> None:
    truncate(root / "test/feats.ark")
    assert prepare(root, share=0.02).dropped.keys() == {"t0-19"}


def test_alignments_of_another_model_are_refused(kaldi: Path, tmp_path: Path) -> None:
    fsdd = kaldi / "fsdd"
    ali = tmp_path / "ali"
    ali.mkdir()
    shutil.copy(fsdd / "exp/tri1_ali_train/final.mdl", ali)
    (ali / "ali.1.gz").write_bytes(gzip.compress(b"george-0-05 1 2 301\n"))
    sides = [DataPaths(side, fsdd / "data" / side, ali) for side in ("train", "test")]
    options = FeatureOptions(Locations(fsdd))
    source = KaldiCorpus(*sides, options, None, 100, "1")
    prepare_part(source, tmp_path / "part", 0, 1)
    assert (
        read_info(tmp_path / "part")
        .dropped["george-0-05"]
        .startswith("transition-id 301 is not of the model, which has 1 - 300")
    )
    shutil.copy(fsdd / "exp/tri1_ali_train/tree", ali / "final.mdl")
    with pytest.raises(DataError, match=r"final\.mdl: expected <TransitionModel>"):
        KaldiCorpus(*sides, options, None, 100, "1")


def test_transform_is_that_of_kaldi(kaldi: Path, tmp_path: Path) -> None:
    root = kaldi / "fsdd"
    sides = [DataPaths(s, root / "data" / s, root / f"exp/tri1_ali_{s}") for s in ("train", "test")]
    options = FeatureOptions(Locations(root))
    source = KaldiCorpus(*sides, options, root / "exp/nnet/valid_uttlist", 1, root / "exp/graph/silence.csl")
    prepare_part(source, tmp_path, 0, 1)
    info = read_info(tmp_path)
    assert info.num_frames["train"] + info.num_frames["valid"] == 112911
    silence = [0, 37, 38, 57, 72]  # pdf-ids of phone 1, which no other phone shares
    statistics = LdaStatistics(65, 144)
    for name in ("train", "valid"):  # Kaldi's transform is of all utterances
        subset = Subset(tmp_path, name)
        for i in range(len(subset)):
            x, y = subset.utterance(i)
            rows = np.clip(np.arange(len(x))[:, None] + np.arange(-2, 3), 0, len(x) - 1)
            speech = ~np.isin(y, silence)
            np.testing.assert_array_equal(subset.silence_of(i), ~speech)
            statistics.add(x[rows].reshape(len(x), -1)[speech], y[speech])
    assert statistics.counts.sum() == 100866
    weight, bias = statistics.transform(1e-4)
    with open_input(root / "exp/nnet/lda_all_frames.mat") as source:
        source.start()
        expected = source.array(2)
    signs = np.sign((weight * expected[:, :-1]).sum(axis=1))
    np.testing.assert_allclose(weight * signs[:, None], expected[:, :-1], atol=1e-3)
    np.testing.assert_allclose(bias * signs, expected[:, -1], atol=1e-3)


def test_options_of_the_training_data_apply_to_the_test_data(root: Path) -> None:
    """Options come from the training alignment directory; its num_jobs is the number of archives to read."""
    for side in ("train", "test"):
        (root / f"ali_{side}").mkdir()
        shutil.move(root / f"{side}.pdfs", root / f"ali_{side}/ali.1")
        (root / f"ali_{side}/num_jobs").write_text("1\n")
        (root / f"ali_{side}/ali.2").write_bytes(b"left over from another run")
        out = Output(binary=True)
        write_transitions(digit_transitions(), out)
        (root / f"ali_{side}/final.mdl").write_bytes(out.bytes())
    (root / "ali_train/cmvn_opts").write_text("--norm-vars\n")
    sides = [DataPaths(side, root / side, root / f"ali_{side}") for side in ("train", "test")]
    source = KaldiCorpus(*sides, FeatureOptions(Locations(root)), None, 10, None)
    raw = dict(kaldiio.load_ark(str(root / "test/feats.ark")))
    found, _ = source._directories["test"].features.process("t0-10", np.concatenate(list(raw.values())))
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=1e-3)
    (root / "ali_train/num_jobs").write_text("3\n")
    with pytest.raises(DataError, match=r"2 files ali\.1, \.\.\., where num_jobs says 3"):
        KaldiCorpus(*sides, FeatureOptions(Locations(root)), None, 10, None)


def test_ivectors_in_corpus_examples_and_network(root: Path) -> None:
    """I-vectors are not spliced, are part of the transform, and are constant in an example."""
    for side in ("train", "test"):
        folder = root / f"ivectors_{side}"
        folder.mkdir()
        names = [line.split()[0] for line in (root / side / "feats.scp").read_text().splitlines()]
        kaldiio.save_ark(
            str(folder / "i.ark"),
            {name: RNG.normal(size=(5, 2)).astype(np.float32) for name in names},
            scp=str(folder / "ivector_online.scp"),
        )
        (folder / "ivector_period").write_text("3")
    sides = [DataPaths(s, root / s, root / f"{s}.pdfs", ivectors=root / f"ivectors_{s}") for s in ("train", "test")]
    source = KaldiCorpus(*sides, FeatureOptions(Locations(root)), None, 12, None)
    prepare_part(source, root / "parts", 0, 1)
    assemble([root / "parts"], root / "corpus", 0.01)
    info, train = read_info(root / "corpus"), Subset(root / "corpus", "train")
    assert (info.dim, info.const_dim) == (DIM + 2, 2)
    weight, bias = estimate_transform(train, info, (-1, 0, 1), 10**6, 1e-4)
    assert weight.shape == (3 * DIM + 2, 3 * DIM + 2)
    layers = HiddenLayers(((-1, 0, 1), (-2, 2)), "relu", 8, 8, batchnorm=False)
    model = initial_model(layers, (weight, bias), np.array(info.class_counts), 0, info.const_dim)
    assert model.components["splice0"].spec()["const_dim"] == 2
    torch.nn.init.normal_(model.components["output_affine"].weight)
    egs.sample_frames(train, 30, (3, 3), 1, root / "sample.npy", info.const_dim)
    examples = egs.open_archive(root / "sample.npy")
    ivectors = examples.features[:, :, DIM:]
    np.testing.assert_array_equal(ivectors, np.repeat(ivectors[:, :1], 7, axis=1))
    frame = int(egs.drawn_frames(train, 30, 1)[4])
    i = int(np.searchsorted(train.starts, frame, side="right")) - 1
    x, _ = train.utterance(i)
    window = x[np.clip(np.arange(-3, 4) + frame - train.starts[i], 0, len(x) - 1)]
    np.testing.assert_allclose(ivectors[4, 0], window[:, DIM:].mean(axis=0), rtol=1e-5)
    # With a constant i-vector, a window and the whole utterance give a frame the same posteriors.
    same = np.array(x)
    same[:, DIM:] = 0.5
    window = same[np.clip(np.arange(-3, 4) + 5, 0, len(x) - 1)]
    with torch.no_grad():
        alone = model(torch.from_numpy(window)[None])[0, 2]  # the network has one layer and its context
    torch.testing.assert_close(model.log_posteriors(torch.from_numpy(same))[5], alone, atol=1e-4, rtol=1e-4)


def test_data_that_changes_while_it_is_read_is_not_believed(root: Path) -> None:
    values = {
        "corpus": "kaldi", "experiment": str(root), "train_data": "train", "test_data": "test",
        "train_alignment": "train.pdfs", "test_alignment": "test.pdfs", "num_valid_utterances": 12,
    }  # fmt: skip
    key = corpus_key(values)
    prepare_part(open_corpus(values), root / "part", 0, 1)
    check_unchanged(values, key)
    for file in ("train/feats.ark", "train/text", "test.pdfs", "train/utt2spk"):
        before = (root / file).stat()
        with open(root / file, "ab") as f:
            f.write(b"\n")
        with pytest.raises(DataError, match=f"the data of corpus {key} was changed while it was read"):
            check_unchanged(values, key)
        os.truncate(root / file, before.st_size)
        os.utime(root / file, ns=(before.st_atime_ns, before.st_mtime_ns))
        check_unchanged(values, key)


def kaldi_values(root: Path, **changes: object) -> dict[str, object]:
    return {
        "corpus": "kaldi", "experiment": str(root), "train_data": "train", "test_data": "test",
        "train_alignment": "train.pdfs", "test_alignment": "test.pdfs", "num_valid_utterances": 12,
    } | changes  # fmt: skip


@pytest.mark.parametrize("form", ["{key} {path}", "{key}\t{path}", "{key} {path}[0:3]", "{key} {path}:0"])
def test_key_depends_on_every_file_that_a_script_names(root: Path, form: str) -> None:
    matrices = dict(kaldiio.load_ark(str(root / "test/feats.ark")))
    lines = []
    for key, matrix in matrices.items():
        kaldiio.save_mat(str(root / f"{key}.mat"), matrix)
        lines.append(form.format(key=key, path=f"{key}.mat") + "\n")
    (root / "test/feats.scp").write_text("".join(lines))
    before = corpus_key(kaldi_values(root))
    kaldiio.save_mat(str(root / "t0-14.mat"), np.vstack((matrices["t0-14"], matrices["t0-14"])))
    assert corpus_key(kaldi_values(root)) != before


def test_key_does_not_depend_on_files_that_are_not_read(root: Path) -> None:
    before = corpus_key(kaldi_values(root))
    for name in ("test/notes.txt", "train/wav.scp", "train/spk2utt"):
        (root / name).write_text("s0-00 somewhere.wav\n")
    assert corpus_key(kaldi_values(root)) == before
    (root / "train/utt2uniq").write_text("s0-00 s0-01\n")
    assert corpus_key(kaldi_values(root)) != before


def test_settings_of_paths_may_have_variables(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(root))
    ali_directories(root)
    (root / "silence.csl").write_bytes(b"\xef\xbb\xbf1:2\n")
    (root / "train/feats.scp").write_text((root / "train/feats.scp").read_text().replace(" train/", " /far/train/"))
    values = kaldi_values(root, experiment="$PLACE", silence_phones="$PLACE/silence.csl", path_map={"/far": "$PLACE"})
    values |= {"train_alignment": "$PLACE/ali_train", "test_alignment": None}
    before = corpus_key(values)
    assert next(open_corpus(values).read("train", 0, 1, print)).silence is not None
    truncate(root / "train/feats.ark")
    assert corpus_key(values) != before


def test_words_need_texts_and_a_model(root: Path) -> None:
    settings = KaldiSettings(**{k: v for k, v in kaldi_values(root).items() if k != "corpus"})
    with pytest.raises(ConfigError, match=r"graph: its transition-ids .* train_alignment .*train\.pdfs"):
        settings.check_words()
    (root / "test/text").unlink()
    with pytest.raises(ConfigError, match=r"test_data: .*test has no file text"):
        settings.check_words()


def test_empty_subset_says_what_was_dropped(root: Path) -> None:
    (root / "valid").write_text("s0-03\n")
    replace_labels(root / "train.pdfs", "s0-03", None)
    with pytest.raises(DataError, match="left in the valid subset; dropped were s0-03: it has no alignment"):
        prepare(root, valid=root / "valid")
