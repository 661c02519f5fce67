"""Parallel corpus preparation: each part is a prepared corpus, and `assemble` concatenates them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ngsgd.data.corpora import Corpus
from ngsgd.data.corpus import (
    SUBSETS,
    CorpusInfo,
    Subset,
    SubsetSummary,
    Utterance,
    UtteranceFilter,
    read_info,
    write_info,
    write_subset,
)
from ngsgd.errors import DataError


def prepare_part(corpus: Corpus, directory: Path, part: int, num_parts: int) -> None:
    """Writes one part of a corpus as a prepared corpus; `assemble` checks the share of dropped utterances.

    Raises:
        DataError: the corpus cannot be read.
        OSError: a file cannot be written.
    """
    intake = UtteranceFilter(corpus.dim, corpus.num_classes)
    written = {}
    for subset in SUBSETS:
        utterances = intake.accept(corpus.read(subset, part, num_parts, intake.drop), count_classes=subset == "train")
        written[subset] = write_subset(directory, subset, utterances, corpus.dim)
    write_info(directory, _info(corpus, written, intake))


def assemble(parts: Sequence[Path], directory: Path, max_bad_share: float, max_unaligned_share: float = 1.0) -> None:
    """Concatenates the parts of a corpus, in their order, as a stream.

    Args:
        parts: folders of the parts.
        directory: folder of the corpus to be written.
        max_bad_share, max_unaligned_share: see `UtteranceFilter.check`.

    Raises:
        DataError: too many utterances were dropped, a subset is empty, or a part is damaged.
        OSError: a file cannot be written.
    """
    infos = [read_info(part) for part in parts]
    first = infos[0]
    intake = UtteranceFilter(first.dim, len(first.class_counts))
    for info in infos:
        intake.dropped |= info.dropped
        intake.class_counts += np.array(info.class_counts)
    intake.check(sum(sum(info.num_utterances.values()) for info in infos), max_bad_share, max_unaligned_share)

    def utterances(subset: str) -> Iterator[Utterance]:
        for part in parts:
            own = Subset(part, subset)
            for i, (name, text, speaker) in enumerate(zip(own.names, own.texts, own.speakers, strict=True)):
                yield Utterance(name, *own.utterance(i), text, own.silence_of(i), speaker)

    written = {subset: write_subset(directory, subset, utterances(subset), first.dim) for subset in SUBSETS}
    for subset, w in written.items():
        if not w.frames:
            reasons = [f"; dropped were {name}: {reason}" for name, reason in intake.dropped.items()]
            raise DataError(f"no utterance is left in the {subset} subset{''.join(reasons[:1])}")
    write_info(directory, _info(first, written, intake))


def _info(source: Corpus | CorpusInfo, written: dict[str, SubsetSummary], intake: UtteranceFilter) -> CorpusInfo:
    return CorpusInfo(
        dim=source.dim,
        class_counts=intake.class_counts.tolist(),
        num_utterances={subset: w.utterances for subset, w in written.items()},
        num_frames={subset: w.frames for subset, w in written.items()},
        sha256={subset: w.sha256 for subset, w in written.items()},
        dropped=intake.dropped,
        words=source.words,
        const_dim=source.const_dim,
        transition_model=source.transition_model,
        phones=source.phones,
    )
