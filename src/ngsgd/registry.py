"""Registries: what is chosen by a name or type registers itself where it is defined."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeVar

K = TypeVar("K")


def add(registry: MutableMapping[K, Any], key: K, value: Any) -> None:
    """Adds an entry to a registry.

    Raises:
        ValueError: the key is taken, which would silently change what it chooses.
    """
    if key in registry:
        raise ValueError(f"{key!r} is registered already, by {getattr(registry[key], '__qualname__', registry[key])}")
    registry[key] = value
