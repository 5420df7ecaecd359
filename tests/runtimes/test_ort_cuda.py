"""ort-cuda as far as it goes without a GPU: its options, where nodes may run, what is refused. The rest: tests/gpu."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from graphwright.errors import DeviceError, UsageError
from graphwright.passes import settings_of
from graphwright.runtimes import RUNTIMES
from graphwright.runtimes.ort_cuda import (
    PROVIDER,
    CudaSettings,
    _copies,
    _told,
    check_capturable,
    check_fixed,
    check_placement,
    placement,
    provider_options,
)
from graphwright.spec import Job

CPU = "CPUExecutionProvider"


def test_the_defaults_are_exact_float32_and_sums_in_float32() -> None:
    assert provider_options(CudaSettings()) == {
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "0",
        "use_tf32": "0",
        "enable_skip_layer_norm_strict_mode": "1",
    }


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ({"device_id": 2}, "device_id", "2"),
        ({"gpu_mem_limit": 2 << 30}, "gpu_mem_limit", "2147483648"),
        ({"arena_extend_strategy": "kSameAsRequested"}, "arena_extend_strategy", "kSameAsRequested"),
        ({"cuda_graph": True}, "enable_cuda_graph", "1"),
        ({"tf32": True}, "use_tf32", "1"),
        ({"skip_layer_norm_strict": False}, "enable_skip_layer_norm_strict_mode", "0"),
        ({"cudnn_conv_algo_search": "EXHAUSTIVE"}, "cudnn_conv_algo_search", "EXHAUSTIVE"),
    ],
)
def test_each_setting_becomes_one_option_of_the_provider(given: dict[str, object], option: str, value: str) -> None:
    settings = settings_of(Job("ort-cuda"), given)
    assert isinstance(settings, CudaSettings)
    changed = provider_options(settings).items() - provider_options(CudaSettings()).items()
    assert changed == {(option, value)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device_id": -1}, r"option device_id of ort-cuda: .*greater than or equal to 0, but is -1"),
        ({"cuda_graph": "yes"}, r"option cuda_graph of ort-cuda: .*valid boolean"),
        ({"cuda_graf": True}, r"Unknown option for ort-cuda 'cuda_graf'\. Did you mean 'cuda_graph'"),
        ({"arena_extend_strategy": "all"}, r"option arena_extend_strategy of ort-cuda: .*kSameAsRequested"),
    ],
)
def test_a_wrong_setting_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(Job("ort-cuda"), given)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CudaSettings().device_id = 1


def test_onnx_runtime_says_where_it_put_each_node(graph: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(graph, options, providers=[CPU])
    nodes = onnx.load(graph).graph.node
    placed = placement(session)
    assert set(placed) == {CPU}
    assert {"MatMul", "Gather", "Tanh"} & set(placed[CPU])
    assert 0 < sum(placed[CPU].values()) <= len(nodes)
    with pytest.raises(DeviceError, match=rf"^Asked for {PROVIDER}, but ONNX Runtime would run .*1 Tanh on {CPU}"):
        check_placement(placed)


def test_shapes_and_indices_may_be_computed_on_the_cpu() -> None:
    check_placement({PROVIDER: {"MatMul": 3}, CPU: {"Concat": 2, "Squeeze": 1, "Shape": 1}})
    check_placement({PROVIDER: {"MatMul": 3}})
    for op in ("MatMul", "LayerNormalization", "Tan", "com.microsoft.Gelu"):
        with pytest.raises(DeviceError, match=rf"would run 1 {op} on {CPU}: it has no CUDA kernel for them\."):
            check_placement({PROVIDER: {"MatMul": 3}, CPU: {"Concat": 2, op: 1}})


def test_where_nodes_run_is_told_in_words() -> None:
    assert _told({PROVIDER: {"MatMul": 3}}) == f"3 of 3 nodes on {PROVIDER}"
    placed = {PROVIDER: {"MatMul": 3}, CPU: {"Concat": 2, "Squeeze": 1}}
    assert _told(placed) == f"3 of 6 nodes on {PROVIDER}; shapes and indices on the CPU: Concat 2, Squeeze 1"
    assert _copies({"MatMul": 3}) == []
    wanted = "copies inside of each run: 2 to the host, 1 to the device; each waits for the device"
    assert _copies({"MemcpyToHost": 2, "MatMul": 3, "MemcpyFromHost": 1}) == [wanted]


def test_a_cuda_graph_is_of_one_shape() -> None:
    check_fixed({"x": (2, 3), "y": ()})
    wanted = (
        r"one shape, but x has batch, rows; z has None\. Give a model of fixed shapes \(leave the dims out of Model"
    )
    with pytest.raises(UsageError, match=wanted):
        check_fixed({"x": ("batch", 3, "rows"), "y": (2,), "z": (None,)})


def test_what_the_cpu_reads_is_not_captured() -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'
    session = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), providers=[CPU])
    with pytest.raises(UsageError, match=r"the CPU reads x, and a replayed CUDA graph would not see"):
        check_capturable(session)


def test_the_artifacts_file_is_not_looked_at_where_there_is_no_device(tmp_path: Path) -> None:
    runtime = RUNTIMES["ort-cuda"]
    if runtime.missing() is not None:
        with pytest.raises(DeviceError, match=r"^ort-cuda cannot run here: .*\.$"):
            runtime.open(tmp_path / "none.onnx", CudaSettings())
