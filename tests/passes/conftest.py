"""What every pass test does: run a graph on ONNX Runtime, compare two graphs, and spell out what a graph computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import pytest

from graphwright.runtimes.ort_cpu import PROVIDER, OrtSession

Arrays = dict[str, np.ndarray]


def run_graph(model: ir.Model, feeds: Arrays) -> Arrays:
    with OrtSession(ir.to_proto(model).SerializeToString(), [PROVIDER]) as session:
        return session.run(feeds)


def compare_graphs(before: ir.Model, after: ir.Model, cases: Iterable[Arrays], rtol: float, atol: float) -> None:
    """Both graphs agree on every case: same outputs by name, shape and type, close numbers, no NaN."""
    blobs = [ir.to_proto(model).SerializeToString() for model in (before, after)]
    with OrtSession(blobs[0], [PROVIDER]) as old, OrtSession(blobs[1], [PROVIDER]) as new:
        assert [(info.name, info.dtype) for info in new.inputs] == [(info.name, info.dtype) for info in old.inputs]
        for feeds in cases:
            wanted, got = old.run(feeds), new.run(feeds)
            assert list(got) == list(wanted)
            for name, array in wanted.items():
                assert np.isfinite(array).all(), "a case must not leave anything undefined"
                assert got[name].dtype == array.dtype
                np.testing.assert_allclose(got[name], array, rtol=rtol, atol=atol, err_msg=name)


def spell_value(value: ir.Value | None) -> str:
    """What a value is, from the graph's inputs on: `Add(MatMul(x, w), 0.5)`. Of Expand and Reshape the data alone."""
    if value is None:
        return "_"
    node = value.producer()
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None and tensor.size == 1:
        return f"{tensor.numpy().reshape(-1)[0]:g}"
    if node is None or tensor is not None:
        return str(value.name)
    inputs = node.inputs[:1] if node.op_type in ("Expand", "Reshape", "Unsqueeze") else node.inputs
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    index = f"[{value.index()}]" if value.index() else ""
    return f"{name}({', '.join(map(spell_value, inputs))}){index}"


@pytest.fixture(scope="session")
def run() -> Callable[[ir.Model, Arrays], Arrays]:
    """run(model, feeds) on ONNX Runtime's CPU, all of its optimizations on."""
    return run_graph


@pytest.fixture(scope="session")
def compare() -> Callable[[ir.Model, ir.Model, Iterable[Arrays], float, float], None]:
    """compare(before, after, cases, rtol, atol)."""
    return compare_graphs


@pytest.fixture(scope="session")
def spell() -> Callable[[ir.Model], str]:
    """spell(model): its outputs as expressions."""

    def of_model(model: ir.Model) -> str:
        return "; ".join(map(spell_value, model.graph.outputs))

    return of_model
