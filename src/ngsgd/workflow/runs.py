"""The runs of a configuration: their folders, and the models that they start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ngsgd.errors import ConfigError
from ngsgd.files import file_stamp
from ngsgd.training.run import Run
from ngsgd.training.settings import Settings


def initial_model_path(settings: Settings) -> Path | None:
    """The path of the model that a run starts from; None if it starts from a new one.

    A path below ``results`` is used as it is: another run may have to make the model first.
    """
    if settings.initial_model is None:
        return None
    given = Path(settings.initial_model)
    return given if given.is_relative_to("results") else settings.path("initial_model")


def file_origin(path: Path) -> str:
    """Identifies the initial model in a file, by its contents."""
    return f"{path} {file_stamp(path)}"


def make_runs(settings: Mapping[str, Settings]) -> dict[str, Run]:
    """The runs by name, each after the one whose model it starts from.

    Raises:
        ConfigError: an initial model does not exist, or is made from the run itself.
    """
    runs: dict[str, Run] = {}
    for name in settings:
        _add_run(name, settings, runs, ())
    return runs


def _add_run(name: str, settings: Mapping[str, Settings], runs: dict[str, Run], dependents: tuple[str, ...]) -> None:
    if name in runs:
        return
    own, origin = settings[name], None
    path = initial_model_path(own)
    if path is not None:
        maker = next((other for other in settings if path.is_relative_to(Path("results", other))), None)
        if maker in (*dependents, name):
            raise ConfigError(f"runs: {name}: initial_model: {path} is made from the run itself")
        if maker is None:
            if not path.exists():
                raise ConfigError(f"runs: {name}: initial_model: {path}: no such file")
            origin = file_origin(path)
        else:
            # The model may not exist yet: what it is made from stands for its contents.
            _add_run(maker, settings, runs, (*dependents, name))
            origin = f"{path} {runs[maker].models_key()}"
    runs[name] = Run(
        folder=Path("results", name),
        settings=own,
        data=Path("results/data", own.data_key()),
        examples=Path("results/egs", own.egs_key()),
        origin=origin,
    )


def recipe_path(run: Run) -> str:
    """The file that exists while the run's settings are active in its folder."""
    return f"{run.folder}/recipe/{run.key()}.json"
