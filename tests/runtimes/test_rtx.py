"""The parts of TensorRT's runtime that need no device, on the real parser and builder of TensorRT-RTX."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.errors import BuildError, DeviceError, Exit, UsageError
from graphwright.passes import settings_of
from graphwright.passes.lower import parse_job
from graphwright.runtimes import RUNTIMES, BuildRequest, BuildResult, plan
from graphwright.runtimes.child import build_in_child
from graphwright.runtimes.cuda import cuda_missing
from graphwright.runtimes.tensorrt_settings import RtxSettings
from graphwright.spec import PATH
from graphwright.store import hash_file

RANGES = {"batch": (1, 2, 8), "sequence": (1, 5, 32)}
RTX = RUNTIMES["tensorrt-rtx"]


def build(
    graph: Path | ir.Model, folder: Path, device: str = "sm89", settings: RtxSettings | None = None
) -> BuildResult | None:
    """What is built of a file or a model in `folder`; None where nothing can build, which it says."""
    path = folder / "model.onnx"
    if isinstance(graph, Path):
        shutil.copy(graph, path)
    else:
        ir.save(graph, path)
    request = BuildRequest(path, RANGES, device, settings or RtxSettings())
    if RTX.builder_missing() is not None:
        with pytest.raises(DeviceError, match=r"pip install graphwright\[rtx\]"):
            build_in_child("tensorrt-rtx", request)
        return None
    return build_in_child("tensorrt-rtx", request)


def refusal(graph: Path | ir.Model, folder: Path, device: str = "sm89", settings: RtxSettings | None = None) -> str:
    """Why it is not built."""
    try:
        assert build(graph, folder, device, settings) is None
    except (BuildError, DeviceError) as error:
        return str(error)
    return "nothing can build here"


def make(inputs: str, body: str, y: str, constants: str = "") -> ir.Model:
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({y}) {constants and f"<{constants}>"} {{ {body} }}""")
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
        node.metadata_props[PATH] = f"block.{index}"
    return model


def test_the_engine_lies_behind_a_header_that_tells_what_it_is(half_graph: Path, tmp_path: Path) -> None:
    built = build(half_graph, tmp_path, "sm86+sm89", RtxSettings(weight_streaming=True, workspace=1 << 28))
    if built is None:
        return
    header, engine = plan.read(tmp_path / built.artifact)
    assert (header.runtime, header.version) == ("tensorrt-rtx", built.versions["tensorrt_rtx"])
    assert header.devices == ("sm86", "sm89")
    assert header.graph == hash_file(tmp_path / "model.onnx")
    assert header.options["weight_streaming"] is True
    assert header.options["workspace"] == 1 << 28
    assert len(engine) > 10_000
    assert (built.precisions, built.shortfall) == ({"fp16": 1}, [])
    reason = cuda_missing()
    note = "precisions are what the strongly typed network demands; the engine was not inspected"
    assert built.notes == ((f"{note}: {reason}",) if reason else built.notes)


def test_precisions_are_those_of_each_product(tmp_path: Path) -> None:
    weights = ", ".join(["1"] * 256)
    graph = make(
        "float16[batch, 16] x, float[batch, 16] f, float16[16, 16] w",
        """
        a = MatMul(x, w)  b = Cast <to = 1> (w)  c = MatMul(f, b)  d = Cast <to = 1> (a)  e = Add(c, d)
        g = QuantizeLinear(x, s, z)  h = DequantizeLinear(g, s, z)  i = DequantizeLinear(q, s, z)  j = MatMul(h, i)
        k = Cast <to = 1> (j)  y = Add(e, k)""",
        "float[batch, 16] y",
        f"float16 s = {{14336}}, int8 z = {{0}}, int8[16, 16] q = {{{weights}}}",
    )
    built = build(graph, tmp_path)
    assert built is None or built.precisions == {"fp16": 1, "fp32": 1, "int8": 1}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            make(
                "float[4] x, int64[batch] i, float[batch] u",
                'y = ScatterElements <axis = 0, reduction = "mul"> (x, i, u)',
                "float[4] y",
            ),
            "TensorRT's parser refuses the graph: ScatterElements at block.0 (ScatterElements_0) "
            "(UNSUPPORTED_NODE_ATTR: Unsupported reduction type).",
        ),
        pytest.param(
            make("float16[batch] x, float[batch] u", "a = Abs(x)  y = Mul(a, u)", "float[batch] y"),
            "TensorRT's parser refuses the graph: Mul at block.1 (Mul_1)",
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_the_parser_refuses_is_named_by_its_path(graph: ir.Model, message: str, tmp_path: Path) -> None:
    assert refusal(graph, tmp_path).startswith(message if RTX.builder_missing() is None else "nothing")


@pytest.mark.parametrize(
    ("dtype", "name"), [("float", "fp32"), pytest.param("bfloat16", "bf16", marks=pytest.mark.full)]
)
def test_products_that_turing_lacks_are_refused_before_the_builder_is_asked(
    dtype: str, name: str, tmp_path: Path
) -> None:
    graph = make(f"{dtype}[batch, 16] x, {dtype}[16, 16] w", "y = MatMul(x, w)", f"{dtype}[batch, 16] y")
    message = f"tensorrt-rtx has no {name} products for sm75, of which there are 1, the first at block.0 (MatMul_0)"
    assert refusal(graph, tmp_path, "sm75+sm89").startswith(message if RTX.builder_missing() is None else "nothing")


@pytest.mark.full
def test_a_convolution_in_float32_builds_for_turing(tmp_path: Path) -> None:
    graph = make("float[batch, 8, 16, 16] x, float[8, 8, 3, 3] w", "y = Conv(x, w)", "float[batch, 8, 14, 14] y")
    built = build(graph, tmp_path, "sm75")
    assert built is None or built.precisions == {"fp32": 1}


def test_what_the_builder_refuses_comes_with_its_own_reason(tmp_path: Path) -> None:
    graph = make("bfloat16[batch, 16] x", "y = Abs(x)", "bfloat16[batch, 16] y")
    said = refusal(graph, tmp_path, "sm75")
    if RTX.builder_missing() is None:
        assert said.startswith("tensorrt-rtx cannot build the graph: its builder refuses it. ")
        assert "[E]" in said


def test_a_plan_that_can_be_refitted_needs_a_device(half_graph: Path, tmp_path: Path) -> None:
    if RTX.builder_missing() is None and cuda_missing() is None:
        assert build(half_graph, tmp_path, settings=RtxSettings(refit="refit"))
        return
    said = refusal(half_graph, tmp_path, settings=RtxSettings(refit="strip_plan"))
    wanted = "tensorrt-rtx compiles a plan that can be refitted on a device alone, and there is none: "
    assert said.startswith(wanted if RTX.builder_missing() is None else "nothing")


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("tensorrt-rtx", {"timing_cache": True}, r"^Unknown option for tensorrt-rtx 'timing_cache'\."),
        ("tensorrt-rtx", {"optimization_level": 5}, r"Allowed: profiling, refit, tf32, weight_streaming, workspace\."),
        ("tensorrt", {"optimisation_level": 5}, r"Did you mean 'optimization_level'\?"),
        ("tensorrt", {"optimization_level": 6}, r"option optimization_level of tensorrt: .* less than or equal to 5"),
        ("tensorrt", {"exclude_lean_runtime": True}, r"applies to a version_compatible plan alone: set that too"),
        ("tensorrt", {"hardware_compatibility": "all"}, r"'none', 'ampere\+' or 'same_cc', but is 'all'\."),
        ("tensorrt", {"workspace": 1000}, r"greater than or equal to 1048576, but is 1000\."),
    ],
)
def test_options_that_do_not_apply(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        settings_of(parse_job(target), options)
    assert caught.value.code is Exit.USAGE


CONFIG = """
import sys
from pathlib import Path
from graphwright.runtimes import RUNTIMES, tensorrt_config, timing_cache
from graphwright.runtimes.tensorrt_network import TargetGraph, parse
from graphwright.runtimes.tensorrt_settings import TensorRtSettings
trt = RUNTIMES["tensorrt-rtx"]._load()
graph = TargetGraph.of(Path(sys.argv[1]))
shapes = graph.shapes({"batch": (1, 2, 8), "sequence": (1, 5, 32)})
network = parse(trt, Path(sys.argv[1]), graph)
def flags(**options):
    settings = TensorRtSettings(**options)
    loader = tensorrt_config.full(trt, settings, tensorrt_config.common(trt, settings, shapes))
    config = loader(network.builder, network.network)
    tensorrt_config.set_tf32(trt, config, settings.tf32)
    assert config.num_optimization_profiles == 1
    set_ = {name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)}
    return config, set_
config, found = flags()
assert found == set(), found
assert config.builder_optimization_level == 3
assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
for options, wanted in (
    ({"tf32": True}, {"TF32"}),
    ({"refit": "refit"}, {"REFIT"}),
    ({"refit": "strip_plan"}, {"STRIP_PLAN"}),
    ({"weight_streaming": True}, {"WEIGHT_STREAMING"}),
    ({"version_compatible": True}, {"VERSION_COMPATIBLE"}),
    ({"version_compatible": True, "exclude_lean_runtime": True}, {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
):
    assert flags(**options)[1] == wanted, (options, flags(**options)[1])
config, _ = flags(optimization_level=5, workspace=1 << 24, profiling="layer_names_only")
assert config.builder_optimization_level == 5
assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 24
assert config.profiling_verbosity == trt.ProfilingVerbosity.LAYER_NAMES_ONLY
flags(hardware_compatibility="same_cc")
# its operations do nothing in TensorRT-RTX, but they are the same names
cache = timing_cache.TimingCache("tensorrt", "11.4.0.106", "sm89", Path(sys.argv[2]))
for _ in range(2):
    timing_cache.lend(config, cache)
    timing_cache.keep(config, cache)
assert len(cache.load()) > 0
"""


def test_the_configuration_of_full_tensorrt_is_what_the_settings_say(half_graph: Path, tmp_path: Path) -> None:
    if RTX.builder_missing() is not None:
        assert "pip install" in str(RTX.builder_missing())
        return
    command = [sys.executable, "-W", "ignore", "-c", CONFIG, str(half_graph), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_graph_of_gw_is_built_with_its_options_in_the_manifest(half_graph: Path, tmp_path: Path) -> None:
    if RTX.builder_missing() is not None:
        with pytest.raises(DeviceError, match="pip install"):
            gw.build(half_graph, tmp_path / "out", target="tensorrt-rtx", precision="fp16")
        return
    made = gw.build(half_graph, tmp_path / "out", target="tensorrt-rtx@sm86", precision="fp16", options={"tf32": True})
    record = gw.load(tmp_path / "out").record
    assert record.options == {**RtxSettings().model_dump(), "tf32": True}
    assert record.precision_achieved == {"fp16": 1}
    assert record.shortfall == []
    assert plan.read(made.path)[0].options["tf32"] is True
