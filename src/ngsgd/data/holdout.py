"""Which utterances are held out for validation: copies of one recording never stand on both sides."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable

from ngsgd.errors import ConfigError


def include_copies(chosen: set[str], names: Iterable[str], uniq: dict[str, str]) -> set[str]:
    """The utterances among ``names`` that were chosen, and those made of the same recordings."""
    originals = {uniq.get(name, name) for name in chosen}
    return {name for name in names if uniq.get(name, name) in originals}


def hold_out(names: list[str], number: int, uniq: dict[str, str]) -> set[str]:
    """At least ``number`` utterances, chosen by the names of their recordings alone.

    Args:
        names: of all utterances.
        number: how many to hold out.
        uniq: the original of each copy.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[uniq.get(name, name)].append(name)
    chosen: set[str] = set()
    for original in sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest()):
        if len(chosen) >= number:
            return chosen
        chosen.update(groups[original])
    raise ConfigError(f"num_valid_utterances: {number} of {len(names)} utterances leave nothing to train on")
