from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ngsgd.data import egs
from ngsgd.data.corpus import Subset, Utterance, write_subset
from ngsgd.errors import DataError

CONTEXT = (2, 1)
LENGTHS = (9, 1, 4, 8, 13, 3, 6)


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    """Writes utterances whose frames encode their origin: features (utterance, frame), label 100 utterance + frame."""
    utterances = [
        Utterance(
            f"u{i}",
            np.stack((np.full(n, i), np.arange(n)), axis=1).astype(np.float32),
            np.arange(100 * i, 100 * i + n, dtype=np.int32),
        )
        for i, n in enumerate(LENGTHS)
    ]
    write_subset(tmp_path, "train", utterances, 2)
    return Subset(tmp_path, "train")


def make(subset: Subset, layout: egs.Layout, num_splits: int, folder: Path, seed: int = 0) -> list[Path]:
    parts = [folder / f"part.{k}.npy" for k in range(num_splits)]
    for k, part in enumerate(parts):
        egs.distribute(subset, layout, CONTEXT, k, num_splits, part)
    archives = [folder / f"archive.{a}.npy" for a in range(layout.num_archives)]
    for a, archive in enumerate(archives):
        egs.shuffle(subset, layout, a, seed, parts, archive)
    return archives


@pytest.mark.parametrize(
    ("frames", "frames_per_eg", "samples", "expected"),
    [
        (118_305, 8, 20_000, (1, 6)),  # the reference run: frames_per_eg is lowered for little data
        (43_148, 8, 4_000, (2, 8)),
        (10_000_000, 8, 400_000, (4, 8)),
        (100, 8, 400_000, (1, 1)),
    ],
)
def test_layout(frames: int, frames_per_eg: int, samples: int, expected: tuple[int, int]) -> None:
    assert egs.Layout.for_frames(frames, frames_per_eg, samples) == egs.Layout(*expected)


@pytest.mark.parametrize("num_archives", [1, 3, 5])
@pytest.mark.parametrize("num_splits", [1, 2, 7])
def test_every_frame_is_used_once_with_its_context(
    subset: Subset, tmp_path: Path, num_archives: int, num_splits: int
) -> None:
    layout = egs.Layout(num_archives, 4)
    seen = []
    for path in make(subset, layout, num_splits, tmp_path / "egs"):
        archive = egs.open_archive(path)
        for frame in range(4):
            for x, y in egs.minibatches(archive, frame, CONTEXT, CONTEXT, 3, seed=frame):
                assert len(x) <= 3
                for window, label in zip(x, y, strict=True):
                    utterance, t = divmod(int(label), 100)
                    expected = np.clip(np.arange(t - 2, t + 2), 0, LENGTHS[utterance] - 1)
                    np.testing.assert_array_equal(window[:, 0], utterance)
                    np.testing.assert_array_equal(window[:, 1], expected)
                seen += y.tolist()
    assert sorted(seen) == [100 * i + t for i, n in enumerate(LENGTHS) for t in range(n)]


def test_archives_do_not_depend_on_the_splits(subset: Subset, tmp_path: Path) -> None:
    layout = egs.Layout(3, 4)
    one = [path.read_bytes() for path in make(subset, layout, 1, tmp_path / "one")]
    three = [path.read_bytes() for path in make(subset, layout, 3, tmp_path / "three")]
    assert one == three
    other = [path.read_bytes() for path in make(subset, layout, 1, tmp_path / "other", seed=1)]
    assert one != other


def test_examples_of_an_utterance_are_spread_over_archives(subset: Subset, tmp_path: Path) -> None:
    archives = [egs.open_archive(path) for path in make(subset, egs.Layout(3, 4), 1, tmp_path)]
    assert max(map(len, archives)) - min(map(len, archives)) <= 1
    used = {a for a, archive in enumerate(archives) if (archive.labels[:, 0] // 100 == 4).any()}
    assert used == {0, 1, 2}


def test_order_depends_only_on_the_seed(subset: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egs, "SHUFFLE_BUFFER", 3)  # several blocks, and minibatches across their boundaries
    archive = egs.open_archive(make(subset, egs.Layout(1, 4), 1, tmp_path)[0])

    def order(seed: int | None) -> list[list[int]]:
        return [y.tolist() for _, y in egs.minibatches(archive, 0, CONTEXT, CONTEXT, 4, seed)]

    assert order(1) == order(1) != order(2)
    sizes = [len(batch) for batch in order(1)]
    assert set(sizes[:-1]) <= {4}
    assert sum(sizes) == len(archive)
    assert [label for batch in order(None) for label in batch] == archive.labels[:, 0].tolist()


def test_minibatches_for_a_smaller_context(subset: Subset, tmp_path: Path) -> None:
    archive = egs.open_archive(make(subset, egs.Layout(1, 4), 1, tmp_path)[0])
    for x, y in egs.minibatches(archive, 2, CONTEXT, (1, 0), 50, None):
        assert x.shape[1:] == (2, 2)
        np.testing.assert_array_equal(x[:, 1, 1], y % 100)


def test_sampled_frames_are_distinct_and_have_their_context(subset: Subset, tmp_path: Path) -> None:
    path = tmp_path / "sample.npy"
    egs.sample_frames(subset, 20, CONTEXT, 5, path)
    sampled = egs.open_archive(path)
    assert len(set(sampled.labels[:, 0].tolist())) == 20
    np.testing.assert_array_equal(sampled.features[:, 2, 1], sampled.labels[:, 0] % 100)
    first = path.read_bytes()
    egs.sample_frames(subset, 20, CONTEXT, 5, path)
    assert path.read_bytes() == first
    egs.sample_frames(subset, 1000, CONTEXT, 5, path)
    assert len(egs.open_archive(path)) == sum(LENGTHS)


def test_missing_disk_space_is_reported_before_writing(
    subset: Subset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = egs.shutil.disk_usage(tmp_path)._replace(free=egs.DISK_RESERVE + 500)
    monkeypatch.setattr(egs.shutil, "disk_usage", lambda path: free)
    with pytest.raises(DataError, match="make room"):
        egs.distribute(subset, egs.Layout(1, 4), CONTEXT, 0, 1, tmp_path / "egs" / "part.npy")
    assert not list((tmp_path / "egs").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "text", "header", "zip", "other", "pickle", "missing"])
def test_damaged_archives_are_refused(subset: Subset, tmp_path: Path, damage: str) -> None:
    path = make(subset, egs.Layout(1, 4), 1, tmp_path)[0]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "text":
        path.write_text("nothing of the kind")
    elif damage == "header":
        path.write_bytes(path.read_bytes().replace(b"'descr'", b"'de(cr'"))
    elif damage == "zip":
        np.savez(path.with_suffix(".npz"), x=np.zeros(3))
        path.with_suffix(".npz").rename(path)
    elif damage == "other":
        np.save(path, np.zeros(3))
    elif damage == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
    else:
        path.unlink()
    with pytest.raises(DataError, match=str(path)):
        egs.open_archive(path)


def test_frames_of_archives_and_samples(subset, tmp_path: Path) -> None:
    """Relabelling relies on the exact frames that `distribute` and `shuffle`, or `sample_frames`, take."""
    for layout in (egs.Layout(3, 4), egs.Layout(1, 5)):
        for a, path in enumerate(make(subset, layout, 2, tmp_path)):
            frames = egs.archive_frames(subset, layout, a, seed=0)
            own = np.where(frames == egs.NO_LABEL, egs.NO_LABEL, subset.labels[frames])
            np.testing.assert_array_equal(own, egs.open_archive(path).labels)
    egs.sample_frames(subset, 20, CONTEXT, 5, tmp_path / "sample.npy")
    frames = egs.drawn_frames(subset, 20, 5)
    np.testing.assert_array_equal(subset.labels[frames], egs.open_archive(tmp_path / "sample.npy").labels[:, 0])


def test_archive_with_other_labels(subset, tmp_path: Path) -> None:
    path = make(subset, egs.Layout(1, 4), 1, tmp_path)[0]
    own = egs.open_archive(path)
    np.save(tmp_path / "labels.npy", np.where(own.labels == egs.NO_LABEL, egs.NO_LABEL, 7).astype(np.int32))
    other = egs.open_archive(path, tmp_path / "labels.npy")
    batches = list(egs.minibatches(other, 0, CONTEXT, CONTEXT, 16, 0))
    assert {int(y) for _, labels in batches for y in labels} == {7}
    for (x, _), (expected, _) in zip(batches, egs.minibatches(own, 0, CONTEXT, CONTEXT, 16, 0), strict=True):
        np.testing.assert_array_equal(x, expected)
    np.save(tmp_path / "labels.npy", own.labels[1:])
    with pytest.raises(DataError, match="not the labels of"):
        egs.open_archive(path, tmp_path / "labels.npy")


@pytest.mark.parametrize("bits", [8, 16])
def test_quantised_archives_are_close_to_exact_ones(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(0)
    # One dimension is constant, and one is far larger than the others.
    scale = np.array([1.0, 0.0, 1e6, 1e-4])
    utterances = [
        Utterance(f"u{i}", (3.0 + scale * rng.normal(size=(n, 4))).astype(np.float32), np.arange(n, dtype=np.int32))
        for i, n in enumerate((30, 7, 41))
    ]
    write_subset(tmp_path, "train", utterances, 4)
    subset, layout = Subset(tmp_path, "train"), egs.Layout(2, 4)
    archives = {}
    for stored in (bits, 32):
        parts = [tmp_path / f"{stored}.{k}.npy" for k in (0, 1)]
        for k, part in enumerate(parts):
            egs.distribute(subset, layout, CONTEXT, k, 2, part, bits=stored)
        egs.shuffle(subset, layout, 1, 0, parts, tmp_path / f"{stored}.npy")
        archives[stored] = egs.open_archive(tmp_path / f"{stored}.npy")
    exact = archives[32].features
    half_step = (exact.max(axis=1) - exact.min(axis=1)) / (2 * (2**bits - 1))
    for frame in range(4):
        batches = [list(egs.minibatches(archives[b], frame, CONTEXT, (1, 1), 5, seed=3)) for b in (bits, 32)]
        assert len(batches[0]) == len(batches[1]) > 1
        for (few, few_labels), (all_, all_labels) in zip(*batches, strict=True):
            np.testing.assert_array_equal(few_labels, all_labels)
            assert few.dtype == np.float32
            rounding = 1e-6 * np.abs(all_).max(axis=(0, 1))
            assert (np.abs(few - all_).max(axis=(0, 1)) <= 1.001 * half_step.max(axis=0) + rounding).all()
    entire = np.arange(len(exact))
    error = np.abs(archives[bits].gather(entire, slice(None)) - exact).max(axis=1)
    assert (error <= 1.001 * half_step + 1e-6 * np.abs(exact).max(axis=1)).all()
    assert (error[:, [0, 2]] > 0.0).any(axis=0).all()  # some values differ, otherwise nothing was quantised
    assert archives[bits].features.dtype.itemsize == bits // 8
