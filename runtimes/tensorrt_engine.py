"""An engine on the device: run, refitted with its weights, inspected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError, InputError
from .base import Session, TensorInfo
from .tensorrt_network import Shapes


class TensorRtSession(Session):
    """A plan on the device, run by polygraphy's TrtRunner.

    `weights`: an ONNX file, where the plan holds none. `streaming`: weights are streamed as TensorRT thinks best.
    """

    def __init__(
        self, trt: Any, plan: bytes, provider: str, weights: Path | None = None, streaming: bool = False
    ) -> None:
        from polygraphy.backend.trt import TrtRunner, engine_from_bytes

        self.provider = provider
        engine = engine_from_bytes(plan)
        if weights is not None:
            _refit(trt, engine, weights)
        self._runner = TrtRunner(engine, weight_streaming_budget=-1 if streaming else None)
        self._runner.activate()
        infos = [_info(engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(info for is_input, info in infos if is_input)
        self.outputs = tuple(info for is_input, info in infos if not is_input)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from polygraphy.exception import PolygraphyException

        try:
            outputs = self._runner.infer(dict(feeds))
        except PolygraphyException as error:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"{self.provider} failed on {sizes}: {error}") from error
        return {name: np.array(array) for name, array in outputs.items()}

    def _close(self) -> None:
        self._runner.deactivate()


def _info(engine: Any, name: str) -> tuple[bool, TensorInfo]:
    from polygraphy.datatype import DataType

    shape = tuple(size if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(engine.get_tensor_shape(name)))
    dtype = DataType.to_dtype(DataType.from_dtype(engine.get_tensor_dtype(name)), "numpy")
    return "INPUT" in str(engine.get_tensor_mode(name)), TensorInfo(name, str(np.dtype(dtype)), shape)


def _refit(trt: Any, engine: Any, weights: Path) -> None:
    from polygraphy.backend.trt import util as trt_util

    refitter = trt.Refitter(engine, trt_util.get_trt_logger())
    read = trt.OnnxParserRefitter(refitter, trt_util.get_trt_logger()).refit_from_file(str(weights))
    if not (read and refitter.refit_cuda_engine()):
        raise DeviceError(f"The engine cannot be given its weights from {weights}.")


def inspect(trt: Any, plan: memoryview, shapes: Shapes) -> str:
    """The engine inspector's JSON, at the opt shapes: with dynamic ones it leaves out types."""
    from polygraphy.backend.trt import engine_from_bytes

    engine = engine_from_bytes(plan)
    context = engine.create_execution_context()
    for name, sizes in shapes.items():
        context.set_input_shape(name, sizes[1])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
