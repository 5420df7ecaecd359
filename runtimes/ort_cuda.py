"""ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..errors import BuildError, DeviceError, UsageError
from .base import BuildRequest, BuildResult, Options, Runtime, Settings
from .bound import BoundSession, places
from .cuda import cuda_missing, devices, libraries_missing, preload
from .ort_cpu import distribution, tensor_info

PROVIDER = "CUDAExecutionProvider"

# What shapes, indices and masks are computed with. ONNX Runtime runs such nodes on the CPU where all that goes in comes
# from shapes (its provider for CUDA asks for that), and where CUDA has no kernel for whole numbers or booleans. Of any
# other op a node on the CPU is work that was to be done by the GPU.
SHAPE_OPS = frozenset(
    {
        *("Shape", "Size", "Constant", "ConstantOfShape", "Range", "Identity", "Cast", "Gather", "GatherElements"),
        *("GatherND", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Expand", "Tile"),
        *("Transpose", "Pad", "Where", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Sign", "Max", "Min", "Clip"),
        *("Pow", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Equal", "Less", "LessOrEqual", "Greater"),
        *("GreaterOrEqual", "And", "Or", "Xor", "Not", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
        *("BitShift", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ArgMax", "ArgMin", "CumSum"),
        *("NonZero", "TopK", "Unique", "Trilu", "ScatterElements", "ScatterND", "OneHot", "If"),
    }
)


class CudaSettings(Settings):
    """What a user may set of ort-cuda."""

    device_id: int = Field(default=0, ge=0, description="CUDA device that runs it, as the driver counts them")
    gpu_mem_limit: int = Field(
        default=0, ge=0, description="bytes that ONNX Runtime's arena may hold; 0: all there are"
    )
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] = Field(
        default="kNextPowerOfTwo", description="how the arena grows: by doubling, or by what is asked for"
    )
    cuda_graph: bool = Field(
        default=False, description="capture the run as a CUDA graph, and replay it: for graphs of fixed shapes only"
    )
    tf32: bool = Field(
        default=False, description="float32 products in TF32: faster, with 10 bits of mantissa in place of 23"
    )
    cudnn_conv_algo_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = Field(
        default="HEURISTIC",
        description="how cuDNN picks a convolution; EXHAUSTIVE measures all, for each new shape",
    )
    skip_layer_norm_strict: bool = Field(
        default=True, description="fused residual sum and norm add up in float32: float16 sums of squares can overflow"
    )


def provider_options(settings: CudaSettings) -> dict[str, str]:
    """The settings as ONNX Runtime's CUDA provider takes them."""
    flags = {
        "enable_cuda_graph": settings.cuda_graph,
        "use_tf32": settings.tf32,
        "enable_skip_layer_norm_strict_mode": settings.skip_layer_norm_strict,
    }
    options = {
        "arena_extend_strategy": settings.arena_extend_strategy,
        "cudnn_conv_algo_search": settings.cudnn_conv_algo_search,
        **{name: str(int(flag)) for name, flag in flags.items()},
    }
    numbers = {"device_id": settings.device_id, "gpu_mem_limit": settings.gpu_mem_limit}
    return options | {name: str(number) for name, number in numbers.items() if number}  # 0 is ONNX Runtime's default


def placement(session: Any) -> dict[str, dict[str, int]]:
    """Provider -> op type -> number of nodes, of a session that recorded where ONNX Runtime put each node."""
    found: dict[str, collections.Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, collections.Counter()).update(map(_op, part.get_nodes()))
    return {provider: dict(counts.most_common()) for provider, counts in found.items()}


def check_placement(placed: Mapping[str, Mapping[str, int]]) -> None:
    """Raise DeviceError where another provider than CUDA's computes anything but shapes, indices and masks."""
    astray = {
        f"{count} {op} on {provider}"
        for provider, counts in placed.items()
        for op, count in counts.items()
        if provider != PROVIDER and op not in SHAPE_OPS
    }
    if astray:
        raise DeviceError(
            f"Asked for {PROVIDER}, but ONNX Runtime would run {', '.join(sorted(astray))}: it has no CUDA kernel for "
            "them. Take ort-cpu, or a model without these operators."
        )


def check_fixed(shapes: Mapping[str, tuple[int | str | None, ...]]) -> None:
    """Raise UsageError where a shape of an input or output, by name, is not fixed: no CUDA graph can be made then."""
    loose = {name: [str(size) for size in shape if not isinstance(size, int)] for name, shape in shapes.items()}
    named = "; ".join(f"{name} has {', '.join(dims)}" for name, dims in loose.items() if dims)
    if named:
        raise UsageError(
            f"option cuda_graph of ort-cuda: a CUDA graph is captured for one shape, but {named}. Give a model of "
            "fixed shapes (leave the dims out of ModelSpec.dynamic), or leave cuda_graph out."
        )


def check_capturable(session: Any) -> None:
    """Raise UsageError where a replay of `session` would not give what a run gives."""
    values = [tensor_info(value) for value in (*session.get_inputs(), *session.get_outputs())]
    check_fixed({value.name: value.shape for value in values})
    if read := [name for name, place in places(session)[0].items() if place.device == "cpu"]:
        raise UsageError(
            f"option cuda_graph of ort-cuda: the CPU reads {', '.join(read)}, and a replayed CUDA graph would not see "
            "what is new in it. Leave cuda_graph out."
        )


class OrtCuda(Runtime):
    """ONNX Runtime, CUDA execution provider; computing that would be done by the CPU instead is an error."""

    name = "ort-cuda"
    settings = CudaSettings

    def missing(self) -> str | None:
        reason = cuda_missing()
        if reason is not None:
            return reason
        import onnxruntime as ort

        if PROVIDER not in ort.get_available_providers():
            name, number = distribution()
            return f"{name} {number} has no CUDA provider: `pip install onnxruntime-gpu[cuda,cudnn]`"
        return libraries_missing()

    def build(self, request: BuildRequest) -> BuildResult:
        import onnx

        settings = _own(request.settings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            placed = placement(self._start(request.graph, settings, path))
            graph = onnx.load_model(str(path), load_external_data=False).graph
        ops = collections.Counter(
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node
        )
        options: Options = {"provider": PROVIDER, **provider_options(settings)}
        notes = (_told(placed), *_copies(ops))
        return BuildResult(request.graph.name, dict([distribution()]), options, dict(ops.most_common()), notes)

    def open(self, artifact: Path, settings: Settings | None = None) -> BoundSession:
        own = _own(settings)
        return BoundSession(self._start(artifact, own), fixed=own.cuda_graph)

    def _start(self, graph: Path, settings: CudaSettings, optimized: Path | None = None) -> Any:
        """A session of ONNX Runtime whose placement was checked; it writes what it made of the graph to `optimized`."""
        import onnxruntime as ort

        reason = self.missing()
        if reason is not None:
            raise DeviceError(f"{self.name} cannot run here: {reason}.")
        there = len(devices())
        if settings.device_id >= there:
            raise DeviceError(f"{self.name}: device_id is {settings.device_id}, but here are {there}, counted from 0.")
        preload()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # the host computes shapes alone
        options.log_severity_level = 4  # what goes wrong is in the exception; its log line would stand twice
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        chosen = [(PROVIDER, provider_options(settings))]
        try:
            # without the flag ONNX Runtime would print the error, and go on on the CPU
            session = ort.InferenceSession(str(graph), options, providers=chosen, enable_fallback=0)
        except Exception as error:
            raise BuildError(f"ONNX Runtime ({PROVIDER}) refuses the graph: {str(error).strip()}") from error
        if session.get_providers()[0] != PROVIDER:
            raise DeviceError(
                f"Asked for {PROVIDER}, but ONNX Runtime runs the graph on {session.get_providers()[0]}: `graphwright "
                "doctor` says what is missing."
            )
        check_placement(placement(session))
        if settings.cuda_graph:
            check_capturable(session)
        return session


def _op(node: Any) -> str:
    """The op of a node, as ONNX or ONNX Runtime gives it, with its domain where that is not ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _own(settings: Settings | None) -> CudaSettings:
    return settings if isinstance(settings, CudaSettings) else CudaSettings()


def _told(placed: Mapping[str, Mapping[str, int]]) -> str:
    """Where the nodes run, in words."""
    total = sum(sum(counts.values()) for counts in placed.values())
    here = sum(placed.get(PROVIDER, {}).values())
    text = f"{here} of {total} nodes on {PROVIDER}"
    others = ", ".join(f"{op} {count}" for name, ops in placed.items() if name != PROVIDER for op, count in ops.items())
    return f"{text}; shapes and indices on the CPU: {others}" if others else text


def _copies(ops: Mapping[str, int]) -> list[str]:
    """What ONNX Runtime copies between host and device in the middle of each run."""
    kinds = {"MemcpyToHost": "to the host", "MemcpyFromHost": "to the device"}
    found = [f"{ops[op]} {where}" for op, where in kinds.items() if ops.get(op)]
    return [f"copies inside of each run: {', '.join(found)}; each waits for the device"] if found else []
