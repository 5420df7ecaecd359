"""OpenVINO on the CPU."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ..errors import BuildError, DeviceError, InputError
from ..spec import COMPUTE
from .base import BuildRequest, BuildResult, Options, Runtime, Session, Settings, TensorInfo

if TYPE_CHECKING:
    import onnx

DEVICE = "CPU"
PROVIDER = "OpenVINO CPU"
_TELEMETRY = "openvino_telemetry"
_REPORTED = (
    *("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "ENABLE_CPU_PINNING"),
    *("DYNAMIC_QUANTIZATION_GROUP_SIZE", "EXECUTION_DEVICES", "RUNTIME_REQUIREMENTS"),
)
_DOT_PRODUCTS = ("DL Boost", "8-bit integer", "AVX10", "AVX 10")  # in RUNTIME_REQUIREMENTS: int8 ones
# what it computes -> (its hint, its name where a layer says what it got)
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8-dynamic": "f32"}
_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64", "u8": "int8", "i8": "int8"}
_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention"})
_INT32 = np.iinfo(np.int32)


class OpenVinoSettings(Settings):
    """What a user may set of the target openvino."""

    threads: int | None = Field(
        default=None, ge=1, description="threads of one call; unset: the physical cores that the process may use"
    )
    pinning: bool = Field(
        default=True, description="bind threads to cores; not where several processes share the same cores"
    )
    quantization_group: int = Field(
        default=128,
        ge=16,
        multiple_of=16,
        description="int8-dynamic: numbers of an activation that share a scale; more is faster and less exact",
    )


def load() -> Any:
    """The package openvino, without its telemetry: its import alone would report itself to the vendor."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    if find_spec("openvino") is None:
        raise DeviceError(f"{OpenVino().missing()}.")
    # the package takes a stub of its own where this import fails
    kept = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
        if kept is not None:
            sys.modules[_TELEMETRY] = kept
    return openvino


@dataclass(frozen=True)
class _Graph:
    """What an ONNX file says of itself, weights aside."""

    compute: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ids: dict[str, tuple[int, int]]  # int64 input -> the lowest and the highest number that it may hold
    softmaxes: frozenset[str]  # names of nodes


def _read(path: Path) -> _Graph:
    import onnx

    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:
        raise BuildError(f"OpenVINO refuses the graph: it is no ONNX file: {error}") from error
    graph, weights = model.graph, {weight.name: weight for weight in model.graph.initializer}
    inputs = tuple(_info(value) for value in graph.input if value.name not in weights)
    ids = {info.name: (int(_INT32.min), int(_INT32.max)) for info in inputs if info.dtype == "int64"}
    for node in graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" else None
        if table is not None and node.input[1] in ids and not any(each.i for each in node.attribute):
            low, high = ids[node.input[1]]
            ids[node.input[1]] = max(low, -table.dims[0]), min(high, table.dims[0] - 1)
    return _Graph(
        compute=next((each.value for each in model.metadata_props if each.key == COMPUTE), "fp32"),
        inputs=inputs,
        outputs=tuple(_info(value) for value in graph.output),
        ids=ids,
        softmaxes=frozenset(node.name for node in graph.node if node.op_type == "Softmax"),
    )


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if dtype is None or dtype.isbuiltin != 1 or not tensor.HasField("shape"):
        raise BuildError(f"OpenVINO cannot take or give {value.name!r}: only tensors of numpy's types and known rank.")
    dims = enumerate(tensor.shape.dim)
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}" for axis, dim in dims
    )
    return TensorInfo(value.name, str(dtype), shape)


def _compile(path: Path, graph: _Graph, settings: OpenVinoSettings) -> Any:
    """The compiled model. Raises DeviceError where this CPU lacks the precision, BuildError if OpenVINO refuses it."""
    core = load().Core()
    check_capable(graph.compute, core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
    try:
        return core.compile_model(core.read_model(path), DEVICE, _config(graph.compute, settings))
    except Exception as error:
        raise BuildError(f"OpenVINO refuses the graph: {_reason(error)}") from error


def check_capable(compute: str, capabilities: Collection[str]) -> None:
    """Raise DeviceError where the CPU lacks the arithmetic: OpenVINO would take float32 without a word."""
    if compute == "bf16" and "BF16" not in capabilities:
        raise DeviceError("This CPU has no bfloat16 arithmetic: take openvino:fp32 or openvino:int8-dynamic.")


def _config(compute: str, settings: OpenVinoSettings) -> dict[str, Any]:
    """Properties of the device; what stands for itself is OpenVINO's default."""
    threads = {} if settings.threads is None else {"INFERENCE_NUM_THREADS": settings.threads}
    return threads | {
        # one call at a time: its latency counts, and one stream has all threads
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": settings.pinning,
        # by default float32 graphs are computed in bfloat16 on CPUs that have it
        "INFERENCE_PRECISION_HINT": _HINTS[compute],
        # by default activations in front of int8 weights are quantized too
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.quantization_group if compute == "int8-dynamic" else 0,
        # a cache beside the artifact would be native code that no digest covers
        "CACHE_DIR": "",
    }


def _reason(error: Exception) -> str:
    """What OpenVINO says, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Check '", "Exception from src/")))


class OpenVinoSession(Session):
    """A compiled model with one request. Outputs are copies: a later run does not change them."""

    def __init__(self, artifact: Path, settings: OpenVinoSettings) -> None:
        graph = _read(artifact)
        compiled = _compile(artifact, graph, settings)
        devices = compiled.get_property("EXECUTION_DEVICES")
        if devices != [DEVICE]:
            raise DeviceError(f"Asked for {DEVICE}, but OpenVINO runs the graph on {', '.join(devices)}.")
        self.provider = PROVIDER
        self.inputs, self.outputs, self._ids = graph.inputs, graph.outputs, graph.ids
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # a request takes one call at a time

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, bounds in self._ids.items():
            _check_range(name, feeds[name], bounds)
        try:
            with self._lock:
                made = self._request.infer(dict(feeds), share_inputs=True)
        except Exception as error:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"{PROVIDER} failed on {sizes}: {_reason(error)}") from error
        return {info.name: made[index] for index, info in enumerate(self.outputs)}

    def _close(self) -> None:
        del self._request


def _check_range(name: str, array: np.ndarray, bounds: tuple[int, int]) -> None:
    """Raise InputError for numbers that OpenVINO would take for others: it computes int64 in 32 bits, and gives zeros
    for the rows that a table lacks."""
    low, high = bounds
    if array.size and (array.min() < low or array.max() > high):
        raise InputError(
            f"{PROVIDER} failed on input {name!r}: its numbers must be {low} to {high}, but are {array.min()} to "
            f"{array.max()}."
        )


class OpenVino(Runtime):
    """OpenVINO's CPU plugin. The artifact is the target graph; it is compiled where it runs."""

    name = "openvino"
    settings = OpenVinoSettings

    def missing(self) -> str | None:
        if find_spec("openvino") is None:
            return "the package openvino is not installed: `pip install graphwright[openvino]`"
        return None

    def build(self, request: BuildRequest) -> BuildResult:
        graph = _read(request.graph)
        compiled = _compile(request.graph, graph, _own(request.settings))
        options: Options = {name: _plain(compiled.get_property(name)) for name in _REPORTED}
        layers = list(_layers(compiled))
        ops = collections.Counter(layer.kind for layer in layers)
        got = collections.Counter(_precisions(layers, graph, str(options["RUNTIME_REQUIREMENTS"])))
        return BuildResult(
            request.graph.name,
            {"openvino": version("openvino")},
            options,
            dict(ops.most_common()),
            notes(graph.compute, got),
            dict(got.most_common()),
        )

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:
        return OpenVinoSession(artifact, _own(settings))


def _own(settings: Settings | None) -> OpenVinoSettings:
    return settings if isinstance(settings, OpenVinoSettings) else OpenVinoSettings()


def _plain(value: Any) -> str | int | bool | list[str]:
    if isinstance(value, bool | int | list):
        return value
    return str(value.to_string() if hasattr(value, "to_string") else getattr(value, "name", value))


@dataclass(frozen=True)
class _Layer:
    """One layer of the graph that OpenVINO made."""

    kind: str
    types: tuple[str, ...]  # of its inputs
    stands_for: frozenset[str]  # names of the nodes that went into it


def _layers(compiled: Any) -> Iterator[_Layer]:
    for op in compiled.get_runtime_model().get_ordered_ops():
        about = op.get_rt_info()
        kind = about["layerType"].value
        if kind not in ("Const", "Input", "Output"):
            types = tuple(each.get_element_type().get_type_name() for each in op.inputs())
            yield _Layer(kind, types, frozenset(about["originalLayersNames"].value.split(",")))


def _precisions(layers: list[_Layer], graph: _Graph, isa: str) -> Iterator[str]:
    """What each product computes in: linear layers, convolutions, and attentions that became one kernel."""
    dynamic = graph.compute == "int8-dynamic" and any(words in isa for words in _DOT_PRODUCTS)
    for layer in layers:
        if layer.kind in _PRODUCTS:
            first, second = (_NAMES.get(kind, kind) for kind in layer.types[:2])
            yield "int8-dynamic" if dynamic and (first, second) == ("fp32", "int8") else first
        elif layer.kind == "Subgraph" and layer.stands_for & graph.softmaxes:
            yield _NAMES.get(layer.types[0], layer.types[0])


def notes(compute: str, got: Mapping[str, int]) -> tuple[str, ...]:
    """What was not computed as asked. Integers are always asked for: by the graph."""
    asked = {compute, "int8"} | ({"fp32"} if compute == "int8-dynamic" else set())
    notes = [
        f"{count} products are computed in {name}, not in {compute}" for name, count in got.items() if name not in asked
    ]
    if compute == "int8-dynamic" and compute not in got:
        notes.append(
            "no product is computed in int8: this CPU has no int8 dot products (VNNI), or the graph no layer for it"
        )
    return tuple(notes)
