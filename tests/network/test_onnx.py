"""Compares the exported graph, run by onnxruntime, with the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ngsgd.errors import ModelError
from ngsgd.network import components as c
from ngsgd.network.affine import Affine
from ngsgd.network.model import AcousticModel
from ngsgd.network.onnx import export_onnx


def network(*middle: c.Component, dim: int = 12) -> AcousticModel:
    """Returns a network with two splices with gaps and the components `middle` between them."""
    torch.manual_seed(0)
    hidden = middle[-1].output_dim if middle else dim
    model = AcousticModel(
        [
            ("splice0", c.Splice(5, (-2, 0, 1))),
            ("lda", c.FixedAffine(15, 15)),
            ("affine0", Affine(15, dim)),
            *((f"middle{i}", component) for i, component in enumerate(middle)),
            ("splice1", c.Splice(hidden, (-3, 3))),
            ("affine1", Affine(2 * hidden, 7)),
            ("scale", c.FixedScale(7)),
            ("softmax", c.Softmax(7)),
        ]
    )
    model.priors = torch.rand(7) + 0.1
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape).abs() if tensor is model.priors else torch.randn(tensor.shape))
    return model.eval()


MIDDLES = {
    "nothing": lambda: [],
    "p-norm": lambda: [c.PNorm(12, 4), c.Normalize(4)],
    "p-norm 3": lambda: [c.PNorm(12, 3, 3.0)],
    "p-norm 1": lambda: [c.PNorm(12, 3, 1.0)],
    "relu": lambda: [c.ReLU(12), c.BatchNorm(12)],
    "tanh": lambda: [c.Tanh(12)],
    "sigmoid": lambda: [c.Sigmoid(12)],
}


@pytest.mark.parametrize("kind", MIDDLES)
@pytest.mark.parametrize("frames", [1, 2, 9, 200])
def test_graph_computes_the_log_likelihoods_of_the_model(tmp_path: Path, kind: str, frames: int) -> None:
    model = network(*MIDDLES[kind]())
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_()
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    features = np.random.default_rng(1).normal(size=(frames, 5)).astype(np.float32)
    (found,) = session.run(["log_likelihoods"], {"features": features})
    expected = model.log_likelihoods(torch.from_numpy(features)).numpy()
    assert found.shape == (frames, 7)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_constant_dimensions_and_sum_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AcousticModel(
        [
            ("splice0", c.Splice(5, (-1, 0, 2), const_dim=2)),
            ("affine0", Affine(11, 6)),
            ("softmax", c.Softmax(6)),
            ("sums", c.SumGroup(6, (1, 3, 2))),
        ]
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.priors = torch.tensor([0.2, 0.3, 0.5])
    export_onnx(model, tmp_path / "model.onnx")
    features = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"features": features})
    np.testing.assert_allclose(found, model.log_likelihoods(torch.from_numpy(features)).numpy(), atol=1e-5)


def test_export_is_reproducible(tmp_path: Path) -> None:
    model = network()
    for name in ("a", "b"):
        export_onnx(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_model_without_priors_is_refused(tmp_path: Path) -> None:
    model = network()
    model.priors = None
    with pytest.raises(ModelError, match="no priors"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
