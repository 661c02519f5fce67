"""Tests of nnet2 models and transition models: round trips, old formats, damaged files, and Kaldi's numbers."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch

from ngsgd.cli.commands import run_command as main
from ngsgd.cli.models import load
from ngsgd.errors import ModelError, NgsgdError
from ngsgd.kaldi.nnet2 import COMPONENTS, Nnet2, Record, read_nnet2, write_nnet2
from ngsgd.kaldi.tables import Locations, Script, integers, matrix, read_archive
from ngsgd.kaldi.transition import HmmState, TransitionModel, read_transition_model, transitions_to_text
from ngsgd.network.components import KALDI_KINDS, KINDS, BatchNorm
from ngsgd.network.model import AcousticModel
from ngsgd.network.nnet2 import from_nnet2, to_nnet2
from ngsgd.network.topology import HiddenLayers, initial_model

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def transition_model(*, plain: bool = True) -> TransitionModel:
    """Returns a model of two phones with three states; self-loops share the forward pdfs if `plain`."""
    p = np.float32(0.5)
    states = [HmmState(c, c if plain else c + 3, ((c, p), (c + 1, p))) for c in range(3)]
    entry = (*states, HmmState(-1, -1, ()))
    rows = [(phone, s, pdf := 3 * (phone - 1) + s, pdf if plain else pdf + 6) for phone in (1, 2) for s in range(3)]
    tuples = np.array(rows, np.int32)
    ids = [-1, *(pdf for _, _, forward, loop in rows for pdf in (loop, forward))]
    return TransitionModel(
        phones=np.array([1, 2], np.int32),
        phone_entries=np.array([-1, 0, 0], np.int32),
        entries=(entry,),
        tuples=tuples,
        log_probs=np.array([0.0] + 12 * [np.log(0.5)], np.float32),
        pdf_ids=np.array(ids, np.int32),
        id_phones=np.array([0] + 6 * [1] + 6 * [2], np.int32),
    )


def affine(kind: str, inputs: int, outputs: int, **fields: object) -> Record:
    own = {"LearningRate": np.float32(0.01), "LinearParams": normal(outputs, inputs), "BiasParams": normal(outputs)}
    return Record(kind, own | fields)


def nonlinear(kind: str, dim: int) -> Record:
    statistics = {"ValueSum": normal(dim), "DerivSum": normal(dim), "Count": np.float64(1.0 / 3.0)}
    return Record(kind, {"Dim": dim, **statistics})


def every_component() -> Nnet2:
    """Returns a network with a component of each type that is both read and written."""
    online = {"RankIn": 3, "RankOut": 4, "UpdatePeriod": 2, "NumSamplesHistory": np.float32(1000.1)}
    records = [
        Record("SpliceComponent", {"InputDim": 4, "Context": np.array([-1, 0, 2], np.int32), "ConstComponentDim": 1}),
        Record("FixedAffineComponent", {"LinearParams": normal(10, 10), "BiasParams": normal(10)}),
        affine("AffineComponent", 10, 8, IsGradient=True),
        nonlinear("RectifiedLinearComponent", 8),
        nonlinear("NormalizeComponent", 8),
        affine("AffineComponentPreconditioned", 8, 8, Alpha=np.float32(0.1), MaxChange=np.float32(10.0)),
        nonlinear("TanhComponent", 8),
        Record("SpliceComponent", {"InputDim": 8, "Context": np.array([-2, 2], np.int32), "ConstComponentDim": 0}),
        affine(
            "AffineComponentPreconditionedOnline", 16, 12, **online, Alpha=np.float32(4.0),
            MaxChangePerSample=np.float32(0.075),
        ),
        Record("PnormComponent", {"InputDim": 12, "OutputDim": 4, "P": np.float32(2.0)}),
        nonlinear("SigmoidComponent", 4),
        affine("AffineComponent", 4, 9, IsGradient=False),
        Record("FixedScaleComponent", {"Scales": normal(9)}),
        nonlinear("SoftmaxComponent", 9),
        Record("SumGroupComponent", {"Sizes": np.array([2, 1, 1, 3, 1, 1], np.int32)}),
    ]  # fmt: skip
    return Nnet2(transition_model(), tuple(records), np.full(6, 1 / 6, np.float32))


@pytest.mark.parametrize("binary", [True, False])
def test_every_component_survives_conversion(tmp_path: Path, binary: bool) -> None:
    write_nnet2(every_component(), tmp_path / "a.mdl", binary=binary)
    main(["convert", str(tmp_path / "a.mdl"), str(tmp_path / "b.safetensors")])
    main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.mdl"), *([] if binary else ["--text"])])
    assert (tmp_path / "c.mdl").read_bytes() == (tmp_path / "a.mdl").read_bytes()
    assert {record.kind for record in every_component().components} == COMPONENTS.keys() - {"DropoutComponent"}


def test_text_and_binary_formats_hold_the_same_model(tmp_path: Path) -> None:
    write_nnet2(every_component(), tmp_path / "a.mdl", binary=True)
    write_nnet2(read_nnet2(tmp_path / "a.mdl"), tmp_path / "t.mdl", binary=False)
    assert (tmp_path / "t.mdl").read_text().startswith("<TransitionModel> \n<Topology> \n<TopologyEntry> \n<ForPhones>")
    write_nnet2(read_nnet2(tmp_path / "t.mdl"), tmp_path / "b.mdl", binary=True)
    assert (tmp_path / "a.mdl").read_bytes() == (tmp_path / "b.mdl").read_bytes()


@pytest.mark.parametrize("binary", [True, False])
def test_new_format_of_transition_models(tmp_path: Path, binary: bool) -> None:
    model = transition_model(plain=False)
    write_nnet2(Nnet2(model, every_component().components, np.zeros(0, np.float32)), tmp_path / "a.mdl", binary=binary)
    data = (tmp_path / "a.mdl").read_bytes()
    assert b"<Tuples>" in data
    assert b"<Triples>" not in data
    found = read_transition_model(tmp_path / "a.mdl")
    # Transition-ids of self-loops come first in this topology and have the self-loop pdfs.
    assert found.pdf_ids.tolist() == [-1, 6, 0, 7, 1, 8, 2, 9, 3, 10, 4, 11, 5]
    assert found.pdf_ids[np.isin(found.id_phones, [2])].tolist() == [9, 3, 10, 4, 11, 5]


def test_old_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "old.mdl").write_text(
        "<Nnet> <NumComponents> 6 <Components> "
        "<SpliceComponent> <InputDim> 2 <LeftContext> 1 <RightContext> 2 <ConstComponentDim> 0 </SpliceComponent> "
        "<AffineComponent> <LearningRate> 0.1 <LinearParams> [\n 1 2 3 4 5 6 7 8 \n 8 7 6 5 4 3 2 1 ]\n "
        "<BiasParams> [ 1 2 ]\n <AvgInput> [ 1 2 ]\n <AvgInputCount> 3 </AffineComponent> "
        "<AffineComponentPreconditioned> <LearningRate> 0.1 <LinearParams> [\n 1 2 \n 3 4 ]\n <BiasParams> [ 0 0 ]\n "
        "<Alpha> 0.1 </AffineComponentPreconditioned> "
        "<DropoutComponent> <Dim> 2 <DropoutScale> 0 <DropoutProportion> 0.5 </DropoutComponent> "
        "<AffineComponentPreconditionedOnline> <LearningRate> 0.1 <LinearParams> [\n 1 2 \n 3 4 ]\n "
        "<BiasParams> [ 0 0 ]\n <Rank> 7 <NumSamplesHistory> 2000 <Alpha> 4 <MaxChangePerSample> 0.1 "
        "</AffineComponentPreconditionedOnline> "
        "<SoftmaxComponent> <Dim> 2 <Counts> [ 3 4 ]\n </SoftmaxComponent> </Components> </Nnet> "
    )
    records = read_nnet2(tmp_path / "old.mdl").components
    assert records[0].fields["Context"].tolist() == [-1, 0, 1, 2]
    assert records[1].fields["IsGradient"] is False
    assert records[2].fields["MaxChange"] == 0.0
    assert (records[4].fields["RankIn"], records[4].fields["RankOut"], records[4].fields["UpdatePeriod"]) == (7, 7, 1)
    assert records[5].fields["Count"] == 7.0


def test_dropout_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    network = every_component()
    dropout = Record(
        "DropoutComponent", {"Dim": 8, "DropoutScale": np.float32(0), "DropoutProportion": np.float32(0.5)}
    )
    records = (*network.components[:4], dropout, *network.components[4:])
    model = from_nnet2(Nnet2(network.transitions, records, network.priors), "m.mdl")
    assert "m.mdl: component 4, dropout, is left out" in caplog.text
    assert [c.kind for c in model.chain()] == [c.kind for c in from_nnet2(network, "m.mdl").chain()]


def test_outputs_of_components() -> None:
    """Compares the model with Kaldi's formulas, written in numpy."""
    network = every_component()
    model = from_nnet2(network, "m")
    x = normal(6 + 3 + 4, 4)
    f = [record.fields for record in network.components]
    spliced = np.stack([np.concatenate([x[t + o, :3] for o in (0, 1, 3)] + [x[t, 3:]]) for t in range(10)])
    y = spliced @ f[1]["LinearParams"].T + f[1]["BiasParams"]
    y = np.maximum(y @ f[2]["LinearParams"].T + f[2]["BiasParams"], 0)
    y = y / np.sqrt(np.maximum(np.mean(y**2, axis=1, keepdims=True), 2.0**-66))
    y = np.tanh(y @ f[5]["LinearParams"].T + f[5]["BiasParams"])
    y = np.concatenate((y[:-4], y[4:]), axis=1) @ f[8]["LinearParams"].T + f[8]["BiasParams"]
    y = 1 / (1 + np.exp(-np.sqrt((y.reshape(6, 4, 3) ** 2).sum(axis=2))))
    y = np.exp((y @ f[11]["LinearParams"].T + f[11]["BiasParams"]) * f[12]["Scales"])
    y /= y.sum(axis=1, keepdims=True)
    y = np.stack([y[:, a:b].sum(axis=1) for a, b in ((0, 2), (2, 3), (3, 4), (4, 7), (7, 8), (8, 9))], axis=1)
    with torch.no_grad():
        found = model(torch.from_numpy(x)[None])[0].exp().numpy()
    np.testing.assert_allclose(found, y, rtol=1e-4)


def make_model(*, batchnorm: bool) -> AcousticModel:
    layers = HiddenLayers(((-1, 0, 1), (-2, 2)), "relu", 10, 10, batchnorm)
    model = initial_model(layers, (normal(9, 9).astype(np.float64), normal(9).astype(np.float64)), np.arange(1, 7), 0)
    for component in model.chain():
        if isinstance(component, BatchNorm):
            component.running_mean = torch.from_numpy(normal(10))
            component.running_var = torch.from_numpy(normal(10)).abs() + 0.1
    torch.nn.init.normal_(model.get_parameter("components.output_affine.weight"))
    model.priors = torch.full((6,), 1 / 6)
    return model.eval()


@pytest.mark.parametrize("batchnorm", [False, True])
def test_trained_models_are_converted_to_nnet2(tmp_path: Path, batchnorm: bool) -> None:
    model = make_model(batchnorm=batchnorm)
    write_nnet2(to_nnet2(model, transition_model(), "m"), tmp_path / "m.mdl", binary=True)
    loaded = load(tmp_path / "m.mdl")
    x = torch.from_numpy(normal(20, 3))
    torch.testing.assert_close(loaded.log_likelihoods(x), model.log_likelihoods(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=r"give the final\.mdl of the alignments with --transition-model"):
        to_nnet2(model, None, "m")


def test_transition_model_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="6 outputs, the transition model 12 pdf-ids"):
        to_nnet2(make_model(batchnorm=False), transition_model(plain=False), "m")


def damage(network: Nnet2, index: int, **fields: object) -> Nnet2:
    records = list(network.components)
    records[index] = Record(records[index].kind, records[index].fields | fields)
    return Nnet2(network.transitions, tuple(records), network.priors)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            damage(every_component(), 0, Context=np.array([3, 1], np.int32)),
            "component 0, SpliceComponent: splice: offsets must rise",
        ),
        (damage(every_component(), 2, LinearParams=normal(8, 9)), "gives 10 dimensions, affine takes 9"),
        (damage(every_component(), 5, BiasParams=normal(7)), "component 5, .*: parameters of 8 x 8 with a bias of 7"),
        (damage(every_component(), 9, OutputDim=5), "component 9, PnormComponent: p-norm: output dimension 5"),
        (damage(every_component(), 14, Sizes=np.array([9, 0], np.int32)), "component 14, SumGroupComponent"),
        (Nnet2(None, every_component().components[:4], normal(0)), "does not end with a softmax"),
        (damage(every_component(), 0, Context=np.array([-(2**31), 0], np.int32)), "offsets must rise across 0, below"),
        (Nnet2(None, (), normal(0)), "does not end with a softmax"),
        (Nnet2(None, every_component().components, np.ones(5, np.float32)), "5 priors, the network has 6 outputs"),
    ],
)
def test_inconsistent_networks_are_refused(network: Nnet2, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_nnet2(network, "m")


def test_files_that_are_not_models_are_refused(tmp_path: Path) -> None:
    write_nnet2(every_component(), tmp_path / "a.mdl", binary=True)
    good = (tmp_path / "a.mdl").read_bytes()
    for bad, message in [
        (good[:-20], "truncated"),
        (good[:500], "truncated"),
        (good + b"more", "something follows"),
        (good.replace(b"<SigmoidComponent>", b"<MaxoutComponent> "), "component of type 'MaxoutComponent'"),
        (good.replace(b"<Nnet> ", b"<Nnet3> "), "an nnet3 model"),
        (good.replace(b"<Nnet> ", b"<DIMENSION> "), "a GMM"),
        (good.replace(b"<Triples>", b"<Singles>"), "expected <Triples> or <Tuples>"),
        (b"", "not a whole safetensors"),
    ]:
        (tmp_path / "b.mdl").write_bytes(bad)
        with pytest.raises(NgsgdError, match=message):
            load(tmp_path / "b.mdl")


@pytest.mark.parametrize("field", ["LearningRate", "Count"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, field: str) -> None:
    index = {"LearningRate": 2, "Count": 3}[field]
    number = np.float32("nan") if field == "LearningRate" else np.float64("inf")
    write_nnet2(damage(every_component(), index, **{field: number}), tmp_path / "m.mdl", binary=True)
    with pytest.raises(ModelError, match=f"<{field}> is not finite"):
        read_nnet2(tmp_path / "m.mdl")


def test_small_file_cannot_claim_many_transitions(tmp_path: Path) -> None:
    """Each of the thousand states claims a thousand transitions."""
    text = "<TransitionModel> <Topology> <TopologyEntry> <ForPhones> 1 </ForPhones> <State> 0 "
    text += "<Transition> 0 0.1 " * 1000 + "</State> </TopologyEntry> </Topology> <Triples> 1000 "
    text += "1 0 0 " * 1000 + "</Triples> <LogProbs> [ 0 ] </LogProbs> </TransitionModel> "
    (tmp_path / "m.mdl").write_text(text)
    tracemalloc.start()
    with pytest.raises(NgsgdError, match="1000000 transitions, 0 log-probabilities"):
        read_transition_model(tmp_path / "m.mdl")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


MALFORMED_COMPONENTS = [
    {"affine0": {"RankIn": "x"}}, {"affine0": {"RankIn": 2**40}}, {"affine0": {"Alpha": None}},
    {"affine0": {"kind": "SpliceComponent"}}, {"affine0": {"kind": "nothing"}}, {"relu0": {"ValueSum": 5}},
    {"relu0": {"ValueSum": [[1]]}}, {"affine0": 3}, [],
]  # fmt: skip


@pytest.mark.parametrize("components", MALFORMED_COMPONENTS, ids=range(len(MALFORMED_COMPONENTS)))
def test_malformed_history_is_refused(tmp_path: Path, components: object) -> None:
    model = make_model(batchnorm=False)
    model.history["kaldi"] = {"components": components, "transition_model": transitions_to_text(transition_model())}
    with pytest.raises(ModelError, match="the Kaldi part of its history is malformed"):
        to_nnet2(model, None, "m")


def test_every_kaldi_component_can_be_read_and_every_own_one_written() -> None:
    assert KALDI_KINDS.keys() == COMPONENTS.keys() - {"DropoutComponent"}
    assert {kind.kaldi_kind for kind in KINDS.values()} <= COMPONENTS.keys()


def test_every_model_of_the_experiment_survives_conversion(kaldi: Path, tmp_path: Path) -> None:
    paths = [*kaldi.glob("fsdd/exp/nnet/*.mdl"), *kaldi.glob("golden/*.mdl")]
    assert len(paths) == 8
    for path in paths:
        main(["convert", str(path), str(tmp_path / "m.safetensors")])
        main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "m.mdl")])
        assert (tmp_path / "m.mdl").read_bytes() == path.read_bytes()


def test_log_likelihoods_are_those_of_kaldi(kaldi: Path, tmp_path: Path) -> None:
    """Runs `ngsgd compute`, as for Kaldi's decoders."""
    data = kaldi / "fsdd/data/test"
    expected = dict(read_archive(kaldi / "golden/loglikes_final_10utts.ark", matrix))
    lines = [line for line in (data / "feats.scp").read_text().splitlines() if line.split()[0] in expected]
    (tmp_path / "some.scp").write_text("\n".join(lines) + "\n")
    options = [
        "--cmvn",
        str(data / "cmvn.scp"),
        "--utt2spk",
        str(data / "utt2spk"),
        "--experiment",
        str(kaldi / "fsdd"),
    ]
    model = str(kaldi / "fsdd/exp/nnet/final.mdl")
    main(["compute", model, str(tmp_path / "some.scp"), str(tmp_path / "out.ark"), *options])
    found = dict(read_archive(tmp_path / "out.ark", matrix))
    assert list(found) == list(expected)
    assert max(np.abs(found[name] - expected[name]).max() for name in expected) < 1e-3


def run_compute(kaldi: Path, features: str, output: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    data = kaldi / "fsdd/data/test"
    options = ["--cmvn", data / "cmvn.scp", "--utt2spk", data / "utt2spk", "--experiment", kaldi / "fsdd"]
    command = [sys.executable, "-m", "ngsgd", "compute", kaldi / "fsdd/exp/nnet/final.mdl", features, output, *options]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_compute_stands_in_a_pipe(kaldi: Path, tmp_path: Path) -> None:
    scp = b"".join((kaldi / "fsdd/data/test/feats.scp").read_bytes().splitlines(True)[:3])
    (tmp_path / "some.scp").write_bytes(scp)
    plain = run_compute(kaldi, str(tmp_path / "some.scp"), str(tmp_path / "out.ark"))
    assert plain.returncode == 0, plain.stderr
    expected = (tmp_path / "out.ark").read_bytes()
    assert len(dict(read_archive(tmp_path / "out.ark", matrix))) == 3
    for features, output in (("scp:-", "ark:-"), ("scp,p:-", "-"), (f"scp:{tmp_path}/some.scp", "ark,b,f:-")):
        done = run_compute(kaldi, features, output, scp)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
    # An archive of raw features from a pipe.
    raw = tmp_path / "raw.ark"
    matrices = dict(list(read_archive(kaldi / "fsdd/data/test/feats.ark", matrix))[:3])
    kaldiio.save_ark(str(raw), matrices)
    for features in ("ark:-", "-", "ark,s,cs:-"):
        assert run_compute(kaldi, features, "ark:-", raw.read_bytes()).stdout == expected


def test_compute_writes_text_and_scripts(kaldi: Path, tmp_path: Path) -> None:
    features = tmp_path / "some.scp"
    features.write_bytes(b"".join((kaldi / "fsdd/data/test/feats.scp").read_bytes().splitlines(True)[:3]))
    for output in (f"ark:{tmp_path}/b.ark", f"ark,t:{tmp_path}/t.ark"):
        assert run_compute(kaldi, str(features), output).returncode == 0
    expected = dict(kaldiio.load_ark(str(tmp_path / "b.ark")))
    for options in ("", ",t"):
        both = f"ark,scp{options}:{tmp_path}/s.ark,{tmp_path}/s.scp"
        assert run_compute(kaldi, str(features), both).returncode == 0
        script = Script(tmp_path / "s.scp", Locations(tmp_path))
        for name, array in expected.items():
            np.testing.assert_array_equal(script.read(name).astype(np.float32), array)
    found = dict(kaldiio.load_ark(str(tmp_path / "t.ark")))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), array)


@pytest.mark.parametrize(
    ("features", "output", "message"),
    [
        ("ark:copy-feats ark:a ark:- |", "ark:-", "commands are not run here"),
        ("ark,scp:a,b", "ark:-", "ark or scp can be read, not both"),
        ("ark:", "ark:-", "no file name"),
        ("ark:nowhere.ark", "ark:-", "nowhere.ark: No such file"),
        ("some.scp", "ark:| gzip > x", "commands are not run here"),
        ("some.scp", "scp:out.scp", "can only be written together with its archive"),
        ("some.scp", "ark,scp:out.ark", "expected the names of an archive and of an .scp file"),
        ("some.scp", "ark,scp:-,out.scp", "cannot point into a pipe"),
        ("some.scp", "scp,ark:out.scp,out.ark", "the archive comes first"),
    ],
)
def test_compute_refuses_other_specifiers(kaldi: Path, features: str, output: str, message: str) -> None:
    done = run_compute(kaldi, features, output)
    assert done.returncode == 1
    assert done.stdout == b""
    assert message in done.stderr.decode().splitlines()[-1]


def test_posteriors_are_those_of_kaldi(kaldi: Path) -> None:
    arrays = np.load(kaldi / "golden/trajectory.npz")
    model = load(kaldi / "golden/trajectory_before.mdl")
    with torch.no_grad():
        found = model(torch.from_numpy(arrays["egs_features"][:256]))[:, 0].exp().numpy()
    assert np.abs(found - arrays["posteriors_before_first_256"]).max() < 1e-5


def test_pdf_ids_are_those_of_kaldi(kaldi: Path) -> None:
    folder = kaldi / "fsdd/exp/tri1_ali_test"
    model = read_transition_model(folder / "final.mdl")
    found = {
        name: model.to_pdfs(ids)
        for path in sorted(folder.glob("ali.*.gz"))
        for name, ids in read_archive(path, integers)
    }
    expected = dict(read_archive(kaldi / "golden/pdf_ids_test.ark", integers))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_average_and_info_commands(kaldi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(kaldi / f"fsdd/exp/nnet/{x}.mdl") for x in (10, 19)]
    main(["average", *models, str(tmp_path / "mean.mdl")])
    W = [load(path).get_parameter("components.affine1.weight").detach() for path in [*models, tmp_path / "mean.mdl"]]
    torch.testing.assert_close(W[2], (W[0] + W[1]) / 2)
    main(["info", str(tmp_path / "mean.mdl")])
    output = capsys.readouterr().out
    assert "affine1          affine           160 ->    400 64,400 parameters" in output
    assert "classes          144, priors present" in output
    with pytest.raises(SystemExit):
        main(["average", models[0], str(kaldi / "fsdd/exp/nnet/1.mdl"), str(tmp_path / "no.mdl")])
    assert "1.mdl: its architecture differs from" in capsys.readouterr().err


def test_script_and_archive_have_the_same_features(kaldi: Path) -> None:
    root = kaldi / "fsdd"
    script = Script(root / "data/test/feats.scp", Locations(root))
    for name, features in read_archive(root / "data/test/feats.ark", matrix):
        np.testing.assert_array_equal(script.read(name), features)


def test_compute_reads_from_a_process_substitution(kaldi: Path, tmp_path: Path) -> None:
    scp = kaldi / "fsdd/data/test/feats.scp"
    command = f"{sys.executable} -m ngsgd compute {kaldi}/fsdd/exp/nnet/final.mdl scp:<(head -2 {scp}) ark,t:-"
    done = subprocess.run(
        ["bash", "-c", f"{command} --experiment {kaldi}/fsdd"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[") == 2


def test_compute_refuses_a_missing_alignment_folder(kaldi: Path) -> None:
    command = ["compute", str(kaldi / "fsdd/exp/nnet/final.mdl"), "ark:-", "ark:-", "--alignment", "exp/tri1_alo"]
    done = subprocess.run([sys.executable, "-m", "ngsgd", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: --alignment exp/tri1_alo: no such folder\n")
