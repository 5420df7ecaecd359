"""The verdict of a graph in half precision where there is no device: simulated, failed, or not to be said."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.compare.cases import Case
from graphwright.compare.simulated import simulate
from graphwright.errors import Exit
from graphwright.manifest import Manifest, Reference, TargetRecord, Verified
from graphwright.pipeline import exit_code
from graphwright.tables import reasons

WHY = "no NVIDIA GPU here"
X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


def verdict(body: str, wanted: np.ndarray) -> Verified:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23, "custom": 1]> g (float[B, 4] x) => (float[B, 4] y) {{ {body} }}'
    )
    return simulate(lambda _: {"y": wanted}, model, [Case("one", {"x": X})], "fp16", WHY)


def test_in_tolerance_it_is_simulated_never_passed() -> None:
    got = verdict("h = Cast <to = 10> (x)  r = Relu(h)  y = Cast <to = 1> (r)", np.maximum(X, 0))
    assert (got.verdict, got.passed, got.cases) == ("simulated", None, 1)
    assert got.worst is not None
    assert 0 < got.worst.max_abs < 2e-3
    assert got.tolerance.startswith("max abs <= 0.01")
    assert got.reason == "no NVIDIA GPU here; simulated on the CPU"


@pytest.mark.parametrize("factor", [1e-7, 1e5], ids=["underflow", "overflow"])
def test_out_of_tolerance_it_has_failed(factor: float) -> None:
    shift = f"h = Cast <to = 10> (x)  c = Constant <value_float = {factor}> ()  f = Cast <to = 10> (c)"
    back = f"d = Constant <value_float = {1 / factor}> ()  g = Cast <to = 10> (d)"
    got = verdict(f"{shift}  {back}  a = Mul(h, f)  b = Mul(a, g)  y = Cast <to = 1> (b)", X)
    assert (got.verdict, got.passed) == ("failed", False)
    assert got.reason.startswith("in simulation on the CPU, y ")


def test_what_the_cpu_has_no_kernel_for_is_no_device_here() -> None:
    got = verdict("h = Cast <to = 10> (x)  r = custom.Mystery(h)  y = Cast <to = 1> (r)", X)
    assert got.verdict == "no device here"
    assert got.reason.startswith("no NVIDIA GPU here; and not simulated on the CPU: ONNX Runtime")


def test_a_graph_in_float32_is_not_simulated() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23]> g (float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }'
    )
    got = simulate(lambda _: {}, model, [], "fp32", WHY)
    assert (got.verdict, got.reason) == ("no device here", WHY)


@pytest.mark.parametrize(
    ("kind", "plain", "required"),
    [("simulated", Exit.OK, Exit.DEVICE), ("failed", Exit.VERIFICATION, Exit.VERIFICATION)],
)
def test_exit_codes_and_the_reason_that_is_told(kind: str, plain: Exit, required: Exit) -> None:
    verified = Verified.model_validate({"verdict": kind, "reason": "told"})
    record = TargetRecord(target="tensorrt", precision="fp16", status="lowered", reason="no device", verified=verified)
    reference = Reference(runtime="torch", precision="fp32", version="")
    manifest = Manifest(source={}, reference=reference, targets=[record])
    assert (exit_code(manifest), exit_code(manifest, require=True)) == (plain, required)
    assert reasons(manifest) == ["tensorrt:fp16: told"]
