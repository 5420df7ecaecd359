"""Booleans are chosen in int32, which ONNX Runtime has a kernel for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import graphwright as gw
from graphwright.errors import BuildError
from graphwright.passes.lower.retyped import ChooseInIntegers
from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession

Run = Callable[[ir.Model, dict[str, np.ndarray]], dict[str, np.ndarray]]
Spell = Callable[[ir.Model], str]
BOOLEANS = "bool[N, 1] c, bool[N, M] a, bool[M] b"


def make(body: str = "w = Where(c, a, b)  y = Not(w)", inputs: str = BOOLEANS, kind: str = "bool") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({kind}[N, M] y) {{ {body} }}'
    return ShapeInferencePass()(ir.from_onnx_text(text)).model


def test_the_kernel_is_still_missing() -> None:
    with pytest.raises(BuildError, match="Where"):
        OrtSession(ir.to_proto(make()).SerializeToString(), [PROVIDER])


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_a_choice_between_booleans_is_made_in_integers(size: tuple[int, int], run: Run, spell: Spell) -> None:
    model = make()
    assert ChooseInIntegers()(model).modified
    assert spell(model) == "Not(Cast(Where(c, Cast(a), Cast(b))))"
    random = np.random.default_rng(0)
    c, a, b = (random.random(shape) < 0.5 for shape in ((size[0], 1), size, size[1:]))
    np.testing.assert_array_equal(run(model, {"c": c, "a": a, "b": b})["y"], ~np.where(c, a, b))


def test_an_output_of_the_graph_keeps_its_name_and_type(run: Run) -> None:
    made = gw.optimize(make("y = Where(c, a, b)"), "ort-cpu").model
    assert [(value.name, value.dtype) for value in made.graph.outputs] == [("y", ir.DataType.BOOL)]
    feeds = {"c": np.array([[True], [False]]), "a": np.ones((2, 3), bool), "b": np.array([True, False, False])}
    np.testing.assert_array_equal(run(made, feeds)["y"], [[True] * 3, [True, False, False]])


def test_other_choices_stay() -> None:
    assert not ChooseInIntegers()(
        make("y = Where(c, a, b)", "bool[N, 1] c, int64[N, M] a, int64[M] b", "int64")
    ).modified
    assert not ChooseInIntegers()(make("y = And(c, a)")).modified
