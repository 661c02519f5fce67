"""Tests that the memory for making and reading examples does not grow with the corpus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from ngsgd.data.corpus import Utterance, write_subset

LIMIT = 96 * 2**20  # bytes of anonymous memory, most of which numpy takes

PROGRAM = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
from ngsgd.data.corpus import Subset
from ngsgd.data.egs import Layout, distribute, minibatches, open_archive, shuffle
folder = Path(sys.argv[1])
subset, layout, context = Subset(folder, "train"), Layout(1, 8), (7, 6)
parts = [folder / f"part.{{k}}.npy" for k in range(2)]
for k, part in enumerate(parts):
    distribute(subset, layout, context, k, 2, part)
shuffle(subset, layout, 0, 0, parts, folder / "archive.npy")
frames = sum(len(y) for x, y in minibatches(open_archive(folder / "archive.npy"), 3, context, context, 128, 0))
print(frames)
"""


def test_examples_of_a_corpus_larger_than_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(800, 40)).astype(np.float32)
    labels = np.zeros(800, np.int32)
    utterances = (Utterance(f"u{i}", features + i, labels) for i in range(1000))
    written = write_subset(tmp_path, "train", utterances, 40)
    assert written.frames * 40 * 4 > 1.2 * LIMIT  # the examples are 2.6 times as large
    # OpenBLAS gets a single thread, since the buffers of each thread count.
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(limit=LIMIT), str(tmp_path)],
        capture_output=True,
        text=True,
        env={"OPENBLAS_NUM_THREADS": "1"},
    )
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) == 100_000
