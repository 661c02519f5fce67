"""Tests of training jobs, of averaging and combining their models, and of diagnostics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ngsgd import load_model
from ngsgd.data import egs
from ngsgd.errors import DataError, ModelError, TrainingError
from ngsgd.network.storage import read_model, write_model
from ngsgd.network.topology import initial_model
from ngsgd.training.average import end_iteration
from ngsgd.training.combine import combine, rescale, suffix_lengths
from ngsgd.training.diagnose import diagnose
from ngsgd.training.job import run_job
from ngsgd.training.model_mean import BLOCK, average_arrays, mean
from ngsgd.training.plan import AVERAGE, BEST, INSERT, Job
from ngsgd.training.run import Run
from ngsgd.training.scoring import score

DIM, CLASSES = 3, 4


@pytest.fixture
def settings(make_settings):
    return make_settings(
        splice_indexes="layer0/-1:0:1 layer1/-1:1", num_hidden_layers=2, pnorm_input_dim=12, pnorm_output_dim=6
    )


@pytest.fixture
def workplace(tmp_path: Path, settings) -> Path:
    """Writes an initial model, an archive of four-frame examples, and two archives of single frames for scoring."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(CLASSES, DIM))
    left, right = settings.context()
    for name, n, length in (("archive", 500, 4), ("valid", 300, 1), ("prior", 200, 1)):
        archive = np.zeros(n, egs.record_type(length, (left, right), DIM))
        labels = np.repeat(rng.integers(CLASSES, size=(n, 1)), length, axis=1)
        archive["labels"] = labels
        archive["features"] = centres[labels[:, :1]] + rng.normal(size=archive["features"].shape)
        archive["labels"][: n // 10, 3:] = egs.NO_LABEL
        np.save(tmp_path / f"{name}.npy", archive)
    transform = (rng.normal(size=(9, 9)) / 3, np.zeros(9))
    initial_model(settings.hidden_layers(), transform, np.array([5, 5, 5, 5]), 0).save(tmp_path / "0.safetensors")
    return tmp_path


def make_job(number: int = 1, **changes) -> Job:
    return Job(0, number, 0, 0, 0.02, 64, 1, 100 + number, AVERAGE)._replace(**changes)


def train(workplace: Path, settings, job: Job, model: str = "0") -> Path:
    path = workplace / f"{job.iteration}.{job.job}.safetensors"
    progress = workplace / "progress.json"
    run_job(settings, job, workplace / f"{model}.safetensors", workplace / "archive.npy", path, progress)
    return path


def average(workplace: Path, jobs: list[Path], before: str = "0", max_gap: float = 1.0):
    out, report = workplace / "next.safetensors", workplace / "next.json"
    end_iteration(jobs, workplace / f"{before}.safetensors", max_gap, out, report)
    return load_model(out), json.loads(report.read_text())


@pytest.mark.parametrize("optimizer", ["ng-sgd", "ng-sgd-simple", "sgd"])
def test_job_learns_and_is_reproducible(workplace: Path, make_settings, settings, optimizer: str) -> None:
    settings = make_settings(**{**settings.values(), "optimizer": optimizer})
    path = train(workplace, settings, make_job())
    first = path.read_bytes()
    record = load_model(path).history["job"]
    assert record["frames"] == 500
    assert record["failure"] is None
    assert record["log_probability"] > np.log(1 / CLASSES)
    train(workplace, settings, make_job())
    assert path.read_bytes() == first
    train(workplace, settings, make_job(seed=5))
    assert path.read_bytes() != first


def test_job_skips_examples_without_a_label_at_its_frame(workplace: Path, settings) -> None:
    assert load_model(train(workplace, settings, make_job(frame=3))).history["job"]["frames"] == 450


def test_jobs_of_an_iteration_insert_the_same_layer(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n, action=INSERT, learning_rate=1e-12)) for n in (1, 2)]
    first, second = (read_model(path)[0] for path in jobs)
    assert "components.affine1.weight" in first
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-6)


def test_log_shows_progress(workplace: Path, settings, capfd: pytest.CaptureFixture[str]) -> None:
    train(workplace, settings, make_job())
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.startswith("minibatch")]
    assert lines[-1].startswith("minibatch 8: log-probability per frame -")
    assert "frames/s" in lines[-1]
    assert "max-change limited" in lines[-1]


def test_average_is_the_mean_of_every_array(workplace: Path, make_settings, settings) -> None:
    settings = make_settings(**{**settings.values(), "normalization": "batchnorm"})
    initial_model(settings.hidden_layers(), (np.eye(9), np.zeros(9)), np.array([5, 5, 5, 5]), 0).save(
        workplace / "0.safetensors"
    )
    jobs = [train(workplace, settings, make_job(n)) for n in (1, 2, 3)]
    model, report = average(workplace, jobs)
    assert report["jobs"] == [1, 2, 3]
    singles = [read_model(path)[0] for path in jobs]
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), np.mean([s[name] for s in singles], axis=0), rtol=1e-5, atol=1e-7)
    running = "components.batchnorm0.running_mean"
    assert running in singles[0]
    assert not np.array_equal(singles[0][running], singles[1][running])
    assert model.history == {"iterations": [{"iteration": 0, "action": AVERAGE, "jobs": [1, 2, 3], "frames": 1500}]}
    assert report["relative_change"]["affine0"] > 0 == report["relative_change"]["lda"]


def test_best_job_is_taken_instead_of_the_average(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n, action=BEST, learning_rate=lr)) for n, lr in ((1, 1e-6), (2, 0.02))]
    model, report = average(workplace, jobs)
    assert report["jobs"] == [2]
    best = read_model(jobs[1])[0]
    assert all(np.array_equal(tensor.numpy(), best[name]) for name, tensor in model.state_dict().items())


def write_nan(path: Path) -> None:
    arrays, header = read_model(path)
    arrays["components.affine0.weight"][3, 2] = np.nan
    write_model(path, arrays, header)


def test_job_with_a_parameter_that_is_not_finite_is_left_out(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n)) for n in (1, 2, 3)]
    write_nan(jobs[1])
    model, report = average(workplace, jobs)
    assert report["jobs"] == [1, 3]
    assert report["records"][1]["left_out"] == "components.affine0.weight is not finite"
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_average_that_overflows_is_an_error(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n)) for n in (1, 2)]
    for path in jobs:
        arrays, header = read_model(path)
        huge = {name: array.astype(np.float64) for name, array in arrays.items()}
        huge["components.affine0.weight"][3, 2] = 1.7e308
        write_model(path, huge, header)
    with pytest.raises(TrainingError, match="average is not finite, though each of them is"):
        average(workplace, jobs)


def test_job_that_diverges_stops_and_is_left_out(workplace: Path, make_settings, settings) -> None:
    unlimited = make_settings(**{**settings.values(), "optimizer": "sgd", "max_change_per_sample": 0.0})
    jobs = [train(workplace, unlimited, make_job(1, learning_rate=1e38)), train(workplace, unlimited, make_job(2))]
    assert "minibatch" in load_model(jobs[0]).history["job"]["failure"]
    _, report = average(workplace, jobs)
    assert report["jobs"] == [2]


def test_bfloat16_training_is_close_to_float32(workplace: Path, make_settings, settings) -> None:
    exact, low = (
        read_model(train(workplace, make_settings(**{**settings.values(), "precision": precision}), make_job(n)))
        for n, precision in ((1, "float32"), (1, "bfloat16"))
    )
    assert all(array.dtype == np.float32 for array in low[0].values())
    weights = [arrays["components.affine0.weight"] for arrays in (exact[0], low[0])]
    assert not np.array_equal(*weights)
    assert np.linalg.norm(weights[1] - weights[0]) < 0.05 * np.linalg.norm(weights[0])
    objectives = [header["history"]["job"]["log_probability"] for header in (exact[1], low[1])]
    assert objectives[1] == pytest.approx(objectives[0], abs=0.02)


def test_mean_of_large_arrays_is_elementwise() -> None:
    rng = np.random.default_rng(0)
    shapes = {"few": (3,), "long": (2 * BLOCK + 5,), "wide": (4, BLOCK + 1), "both": (BLOCK // 100, 333)}
    models = [{key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()} for _ in range(3)]
    for key, array in mean([(str(i), model) for i, model in enumerate(models)]).items():
        expected = np.stack([model[key].astype(np.float64) for model in models]).sum(axis=0) / 3
        np.testing.assert_array_equal(array, expected.astype(np.float32))


def test_bad_examples_fail_their_job(workplace: Path, settings) -> None:
    archive = np.load(workplace / "archive.npy")
    archive["features"][7, 2, 1] = np.inf
    np.save(workplace / "archive.npy", archive)
    path = train(workplace, settings, make_job())
    record = load_model(path).history["job"]
    assert "the objective became nan in minibatch" in record["failure"]
    # Only the minibatches before the bad one count.
    assert record["frames"] == int(record["failure"].split()[-1]) * make_job().minibatch_size
    assert np.isfinite(record["log_probability"])
    archive["labels"][3, 0] = CLASSES
    np.save(workplace / "archive.npy", archive)
    path.unlink()
    with pytest.raises(DataError, match=r"archive\.npy: label 4 is outside 0 - 3"):
        train(workplace, settings, make_job())
    assert not path.exists()


def test_job_without_labels_is_left_out(workplace: Path, settings) -> None:
    healthy = train(workplace, settings, make_job(1))
    archive = np.load(workplace / "archive.npy")
    archive["labels"][:, 3] = egs.NO_LABEL
    np.save(workplace / "archive.npy", archive)
    _, report = average(workplace, [healthy, train(workplace, settings, make_job(2, frame=3))])
    assert report["jobs"] == [1]
    assert "no example of" in report["records"][1]["left_out"]
    with pytest.raises(DataError, match="no label position 4, its examples have 4"):
        train(workplace, settings, make_job(3, frame=4))


def test_batchnorm_trains_on_a_last_minibatch_of_one_frame(workplace: Path, make_settings, settings) -> None:
    settings = make_settings(**{**settings.values(), "normalization": "batchnorm"})
    initial_model(settings.hidden_layers(), (np.eye(9), np.zeros(9)), np.array([5, 5, 5, 5]), 0).save(
        workplace / "0.safetensors"
    )
    record = load_model(train(workplace, settings, make_job(minibatch_size=499))).history["job"]
    assert (record["frames"], record["failure"]) == (500, None)


def test_job_far_below_the_others_is_left_out(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n, learning_rate=lr)) for n, lr in ((1, 0.02), (2, 1e-9), (3, 0.02))]
    log_probabilities = [load_model(path).history["job"]["log_probability"] for path in jobs]
    gap = min(log_probabilities[0], log_probabilities[2]) - log_probabilities[1]
    assert average(workplace, jobs, max_gap=2 * gap)[1]["jobs"] == [1, 2, 3]
    _, report = average(workplace, jobs, max_gap=0.5 * gap)
    assert report["jobs"] == [1, 3]
    assert "below the others'" in report["records"][1]["left_out"]


def test_iteration_fails_if_all_its_jobs_fail(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(n)) for n in (1, 2)]
    for path in jobs:
        write_nan(path)
    with pytest.raises(TrainingError) as e:
        average(workplace, jobs)
    for text in (
        "iteration 0",
        "job 1: components.affine0.weight is not finite",
        "job 2",
        "lower initial_effective_lrate",
    ):
        assert text in str(e.value)
    assert not (workplace / "next.safetensors").exists()


def test_models_of_different_iterations_or_architectures_are_refused(workplace: Path, settings) -> None:
    jobs = [train(workplace, settings, make_job(1)), train(workplace, settings, make_job(2, iteration=1))]
    with pytest.raises(ModelError, match="not of iteration 0"):
        average(workplace, jobs)
    average(workplace, jobs[:1])
    with pytest.raises(ModelError, match="not the model that iteration 0 starts from"):
        average(workplace, jobs[:1], before="next")
    with pytest.raises(ModelError, match="not the model of a training job"):
        average(workplace, [workplace / "0.safetensors"])
    deeper = train(workplace, settings, make_job(3, action=INSERT))
    with pytest.raises(ModelError, match="another architecture"):
        average(workplace, [jobs[0], deeper])
    with pytest.raises(ModelError, match="its arrays are not those"):
        average_arrays([jobs[0], deeper])


def train_models(workplace: Path, settings, count: int) -> list[Path]:
    """Returns successive models; the learning rate is too large, so that their average differs from the last one."""
    models = [workplace / "0.safetensors"]
    for x in range(count):
        job = make_job(1, iteration=x, learning_rate=0.3, seed=x)
        models.append(workplace / f"{x + 1}.safetensors")
        run_job(settings, job, models[-2], workplace / "archive.npy", models[-1], workplace / "progress.json")
    return models[1:]


def test_final_model_is_as_good_as_the_last_and_the_average(workplace: Path, settings) -> None:
    models = train_models(workplace, settings, 6)
    context = settings.context()
    valid = egs.open_archive(workplace / "valid.npy")
    final = workplace / "final.safetensors"
    combine(models, workplace / "valid.npy", workplace / "prior.npy", context, 1, final, workplace / "c.json")

    def valid_score(model) -> float:
        return score(model.eval(), valid, context, "valid").log_probability

    mean_model = load_model(models[-1])
    mean_model.load_state_dict({name: torch.from_numpy(array) for name, array in average_arrays(models).items()})
    combined = valid_score(load_model(final))
    assert combined >= valid_score(load_model(models[-1])) - 1e-6
    assert combined >= valid_score(mean_model) - 1e-6
    report = json.loads((workplace / "c.json").read_text())
    assert list(report["valid_log_probability"]) == ["1", "2", "3", "4", "5", "6"]
    by_count = report["valid_log_probability"]
    assert by_count["1"] == pytest.approx(valid_score(load_model(models[-1])), abs=1e-6)
    assert by_count["6"] == pytest.approx(valid_score(mean_model), abs=1e-6)
    assert combined == pytest.approx(max(by_count.values()), abs=1e-6)
    assert len(set(by_count.values())) > 1


def test_priors_of_the_final_model_are_its_mean_posteriors(workplace: Path, settings) -> None:
    models = train_models(workplace, settings, 2)
    final = workplace / "final.safetensors"
    combine(
        models, workplace / "valid.npy", workplace / "prior.npy", settings.context(), 1, final, workplace / "c.json"
    )
    model = load_model(final).eval()
    # The model has one layer less than the settings, hence one frame less of context on each side.
    x = torch.from_numpy(np.load(workplace / "prior.npy")["features"][:, 1:-1])
    with torch.no_grad():
        expected = model(x)[:, 0].exp().mean(dim=0)
    torch.testing.assert_close(model.priors, expected)
    assert model.history["combination"]["candidates"] == 2


def test_final_model_may_be_a_moving_average(workplace: Path, settings) -> None:
    models = train_models(workplace, settings, 3)
    final, report, name = workplace / "final.safetensors", workplace / "c.json", "components.output_affine.weight"
    valid, prior = workplace / "valid.npy", workplace / "prior.npy"
    combine(models, valid, prior, settings.context(), 1, final, report, decay=0.5)
    first, second, third = (read_model(path)[0][name].astype(np.float64) for path in models)
    expected = (third + 0.5 * second + 0.25 * first) / 1.75
    assert read_model(final)[0][name] == pytest.approx(expected, abs=1e-6)
    assert list(json.loads(report.read_text())["valid_log_probability"]) == ["3"]


def test_rescaling_changes_parameters_but_not_the_output(workplace: Path, settings) -> None:
    model = load_model(train_models(workplace, settings, 1)[0]).eval()
    x = torch.randn(20, DIM)
    before = model.log_posteriors(x)
    rescale(model)
    assert float(model.components["affine0"].weight.detach().square().mean().sqrt()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(model.log_posteriors(x), before)


def test_suffix_lengths() -> None:
    assert suffix_lengths(1) == [1]
    assert suffix_lengths(5) == [1, 2, 3, 4, 5]
    many = suffix_lengths(200)
    assert (many[0], many[-1], len(many)) == (1, 200, 20)
    assert many == sorted(set(many))


def test_diagnostics_are_the_scores_on_both_subsets(workplace: Path, settings) -> None:
    run = Run(workplace / "run", settings, data=workplace, examples=workplace / "egs")
    for path, name in (
        (run.model_file(0), "0.safetensors"),
        (run.valid_file, "valid.npy"),
        (run.train_subset_file, "prior.npy"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(workplace / name, path)

    def diagnose_initial() -> None:
        diagnose(
            settings, run.model_file(0), (run.valid_file, None), (run.train_subset_file, None), run.diagnostics_file(0)
        )

    diagnose_initial()
    scores = json.loads(run.diagnostics_file(0).read_text())
    assert scores["valid"]["log_probability"] == pytest.approx(np.log(1 / CLASSES))
    assert scores["valid"]["frames"] == 300
    assert scores["train"]["frames"] == 200
    np.save(run.valid_file, np.zeros(3, egs.record_type(1, (1, 1), DIM)))
    with pytest.raises(DataError, match="do not have the context"):
        diagnose_initial()
