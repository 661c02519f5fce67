"""Export of an acoustic model to ONNX: from an utterance's features to its frames' log-likelihoods."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ngsgd.errors import ModelError
from ngsgd.files import atomic_write
from ngsgd.network import components as c
from ngsgd.network.affine import Affine
from ngsgd.network.model import LOG_FLOOR, PRIOR_FLOOR, AcousticModel
from ngsgd.ops.records import NORM_FLOOR

OPSET = 18
IR_VERSION = 8  # that of runtimes as old as the opset
TO_THE_END = 2**31 - 1


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
        x = graph.component(component, x)
    floor = graph.constant(np.array(LOG_FLOOR, np.float32))
    log_priors = graph.constant(_array(model.priors.clamp(min=PRIOR_FLOOR).log()))
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

    def component(self, component: c.Component | Affine, x: str) -> str:
        """Adds a component with input x (positions, dim)."""
        match component:
            case c.Splice():
                return self._splice(component, x)
            case Affine() | c.FixedAffine():
                weight, bias = self.constant(_array(component.weight)), self.constant(_array(component.bias))
                return self.node("Gemm", x, weight, bias, transB=1)
            case c.PNorm():
                return self._pnorm(component, x)
            case c.Normalize():
                mean = self.node("ReduceMean", self.node("Mul", x, x), self._ints(1), keepdims=1)
                floored = self.node("Max", mean, self.constant(np.array(NORM_FLOOR, np.float32)))
                return self.node("Div", x, self.node("Sqrt", floored))
            case c.BatchNorm():
                scale = (component.running_var + c.BATCHNORM_EPSILON).rsqrt()
                scaled = self.node("Mul", x, self.constant(_array(scale)))
                return self.node("Sub", scaled, self.constant(_array(component.running_mean * scale)))
            case c.FixedScale():
                return self.node("Mul", x, self.constant(_array(component.scales)))
            case c.SumGroup():
                ends = np.cumsum(component.sizes)
                groups = [self._slice(x, 1, int(e) - n, int(e)) for e, n in zip(ends, component.sizes, strict=True)]
                sums = [self.node("ReduceLogSumExp", group, self._ints(1), keepdims=1) for group in groups]
                return self.node("Concat", *sums, axis=1)
            case c.Softmax():
                return self.node("LogSoftmax", x, axis=1)
        return self.node({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[component.kind], x)

    def _splice(self, splice: c.Splice, x: str) -> str:
        """Splices all positions that have full context, which are as many fewer as the range of the offsets."""
        first, last = splice.offsets[0], splice.offsets[-1]
        dim = splice.input_dim - splice.const_dim
        frames = self._slice(x, 1, 0, dim) if splice.const_dim else x
        parts = [self._slice(frames, 0, o - first, o - last if o < last else TO_THE_END) for o in splice.offsets]
        if splice.const_dim:
            const = self._slice(x, 1, dim, TO_THE_END)
            parts.append(self._slice(const, 0, 0, first - last if first < last else TO_THE_END))
        return self.node("Concat", *parts, axis=1)

    def _pnorm(self, pnorm: c.PNorm, x: str) -> str:
        groups = self.node("Reshape", x, self._ints(-1, pnorm.output_dim, pnorm.input_dim // pnorm.output_dim))
        if pnorm.p == 2.0:
            return self.node("ReduceL2", groups, self._ints(2), keepdims=0)
        power = self.node("Pow", self.node("Abs", groups), self.constant(np.array(pnorm.p, np.float32)))
        total = self.node("ReduceSum", power, self._ints(2), keepdims=0)
        return self.node("Pow", total, self.constant(np.array(1.0 / pnorm.p, np.float32)))

    def _slice(self, x: str, axis: int, begin: int, end: int) -> str:
        return self.node("Slice", x, self._ints(begin), self._ints(end), self._ints(axis))

    def _ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().numpy().astype(np.float32)
