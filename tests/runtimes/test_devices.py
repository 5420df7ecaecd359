"""Runtimes of devices: what is built without one is real, and nothing runs elsewhere than where it was asked to."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphwright.errors import BuildError, DeviceError, Exit
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.child import build_in_child
from graphwright.runtimes.cuda import cuda_missing, libraries_missing
from graphwright.runtimes.ort_cpu import OrtSession

CUDA = "CUDAExecutionProvider"
RTX = RUNTIMES["tensorrt-rtx"]
RANGES = {"batch": (1, 2, 8), "sequence": (1, 5, 32)}


@pytest.fixture
def copied(graph: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(graph, tmp_path / "model.onnx"))


# --- ONNX Runtime on CUDA: the device, or an error


def test_asked_for_cuda_it_is_cuda_or_an_error(graph: Path) -> None:
    if cuda_missing() is None:
        with RUNTIMES["ort-cuda"].open(graph) as session:
            assert session.provider == CUDA
        return
    wanted = f"^Asked for {CUDA}, but ONNX Runtime runs the graph on CPUExecutionProvider: `graphwright doctor` says"
    for source in (graph, graph.read_bytes(), constant_graph()):
        with pytest.raises(DeviceError, match=wanted) as caught:
            OrtSession(source, [CUDA])
        assert caught.value.code is Exit.DEVICE
    with pytest.raises(DeviceError, match=r"^ort-cuda cannot run here: .*NVIDIA driver"):
        RUNTIMES["ort-cuda"].open(graph)


def constant_graph() -> bytes:
    """A graph without a node: ONNX Runtime has nothing in it to refuse to any provider."""
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "y")
    proto = onnx.helper.make_graph([], "g", [], [value], [weight])
    opset = onnx.helper.make_opsetid("", 20)
    return bytes(onnx.helper.make_model(proto, ir_version=10, opset_imports=[opset]).SerializeToString())


def test_what_no_provider_takes_is_the_graphs_fault() -> None:
    with pytest.raises(BuildError, match=rf"^ONNX Runtime \({CUDA}\) refuses the graph: "):
        OrtSession(b"no graph", [CUDA])


def test_a_build_for_cuda_is_proved_on_the_device(copied: Path) -> None:
    if cuda_missing() is None:
        assert build_in_child("ort-cuda", BuildRequest(copied)).options["provider"] == CUDA
        return
    with pytest.raises(DeviceError, match=r"^ort-cuda cannot run here: .*NVIDIA driver"):
        build_in_child("ort-cuda", BuildRequest(copied))


def test_why_cuda_is_missing_is_said_without_loading_anything() -> None:
    reason = RUNTIMES["ort-cuda"].missing()
    if cuda_missing() is not None:
        assert reason == cuda_missing()
        assert "NVIDIA driver" in str(reason)
    else:
        assert (reason is None) == (CUDA in ort.get_available_providers() and libraries_missing() is None)


# --- TensorRT for RTX: engines without a device


def test_the_builder_is_there_where_the_package_is() -> None:
    installed = find_spec("tensorrt_rtx_bindings") is not None and find_spec("polygraphy") is not None
    reason = RTX.builder_missing()
    assert (reason is None) == installed
    assert installed or "pip install graphwright[rtx]" in str(reason)
    assert RTX.missing() == (reason or cuda_missing())


@pytest.mark.parametrize("device", ["sm89", "sm75+sm89"])
def test_an_engine_is_built_without_a_device_and_is_not_opened(half_graph: Path, tmp_path: Path, device: str) -> None:
    copied = Path(shutil.copy(half_graph, tmp_path / "model.onnx"))
    request = BuildRequest(copied, RANGES, device)
    if RTX.builder_missing() is not None:
        with pytest.raises(DeviceError, match=r"pip install graphwright\[rtx\]"):
            build_in_child("tensorrt-rtx", request)
        return
    built = build_in_child("tensorrt-rtx", request)
    engine = copied.parent / built.artifact
    assert engine.name == "model.engine"
    assert engine.stat().st_size > 10_000, "weights and kernels, not an empty file"
    assert set(built.versions) == {"tensorrt_rtx"}
    assert built.options == {
        "ids": "(1, 1) / (2, 5) / (8, 32)",
        "bias": "(1, 3) / (2, 3) / (8, 3)",
        "compute_capabilities": device.split("+"),
        "built_without_device": True,
    }
    if RTX.missing() is not None:
        # deserialising without a device would end the process
        with pytest.raises(DeviceError, match=r"^tensorrt-rtx cannot run here: .*NVIDIA driver.*\.$"):
            RTX.open(engine)


@pytest.mark.parametrize(
    ("ranges", "device", "message"),
    [
        (RANGES, "", r"tensorrt-rtx builds for compute capabilities, as in sm89 or sm75\+sm89, but came ''\."),
        (RANGES, "sm89+orin", r"as in sm89 or sm75\+sm89, but came 'sm89\+orin'\."),
        (
            {"batch": (1, 2, 8)},
            "sm89",
            r"TensorRT needs a range for each dynamic dim; input 'ids' has sequence without one: give Model",
        ),
    ],
)
def test_what_a_builder_must_be_told(
    copied: Path, ranges: dict[str, tuple[int, int, int]], device: str, message: str
) -> None:
    absent = RTX.builder_missing() is not None
    with pytest.raises(DeviceError if absent else BuildError, match="pip install" if absent else message):
        build_in_child("tensorrt-rtx", BuildRequest(copied, ranges, device))
    assert not (copied.parent / "model.engine").exists()


def test_full_tensorrt_needs_a_device_to_build_too(copied: Path) -> None:
    runtime = RUNTIMES["tensorrt"]
    assert runtime.builder_missing() == runtime.missing()
    if runtime.missing() is not None:
        with pytest.raises(DeviceError, match=r"^tensorrt cannot run here: "):
            runtime.open(copied)
