from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from ngsgd import NGSGD, load_model
from ngsgd.errors import ConfigError, ModelError
from ngsgd.files import canonical_json
from ngsgd.network import components as c
from ngsgd.network.model import AcousticModel, splice_positions
from ngsgd.network.splices import context, parse_splice_indexes
from ngsgd.network.storage import read_header
from ngsgd.network.topology import HiddenLayers, initial_model, insert_hidden_layer, output_scales

SPLICES = parse_splice_indexes("layer0/-2:-1:0:1:2 layer1/-2:1 layer2/-3:3")
CPU = torch.device("cpu")


def make_model(
    nonlinearity="pnorm", batchnorm: bool = False, num_layers: int = 3, seed: int = 0, dim: int = 4
) -> AcousticModel:
    affine_dim = 12 if nonlinearity == "pnorm" else 6
    layers = HiddenLayers(SPLICES, nonlinearity, affine_dim, 6, batchnorm)
    transform = np.random.default_rng(seed).normal(size=(5 * dim, 5 * dim + 1))
    model = initial_model(layers, (transform[:, :-1], transform[:, -1]), np.array([5, 1, 9]), seed)
    for layer in range(1, num_layers):
        model = insert_hidden_layer(model, layers, seed + layer)
    return model.eval()


def test_layers_are_computed_only_at_needed_frames() -> None:
    rows = splice_positions(((-2, -1, 0, 1, 2), (-2, 1), (-3, 3)), 1, CPU)
    assert [r if isinstance(r, int) else len(r) for r in rows] == [4, 2, 1]
    # NG-SGD gets these rows of the hidden layers.
    model = make_model().train()
    optimizer = NGSGD(model, lr=0.01)
    model(torch.randn(5, 14, 4)).sum().backward()
    assert [len(layer.adapter.pop(with_ones=True)[0]) for layer in optimizer._layers] == [20, 10, 5, 5]


@pytest.mark.parametrize(
    "component", [c.PNorm(12, 3), c.PNorm(12, 3, p=3.0), c.Normalize(12)], ids=lambda component: component.extra_repr()
)
def test_gradients_of_components(component: torch.nn.Module) -> None:
    x = torch.randn(5, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(component, (x,))


def test_training_layout_keeps_the_model(tmp_path: Path) -> None:
    model = make_model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(5, 14, 4, generator=torch.Generator().manual_seed(0))
    y = model(x)
    with model.training_layout():
        assert not torch.equal(model.components["affine0"].weight, state["components.affine0.weight"])
        torch.testing.assert_close(model(x), y)
        with pytest.raises(RuntimeError, match="in training layout"):
            model.save(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("batchnorm", [False, True])
def test_training_layout_keeps_the_gradients(batchnorm: bool) -> None:
    model = make_model("pnorm", batchnorm).train()
    x = torch.randn(5, 14, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        x.grad = None
        model(x)[:, 0, 1].sum().backward()
        return {"x": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    with model.training_layout():
        actual = gradients()
        orders = {f"components.{name}": getattr(c, "output_order", None) for name, c in model.components.items()}
    for name, gradient in actual.items():
        order = orders.get(name.rpartition(".")[0])
        torch.testing.assert_close(gradient, expected[name] if order is None else expected[name][list(order)])


def test_gradients_of_zero_and_tiny_inputs() -> None:
    x = torch.zeros(2, 12, requires_grad=True)
    c.PNorm(12, 3)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(2, 12))
    # Below the floor the component multiplies a row by a constant.
    y = torch.full((1, 4), 1e-12, requires_grad=True)
    c.Normalize(4)(y).sum().backward()
    torch.testing.assert_close(y.grad, torch.full((1, 4), 2.0**33))


@pytest.mark.parametrize("nonlinearity", ["pnorm", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_posteriors_of_a_frame_do_not_depend_on_the_utterance(nonlinearity, batchnorm: bool) -> None:
    model = make_model(nonlinearity, batchnorm)
    assert (model.left_context, model.right_context) == (7, 6) == context(SPLICES)
    utterance = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    all_frames = model.log_posteriors(utterance)
    assert all_frames.shape == (9, 3)
    torch.testing.assert_close(all_frames.exp().sum(dim=1), torch.ones(9))
    padded = torch.cat((utterance[:1].expand(7, -1), utterance, utterance[-1:].expand(6, -1)))
    alone = torch.cat([model(padded[t : t + 14][None])[0] for t in range(9)])
    torch.testing.assert_close(all_frames, alone)


def test_frames_between_the_offsets_are_not_used() -> None:
    layers = HiddenLayers(parse_splice_indexes("layer0/0 layer1/-3:2"), "relu", 6, 6, batchnorm=False)
    model = initial_model(layers, (np.eye(4), np.zeros(4)), np.array([1, 1]), 0)
    model = insert_hidden_layer(model, layers, 1).requires_grad_(False)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[[1, 2, 3, 4]] = 7.0  # layer 1 needs only frames 0 and 5: offsets -3 and 2 from frame 3
    assert torch.equal(model(x[None]), model(other[None]))
    assert not torch.equal(model(x[None]), model(x.flip(0)[None]))


def test_all_frames_of_the_context_are_used() -> None:
    model = make_model()
    x = torch.randn(1, 14, 4)
    x.requires_grad_()
    model(x).square().sum().backward()
    used = x.grad[0].abs().sum(dim=1) > 0
    # Layer 0 is computed at -5, -2, 1 and 4 from five frames each, which cover -7 to 6.
    assert used.all()


def test_outputs_of_components() -> None:
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    y = c.PNorm(6, 2)(x)
    torch.testing.assert_close(y[..., 1], (x[..., 3:] ** 2).sum(dim=-1).sqrt())
    torch.testing.assert_close(c.PNorm(6, 2, p=3.0)(x)[..., 0], (x[..., :3].abs() ** 3).sum(dim=-1) ** (1 / 3))
    torch.testing.assert_close(c.Normalize(6)(x).square().mean(dim=-1), torch.ones(3, 2, dtype=torch.float64))
    assert torch.equal(c.Normalize(6)(torch.zeros(1, 1, 6)), torch.zeros(1, 1, 6))
    assert torch.equal(c.Splice(6, (-1, 0))(x, torch.tensor([[0, 1]])), x.reshape(3, 1, 12))
    norm = c.BatchNorm(6).double().train()
    z = norm(x)
    torch.testing.assert_close(z.mean(dim=(0, 1)), torch.zeros(6, dtype=torch.float64), atol=1e-7, rtol=0)
    assert set(norm.state_dict()) == {"running_mean", "running_var"}
    assert not torch.equal(norm.running_mean, torch.zeros(6))


def test_gradient_of_a_zero_pnorm_group_is_zero() -> None:
    x = torch.zeros(1, 1, 6, requires_grad=True)
    c.Normalize(2)(c.PNorm(6, 2)(x)).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_initial_model_has_uniform_posteriors() -> None:
    """The output layer starts at zero, so the posteriors are uniform for any input."""
    model = make_model(num_layers=1).requires_grad_(False)
    torch.testing.assert_close(model(torch.randn(2, 5, 4)).detach(), torch.full((2, 1, 3), 1 / 3).log())
    assert model.components["affine0"].weight.std() == pytest.approx(12**-0.5, rel=0.2)


def test_output_scales_have_mean_one_and_favour_rare_classes() -> None:
    scales = output_scales(np.array([100, 10, 0]))
    assert scales.mean() == pytest.approx(1.0)
    counts = np.array([100, 10, 0]) + 0.01 * 110 / 3
    np.testing.assert_allclose(scales / scales[0], (counts / counts[0]) ** -0.25)


def test_inserting_a_layer_keeps_lower_layers_and_resets_the_output() -> None:
    one, two = make_model(num_layers=1), make_model(num_layers=2)
    assert list(two.components)[-8:] == [
        "normalize0", "splice1", "affine1", "pnorm1", "normalize1", "output_affine", "output_scale", "softmax",
    ]  # fmt: skip
    assert torch.equal(one.components["affine0"].weight, two.components["affine0"].weight)
    new = two.components["output_affine"].weight.detach()
    assert 0 < float(new.abs().max()) < 6 * 0.1 / 6**0.5
    assert not torch.equal(
        two.components["affine1"].weight, make_model(seed=5, num_layers=2).components["affine1"].weight
    )


@pytest.mark.parametrize("nonlinearity", ["pnorm", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_model_is_read_as_saved(tmp_path: Path, nonlinearity, batchnorm: bool) -> None:
    model = make_model(nonlinearity, batchnorm)
    model.priors = torch.tensor([0.5, 0.2, 0.3])
    model.history = {"iterations": [{"iteration": 0, "jobs": [1]}]}
    model.save(tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors").eval()
    x = torch.randn(10, 4)
    assert torch.equal(model.log_likelihoods(x), loaded.log_likelihoods(x))
    assert loaded.history == model.history
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


SAVE = """
import sys
sys.path.insert(0, {folder!r})
from test_model import make_model
make_model().save(sys.argv[1])
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Hash seeds, and with them the order of sets and of safetensors' tables, differ between processes."""
    for name in ("a", "b"):
        program = SAVE.format(folder=str(Path(__file__).parent))
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)],
            check=True,
            env={"PYTHONHASHSEED": (name == "a" and "1") or "2"},
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    header = (tmp_path / "a").read_bytes()[8:3000]
    assert b'"__metadata__":{"ngsgd":' in header
    with safetensors.safe_open(tmp_path / "a", "numpy") as f:
        assert list(f.metadata()) == ["ngsgd"]
        assert f.metadata()["ngsgd"] == canonical_json(json.loads(f.metadata()["ngsgd"]))
    assert str(tmp_path).encode() not in (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_arrays_of_another_type_are_refused(tmp_path: Path, dtype) -> None:
    path = save_model(tmp_path)
    arrays = safetensors.numpy.load_file(path)
    name = "components.affine0.weight"
    arrays[name] = arrays[name].astype(dtype)
    with safetensors.safe_open(path, "numpy") as f:
        safetensors.numpy.save_file(arrays, path, metadata=f.metadata())
    with pytest.raises(ModelError, match="expected all float32 or all float64"):
        load_model(path)


def test_bfloat16_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bf16.safetensors"
    model = make_model()
    safetensors.torch.save_file(
        {name: tensor.bfloat16() for name, tensor in model.state_dict().items()},
        path,
        metadata={"ngsgd": canonical_json({"format": 1, "architecture": model.architecture(), "history": {}})},
    )
    # numpy knows bfloat16 if another package has registered it.
    with pytest.raises(ModelError, match=r"not a whole|arrays of type bfloat16"):
        load_model(path)


def test_model_without_priors_has_no_likelihoods() -> None:
    with pytest.raises(ModelError, match="no priors"):
        make_model().log_likelihoods(torch.randn(3, 4))


def save_model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    make_model().save(path)
    return path


def change_header(path: Path, change) -> Path:
    """Rewrites a model file with its `ngsgd` header changed."""
    arrays = safetensors.numpy.load_file(path)
    header = dict(read_header(path))
    changed = change(header)
    safetensors.numpy.save_file(
        arrays, path, metadata={"ngsgd": json.dumps(changed if changed is not None else header)}
    )
    return path


def set_component(header, index: int, **values) -> None:
    header["architecture"][index].update(values)


@pytest.mark.parametrize("keep", [0, 7, 8, 200, -1])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = save_model(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a whole"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: [], "not a model of ngsgd"),
        (lambda h: h.update(format=99), "model format 99"),
        (lambda h: h.update(architecture=[]), "at least one component"),
        (lambda h: set_component(h, 2, kind="__import__"), "unknown kind"),
        (lambda h: set_component(h, 2, input_dim=10**15), "positive integer"),
        (lambda h: set_component(h, 2, input_dim=10**8, output_dim=10**8), "malformed"),
        (lambda h: set_component(h, 2, surprise=1), "surprise"),
        (lambda h: set_component(h, 4, output_dim=3), "malformed"),
        (lambda h: set_component(h, 0, offsets=["a"]), "list of integers"),
        (lambda h: set_component(h, 3, p="x"), "malformed"),
        (lambda h: set_component(h, 2, name="lda"), "same name"),
        (lambda h: set_component(h, 2, name="a.b"), "malformed"),
        (lambda h: set_component(h, 2, name="other"), "array"),
    ],
)
def test_malformed_header_is_refused(tmp_path: Path, change, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        load_model(change_header(save_model(tmp_path), change))


def test_foreign_and_hostile_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ModelError, match="not a model of ngsgd"):
        load_model(path)
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(ModelError, match="not a whole"):
        load_model(path)
    with pytest.raises(ModelError, match="no such model file"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [("layer0/-1:1", "contiguous"), ("layer1/-1:1", "layer0"), ("layer0/0 layer1/1:-1", "rise"),
     ("layer0/0 layer1:2", "form"), ("layer0/0 layer0/0", "twice")],
)  # fmt: skip
def test_malformed_splices_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_splice_indexes(text)
