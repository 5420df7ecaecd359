"""The reference evaluator of onnx: slow, exact to the operators' text; for graphs that no backend takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ..errors import InputError
from .base import Session, TensorInfo


class GatherElements(OpRun):
    """The operator for indices that are fewer than the data along any axis, as runtimes take it; onnx does not."""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        axis %= data.ndim
        kept = tuple(slice(None if place == axis else size) for place, size in enumerate(indices.shape))
        return (np.take_along_axis(data[kept], indices, axis),)


class OnnxReferenceSession(Session):
    """A graph run by `onnx.reference.ReferenceEvaluator`."""

    provider = "onnx.reference"

    def __init__(self, model: onnx.ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model, new_ops=[GatherElements])
        self.inputs = tuple(_info(value) for value in model.graph.input)
        self.outputs = tuple(_info(value) for value in model.graph.output)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        try:
            return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise InputError(f"The reference evaluator of onnx failed: {type(error).__name__}: {error}") from error

    def _close(self) -> None:
        del self._evaluator


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dims = kind.shape.dim
    shape = tuple(dim.dim_param or dim.dim_value or f"{value.name}_{axis}" for axis, dim in enumerate(dims))
    return TensorInfo(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)
