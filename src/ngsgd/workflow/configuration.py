"""The configuration: its schema, its documentation and its validation, all made from the declarations of the settings.

``python -m ngsgd.workflow.configuration`` writes ``workflow/schemas/config.schema.yaml``, ``config/config.yaml`` and
``config/README.md`` again, from the root of the project.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jsonschema
import yaml

from ngsgd.data.corpora import CorpusSettings, corpora
from ngsgd.declare import Setting, declared, defaults
from ngsgd.errors import ConfigError
from ngsgd.files import write_text
from ngsgd.training.averaging_rules import averaging_rules
from ngsgd.training.call_settings import CALL_SETTINGS, CallSettings
from ngsgd.training.lrate_schedules import SCHEDULES
from ngsgd.training.settings import SECTIONS, Settings

# Numbers that YAML reads as text, since it wants a point in them and a sign in the exponent.
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

RUNS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^(?!(data|egs|logs)$)[A-Za-z0-9][A-Za-z0-9_.-]*$"},
    "additionalProperties": {"type": ["object", "null"]},
}


def config_schema() -> dict[str, Any]:
    """The JSON schema of a configuration."""
    properties: dict[str, Any] = {"corpus": {"enum": list(corpora())}}
    for section in _sections():
        hints = typing.get_type_hints(section)
        for name, setting in declared(section).items():
            properties.setdefault(name, setting.schema or _property(hints[name], setting))
    properties["lrate_schedule"] = {"enum": sorted(SCHEDULES)}
    properties["averaging_rule"] = {"enum": list(averaging_rules())}
    properties["runs"] = RUNS_SCHEMA
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "The configuration of ngsgd; config/README.md explains each key.",
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def check_sources(settings: Mapping[str, Settings]) -> None:
    """Checks that the files and folders exist that the settings of the runs name.

    Raises:
        ConfigError: one does not.
    """
    for name, own in settings.items():
        try:
            own.check_sources()
        except ConfigError as e:
            raise ConfigError(f"runs: {name}: {e}") from None


def typed_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration in which values have the types of their settings where YAML read them as another.

    YAML reads ``2e-3`` as text, ``1`` as a number where a name or phone is meant, and ``1:2:3`` as the number 3723 (in
    base 60). A number below 60 can only be meant as it is written; a larger one for a setting that is text is an error
    that says how to write it.

    Raises:
        ConfigError: a value for text was read as a number or a date.
    """
    properties = config_schema()["properties"]

    def typed(values: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {name: _typed(value, properties.get(name, {}), f"{where}{name}") for name, value in values.items()}

    runs = config.get("runs")
    if not isinstance(runs, Mapping):
        return typed(config, "")
    own = {run: typed(v, f"runs: {run}: ") if isinstance(v, Mapping) else v for run, v in runs.items()}
    return typed(config, "") | {"runs": own}


def _typed(value: Any, schema: Mapping[str, Any], where: str) -> Any:
    types = schema.get("type", [])
    if isinstance(value, list):
        return [_typed(item, schema.get("items", {}), where) for item in value]
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        wrong = next(key for key in value if not isinstance(key, str))
        raise ConfigError(f"{where}: YAML reads the key {wrong} as no text; write it in quotes")
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        if "number" in types:
            return float(value)
        if "integer" in types and float(value).is_integer():
            return int(float(value))
    if "string" not in types or not isinstance(value, int | float | datetime.date):
        return value
    is_number = not isinstance(value, bool | datetime.date)
    if is_number and value in range(60):
        return str(value)
    kind = "number" if is_number else "date" if isinstance(value, datetime.date) else "truth value"
    meant = [str(value), *([_in_base_60(value)] if is_number and isinstance(value, int) and value >= 60 else [])]
    quoted = " or ".join(f'"{text}"' for text in meant)
    raise ConfigError(f"{where}: YAML reads this value as the {kind} {value}; write it in quotes, such as {quoted}")


def _in_base_60(value: int) -> str:
    """Returns the text with colons that YAML reads as this number."""
    parts = []
    while value >= 60:
        value, part = divmod(value, 60)
        parts.append(part)
    return ":".join(map(str, [value, *reversed(parts)]))


def _sections() -> list[type]:
    """The classes that declare settings, in the order in which they are documented."""
    return [CorpusSettings, *(corpus.settings_type for corpus in corpora().values()), *SECTIONS, CallSettings]


def _property(hint: Any, setting: Setting) -> dict[str, Any]:
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    nullable = type(None) in options
    (kind,) = (option for option in options if option is not type(None))
    if typing.get_origin(kind) is Literal:
        return {"enum": [*typing.get_args(kind), *([None] if nullable else [])]}
    name = JSON_TYPES[kind]
    limits = {
        "minimum": setting.minimum,
        "maximum": setting.maximum,
        "exclusiveMinimum": setting.above,
        "exclusiveMaximum": setting.below,
        "pattern": setting.pattern,
        "minLength": 1 if setting.not_empty else None,
    }
    return {"type": [name, "null"] if nullable else name} | {key: v for key, v in limits.items() if v is not None}


def run_settings(config: Mapping[str, Any]) -> dict[str, Settings]:
    """Validates a configuration and returns the settings of each run.

    Args:
        config: the defaults, and under ``runs`` a name and overrides for each run.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type, is out of range, or does not match the
            others.
    """
    config = typed_values(config)
    schema = config_schema()
    # JSON schema takes 8.0 for an integer, and NaN for a number.
    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ),
        }
    )
    extend: Any = jsonschema.validators.extend
    validator = extend(jsonschema.Draft202012Validator, type_checker=types)(schema)
    runs = config.get("runs")
    if not isinstance(runs, Mapping) or not runs:
        raise ConfigError(
            "runs: at least one run must be given, as a name and its overrides, such as `sgd: {optimizer: sgd}`"
        )
    _check(validator, config, schema, "")
    checked = {}
    for name, overrides in runs.items():
        if not isinstance(name, str):
            raise ConfigError(f"runs: {name!r} cannot be a run's name: put it in quotes")
        if not isinstance(overrides or {}, Mapping):
            raise ConfigError(f"runs: {name}: expected settings, got {overrides!r}")
        if "runs" in (overrides or {}):
            raise ConfigError(f"runs: {name}: a run cannot hold runs")
        for key in CALL_SETTINGS.intersection(overrides or {}):
            raise ConfigError(f"runs: {name}: {key} holds for all runs of a call: give it next to runs, not in one")
        merged = {**config, **(overrides or {}), "runs": {name: {}}}
        _check(validator, merged, schema, f"runs: {name}: ")
        corpus = corpora()[merged["corpus"]].settings_type
        names = ["corpus", *declared(Settings), *declared(corpus)]
        settings = Settings.from_values({key: merged[key] for key in names})
        try:
            settings.check()
        except ConfigError as e:
            raise ConfigError(f"runs: {name}: {e}") from None
        checked[name] = settings
    return checked


def _check(validator: Any, config: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(part) for part in e.path]):
        path = ": ".join(str(part) for part in error.path)
        if error.validator == "additionalProperties":
            unknown = next(key for key in error.instance if key not in error.schema["properties"])
            near = difflib.get_close_matches(str(unknown), error.schema["properties"], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; config/README.md lists those there are"
            raise ConfigError(f"{where}{f'{path}: ' if path else ''}unknown setting {unknown!r}{hint}")
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            raise ConfigError(f"{where}the setting {missing!r} is missing; config/config.yaml has its default")
        if error.validator == "pattern" and path == "runs":
            raise ConfigError(
                f"runs: {error.instance!r} cannot be a run's name: letters, digits, '.', '_' and '-', "
                "and not data, egs or logs"
            )
        if error.validator == "pattern" and "description" in error.schema:
            raise ConfigError(f"{where}{path}: {error.instance!r} is not {error.schema['description']}")
        hint = ""
        if error.validator == "enum":
            near = difflib.get_close_matches(str(error.instance), map(str, error.validator_value), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}{path or 'configuration'}: {error.message}{hint}")


def default_configuration() -> dict[str, Any]:
    """The defaults of all settings, and the runs of ``config/config.yaml``."""
    config: dict[str, Any] = {"corpus": "digits"}
    for section in _sections():
        config = defaults(section) | config
    return config | {"runs": {"ng-sgd": {}, "sgd": {"optimizer": "sgd"}}}


def config_yaml() -> str:
    """The text of ``config/config.yaml``."""
    lines = [
        "# The default run: recorded digits, NG-SGD and for comparison plain SGD, some minutes on two cores.",
        "# `make config` makes this file from the declarations of the settings. README.md in this folder explains each",
        "# key. `runs` at the end overrides keys for each run.",
        "",
        "corpus: digits",
    ]
    seen: set[str] = set()
    for section in _sections():
        new = {name: value for name, value in defaults(section).items() if name not in seen}
        seen |= new.keys()
        if new:
            lines += ["", f"# {_title(section)}", *(f"{name}: {_yaml(value)}" for name, value in new.items())]
    return "\n".join([*lines, "", "runs:", "  ng-sgd: {}", "  sgd:", "    optimizer: sgd", ""])


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f'"{value}"' if isinstance(value, str) and (" " in value or value == ".") else text


README = """\
# The configuration

    snakemake --configfile mine.yaml
    snakemake --config num_epochs=10 seed=1

`config.yaml` is the default run. A configuration of your own needs only the keys that differ. Top-level keys are the
defaults of all runs. Under `runs` each run has a name, which becomes its folder in `results/`, and its own overrides.
If your configuration has `runs`, only these are made, not those of the default configuration. Keys have the names of
Kaldi's `train_multisplice_accel2.sh` where it has one; other names of Kaldi's are in the table. `docs/glossary.md`
defines the terms. This page is made from the declarations of the settings, by `make config`.
"""


def config_readme() -> str:
    """The text of ``config/README.md``."""
    parts = [README]
    seen: set[str] = set()
    for section in _sections():
        new = {name: setting for name, setting in declared(section).items() if name not in seen}
        seen |= new.keys()
        level = "###" if issubclass(section, CorpusSettings) and section is not CorpusSettings else "##"
        parts.append(f"{level} {_title(section)}")
        if body := _body(section):
            parts.append(body)
        rows = ["| key | default | description |", "| --- | --- | --- |"]
        if section is CorpusSettings:
            sources = ", ".join(f"`{name}`" for name in corpora())
            rows.append(f"| `corpus` | `digits` | Source of the data: {sources}. |")
        for name, setting in new.items():
            rows.append(f"| `{name}` | `{_yaml(defaults(section)[name])}` | {_description(setting)} |")
        if section is CallSettings:
            rows.append("| `runs` | | The runs, by name: `runs: {sgd: {optimizer: sgd}}`. |")
        shared = [f"`{name}`" for name in _own_names(section) if name not in new]
        if level == "###" and shared:
            parts.append(f"Also used: {', '.join(shared)}.")
        parts.append("\n".join(rows))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _own_names(section: type) -> list[str]:
    """The settings of a section apart from those of every corpus."""
    return [name for name in declared(section) if name not in declared(CorpusSettings)]


def _description(setting: Setting) -> str:
    limits = [
        text
        for text, value in (
            (f"at least {setting.minimum}", setting.minimum),
            (f"above {setting.above}", setting.above),
            (f"at most {setting.maximum}", setting.maximum),
            (f"below {setting.below}", setting.below),
        )
        if value is not None
    ]
    notes = [
        *([f"in {setting.unit}"] if setting.unit else []),
        *limits,
        *([f"Kaldi: `{setting.kaldi}`"] if setting.kaldi else []),
    ]
    return setting.help + (f" ({'; '.join(notes)})" if notes else "")


def _title(section: type) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _body(section: type) -> str:
    """The paragraphs of a section's docstring after its title, without the lines that document attributes."""
    text = textwrap.dedent("    " + (section.__doc__ or "").strip()).strip().partition("\n\n")[2]
    return textwrap.dedent(text)


GENERATED: dict[str, typing.Callable[[], str]] = {
    "workflow/schemas/config.schema.yaml": lambda: (
        "# Made from the declarations of the settings, by `make config`.\n"
        + yaml.safe_dump(config_schema(), sort_keys=False, width=120, allow_unicode=True)
    ),
    "config/config.yaml": config_yaml,
    "config/README.md": config_readme,
}


def main() -> None:
    for path, make in GENERATED.items():
        write_text(Path(path), make())


if __name__ == "__main__":
    main()
