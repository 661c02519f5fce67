"""Parallel training of acoustic models with natural gradient and parameter averaging (arXiv:1410.7455)."""

from __future__ import annotations

TYPE_CHECKING = False  # what a type checker takes it for; to import typing is a third of a command's start
if TYPE_CHECKING:
    from typing import Any

    from ngsgd.network.model import AcousticModel, load_model
    from ngsgd.optim.ngsgd import NGSGD
    from ngsgd.optim.online import OnlineNaturalGradient
    from ngsgd.optim.simple import SimpleNaturalGradient

__version__ = "0.1.0"

__all__ = ["NGSGD", "AcousticModel", "OnlineNaturalGradient", "SimpleNaturalGradient", "load_model"]

_HOMES = {
    "AcousticModel": "ngsgd.network.model",
    "load_model": "ngsgd.network.model",
    "NGSGD": "ngsgd.optim.ngsgd",
    "OnlineNaturalGradient": "ngsgd.optim.online",
    "SimpleNaturalGradient": "ngsgd.optim.simple",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: averaging models, for one, needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ngsgd' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
