"""Runs on Kaldi experiments and Lhotse manifests, from data to words and back to Kaldi."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ngsgd import load_model
from ngsgd.kaldi.nnet2 import read_nnet2

from ..experiment import STATES, digit_loop, make_experiment
from ..timit import make_timit, prepare_cuts
from .conftest import ROOT, SMALL, SNAKEMAKE, Workplace

REALIGNED = {"run": {"realign_times": [0.5]}}
SMALL_KALDI = {key: value for key, value in SMALL.items() if key not in ("states_per_word", "num_test_utterances")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Workplace:
    """Makes a run with a realignment at half its time, and one without, on a Kaldi experiment."""
    folder = tmp_path_factory.mktemp("kaldi")
    settings = make_experiment(folder / "experiment", few_digits)
    more = {"min_lmwt": 1, "max_lmwt": 3, "num_splits": 3, "runs": REALIGNED | {"plain": {"graph": None}}}
    place = Workplace(folder / "work", SMALL_KALDI | settings | more)
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert (outcome.jobs["prepare_part"], outcome.jobs["align"], outcome.jobs["decode"]) == (3, 3, 3)
    place.config["runs"] = REALIGNED
    return place


def test_words_are_decoded_with_the_best_lm_weight(trained: Workplace) -> None:
    evaluation = json.loads((trained.run / "evaluation.json").read_text())
    assert evaluation["words"] == 30
    assert evaluation["word_error_rate"] <= 0.3
    sweep = pd.read_csv(trained.run / "decoding/lm_weights.tsv", sep="\t")
    assert sweep["lmwt"].tolist() == [1, 2, 3] * 3 == [row["lmwt"] for row in evaluation["lm_weights"]]
    assert sweep["word_ins_penalty"].tolist() == [p for p in (0.0, 0.5, 1.0) for _ in range(3)]
    assert sweep["test_words"].tolist() == sweep["valid_words"].tolist() == [30] * 9
    chosen = [evaluation["lmwt"], evaluation["word_ins_penalty"]]
    best = sweep.loc[(sweep[["lmwt", "word_ins_penalty"]] == chosen).all(axis=1)].iloc[0]
    assert best["valid_word_error_rate"] == sweep["valid_word_error_rate"].min()
    assert best["test_word_error_rate"] == evaluation["word_error_rate"]
    per_utterance = pd.read_csv(trained.run / "decoding/per_utt.tsv", sep="\t")
    assert len(per_utterance) == 30
    assert per_utterance[["substitutions", "insertions", "deletions"]].to_numpy().sum() == evaluation["word_errors"]
    per_speaker = pd.read_csv(trained.run / "decoding/per_spk.tsv", sep="\t")
    assert per_speaker["words"].sum() == 30


def test_realignment_in_plan_metrics_and_labels(trained: Workplace) -> None:
    plan = pd.read_csv(trained.run / "plan.tsv", sep="\t")
    metrics = pd.read_csv(trained.run / "metrics.tsv", sep="\t")
    assert plan.groupby("iteration")["alignment"].first().tolist() == [0, 0, 0, 1, 1, 1]
    assert metrics["alignment"].iloc[:-1].tolist() == [0, 0, 0, 1, 1, 1]
    data = next((trained.folder / "results/data").iterdir())
    examples = next((trained.folder / "results/egs").iterdir())
    old = np.load(data / "train.labels.npy")
    new = np.concatenate([np.load(trained.run / f"alignments/1/splits/{k}of3.train.npy") for k in range(3)])
    assert 0.5 < (old == new).mean() < 1.0
    starts = np.concatenate(([0], pd.read_csv(data / "train.utterances.tsv", sep="\t")["frames"].cumsum()))

    def sequences(labels: np.ndarray) -> list[list[int]]:
        parts = [labels[a:b] for a, b in itertools.pairwise(starts)]
        return [part[np.concatenate(([True], np.diff(part) != 0))].tolist() for part in parts]

    assert sequences(old) == sequences(new)
    plain = trained.folder / "results/plain/models"
    same = [
        (plain / f"{x}.safetensors").read_bytes() == (trained.run / f"models/{x}.safetensors").read_bytes()
        for x in range(7)
    ]
    assert same == [True] * 4 + [False] * 3  # the jobs of iteration 3 use the new labels
    for archive in sorted((trained.run / "alignments/1/archives").iterdir()):
        before, after = np.load(examples / "archives" / archive.name)["labels"], np.load(archive)
        assert ((before == -1) == (after == -1)).all()
        assert 0.5 < (before == after).mean() < 1.0


def test_final_model_is_converted_to_nnet2(trained: Workplace, tmp_path: Path) -> None:
    ngsgd = Path(SNAKEMAKE).parent / "ngsgd"
    subprocess.run([ngsgd, "convert", trained.run / "final.safetensors", tmp_path / "final.mdl"], check=True)
    model = read_nnet2(tmp_path / "final.mdl")
    assert model.transitions is not None
    assert model.transitions.num_pdfs == 30
    assert len(model.priors) == 30
    final = load_model(trained.run / "final.safetensors")
    weight = final.get_parameter("components.output_affine.weight").detach().numpy()
    np.testing.assert_array_equal(
        [r for r in model.components if r.kind.startswith("Affine")][-1].fields["LinearParams"], weight
    )


def copy(place: Workplace, folder: Path) -> Workplace:
    shutil.copytree(place.folder, folder, symlinks=True)
    return Workplace(folder, dict(place.config))


def test_rerun_makes_only_missing_or_changed_files(trained: Workplace, tmp_path: Path) -> None:
    place = copy(trained, tmp_path / "copy")
    assert place.snakemake().jobs == {"convergence": 1, "all": 1}  # the figure loses the other run
    assert place.snakemake().jobs == {}
    (place.run / "alignments/1/archives/0.npy").unlink()
    (place.run / "jobs/4.1.safetensors").unlink()
    assert place.snakemake().jobs == {}  # neither file is a target or an input of a missing one
    (place.run / "models/5.safetensors").unlink()
    outcome = place.snakemake()
    assert (outcome.jobs["train"], outcome.jobs["average"], outcome.jobs.get("align", 0)) == (1, 1, 0)
    assert place.models() == trained.models()
    # Another range of weights repeats only the decoding.
    place.config["max_lmwt"] = 4
    outcome = place.snakemake("results/run/decoding/lm_weights.tsv")
    assert outcome.status == 0, outcome.text
    assert outcome.jobs == {"activate_recipe": 1, "plan": 1, "graph": 1, "decode": 3, "score_lm_weights": 1}
    assert place.snakemake().jobs == {"evaluate": 1, "all": 1}
    assert pd.read_csv(place.run / "decoding/lm_weights.tsv", sep="\t")["lmwt"].tolist() == [1, 2, 3, 4] * 3


def test_changed_words_are_scored_again_without_training(trained: Workplace, tmp_path: Path) -> None:
    """Only the reference words change; frames and labels stay the same."""
    place = copy(trained, tmp_path / "copy")
    experiment = Path(shutil.copytree(place.config["experiment"], tmp_path / "experiment"))
    place.config["experiment"] = str(experiment)
    text = experiment / "data/test/text"
    text.write_text(text.read_text().replace("ZERO", "ONE"))
    outcome = place.snakemake("results/run/evaluation.json")
    assert outcome.status == 0, outcome.text
    assert not {"train", "average", "align", "diagnose"} & outcome.jobs.keys()
    before, after = (json.loads((p.run / "evaluation.json").read_text()) for p in (trained, place))
    assert after["word_errors"] > before["word_errors"]
    assert after["log_probability"] == before["log_probability"]


@pytest.mark.slow
def test_models_do_not_depend_on_the_number_of_splits(trained: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "other", trained.config | {"num_splits": 1})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert place.models() == trained.models()
    place.config["num_splits"] = 2
    assert not {"train", "average", "diagnose", "shuffle", "prepare_part"} & place.snakemake().jobs.keys()


def test_fault_in_the_experiment_is_reported_in_one_line(trained: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "other", trained.config | {"graph": str(tmp_path)})
    (tmp_path / "HCLG.fst").write_bytes(b"nothing of the kind")
    (tmp_path / "words.txt").write_text("<eps> 0\n")
    outcome = place.snakemake("results/run/decoding/graph.fst")
    assert outcome.status != 0
    assert outcome.last_line == f"error: {tmp_path}/HCLG.fst: not a graph; make the graph again with mkgraph.sh"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_data": "data/trian"},
            r"train_data: .*data/trian: no such file or folder in .*third or in .*experiment",
        ),
        ({"train_alignment": "$NOWHERE/exp"}, r"train_alignment: .*\$NOWHERE/exp: no such file or folder"),
        ({"graph": "data/train"}, r"graph: .*data/train has no HCLG\.fst"),
        ({"test_data": "exp"}, r"test_data: .*exp has no feats\.scp"),
        ({"test_alignment": "chain"}, r"test_alignment: .*chain is of a chain model, which has one label for every 3 "),
    ],
)
def test_wrong_path_is_found_before_the_first_job(
    trained: Workplace, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    place = Workplace(tmp_path / "third", trained.config | changes)
    chain = Path(str(trained.config["experiment"])) / "chain"
    chain.mkdir(exist_ok=True)
    (chain / "frame_subsampling_factor").write_text("3\n")
    outcome = place.snakemake("--dry-run")
    assert outcome.status != 0
    assert re.match(f"error: runs: run: {message}", outcome.last_line)


def test_paths_may_have_variables(trained: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERIMENTS", str(Path(str(trained.config["experiment"])).parent))
    place = Workplace(tmp_path / "fourth", trained.config | {"experiment": "$EXPERIMENTS/experiment"})
    assert place.snakemake("--dry-run").status == 0


def test_a_test_set_without_alignment_is_decoded(trained: Workplace, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "none", trained.config | {"test_alignment": None, "runs": {"run": {}}})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    evaluation = json.loads((place.run / "evaluation.json").read_text())
    assert not {"log_probability", "accuracy", "frames"} & evaluation.keys()
    assert evaluation["words"] == 30
    assert re.search(r"run: on the test set word error rate \d+\.\d\d%; ", outcome.text)
    assert (place.run / "figures/convergence.png").exists()
    assert pd.read_csv(place.run / "metrics.tsv", sep="\t")["valid_log_probability"].notna().all()


@pytest.mark.slow
def test_reference_run(kaldi: Path, tmp_path: Path) -> None:
    """Compares three seeds of config/fsdd-kaldi.yaml with the results of Kaldi's run."""
    config = yaml.safe_load((ROOT / "config/fsdd-kaldi.yaml").read_text())
    runs = {f"seed{seed}": {"seed": seed} for seed in range(3)}
    place = Workplace(tmp_path, config | {"experiment": str(kaldi / "fsdd"), "runs": runs})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    folders = [tmp_path / "results" / name for name in runs]
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    assert np.mean([e["log_probability"] for e in evaluations]) >= -0.52
    assert np.mean([e["accuracy"] for e in evaluations]) >= 0.83
    assert np.mean([e["word_error_rate"] for e in evaluations]) <= 0.007
    with open(kaldi / "fsdd/exp/nnet/metrics.tsv", newline="") as f:
        reference = [float(row["valid_log_probability"]) for row in csv.DictReader(f, delimiter="\t")]
    curves = [pd.read_csv(folder / "metrics.tsv", sep="\t")["valid_log_probability"][:19] for folder in folders]
    window = np.ones(3) / 3
    smoothed = [np.convolve(curve, window, "valid") for curve in (np.mean(curves, axis=0), reference)]
    assert (smoothed[0] - smoothed[1] >= -0.05)[5:].all()  # from the mean centred on iteration 6
    plan = pd.read_csv(folders[0] / "plan.tsv", sep="\t")
    with open(kaldi / "fsdd/exp/nnet/metrics.tsv", newline="") as f:
        for row in csv.DictReader(f, delimiter="\t"):
            jobs = plan[plan["iteration"] == int(row["iteration"])]
            assert [f"{j.frame}@{j.archive + 1}" for j in jobs.itertuples()] == row["frame@archive"].split(",")
            np.testing.assert_allclose(jobs["learning_rate"], float(row["learning_rate"]), rtol=1e-12)
            assert set(jobs["minibatch_size"]) == {int(row["minibatch_size"])}


@pytest.mark.slow
def test_run_on_audio_from_lhotse_manifests(kaldi: Path, tmp_path: Path) -> None:
    """Trains on the audio of digits; each recording is aligned to one symbol of three states."""
    import lhotse
    from lhotse.supervision import AlignmentItem

    symbols = ["silence", *(str(digit) for digit in range(10))]
    (tmp_path / "symbols").write_text("".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols)))
    recordings, segments = {"train": [], "test": []}, {"train": [], "test": []}
    for path in sorted((kaldi / "fsdd/wav_test").glob("*.wav")):
        digit, _, take = path.stem.split("_")
        side = "test" if take == "4" else "train"
        recording = lhotse.Recording.from_file(path, recording_id=path.stem)
        alignment = {"word": [AlignmentItem(digit, 0.0, recording.duration)]}
        recordings[side].append(recording)
        segments[side].append(
            lhotse.SupervisionSegment(path.stem, path.stem, 0.0, recording.duration, text=digit, alignment=alignment)
        )
    for side in ("train", "test"):
        lhotse.RecordingSet.from_recordings(recordings[side]).to_file(tmp_path / f"{side}_recordings.jsonl.gz")
        lhotse.SupervisionSet.from_segments(segments[side]).to_file(tmp_path / f"{side}_supervisions.jsonl.gz")
    lhotse.Mfcc(lhotse.MfccConfig(sampling_rate=8000)).to_yaml(tmp_path / "mfcc.yaml")
    settings = {
        "corpus": "lhotse",
        "experiment": str(tmp_path),
        **{f"{s}_{kind}": f"{s}_{kind}.jsonl.gz" for s in ("train", "test") for kind in ("recordings", "supervisions")},
        "feature_extractor": "mfcc.yaml",
        "alignment_type": "word",
        "alignment_symbols": "symbols",
        "num_splits": 2,
    }
    place = Workplace(tmp_path / "work", SMALL_KALDI | settings | {"num_epochs": 3, "samples_per_iter": 1200})
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    assert outcome.jobs["prepare_part"] == 2
    evaluation = json.loads((place.run / "evaluation.json").read_text())
    assert evaluation["accuracy"] > 0.25  # of 33 classes; chance is below 0.05
    assert evaluation["phones"] == len(segments["test"])
    assert evaluation["phone_error_rate"] < 0.2
    assert place.snakemake().jobs == {}
    # The words of the supervisions, with a graph over the classes; those of silence come first.
    graph = tmp_path / "graph"
    graph.mkdir()
    (graph / "HCLG.fst").write_bytes(digit_loop(lambda word, state: STATES * (word + 1) + state + 1))
    (graph / "words.txt").write_text("<eps> 0\n" + "".join(f"{digit} {digit + 1}\n" for digit in range(10)))
    place.config |= {"transcripts": "words", "graph": "graph", "min_lmwt": 1, "max_lmwt": 3}
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    evaluation = json.loads((place.run / "evaluation.json").read_text())
    assert evaluation["words"] == len(segments["test"])
    assert evaluation["word_error_rate"] < 0.2


@pytest.mark.slow
def test_run_on_a_recipe_of_lhotse(tmp_path: Path) -> None:
    """Trains on TIMIT's manifests as Lhotse's recipe makes them, with the features of icefall's recipes."""
    speakers = {"TRAIN": [f"F{k:03d}0" for k in range(8)], "TEST": ["FAKS0", "MDAB0", "MTAS1"]}
    make_timit(tmp_path / "timit", speakers, sentences=8)
    _, settings = prepare_cuts(tmp_path / "timit", tmp_path)
    more = {"num_valid_utterances": 8, "num_epochs": 4, "samples_per_iter": 1000, "num_splits": 2}
    place = Workplace(tmp_path / "work", SMALL_KALDI | settings | more)
    outcome = place.snakemake()
    assert outcome.status == 0, outcome.text
    evaluation = json.loads((place.run / "evaluation.json").read_text())
    assert evaluation["phones"] > 200
    assert evaluation["phone_error_rate"] < 0.5
