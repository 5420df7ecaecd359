"""OpenVINO: the precision that was asked for and no other, threads as set, nothing sent, nothing silently wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.errors import BuildError, DeviceError, InputError, UsageError
from graphwright.passes import optimize, parse_job, settings_of
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.child import build_in_child
from graphwright.runtimes.openvino import OpenVinoSettings, check_capable, load, notes
from graphwright.runtimes.ort_cpu import cores
from graphwright.spec import COMPUTE

OPENVINO = RUNTIMES["openvino"]
HEAD = '<ir_version: 10, opset_import: ["": 23]>'
SIZE = 256


def capable() -> bool:
    return "BF16" in load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def layers(compute: str = "", body: str = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, u)") -> ir.Model:
    """x [batch, 256] through two linear layers whose outputs are near 1."""
    random = np.random.default_rng(0)
    weights = {name: (random.standard_normal((SIZE, SIZE)) / 16).astype(np.float32) for name in "wu"}
    model = ir.from_onnx_text(
        f"{HEAD} layers (float[batch, {SIZE}] x) => (float[batch, {SIZE}] y) {{ {body} }}",
        initializers=[ir.tensor(array, name=name) for name, array in weights.items()],
    )
    if compute:
        model.metadata_props[COMPUTE] = compute
    return model


def exact(model: ir.Model, x: np.ndarray) -> np.ndarray:
    w, u = (np.asarray(model.graph.initializers[name].const_value).astype(np.float64) for name in "wu")
    wide: np.ndarray = np.maximum(x @ w, 0) @ u
    return wide


def save(model: ir.Model, folder: Path) -> Path:
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def feed(batch: int = 3) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, SIZE)).astype(np.float32)


def error_of(path: Path, model: ir.Model, **settings: Any) -> float:
    with OPENVINO.open(path, OpenVinoSettings(**settings)) as session:
        return float(np.abs(session.run({"x": feed()})["y"] - exact(model, feed())).max())


# --- what is built


def test_a_build_is_the_graph_itself_with_what_openvino_made_of_it(tmp_path: Path) -> None:
    path = save(layers(), tmp_path)
    built = build_in_child("openvino", BuildRequest(path, settings=OpenVinoSettings(threads=1)))
    assert built.artifact == "model.onnx"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"], "no cache of native code is left there"
    assert list(built.versions) == ["openvino"]
    assert built.ops["FullyConnected"] == 2
    assert (built.precisions, built.notes) == ({"fp32": 2}, ())
    options = built.options
    assert (options["INFERENCE_NUM_THREADS"], options["NUM_STREAMS"], options["ENABLE_CPU_PINNING"]) == (1, 1, True)
    assert (options["INFERENCE_PRECISION_HINT"], options["PERFORMANCE_HINT"]) == ("f32", "LATENCY")
    assert (options["DYNAMIC_QUANTIZATION_GROUP_SIZE"], options["EXECUTION_DEVICES"]) == (0, ["CPU"])
    assert "isa=" in str(options["RUNTIME_REQUIREMENTS"])


def test_threads_are_those_asked_for_or_the_cores_there_are(tmp_path: Path) -> None:
    path = save(layers(), tmp_path)
    reported = OPENVINO.build(BuildRequest(path)).options["INFERENCE_NUM_THREADS"]
    assert isinstance(reported, int)
    assert 1 <= reported <= cores()
    once = OPENVINO.build(BuildRequest(path, settings=OpenVinoSettings(threads=1, pinning=False))).options
    assert (once["INFERENCE_NUM_THREADS"], once["ENABLE_CPU_PINNING"]) == (1, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"thread": 2},
            r"^Unknown option for openvino 'thread'\. Did you mean 'threads'\? Allowed: pinning, quantization_",
        ),
        ({"threads": 0}, r"^option threads of openvino: Input should be greater than or equal to 1, but is 0\.$"),
        (
            {"quantization_group": 24},
            r"^option quantization_group of openvino: Input should be a multiple of 16, but is",
        ),
        ({"pinning": "yes"}, r"^option pinning of openvino: Input should be a valid boolean, but is 'yes'\.$"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(parse_job("openvino"), options)


# --- precision


def test_float32_is_computed_in_float32_whatever_the_cpu_prefers(tmp_path: Path) -> None:
    model = layers()
    path = save(model, tmp_path)
    # sums of 256 products, twice
    assert error_of(path, model) < 1e-5
    core = load().Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
    left_alone = core.compile_model(core.read_model(path), "CPU")
    if core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string() == "bf16":
        rounded = left_alone({"x": feed()})[0]
        assert np.abs(rounded - exact(model, feed())).max() > 1e-3, "what OpenVINO does when it is not told"


def test_bfloat16_is_measured_as_such_and_close(tmp_path: Path) -> None:
    model = layers("bf16")
    path = save(model, tmp_path)
    if not capable():
        with pytest.raises(DeviceError, match="no bfloat16 arithmetic"):
            OPENVINO.build(BuildRequest(path))
        return
    built = OPENVINO.build(BuildRequest(path))
    assert (built.precisions, built.notes) == ({"bf16": 2}, ())
    # 8 bits in each factor: 0.4 % of numbers near 1, of which 256 add up
    assert 1e-4 < error_of(path, model) < 0.05


def test_bfloat16_is_refused_where_the_cpu_has_none() -> None:
    check_capable("bf16", ["FP32", "BF16"])
    check_capable("fp32", ["FP32", "INT8"])
    with pytest.raises(
        DeviceError, match=r"^This CPU has no bfloat16 arithmetic: take openvino:fp32 or openvino:int8-d"
    ):
        check_capable("bf16", ["FP32", "INT8"])


def test_dynamic_int8_quantizes_activations_and_only_there(tmp_path: Path) -> None:
    dynamic = optimize(layers(), "openvino:int8-dynamic").model
    path = save(dynamic, tmp_path)
    built = OPENVINO.build(BuildRequest(path))
    assert built.options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 128
    if built.notes:
        assert "VNNI" in built.notes[0]
        return
    assert built.precisions == {"int8-dynamic": 2}
    # 8 bits in each factor, a scale for each column of the weights and for each group of activations
    assert 1e-3 < error_of(path, layers()) < 0.1
    assert error_of(path, layers(), quantization_group=16) < error_of(path, layers(), quantization_group=256)
    dynamic.metadata_props[COMPUTE] = "fp32"
    built = OPENVINO.build(BuildRequest(save(dynamic, tmp_path)))
    assert built.precisions == {"fp32": 2}, "int8 weights alone do not make the activations int8"


def test_a_graph_quantized_ahead_runs_on_integer_kernels(tmp_path: Path) -> None:
    body = """
        qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx) dw = DequantizeLinear <axis = 1> (w, sw)
        h = MatMul(dx, dw) b = Add(h, c) r = Relu(b)
        qr = QuantizeLinear(r, sx, zx) dr = DequantizeLinear(qr, sx, zx) du = DequantizeLinear <axis = 1> (u, sw)
        y = MatMul(dr, du)"""
    random = np.random.default_rng(0)
    arrays = {name: random.integers(-127, 128, (SIZE, SIZE)).astype(np.int8) for name in "wu"} | {
        "sw": np.full(SIZE, 1 / 1024, np.float32),
        "sx": np.array(1 / 32, np.float32),
        "zx": np.array(128, np.uint8),
        "c": random.standard_normal(SIZE).astype(np.float32),
    }
    model = ir.from_onnx_text(
        f"{HEAD} layers (float[batch, {SIZE}] x) => (float[batch, {SIZE}] y) {{ {body} }}",
        initializers=[ir.tensor(array, name=name) for name, array in arrays.items()],
    )
    path = save(optimize(model, "openvino").model, tmp_path)
    built = OPENVINO.build(BuildRequest(path))
    assert (built.precisions, built.notes) == ({"int8": 2}, ())

    def rounded(x: np.ndarray) -> np.ndarray:
        return np.asarray((np.clip(np.rint(x * 32) + 128, 0, 255) - 128) / 32)

    hidden = np.maximum(rounded(feed()) @ (arrays["w"] / 1024.0) + arrays["c"], 0)
    wanted = rounded(hidden) @ (arrays["u"] / 1024.0)
    with OPENVINO.open(path) as session:
        found = session.run({"x": feed()})["y"]
    # integers are exact; a hidden number that lies between two of them may be rounded the other way
    assert np.abs(found - wanted).max() < 2 * 127 / 1024 / 32


def test_what_is_not_as_asked_is_noted() -> None:
    assert notes("fp32", {"fp32": 3, "int8": 2}) == ()
    assert notes("int8-dynamic", {"fp32": 2, "int8-dynamic": 6}) == ()
    assert notes("bf16", {"bf16": 3, "fp32": 2}) == ("2 products are computed in fp32, not in bf16",)
    (note,) = notes("int8-dynamic", {"fp32": 8})
    assert note.startswith("no product is computed in int8: this CPU has no int8 dot products (VNNI)")


# --- feeds


@pytest.mark.parametrize(
    ("ids", "allowed"),
    [
        ([9], "-9 to 8, but are 9 to 9"),
        ([0, -10], "-9 to 8, but are -10 to 0"),
        ([2**32 + 1], "-9 to 8, but are 4294967297 to 4294967297"),
    ],
)
def test_ids_that_a_table_lacks(graph: Path, ids: list[int], allowed: str) -> None:
    bias = np.zeros((1, 3), np.float32)
    with OPENVINO.open(graph) as session:
        with pytest.raises(InputError, match=rf"failed on input 'ids': its numbers must be {allowed}\.$"):
            session.run({"ids": np.array([ids]), "bias": bias})
        assert session.run({"ids": np.array([[8, -9]]), "bias": bias})["kept"].tolist() == [[True, False]]
        assert session.run({"ids": np.zeros((1, 0), np.int64), "bias": bias})["scores"].shape == (1, 0, 3)


def test_numbers_beyond_32_bits_are_refused_as_they_would_be_cut(tmp_path: Path) -> None:
    model = ir.from_onnx_text(f"{HEAD} twice (int64[n] x) => (int64[n] y) {{ y = Add(x, x) }}")
    with OPENVINO.open(save(model, tmp_path)) as session:
        assert session.run({"x": np.array([7, -(2**30)])})["y"].tolist() == [14, -(2**31)]
        with pytest.raises(
            InputError, match=r"'x': its numbers must be -2147483648 to 2147483647, but are 0 to 2147483648"
        ):
            session.run({"x": np.array([0, 2**31])})


def test_feeds_that_only_the_model_can_refuse(tmp_path: Path) -> None:
    text = f"{HEAD} sum (float[n] x, float[m] y) => (float[k] z) {{ z = Add(x, y) }}"
    with OPENVINO.open(save(ir.from_onnx_text(text), tmp_path)) as session:
        x, y = np.ones(2, np.float32), np.ones(3, np.float32)
        with pytest.raises(InputError, match=r"^OpenVINO CPU failed on x \[2\], y \[3\]: "):
            session.run({"x": x, "y": y})
        assert session.run({"x": x, "y": x})["z"].tolist() == [2, 2]


def test_an_input_that_is_written_over_inside_is_left_alone(tmp_path: Path) -> None:
    text = f"{HEAD} f (float[n] x) => (float[n] y, float[n] z) {{ y = Relu(x) a = Exp(y) z = Add(a, x) }}"
    x = np.linspace(-1, 1, 100_000, dtype=np.float32)
    kept = x.copy()
    with OPENVINO.open(save(ir.from_onnx_text(text), tmp_path)) as session:
        made = session.run({"x": x})
        session.run({"x": -x})
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(made["y"], np.maximum(kept, 0))


def test_calls_from_several_threads_take_turns(tmp_path: Path) -> None:
    model = layers()
    with OPENVINO.open(save(model, tmp_path)) as session, ThreadPoolExecutor(4) as pool:
        fed = [feed(batch) for batch in range(1, 25)]
        for x, made in zip(fed, pool.map(lambda x: session.run({"x": x}), fed), strict=True):
            np.testing.assert_allclose(made["y"], exact(model, x), rtol=0, atol=1e-5)


# --- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f (float[2, 2] x) => (float y) { y = Det(x) }", r"^OpenVINO refuses the graph: .*Det"),
        (
            "f (bfloat16[2] x) => (bfloat16[2] y) { y = Add(x, x) }",
            r"^OpenVINO cannot take or give 'x': only tensors of",
        ),
        ("f (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }", r"^OpenVINO cannot take or give 'x': only"),
    ],
)
def test_graphs_that_it_does_not_take(
    text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(ir.from_onnx_text(f"{HEAD} {text}"), tmp_path)
    with pytest.raises(BuildError, match=message) as caught:
        OPENVINO.build(BuildRequest(path))
    assert "src/" not in str(caught.value), "places in OpenVINO's source tell a user nothing"
    assert capfd.readouterr().err == "", "what goes wrong is said once, in the error"
    with pytest.raises(BuildError, match=message):
        OPENVINO.open(path)


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BuildError, match=r"^OpenVINO refuses the graph: it is no ONNX file: "):
        OPENVINO.open(tmp_path / "model.onnx")


# --- telemetry

QUIET = """
import sys, json
from pathlib import Path
from graphwright.runtimes import RUNTIMES, BuildRequest
path = Path(sys.argv[1])
RUNTIMES["openvino"].build(BuildRequest(path))
with RUNTIMES["openvino"].open(path):
    pass
import openvino
sent = [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
print(json.dumps({"modules": sent, "converter": openvino.convert_model.__module__}))
"""


def test_nothing_is_sent_to_the_vendor(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = save(layers(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(path)],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["modules"] == [], "its telemetry is not even loaded"
    assert told["converter"].startswith("openvino.tools.ovc"), "and the package is whole"
    assert list(home.iterdir()) == [], "it would keep an identity of the user there"
