"""ONNX Runtime on the CPU."""

from __future__ import annotations

import collections
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..errors import BuildError, DeviceError, InputError
from .base import BuildRequest, BuildResult, Options, Runtime, Session, Settings, TensorInfo
from .ort_readback import differences

PROVIDER = "CPUExecutionProvider"

# onnxruntime's type names -> numpy's; bfloat16 and float8 have none and never stand at a graph's border here
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
}


# Fusions that ONNX Runtime makes at load and that are slower than what they replace, so that a graph says itself what
# is fused: its SkipLayerNormalization computes one number at a time (1.8 ms for 1024 rows of 384; Add, then
# LayerNormalization: 0.3 ms).
UNWANTED = ("SkipLayerNormFusion", "BiasSkipLayerNormFusion")


class OrtCpuSettings(Settings):
    """What may be set of ort-cpu."""

    threads: int | None = Field(default=None, ge=1, le=1024, description="threads of a call; none: the cores available")
    spinning: bool = Field(default=True, description="idle threads wait actively: faster, but takes the cores")
    arena: bool = Field(default=True, description="memory is kept for the next call")
    attention: Literal["auto", "standard", "multihead", "packed", "grouped", "primitive"] = Field(
        default="auto", description="which op an attention becomes; auto: what was measured, else the default"
    )
    linear: Literal["auto", "rows", "matmul", "packed"] = Field(
        default="auto", description="linear layers: Gemm on rows of tokens, MatMul, or those of one input in one"
    )
    norm: Literal["auto", "plain", "skip"] = Field(
        default="auto", description="a residual sum and its norm: two ops, or SkipLayerNormalization"
    )
    prepacking: bool = Field(default=True, description="weights are laid out anew at load: faster, twice the memory")


def cores() -> int:
    """The cores that this process may use: its affinity, not the machine's count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def distribution() -> tuple[str, str]:
    """Name and version of the installed ONNX Runtime distribution."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    raise DeviceError("ONNX Runtime is not installed: `pip install onnxruntime` (or onnxruntime-gpu on Linux x86-64).")


def session_options(provider: str, settings: OrtCpuSettings | None = None) -> Any:
    """Options of every session: threads from the cores really available, no silent fallback, quiet log."""
    import onnxruntime as ort

    settings = settings or OrtCpuSettings()
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or cores()
    options.enable_cpu_mem_arena = settings.arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not settings.prepacking)))
    options.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(UNWANTED))
    options.log_severity_level = 4  # what goes wrong is in the exception; its log line would stand twice
    if provider != PROVIDER:
        # a provider that cannot take a node must say so; the default hands it to the CPU without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


class OrtSession(Session):
    """A session of ONNX Runtime whose provider was checked to be the one asked for."""

    def __init__(
        self,
        model: Path | bytes,
        providers: Sequence[Any],
        settings: OrtCpuSettings | None = None,
        optimize: bool = True,
        in_order: bool = False,
    ) -> None:
        import onnxruntime as ort

        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        options = session_options(wanted, settings)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if in_order:  # the default puts off what only gives an output, and keeps all that it reads alive
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(source, options, providers=list(providers))
        except Exception as error:
            _check_provider(source, providers, wanted)
            raise BuildError(f"ONNX Runtime ({wanted}) refuses the graph: {str(error).strip()}") from error
        self.provider = _same(self._session.get_providers()[0], wanted)
        self.inputs = tuple(tensor_info(value) for value in self._session.get_inputs())
        self.outputs = tuple(tensor_info(value) for value in self._session.get_outputs())

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"ONNX Runtime ({self.provider}) failed on {sizes}: {str(error).strip()}") from error

    def _close(self) -> None:
        del self._session


def _check_provider(source: str | bytes, providers: Sequence[Any], wanted: str) -> None:
    """Raise DeviceError where the provider does not start at all: ONNX Runtime only logs that, and takes the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(source, options, providers=list(providers))
    except Exception:  # noqa: BLE001 - it is the graph that is refused, as the caller says
        return
    _same(session.get_providers()[0], wanted)


def _same(provider: str, wanted: str) -> str:
    if provider != wanted:
        raise DeviceError(
            f"Asked for {wanted}, but ONNX Runtime runs the graph on {provider}: `graphwright doctor` says what is "
            "missing."
        )
    return provider


def tensor_info(value: Any) -> TensorInfo:
    """What ONNX Runtime says of an input or output; a dim without a name is called after the value and its axis."""
    shape = tuple(dim if isinstance(dim, int | str) else f"{value.name}_{axis}" for axis, dim in enumerate(value.shape))
    return TensorInfo(value.name, _DTYPES.get(value.type, value.type), shape)


class OrtCpu(Runtime):
    """ONNX Runtime, CPU execution provider. The artifact is the target graph; the session is made where it runs."""

    name = "ort-cpu"
    settings = OrtCpuSettings

    def missing(self) -> str | None:
        try:
            distribution()
        except DeviceError as error:
            return str(error)
        return None

    def build(self, request: BuildRequest) -> BuildResult:
        settings = _own(request.settings)
        options: Options = {
            **settings.model_dump(),
            "threads": settings.threads or cores(),
            "provider": PROVIDER,
            "fusions off": list(UNWANTED),
        }
        made = optimized_ops(request.graph, settings)
        notes = differences(graph_ops(request.graph), made)
        return BuildResult(request.graph.name, dict([distribution()]), options, made, notes)

    def open(self, artifact: Path, settings: Settings | None = None) -> Session:
        return OrtSession(artifact, [PROVIDER], _own(settings))


def _own(settings: Settings | None) -> OrtCpuSettings:
    return settings if isinstance(settings, OrtCpuSettings) else OrtCpuSettings()


def graph_ops(graph: Path) -> dict[str, int]:
    """Op types of an ONNX file with their counts; a domain in front of all but ONNX's own."""
    import onnx

    model = onnx.load_model(str(graph), load_external_data=False)
    counts = collections.Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node
    )
    return dict(counts.most_common())


def optimized_ops(graph: Path, settings: OrtCpuSettings | None = None) -> dict[str, int]:
    """Op types of the graph that ONNX Runtime makes of `graph` at load, all optimizations on."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(PROVIDER, settings)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        try:
            ort.InferenceSession(str(graph), options, providers=[PROVIDER])
        except Exception as error:
            raise BuildError(f"ONNX Runtime ({PROVIDER}) refuses the graph: {str(error).strip()}") from error
        return graph_ops(Path(options.optimized_model_filepath))
