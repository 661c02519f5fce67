"""The forms in which components are exchanged: the fields of a Kaldi component, and the nodes of an ONNX graph."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

#: The fields of a component in a Kaldi model by their names, such as ``InputDim``; see `ngsgd.kaldi.nnet2`.
KaldiFields = dict[str, Any]

TO_THE_END = 2**31 - 1  # end of an ONNX slice


class OnnxGraph(Protocol):
    """Builder of an ONNX graph; each method returns the name of the value that it adds."""

    def constant(self, array: npt.NDArray[Any]) -> str: ...

    def integers(self, *values: int) -> str: ...

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str: ...

    def slice(self, x: str, axis: int, begin: int, end: int) -> str: ...


def to_array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().cpu().numpy().astype(np.float32)


def positive(dim: int) -> int:
    """Returns a dimension of a Kaldi component.

    Raises:
        ValueError: it is not positive.
    """
    if dim < 1:
        raise ValueError(f"dimension {dim}, must be at least 1")
    return dim
