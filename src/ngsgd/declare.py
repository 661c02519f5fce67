"""Declaring a setting: once, as a field of a dataclass, with everything that is known about it.

The JSON schema, ``config/README.md``, ``config/config.yaml``, the keys of caches and the validation of a configuration
are made from these declarations (`ngsgd.workflow.configuration`). Training jobs import them, so that this module needs
only the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: The stage whose results a setting changes. A change of a setting makes these results again, and all that follow.
Stage = Literal["corpus", "examples", "training", "scoring", "combination", "evaluation", "none"]


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, apart from its name, type and default, which are those of its field.

    Attributes:
        help: description for people, in Markdown, starting with a capital letter.
        stage: the stage whose results it changes; "none" if it changes no result.
        minimum, maximum: the smallest and the largest value.
        above, below: limits that the value must not reach.
        pattern: regular expression that a string must match.
        not_empty: whether a string must have a character.
        unit: of a number.
        kaldi: the option of Kaldi's ``train_multisplice_accel2.sh`` (or the script named) with another name.
        is_source: whether it names a file or folder whose contents matter, and not only its name.
        files: patterns of the files that are read, if it names a folder; None for all.
        not_a_path: regular expression of the values of such a setting that are no paths.
        schema: JSON schema of a structured value, instead of one made from the type.
    """

    help: str
    stage: Stage
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    pattern: str | None = None
    not_empty: bool = False
    unit: str | None = None
    kaldi: str | None = None
    is_source: bool = False
    files: tuple[str, ...] | None = None
    not_a_path: str | None = None
    schema: Mapping[str, Any] | None = None


def setting(default: Any, help: str, *, stage: Stage, **declaration: Any) -> Any:
    """A field of a dataclass that declares a setting; see `Setting` for the arguments."""
    metadata = {"setting": Setting(help, stage, **declaration)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(settings: type) -> dict[str, Setting]:
    """The settings that a dataclass declares, those of its base classes included, by their names."""
    return {
        field.name: field.metadata["setting"] for field in dataclasses.fields(settings) if "setting" in field.metadata
    }


def defaults(settings: type) -> dict[str, Any]:
    """The default of each setting that a dataclass declares."""
    values = {}
    for field in dataclasses.fields(settings):
        if "setting" in field.metadata:
            factory = field.default_factory
            values[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return values
