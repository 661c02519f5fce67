"""Splice indexes: the frames of the layer below that each hidden layer sees. Imports no torch."""

from __future__ import annotations

import re

from ngsgd.errors import ConfigError

Splices = tuple[tuple[int, ...] | None, ...]


def parse_splice_indexes(text: str) -> Splices:
    """Parses the splice offsets of each hidden layer; None for a layer that sees one frame.

    Args:
        text: such as ``layer0/-2:-1:0:1:2 layer1/-2:1 layer2/-3:3``; layers that are not named see one frame.

    Raises:
        ConfigError: the text is malformed, or layer 0 is not contiguous around 0.
    """
    splices: dict[int, tuple[int, ...]] = {}
    for word in text.split():
        if not (match := re.fullmatch(r"layer(\d{1,3})/(-?\d{1,4}(?::-?\d{1,4})*)", word)):
            raise ConfigError(f"splice_indexes: {word!r} is not of the form layer1/-2:1")
        layer, offsets = int(match[1]), tuple(int(o) for o in match[2].split(":"))
        if layer in splices:
            raise ConfigError(f"splice_indexes: layer{layer} is given twice")
        if list(offsets) != sorted(set(offsets)):
            raise ConfigError(f"splice_indexes: the frames of layer{layer} must rise, got {match[2]}")
        if not offsets[0] <= 0 <= offsets[-1]:
            raise ConfigError(f"splice_indexes: the frames of layer{layer} must reach to or across 0, got {match[2]}")
        splices[layer] = offsets
    first = splices.get(0)
    if first is None or 0 not in first or len(first) != first[-1] - first[0] + 1:
        raise ConfigError("splice_indexes: layer0 must be given, be contiguous and include 0")
    return tuple(splices.get(layer) for layer in range(max(splices) + 1))


def context(splices: Splices) -> tuple[int, int]:
    """Returns the numbers of frames that the network with all layers needs before and after a frame."""
    spliced = [s for s in splices if s is not None]
    return -sum(min(s) for s in spliced), sum(max(s) for s in spliced)
