"""Export of an acoustic model to ONNX: from an utterance's features to its frames' log-likelihoods."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ngsgd.errors import ModelError
from ngsgd.files import atomic_write
from ngsgd.network.forms import to_array
from ngsgd.network.model import LOG_FLOOR, PRIOR_FLOOR, AcousticModel

OPSET = 18
IR_VERSION = 8  # that of runtimes as old as the opset


def export_onnx(model: AcousticModel, path: str | os.PathLike[str]) -> None:
    """Writes a model as ONNX, atomically; the same model gives the same bytes.

    The input is ``features`` (frames, dim), float32; the output is ``log_likelihoods`` (frames, classes), as
    `AcousticModel.log_likelihoods` computes them. The number of frames is dynamic. The graph repeats the first and the
    last frame for context.

    Args:
        model: a model with priors.
        path: of the ONNX file.

    Raises:
        ModelError: the model has no priors.
        OSError: the file cannot be written.
    """
    if model.priors is None:
        raise ModelError("the model has no priors, which log-likelihoods need; use the run's final model")
    graph = _Graph()
    pads = graph.constant(np.array([model.left_context, 0, model.right_context, 0], np.int64))
    x = graph.node("Pad", "features", pads, mode="edge")
    for component in model.chain():
        x = component.to_onnx(graph, x)
    floor = graph.constant(np.array(LOG_FLOOR, np.float32))
    log_priors = graph.constant(to_array(model.priors.clamp(min=PRIOR_FLOOR).log()))
    x = graph.node("Sub", graph.node("Max", x, floor), log_priors)
    graph.node("Max", graph.node("LogSoftmax", x, axis=1), floor, output="log_likelihoods")
    exported = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "acoustic_model",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["frames", model.input_dim])],
            [helper.make_tensor_value_info("log_likelihoods", TensorProto.FLOAT, ["frames", model.num_classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ngsgd",
    )
    onnx.checker.check_model(exported)
    with atomic_write(path) as temporary:
        temporary.write_bytes(exported.SerializeToString(deterministic=True))


class _Graph:
    """Builder of an ONNX graph; each method adds nodes or constants and returns the name of the output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def slice(self, x: str, axis: int, begin: int, end: int) -> str:
        return self.node("Slice", x, self.integers(begin), self.integers(end), self.integers(axis))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))
