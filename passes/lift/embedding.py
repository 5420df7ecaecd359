"""Embeddings: what is constant in the sum of word, position and token-type vectors is a constant.

    Add(x, Gather(table, zeros))           ->   Add(x, table[0])
    Gather(table, Slice(ids, 0, length))   ->   Slice(table[ids], 0, length)

A site is a Gather of rows of a constant table, by ids that are an input of the graph or added to another value. Legal
cases: 1. ids that are one number everywhere, whatever the graph does with them (Expand, Slice, GatherElements, ...),
where the other operand of the Add has the shape of the sum; 2. a Slice of constant ids along constant axes, of a table
that nothing else reads, and no more ids than it has rows. Any other Gather is an embedding as the standard says it.

Source of the semantics: ONNX operator specification, Gather-13, Slice-13.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .values import add_constant, constant, consumers, dims, producer

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# ops that make no other number of a first operand that is one number everywhere
_KEEP = (
    "Expand",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Slice",
    "Tile",
    "Identity",
    "Gather",
    "GatherElements",
)


class LiftEmbedding(ProvedPass):
    """A Gather of what is constant -> the constant."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            table = _table(node)
            if table is None or not _is_site(node):
                continue
            number, ids = _uniform(node.inputs[1]), _sliced(node)
            if number is not None and _has(table, np.array(number)) and (add := _sum(node)) is not None:
                modified |= self._row(node, add, table, number)
            elif ids is not None and _has(table, ids) and ids.size <= _rows(table):
                modified |= self._slice(node, table, ids)
            else:
                self.log.lifted("embedding", node, "Gather")
        return ir.passes.PassResult(model, modified)

    def _row(self, gather: ir.Node, add: ir.Node, table: ir.Value, number: int) -> bool:
        rows, made = constant(table), gather.outputs[0]
        assert rows is not None
        assert gather.graph is not None
        row = add_constant(gather.graph, f"{table.name}.{number}", rows[number])
        other = add.inputs[1] if add.inputs[0] is made else add.inputs[0]
        assert other is not None
        new = inherit(ir.node("Add", [other, row]), gather)
        return self.replace("embedding", add, new, "one row of a table", [other], kept=[table, row])

    def _slice(self, gather: ir.Node, table: ir.Value, ids: np.ndarray) -> bool:
        rows, slicer = constant(table), producer(gather.inputs[1], "Slice")
        assert rows is not None
        assert slicer is not None
        assert gather.graph is not None
        chosen = add_constant(gather.graph, f"{table.name}.rows", rows[ids])
        new = inherit(ir.node("Slice", [chosen, *slicer.inputs[1:]]), gather)
        # of the bound alone, a number, the proof would see one length
        bounds = [value for value in slicer.inputs[1:] if value is not None and value.const_value is None]
        sizes = [size.inputs[0] for value in bounds if (size := producer(value, "Shape")) is not None]
        leaves = [value for value in sizes if value is not None] or bounds
        return self.replace("embedding", gather, new, "rows in a fixed order", leaves, kept=[table, chosen])


def _table(node: ir.Node) -> ir.Value | None:
    """The constant float table [rows, width] that `node` gathers rows of."""
    if node.domain != "" or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table = node.inputs[0]
    if table is None or table.const_value is None or table.dtype not in _FLOATS or len(table.const_value.shape) != 2:
        return None
    return table


def _rows(table: ir.Value) -> int:
    assert table.const_value is not None
    return int(table.const_value.shape.numpy()[0])  # of the tensor's shape alone: a large table stays on disk


def _has(table: ir.Value, ids: np.ndarray) -> bool:
    """Whether all `ids` are rows of `table`."""
    return bool(ids.size) and bool(-_rows(table) <= ids.min()) and bool(ids.max() < _rows(table))


def _is_site(gather: ir.Node) -> bool:
    ids = gather.inputs[1]
    while (caster := producer(ids, "Cast", "Identity")) is not None:
        ids = caster.inputs[0]
    summed = any(reader.op_type == "Add" for reader in consumers(gather.outputs[0]))
    return ids is not None and constant(ids) is None and (ids.is_graph_input() or summed)


def _uniform(value: ir.Value | None, depth: int = 16) -> int | None:
    """The integer that every element of `value` is."""
    array = constant(value)
    if array is not None:
        same = array.size and array.dtype.kind in "iu" and (array == array.reshape(-1)[0]).all()
        return int(array.reshape(-1)[0]) if same else None
    node = producer(value, *_KEEP, "Cast", "ConstantOfShape")
    if node is None or depth == 0:
        return None
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get_tensor("value")
        return 0 if fill is None else int(fill.numpy().reshape(-1)[0])
    return _uniform(node.inputs[0], depth - 1)


def _sum(gather: ir.Node) -> ir.Node | None:
    """The Add that alone reads the rows, if its other operand has the shape of the sum."""
    made = gather.outputs[0]
    readers = consumers(made)
    if len(readers) != 1 or readers[0].op_type != "Add" or made.is_graph_output():
        return None
    own = [dims(value) for value in readers[0].inputs if value is not made]
    whole = dims(readers[0].outputs[0])
    return readers[0] if whole is not None and None not in whole and own == [whole] else None


def _sliced(gather: ir.Node) -> np.ndarray | None:
    """The constant ids of which a Slice gives some, all of its axes counted from the front."""
    slicer = producer(gather.inputs[1], "Slice")
    ids = constant(slicer.inputs[0]) if slicer is not None else None
    axes = constant(slicer.inputs[3]) if slicer is not None and len(slicer.inputs) > 3 else None
    table = gather.inputs[0]
    if ids is None or axes is None or (axes < 0).any() or table is None or len(table.uses()) > 1:
        return None
    return ids
