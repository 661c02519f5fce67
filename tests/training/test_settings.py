from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from ngsgd.data.corpora.kaldi import KaldiSettings
from ngsgd.errors import ConfigError
from ngsgd.training.call_settings import CallSettings
from ngsgd.training.run import Run
from ngsgd.workflow.configuration import GENERATED, config_schema, default_configuration, run_settings

ROOT = Path(__file__).resolve().parents[2]

KALDI = {"train_data": "a", "test_data": "b", "train_alignment": "c", "test_alignment": "d"}


def test_each_run_is_the_defaults_and_its_own(config) -> None:
    config["runs"] = {"a": None, "b": {"seed": 7, "optimizer": "sgd"}}
    runs = run_settings(config)
    assert dataclasses.replace(runs["a"], seed=7, optimizer="sgd") == runs["b"]
    assert (runs["a"].seed, runs["a"].optimizer) == (config["seed"], config["optimizer"])


@pytest.mark.parametrize("path", GENERATED)
def test_generated_files_are_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == GENERATED[path](), "run `make config`"


def test_the_default_run_has_the_declared_defaults(config) -> None:
    assert config == default_configuration()
    assert set(config) == set(config_schema()["properties"]) == set(config_schema()["required"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_epoch": 3}, "unknown setting 'num_epoch'; did you mean 'num_epochs'?"),
        ({"zebra": 3}, "unknown setting 'zebra'; config/README.md lists"),
        ({"num_epochs": "3"}, "num_epochs: '3' is not of type 'number'"),
        ({"num_epochs": 1e308}, "num_epochs: 1e+308 is greater than the maximum"),
        ({"num_epochs": 0}, "num_epochs: 0 is less than or equal to the minimum of 0"),
        ({"num_epochs": float("nan")}, "num_epochs: nan is not of type 'number'"),
        ({"alpha": float("inf")}, "alpha: inf is not of type 'number'"),
        ({"frames_per_eg": 4.0}, "frames_per_eg: 4.0 is not of type 'integer'"),
        ({"splice_indexes": "layer0/-1:0:1 layer1/1:2"}, "frames of layer1 must reach to or across 0"),
        ({"seed": True}, "seed: True is not of type 'integer'"),
        ({"optimizer": "ng-sdg"}, "did you mean 'ng-sgd'?"),
        ({"device": "gpu"}, "device: 'gpu' does not match"),
        ({"precision": "tf32"}, "precision: tf32 is a number format of GPUs"),
        ({"egs_bits": 12}, "egs_bits: 12 is not one of [8, 16, 32]"),
        ({"splice_indexes": "layer0/-1:1"}, "layer0 must be given, be contiguous"),
        ({"num_hidden_layers": 2}, "splice_indexes names layer2, num_hidden_layers is 2"),
        ({"pnorm_output_dim": 81}, "pnorm_output_dim 81 does not divide pnorm_input_dim 400"),
        ({"num_jobs_initial": 5}, "num_jobs_initial 5 is above num_jobs_final 4"),
        ({"final_effective_lrate": 0.5}, "final_effective_lrate 0.5 is above"),
    ],
)
def test_a_bad_setting_is_named_with_its_run(config, changes, text: str) -> None:
    with pytest.raises(ConfigError) as e:
        run_settings({**config, "runs": {"mine": changes}})
    assert str(e.value).startswith("runs: mine: ")
    assert text in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "runs", [None, {}, [], {"a": 3}, {"a b": {}}, {"data": {}}, {"../x": {}}, {"a": {"runs": {}}}, {1: {}}]
)
def test_malformed_runs_are_refused(config, runs) -> None:
    with pytest.raises(ConfigError, match="runs"):
        run_settings({**config, "runs": runs})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"runs": {"a": {"min_jobs": 2}}}, "runs: a: min_jobs holds for all runs of a call"),
        ({"min_jobs": 0}, "min_jobs: 0 is less than the minimum"),
        ({"straggler_timeout": 5.0}, "straggler_timeout: needs min_jobs"),
        ({"resources": {"trian": {"mem_mb": 1}}}, "'trian' is not one of"),
        ({"resources": {"train": {"memory": 1}}}, "unknown setting 'memory'"),
        (
            {"resources": {"train": {"mem_mb": "a lot"}}},
            "resources: train: mem_mb: 'a lot' is not a number of megabytes, or a size such as 8GB",
        ),
    ],
)
def test_a_bad_setting_of_the_call_is_named(config, changes, text: str) -> None:
    def both() -> None:
        run_settings(config | changes)
        CallSettings.from_config(config | changes)

    with pytest.raises(ConfigError) as e:
        both()
    assert text in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("silence_phones: 1", "1"),
        ("silence_phones: '1:2:3'", "1:2:3"),
        ("initial_effective_lrate: 2e-2", 0.02),
        ("initial_effective_lrate: 2E-2", 0.02),
        ("samples_per_iter: 4e3", 4000),
        ("combination_decay: 5e-1", 0.5),
        ("word_ins_penalties: [0, 1e-1]", [0, 0.1]),
        ("unscored_words: [1, <UNK>]", ["1", "<UNK>"]),
    ],
)
def test_a_value_that_yaml_reads_as_another_type_is_understood(config, text: str, value) -> None:
    ((name, read),) = yaml.safe_load(text).items()
    for changes in ({name: read}, {"runs": {"a": {name: read}}}):
        settings = next(iter(run_settings(config | {"corpus": "kaldi"} | KALDI | changes).values()))
        assert settings.values()[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("silence_phones: 1:2:3", 'silence_phones: YAML reads this value as the number 3723; .*"3723" or "1:2:3"$'),
        ("train_data: 2020-01-01", 'train_data: YAML reads this value as the date 2020-01-01; .*"2020-01-01"$'),
        ("cmvn_opts: 1.5", 'cmvn_opts: YAML reads this value as the number 1.5; .*"1.5"$'),
        ("test_data: no", 'test_data: YAML reads this value as the truth value False; .*"False"$'),
        ("path_map: {1: /a}", "path_map: YAML reads the key 1 as no text; write it in quotes"),
        ("path_map: {null: /a}", "path_map: YAML reads the key None as no text; write it in quotes"),
        ("samples_per_iter: 45e-1", "samples_per_iter: '45e-1' is not of type 'integer'"),
    ],
)
def test_a_value_that_needs_quotes_is_an_error(config, text: str, message: str) -> None:
    for changes, where in ((yaml.safe_load(text), ""), ({"runs": {"a": yaml.safe_load(text)}}, "runs: a: ")):
        with pytest.raises(ConfigError, match=f"^{where}{message}"):
            run_settings(config | {"corpus": "kaldi"} | KALDI | changes)


def test_a_missing_setting_is_named(config) -> None:
    del config["alpha"]
    with pytest.raises(ConfigError, match="'alpha' is missing"):
        run_settings(config)


def test_what_is_shared_and_what_is_made_again(make_settings) -> None:
    base = make_settings()
    assert make_settings(optimizer="sgd").egs_key() == base.egs_key()
    assert make_settings(samples_per_iter=999).egs_key() != base.egs_key()
    assert make_settings(samples_per_iter=999).data_key() == base.data_key()
    assert make_settings(digits_file="nowhere").data_key() != base.data_key()
    assert make_settings(states_per_word=4).egs_key() != base.egs_key()
    assert make_settings(max_models_combine=3).values_for_training() == base.values_for_training()
    assert make_settings(max_models_combine=3).values_for_final_model() != base.values_for_final_model()
    assert make_settings(initial_effective_lrate=0.01).values_for_training() != base.values_for_training()


def test_a_run_survives_its_file(make_settings, tmp_path: Path) -> None:
    run = Run(tmp_path, make_settings(seed=3), Path("results/data/x"), Path("results/egs/y"))
    run.write(run.settings_file)
    assert Run.open(tmp_path) == run
    (tmp_path / "settings.json").write_text('{"settings": {"seed": 1}}')
    with pytest.raises(ConfigError, match=r"settings\.json: not the settings of a run"):
        Run.open(tmp_path)


def test_a_setting_belongs_to_its_stage(make_settings) -> None:
    base = make_settings()
    for change in ({"beam": 3.0}, {"num_splits": 5}, {"graph": None}):
        assert make_settings(**change).values_for_training() == base.values_for_training()
        assert make_settings(**change).values_for_final_model() == base.values_for_final_model()
    assert make_settings(num_prior_frames=7).values_for_training() == base.values_for_training()
    realigned, other_priors = ({"realign_times": [0.5]} | more for more in ({}, {"num_prior_frames": 7}))
    assert make_settings(**other_priors).values_for_training() != make_settings(**realigned).values_for_training()
    assert make_settings(num_valid_frames=7).values_for_scoring() != base.values_for_scoring()


def test_values_that_are_no_paths_are_not_looked_for() -> None:
    settings = KaldiSettings(silence_phones="1:2:3", train_transforms="none", test_transforms="none")
    settings.check_sources()
    assert settings.path("silence_phones") is None
    for name in ("silence_phones", "train_transforms"):
        with pytest.raises(ConfigError, match=rf"{name}: elsewhere: no such file or folder in /"):
            KaldiSettings(**{name: "elsewhere"}).check_sources()
