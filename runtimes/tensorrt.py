"""NVIDIA TensorRT, by polygraphy's loaders; TensorRT-RTX is the same code with other flags."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ..errors import BuildError, DeviceError, InputError
from ..store import hash_file
from . import plan, tensorrt_config, timing_cache
from .base import BuildRequest, BuildResult, Options, Runtime, Session, Settings
from .cuda import compute_capability, cuda_missing
from .inspector import judge
from .inspector import read as read_layers
from .tensorrt_engine import TensorRtSession, inspect
from .tensorrt_network import Network, Shapes, TargetGraph, parse
from .tensorrt_settings import RtxSettings, TensorRtSettings
from .timing_cache import TimingCache

ENGINE = "model.engine"
GRAPH = "model.onnx"  # beside it: the target graph, which a plan without weights takes them from


@dataclass(frozen=True)
class Build:
    """What one build is made of."""

    trt: Any
    settings: RtxSettings
    devices: tuple[str, ...]  # compute capabilities, as in sm89
    graph: TargetGraph
    shapes: Shapes
    network: Network


class TensorRt(Runtime):
    """Full TensorRT: builds and runs on an NVIDIA GPU."""

    name = "tensorrt"
    settings: ClassVar[type[RtxSettings]] = TensorRtSettings
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
        if reason := self.builder_missing():
            raise DeviceError(f"{self.name} cannot build here: {reason}.")
        trt = self._load()
        from polygraphy.exception import PolygraphyException

        settings = self._own(request.settings)
        devices = self._devices(request, settings)
        graph = TargetGraph.of(request.graph)
        shapes = graph.shapes(request.ranges)
        try:
            build = Build(trt, settings, devices, graph, shapes, parse(trt, request.graph, graph))
            engine = self._compile(build)
        except PolygraphyException as error:
            raise BuildError(f"{self.name} cannot build the graph: {error}") from error
        path = request.graph.parent / ENGINE
        plan.write(path, engine, graph=hash_file(request.graph), **self._known(build))
        precisions, shortfall, notes = self._judge(build, engine)
        options: Options = {name: " / ".join(map(str, sizes)) for name, sizes in shapes.items()}
        options |= {"compute_capabilities": list(devices), "built_without_device": cuda_missing() is not None}
        return BuildResult(
            ENGINE,
            {self.package: trt.__version__},
            options,
            notes=tuple(notes),
            precisions=precisions,
            shortfall=shortfall,
        )

    def _own(self, settings: Settings | None) -> RtxSettings:
        """`settings` as this runtime's own class; the defaults where there are none."""
        return settings if isinstance(settings, self.settings) else self.settings()

    def _devices(self, request: BuildRequest, settings: RtxSettings) -> tuple[str, ...]:  # noqa: ARG002 - RTX reads both
        """Compute capabilities to build for; of full TensorRT it is that of the device that is here."""
        here = compute_capability()
        if request.device.startswith("sm") and request.device != here:
            raise DeviceError(f"{self.name} builds for the device that is here, {here}, not for {request.device}.")
        return (here,)

    def _compile(self, build: Build) -> memoryview:
        config = self._config(build)
        cache = self._cache(build)
        if cache is not None:
            timing_cache.lend(config, cache)
        engine = build.network.builder.build_serialized_network(build.network.network, config)
        if engine is None:
            raise BuildError(f"{self.name} cannot build the graph: its builder refuses it.")
        if cache is not None:
            timing_cache.keep(config, cache)
        return memoryview(engine)

    def _config(self, build: Build) -> Any:
        loader = self._loader(build, tensorrt_config.common(build.trt, build.settings, build.shapes))
        config = loader(build.network.builder, build.network.network)
        tensorrt_config.set_tf32(build.trt, config, build.settings.tf32)
        return config

    def _loader(self, build: Build, arguments: dict[str, Any]) -> Any:
        assert isinstance(build.settings, TensorRtSettings)
        return tensorrt_config.full(build.trt, build.settings, arguments)

    def _cache(self, build: Build) -> TimingCache | None:
        assert isinstance(build.settings, TensorRtSettings)
        known = self.name, build.trt.__version__, "+".join(build.devices)
        return TimingCache(*known) if build.settings.timing_cache else None

    def _known(self, build: Build) -> dict[str, Any]:
        """What a plan's header says of it."""
        return {
            "runtime": self.name,
            "version": build.trt.__version__,
            "devices": build.devices,
            "options": build.settings.model_dump(mode="json"),
            "hardware": getattr(build.settings, "hardware_compatibility", "none"),
            "version_compatible": getattr(build.settings, "version_compatible", False),
        }

    def _judge(self, build: Build, engine: memoryview) -> tuple[dict[str, int], list[str], list[str]]:
        """Precisions, what falls short of what was asked, and notes.

        Where the engine cannot be asked, they are what the strongly typed network demands of it.
        """
        why = cuda_missing()
        if why is None and compute_capability() not in build.devices:
            why = f"the device here is {compute_capability()}"
        if why is None and build.settings.profiling != "detailed":
            why = f"profiling={build.settings.profiling} leaves its layers out"
        if why is not None:
            demand = "precisions are what the strongly typed network demands; the engine was not inspected"
            return build.network.precisions, [], [f"{demand}: {why}"]
        asked = {node: layer.precision for layer in build.network.products for node in layer.nodes}
        layers = read_layers(inspect(build.trt, engine, build.shapes))
        found = judge(layers, asked, build.network.fused, build.graph.call, tf32=build.settings.tf32)
        notes = [f"{len(found.unknown)} products are in no layer that the inspector names"] if found.unknown else []
        return found.precisions, found.shortfall, notes

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:
        reason = self.missing()
        if reason is not None:
            # deserialising without a device ends the process, so this must not be tried
            raise DeviceError(f"{self.name} cannot run here: {reason}.")
        header, engine = plan.read(artifact)
        trt = self._load()
        plan.check(artifact, header, self.name, trt.__version__, compute_capability())
        own, weights = self._own(settings), None
        if own.refit == "strip_plan":
            weights = artifact.parent / GRAPH
            if hash_file(weights) != header.graph:
                raise InputError(f"{weights} is not the graph that {artifact} was built from, whose weights it needs.")
        return TensorRtSession(trt, engine, self.name, weights, streaming=own.weight_streaming)

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
