"""Graphs with an op of which ONNX Runtime has older kernels alone are stamped with an older opset, if they can be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.passes import optimize
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession

IMAGE = "float[1, 2, 6, 6] x"
BODIES = {
    "RoiAlign": """
        r = Constant <value = float[1, 4] {0.0, 0.0, 4.0, 4.0}> ()  i = Constant <value = int64[1] {0}> ()
        y = RoiAlign <output_height = 2, output_width = 2> (x, r, i)""",
    "RandomNormalLike": "r = RandomNormalLike <seed = 1.0> (x)  z = Sub(r, r)  y = Add(x, z)",
    "GlobalLpPool": "y = GlobalLpPool <p = 2> (x)",
}


def make(body: str, opset: int = 13) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}]> older ({IMAGE}) => (float[1, 2, N, M] y) {{ {body} }}'
    )


@pytest.mark.parametrize("op_type", BODIES)
def test_what_runs_from_the_file_runs_behind_optimize(op_type: str) -> None:
    model = make(BODIES[op_type])
    done = optimize(model, target="ort-cpu").model
    assert done.opset_imports[""] == 21
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)}
    results = []
    for graph in (model, done):
        with OrtSession(ir.to_proto(graph).SerializeToString(), [PROVIDER]) as session:
            results.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(results[1], results[0])


def test_a_graph_without_such_an_op_stays() -> None:
    assert optimize(make("y = Relu(x)"), target="ort-cpu").model.opset_imports[""] == 23


def test_a_graph_that_needs_opset_23_stays() -> None:
    body = "s = Constant <value = float[6] {1.0, 1.0, 1.0, 1.0, 1.0, 1.0}> ()  n = RMSNormalization(x, s)"
    lifted = optimize(make(f"{body}  y = GlobalLpPool(n)", 23), target="ort-cpu").model
    assert lifted.opset_imports[""] == 23
