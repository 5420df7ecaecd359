"""NVIDIA TensorRT, by polygraphy's loaders; TensorRT-RTX is the same code with other flags."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import BuildError, DeviceError, InputError
from .base import BuildRequest, BuildResult, Options, Runtime, Session, Settings, TensorInfo
from .cuda import cuda_missing

ENGINE = "model.engine"


class TensorRt(Runtime):
    """Full TensorRT: builds and runs on an NVIDIA GPU."""

    name = "tensorrt"
    package: ClassVar[str] = "tensorrt"  # what polygraphy imports
    bindings: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt_bindings")  # what pip installs, either will do
    extra: ClassVar[str] = "tensorrt"
    rtx: ClassVar[bool] = False

    def missing(self) -> str | None:
        return self._package_missing() or cuda_missing()

    def _package_missing(self) -> str | None:
        for module in (*self.bindings[:1], "polygraphy"):
            if find_spec(module) is None:
                return f"the package {module} is not installed: `pip install graphwright[{self.extra}]`"
        return None

    def build(self, request: BuildRequest) -> BuildResult:
        trt = self._load()
        from polygraphy.backend.trt import (
            EngineBytesFromNetwork,
            NetworkFromOnnxPath,
            Profile,
            SetDecomposableAttentions,
        )
        from polygraphy.exception import PolygraphyException

        profile = Profile()
        shapes = {}
        for name, dims in _input_dims(request.graph).items():
            shapes[name] = [_sizes(name, dims, request, which) for which in range(3)]
            profile.add(name, *shapes[name])
        try:
            # Without the setting the build fails where no fused kernel exists (fp32; head sizes of 8 or 512)
            network = SetDecomposableAttentions(NetworkFromOnnxPath(str(request.graph)))
            engine = EngineBytesFromNetwork(network, self._config(request, profile))()
        except PolygraphyException as error:
            raise BuildError(f"{self.name} cannot build the graph: {error}") from error
        (request.graph.parent / ENGINE).write_bytes(engine)
        options: Options = {name: " / ".join(map(str, sizes)) for name, sizes in shapes.items()}
        return BuildResult(ENGINE, {self.package: trt.__version__}, options | self._device(request))

    def _config(self, request: BuildRequest, profile: Any) -> Any:  # noqa: ARG002 - RTX reads the device from it
        from polygraphy.backend.trt import CreateConfig

        return CreateConfig(profiles=[profile])

    def _device(self, request: BuildRequest) -> Options:
        return {"device": request.device or "this machine's GPU"}

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:  # noqa: ARG002 - none yet
        reason = self.missing()
        if reason is not None:
            # deserialising without a device ends the process, so this must not be tried
            raise DeviceError(f"{self.name} cannot run here: {reason}.")
        self._load()
        return TensorRtSession(artifact, self.name)

    def _load(self) -> Any:
        """The bindings, under the name by which polygraphy imports them."""
        other = {"tensorrt", "tensorrt_rtx"} - {self.package}
        if other & set(sys.modules):
            raise DeviceError(
                f"{self.package} and {other.pop()} cannot be used in one process: run each in a process of its own."
            )
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if self.rtx else "0"
        name = next((name for name in self.bindings if find_spec(name) is not None), None)
        if name is None:
            raise DeviceError(f"{self.name}: {self._package_missing()}.")
        trt = importlib.import_module(name)
        sys.modules.setdefault(self.package, trt)
        from polygraphy.logger import G_LOGGER

        G_LOGGER.module_severity = {"": G_LOGGER.ERROR}
        return trt


class TensorRtSession(Session):
    """An engine on the device, run by polygraphy's TrtRunner."""

    def __init__(self, artifact: Path, provider: str) -> None:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        self.provider = provider
        self._runner = TrtRunner(EngineFromBytes(artifact.read_bytes()))
        self._runner.activate()
        engine = self._runner.engine
        infos = [_engine_info(engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
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


def _engine_info(engine: Any, name: str) -> tuple[bool, TensorInfo]:
    from polygraphy.datatype import DataType

    shape = tuple(size if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(engine.get_tensor_shape(name)))
    dtype = DataType.to_dtype(DataType.from_dtype(engine.get_tensor_dtype(name)), "numpy")
    return "INPUT" in str(engine.get_tensor_mode(name)), TensorInfo(name, str(np.dtype(dtype)), shape)


def _input_dims(graph: Path) -> dict[str, list[int | str]]:
    """Dims of each input of an ONNX file: a size, or the name of a dynamic dim."""
    import onnx

    model = onnx.load_model(str(graph), load_external_data=False)
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


def _sizes(name: str, dims: list[int | str], request: BuildRequest, which: int) -> tuple[int, ...]:
    """Shape of an input at the min (0), opt (1) or max (2) of each dynamic dim."""
    unknown = [dim for dim in dims if isinstance(dim, str) and dim not in request.ranges]
    if unknown:
        raise BuildError(
            f"TensorRT needs a range for each dynamic dim; input {name!r} has {', '.join(map(str, unknown))} without "
            "one: give ModelSpec.ranges as (min, opt, max)."
        )
    return tuple(dim if isinstance(dim, int) else request.ranges[dim][which] for dim in dims)
