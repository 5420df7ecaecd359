"""ONNX files as models: example inputs that the graph accepts, dims with names, and the graph as its own reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from graphwright.errors import InputError
from graphwright.export import onnx_graph, open_reference
from graphwright.export.graph_session import open_graph
from graphwright.export.onnx_source import BATCH, LENGTH, from_onnx
from graphwright.spec import ModelSpec

FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)

info = helper.make_tensor_value_info
node = helper.make_node


def load(
    folder: Path, nodes: list[NodeProto], inputs: list[ValueInfoProto], output: ValueInfoProto, **tables: np.ndarray
) -> ModelSpec:
    initializers = [numpy_helper.from_array(array, name) for name, array in tables.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8), folder / "m.onnx")
    return from_onnx(folder / "m.onnx")


def lookup(folder: Path, dims: list[Any], table: np.ndarray = TABLE, **more: Any) -> ModelSpec:
    """y = table[int64(ids)] * mask"""
    nodes = [
        node("Cast", ["ids"], ["long"], to=INT64),
        node("Gather", ["table", "long"], ["words"], name="lookup"),
        node("Mul", ["words", "mask"], ["y"]),
    ]
    inputs = [info("ids", INT32, dims), info("mask", FLOAT, [*dims, 1])]
    return load(folder, nodes, [*inputs, *more.get("inputs", [])], info("y", FLOAT, [*dims, 4]), table=table)


def run(spec: ModelSpec) -> dict[str, np.ndarray]:
    with open_reference(spec) as session:
        return session.run({name: np.asarray(array) for name, array in spec.tensors.items()})


def test_example_inputs_fit_the_graph(tmp_path: Path) -> None:
    spec = lookup(tmp_path, ["batch", "sequence"])
    assert spec.name == "m"
    assert spec.sizes == {"batch": BATCH, "sequence": LENGTH}
    ids = np.asarray(spec.tensors["ids"])
    assert ids.dtype == np.int32
    assert set(np.unique(ids)) == {0, 1, 2}, "of a table of three rows each is asked for"
    np.testing.assert_array_equal(run(spec)["y"], TABLE[ids] * np.asarray(spec.tensors["mask"]))


def test_example_inputs_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (lookup(tmp_path, ["b", "s"]).tensors for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_masks_are_ones_and_fixed_sizes_stay(tmp_path: Path) -> None:
    inputs = [info("x", FLOAT, [3, "n"]), info("attention_mask", INT64, [3, "n"]), info("keep", BOOL, [])]
    nodes = [
        node("Cast", ["attention_mask"], ["m"], to=FLOAT),
        node("Mul", ["x", "m"], ["z"]),
        node("Where", ["keep", "z", "x"], ["y"]),
    ]
    spec = load(tmp_path, nodes, inputs, info("y", FLOAT, [3, "n"]))
    assert spec.dynamic == {"x": {1: "n"}, "attention_mask": {1: "n"}}
    assert np.asarray(spec.tensors["attention_mask"]).tolist() == [[1] * LENGTH] * 3
    assert bool(spec.tensors["keep"]) is True
    assert run(spec)["y"].shape == (3, LENGTH)


def test_forward_runs_the_graph(tmp_path: Path) -> None:
    spec = lookup(tmp_path, ["b", "s"])
    ids, mask = np.array([[2, 0]], np.int32), np.ones((1, 2, 1), np.float32)
    np.testing.assert_array_equal(spec.module.forward(ids=ids, mask=mask)["y"], TABLE[[[2, 0]]])


def test_dims_get_names_that_are_identifiers_everywhere(tmp_path: Path) -> None:
    spec = lookup(tmp_path, ["batch size", "1st"])
    assert spec.dynamic["ids"] == {0: "batch_size", 1: "dim_1st"}
    model = onnx_graph(spec)
    assert model is not None
    assert str(model.graph.outputs[0].shape) == "[batch_size,dim_1st,4]"


def test_dims_without_a_name_get_their_inputs(tmp_path: Path) -> None:
    spec = load(tmp_path, [node("Neg", ["x"], ["y"])], [info("x", FLOAT, [None, None])], info("y", FLOAT, [None, None]))
    assert spec.dynamic == {"x": {0: "x_0", 1: "x_1"}}


def test_dims_of_different_names_stay_apart(tmp_path: Path) -> None:
    inputs = [info("x", FLOAT, ["a b", "a_b"]), info("z", FLOAT, ["a_b", 4])]
    spec = load(tmp_path, [node("MatMul", ["x", "z"], ["y"])], inputs, info("y", FLOAT, ["a b", 4]))
    assert spec.dynamic == {"x": {0: "a_b_", 1: "a_b"}, "z": {0: "a_b"}}
    assert run(spec)["y"].shape == (BATCH, 4)


def test_one_dim_has_one_size_on_every_axis(tmp_path: Path) -> None:
    inputs = [info("x", FLOAT, ["n", "n"]), info("z", FLOAT, ["k", "n"])]
    spec = load(tmp_path, [node("MatMul", ["z", "x"], ["y"])], inputs, info("y", FLOAT, ["k", "n"]))
    assert spec.sizes == {"n": BATCH, "k": BATCH}
    assert run(spec)["y"].shape == (BATCH, BATCH)


def test_inputs_with_a_default_are_weights(tmp_path: Path) -> None:
    spec = lookup(tmp_path, ["b", "s"], inputs=[info("table", FLOAT, [3, 4])])
    assert list(spec.tensors) == ["ids", "mask"]
    assert run(spec)["y"].shape == (BATCH, LENGTH, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (info("x", TensorProto.STRING, ["b"]), r"Input 'x' of the ONNX file is STRING: only tensors of numbers"),
        (info("x", TensorProto.BFLOAT16, ["b"]), r"Input 'x' of the ONNX file is BFLOAT16: only tensors of numbers"),
        (
            helper.make_tensor_sequence_value_info("x", FLOAT, ["b"]),
            r"Input 'x' of the ONNX file is Sequence\(Tensor\(FLOAT\)\): only tensors",
        ),
    ],
)
def test_inputs_that_no_array_can_stand_for(tmp_path: Path, value: ValueInfoProto, message: str) -> None:
    output = onnx.ValueInfoProto()
    output.CopyFrom(value)
    output.name = "y"
    with pytest.raises(InputError, match=message):
        load(tmp_path, [node("Identity", ["x"], ["y"])], [value], output)


def test_a_dim_that_is_a_formula_is_refused(tmp_path: Path) -> None:
    inputs = [info("x", FLOAT, ["past", 4]), info("z", FLOAT, ["past * 2", 4])]
    nodes = [node("Concat", ["x", "z"], ["y"], axis=0)]
    with pytest.raises(
        InputError, match=r"A dim of the ONNX file is 'past \* 2': a formula of other dims that is no sum"
    ):
        load(tmp_path, nodes, inputs, info("y", FLOAT, ["n", 4]))


def test_a_graph_too_large_for_one_message_goes_through_a_file(tmp_path: Path) -> None:
    model = onnx_graph(lookup(tmp_path, ["b", "s"]))
    assert model is not None
    feeds = {"ids": np.array([[2, 0]], np.int32), "mask": np.ones((1, 2, 1), np.float32)}
    with open_graph(model, in_memory=0) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], TABLE[[[2, 0]]])
    table = model.graph.initializers["table"].const_value
    assert not isinstance(table, ir.ExternalTensor)
    assert table is not None
    np.testing.assert_array_equal(table.numpy(), TABLE)
