"""The thirty architectures of the coverage bench on OpenVINO, in each of its precisions, against torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphwright as gw
from graphwright.compare.cases import Case
from graphwright.compare.undefined import UndefinedRows
from graphwright.runtimes import RUNTIMES, BuildRequest
from graphwright.runtimes.openvino import load
from graphwright.runtimes.reference import TorchSession

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# float32 sums in another order; 8 bits of mantissa, whose errors add up over two layers, and in a mixture of experts
# may send a token to another one; weights and activations in 8 bits each
LARGEST = {"fp32": 1e-5, "bf16": 0.1, "int8-dynamic": 0.1}


@pytest.fixture(scope="module")
def coverage() -> Any:
    """benchmarks/coverage.py, which imports its neighbour."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coverage

        yield coverage
    finally:
        sys.path.remove(str(BENCHMARKS))


def names() -> list[str]:
    """The table's names, without importing torch for it."""
    text = (BENCHMARKS / "architectures.py").read_text()
    table = text[text.index("ARCHITECTURES = {") :]
    return [line.split('"')[1] for line in table.splitlines() if line.startswith('    "')]


@pytest.mark.full
@pytest.mark.parametrize("name", names())
def test_an_architecture_runs_in_each_precision(name: str, coverage: Any, tmp_path: Path) -> None:
    architecture, openvino = coverage.ARCHITECTURES[name], RUNTIMES["openvino"]
    spec = architecture.spec(name, "sdpa")
    lifted = gw.lift(gw.to_onnx(spec))
    with TorchSession(spec) as reference, UndefinedRows(lifted.model) as undefined:
        pairs = [(feeds, reference.run(feeds)) for feeds in coverage.shapes(spec)]
        pairs = [(feeds, undefined.leave_out(Case("", feeds), made)) for feeds, made in pairs]
    for precision, largest in LARGEST.items():
        path = tmp_path / "model.onnx"
        model = gw.optimize(lifted, "openvino", precision).model
        assert "Attention" not in {node.op_type for node in model.graph}
        ir.save(model, path)
        if precision == "bf16" and "BF16" not in load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            continue  # it is refused there, as tests/runtimes/test_openvino.py tests
        built = openvino.build(BuildRequest(path))
        assert built.ops["Subgraph"] >= architecture.sites, "each attention became one kernel"
        assert built.precisions[precision] > 0 or built.notes
        with openvino.open(path) as session:
            for feeds, wanted in pairs:
                for output, made in session.run(feeds).items():
                    scale = max(float(np.nanmax(np.abs(wanted[output]))), 1.0)
                    assert np.isfinite(made).all()
                    assert np.nanmax(np.abs(made - wanted[output])) <= largest * scale, (precision, output)
