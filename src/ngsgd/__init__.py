"""Parallel training of acoustic models with natural gradient and parameter averaging (arXiv:1410.7455)."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers treat this name as true; importing typing is a third of a command's start-up time
if TYPE_CHECKING:
    from typing import Any

    from ngsgd.network.model import AcousticModel, load_model
    from ngsgd.optim.ngsgd import NGSGD
    from ngsgd.optim.online import OnlineNaturalGradient
    from ngsgd.optim.simple import SimpleNaturalGradient

__version__ = "0.1.0"

__all__ = ["NGSGD", "AcousticModel", "OnlineNaturalGradient", "SimpleNaturalGradient", "load_model"]

_MODULES = {
    "AcousticModel": "ngsgd.network.model",
    "load_model": "ngsgd.network.model",
    "NGSGD": "ngsgd.optim.ngsgd",
    "OnlineNaturalGradient": "ngsgd.optim.online",
    "SimpleNaturalGradient": "ngsgd.optim.simple",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, since some commands, such as averaging models, do not need torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ngsgd' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
