"""The loop around the passes: the trail of what ran, and an error that names the pass and those before it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphwright.errors import BuildError, UsageError
from graphwright.passes.base import GraphPass, Trail, run
from graphwright.passes.sites import SiteLog


class DropLast(GraphPass):
    """Takes the last node away, while there is more than one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if len(model.graph) < 2:
            return ir.passes.PassResult(model, False)
        last = model.graph.node(-1)
        model.graph.outputs[0] = model.graph.node(-2).outputs[0]
        model.graph.remove(last, safe=True)
        return ir.passes.PassResult(model, True)


class Break(GraphPass):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        raise self.error


def make() -> ir.Model:
    return ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        base (float[B] x) => (float[B] y) { a = Neg(x)  y = Relu(a) }""")


def test_passes_run_in_order_and_leave_a_trail() -> None:
    model, trail = make(), Trail()
    assert run(model, [DropLast(), DropLast()], trail) is model
    assert [node.op_type for node in model.graph] == ["Neg"]
    assert [(step.name, step.modified, step.nodes) for step in trail.steps] == [
        ("DropLast", True, 1),
        ("DropLast", False, 1),
    ]
    assert all(0 <= step.seconds < 1 for step in trail.steps)


def test_no_passes_and_no_trail() -> None:
    model = make()
    assert run(model, []) is model
    assert run(model, [DropLast()]) is model
    assert Trail().steps == []


def test_a_pass_that_raises_is_named_with_those_before_it() -> None:
    trail = Trail()
    with pytest.raises(BuildError, match=r"^Pass Break failed after DropLast: KeyError: 'axis'$"):
        run(make(), [DropLast(), Break(KeyError("axis")), DropLast()], trail)
    assert [step.name for step in trail.steps] == ["DropLast"]
    with pytest.raises(BuildError, match=r"^Pass Break failed: ValueError: no shape$"):
        run(make(), [Break(ValueError("no shape"))])


def test_the_cause_of_a_wrapped_error_is_told() -> None:
    error = RuntimeError("the loop failed")
    error.__cause__ = IndexError("list index out of range")
    with pytest.raises(BuildError, match="IndexError: list index out of range"):
        run(make(), [Break(error)])


def test_an_error_for_the_user_stays_as_it_is() -> None:
    with pytest.raises(UsageError, match=r"^no such target$"):
        run(make(), [DropLast(), Break(UsageError("no such target"))])


def test_a_pass_has_its_name_and_a_log_of_its_own() -> None:
    log = SiteLog()
    assert DropLast(log).log is log
    assert DropLast().log is not DropLast().log
    assert DropLast().name == "DropLast"
