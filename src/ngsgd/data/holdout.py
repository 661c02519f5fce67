"""Choice of the validation utterances: copies of one recording stay together, so that none is also in training."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable

from ngsgd.errors import ConfigError


def include_copies(chosen: set[str], names: Iterable[str], uniq: dict[str, str]) -> set[str]:
    """Returns those of ``names`` that are chosen or are copies of chosen recordings; for ``uniq`` see `hold_out`."""
    originals = {uniq.get(name, name) for name in chosen}
    return {name for name in names if uniq.get(name, name) in originals}


def hold_out(names: list[str], number: int, uniq: dict[str, str]) -> set[str]:
    """Chooses at least ``number`` utterances; the choice depends only on the names of their recordings.

    Args:
        names: all utterances.
        number: smallest number of utterances to hold out.
        uniq: maps the name of each copy to that of its original.

    Raises:
        ConfigError: no utterance would be left for training.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[uniq.get(name, name)].append(name)
    chosen: set[str] = set()
    for original in sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest()):
        if len(chosen) >= number:
            return chosen
        chosen.update(groups[original])
    raise ConfigError(f"num_valid_utterances: {number} of {len(names)} utterances leave nothing to train on; lower it")
