"""Ranges are what the values of the float graph really reach, in the memory of a plain run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphwright.errors import InputError
from graphwright.passes.quantize.ranges import MOST, Ranges, Sampled, measure

Arrays = dict[str, np.ndarray]


def make(body: str, inputs: str = "float[B, 4] x", outputs: str = "float[] y") -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) <float two = {{2.0}}> {{ {body} }}'
    )
    ShapeInferencePass()(model)
    return model


def seen(model: ir.Model, *samples: Arrays) -> Ranges:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    found = measure(model, samples)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before, "the model is not changed"
    return found


def test_the_largest_entry_of_every_value_over_all_inputs() -> None:
    model = make("a = Mul(x, two)  b = Neg(a)  c = Relu(a)  y = Add(b, c)")
    one, other = np.array([[1, -5, 2, 0]], np.float32), np.array([[3, 1, 0, 0], [0, 0, 0, 4]], np.float32)
    found = seen(model, {"x": one}, {"x": other})
    assert found.inputs == 2
    assert found.peaks == {"x": 5, "a": 10, "b": 10, "c": 8, "y": 10}


def test_views_are_looked_at_where_they_come_from() -> None:
    model = make("a = Mul(x, two)  t = Transpose(a)  r = Identity(t)  y = Neg(r)")
    found = seen(model, {"x": np.array([[1, -5, 2, 0]], np.float32)})
    assert found.peaks == {"x": 5, "a": 10, "y": 10}
    assert found.peak(model.graph.node(2).outputs[0]) == 10


def test_infinities_and_nan_do_not_count_and_nor_does_what_is_empty() -> None:
    model = make("l = Log(x)  s = Sqrt(l)  y = Exp(s)")
    found = seen(model, {"x": np.array([[0, 1, np.e**4, 2]], np.float32)}, {"x": np.zeros((0, 4), np.float32)})
    assert found.peaks["l"] == pytest.approx(4)  # -inf beside it
    assert found.inputs == 2
    assert np.isfinite([*found.peaks.values()]).all()


def test_integers_and_scalars() -> None:
    model = make("i = Cast <to = 7> (x)  j = Add(i, i)  f = Cast <to = 1> (j)  y = ReduceMax <keepdims = 0> (f)")
    assert seen(model, {"x": np.array([[1, 2, 3, 4]], np.float32)}).peaks == {"x": 4, "f": 8, "y": 8}


QUERIES = "float[B, {0}, S, 4] q, float[B, {1}, T, 4] k, float[B, {1}, T, 4] v, float[1, 1, S, T] m"


@pytest.mark.parametrize(("heads", "fewer"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("attributes", ["", "<scale = 2.0, softcap = 5.0>"])
def test_scores_are_those_behind_the_scale(heads: int, fewer: int, attributes: str) -> None:
    model = make(f"y = Attention {attributes} (q, k, v, m)", QUERIES.format(heads, fewer), "float[B, H, S, 4] y")
    random = np.random.default_rng(0)
    q, k = (random.normal(0, 3, (2, h, s, 4)).astype(np.float32) for h, s in ((heads, 5), (fewer, 7)))
    mask = np.zeros((1, 1, 5, 7), np.float32)
    mask[..., 3:] = -np.inf
    scores = np.einsum("bhsd,bhtd->bhst", q, np.repeat(k, heads // fewer, 1)) * (2 if attributes else 0.5)
    found = seen(model, {"q": q, "k": k, "v": k, "m": mask})
    assert found.scores == {"y": pytest.approx(float(np.abs(scores).max()), rel=1e-5)}


def test_offsets_are_means_over_deviations() -> None:
    model = make("y = LayerNormalization <epsilon = 0.0> (x, g)", "float[B, 4] x, float[4] g")
    x = np.array([[1, 2, 3, 4], [-10, -10.5, -11, -11.5]], np.float32)
    found = seen(model, {"x": x, "g": np.ones(4, np.float32)})
    assert found.offsets == {"y": pytest.approx(float((np.abs(x.mean(1)) / x.std(1)).max()), rel=1e-5)}


def test_of_an_endless_supply_the_first_are_taken() -> None:
    def supply() -> Iterator[Arrays]:
        for number in itertools.count(1):
            yield {"x": np.full((1, 4), number, np.float32)}

    found = measure(make("y = Neg(x)"), supply())
    assert (found.inputs, found.peaks["y"]) == (MOST, MOST)


def test_data_are_measured_once() -> None:
    asked = []
    data = Sampled(lambda: asked.append(1) or [{"x": np.ones((1, 4), np.float32)}])  # type: ignore[func-returns-value]
    model = make("y = Mul(x, two)")
    assert data.ranges(model) is data.ranges(model.clone())
    assert asked == [1]


def test_a_sample_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"^The inputs are x; came z: wrong x, z\.$"):
        measure(make("y = Neg(x)"), [{"z": np.ones((1, 4), np.float32)}])


MEASURE = """
import resource, sys
import numpy as np, onnx_ir as ir
from graphwright.passes.quantize.ranges import measure
body = " ".join(f"a{i + 1} = Neg(a{i})" for i in range(60))
from onnx_ir.passes.common import ShapeInferencePass
model = ir.from_onnx_text(
    f'<ir_version: 10, opset_import: ["": 23]> g (float[N] a0) => (float[N] a60) {{ {body} }}')
ShapeInferencePass()(model)
measure(model, [{"a0": np.ones(8, np.float32)}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert measure(model, [{"a0": np.ones(1 << 21, np.float32)}]).peaks["a60"] == 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_the_memory_is_that_of_a_plain_run() -> None:
    """60 tensors of 8 MiB one after the other: a few are alive at a time, not all 480 MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
