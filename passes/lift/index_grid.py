"""Masks made by a function of (batch, head, query, key) that was mapped over index grids -> views of what it read.

    GatherND(mask[B, S], Concat(grid of Range(B), grid of Range(S)))   ->   Unsqueeze(mask)
    And(mask, what sizes alone make true everywhere)                   ->   Expand(mask)

Legal cases: 1. a GatherND without batch dims, whose indices are grids, one for each axis of the data: Range(0, n, 1)
along one axis of the result, n the size of the data's axis by number or name, these axes in order; the other dims of
the result are 1; 2. an And of booleans one of which follows from sizes alone and is true at every legal size
(`sized_masks`).

Source: the masking functions of transformers, which are mapped by torch.vmap; ONNX operator specification, GatherND-13.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..prover import ProvedPass
from ..sites import inherit
from .sized_masks import says
from .values import add_constant, constant, dim, dims, insert, is_constant, producer, rank, scalar, shape_only

KIND = "mask"


class LiftIndexGrid(ProvedPass):
    """Index arithmetic -> views."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "GatherND":
                modified |= self._view(node)
            elif node.domain == "" and node.op_type == "And":
                modified |= self._widen(model, node)
        return ir.passes.PassResult(model, modified)

    def _view(self, node: ir.Node) -> bool:
        """1"""
        data, axes = node.inputs[0], _grid_axes(node)
        if axes is None or data is None or node.graph is None:
            return False
        others = [axis for axis in range(rank(node.outputs[0]) or 0) if axis not in axes]
        target = add_constant(node.graph, f"axes.{'.'.join(map(str, others))}", np.array(others, np.int64))
        new = inherit(ir.node("Unsqueeze", [data, target]), node)
        return self.replace(KIND, node, new, "GatherND of an index grid", [data], quiet=True)

    def _widen(self, model: ir.Model, node: ir.Node) -> bool:
        """2"""
        for kept, always in (node.inputs, node.inputs[::-1]):
            if kept is None or always is None or is_constant(always) or not shape_only(always) or shape_only(kept):
                continue
            if rank(always) == rank(node.outputs[0]) and says(always, model.functions) == "all":
                new = inherit(ir.node("Expand", [kept, insert(node, "Shape", [always])]), node)
                leaves = [kept, *_measured(always)]
                return self.replace(KIND, node, new, "And with what is always true", leaves, quiet=True)
        return False


def _measured(value: ir.Value) -> list[ir.Value]:
    """The values whose sizes `value` follows from."""
    ahead, seen, found = [value], set[ir.Value](), list[ir.Value]()
    while ahead:
        node = ahead.pop().producer()
        for operand in node.inputs if node is not None else ():
            if operand is None or operand in seen or is_constant(operand):
                continue
            seen.add(operand)
            (found if node is not None and node.op_type in ("Shape", "Size") else ahead).append(operand)
    return found


def _grid_axes(node: ir.Node) -> list[int] | None:
    """1: the axis of the result that each axis of the data lies along."""
    data, made = node.inputs[0], node.outputs[0]
    grids = _parts(node.inputs[1])
    own = dims(made)
    if node.attributes.get_int("batch_dims", 0) or own is None or len(grids) != rank(data):
        return None
    found = [_axis(grid, dim(data, index)) for index, grid in enumerate(grids)]
    axes = [axis + len(own) for axis in found if axis is not None]  # counted from the front
    if len(axes) < len(grids) or axes != sorted(set(axes)) or axes[0] < 0:
        return None
    sizes = [dim(data, axes.index(axis)) if axis in axes else 1 for axis in range(len(own))]
    return axes if own == sizes and None not in sizes else None


def _parts(indices: ir.Value | None) -> list[ir.Value]:
    """The grids of which Concat and Unsqueeze make the indices [..., number of axes]."""
    if indices is None:
        return []
    node, last = producer(indices, "Concat"), (rank(indices) or 0) - 1
    parts = [indices] if node is None else list(node.inputs)
    if node is not None and node.attributes.get_int("axis", 0) not in (-1, last):
        return []
    grids = []
    for part in parts:
        view = producer(part, "Unsqueeze")
        axes = constant(view.inputs[1]) if view is not None else None
        if view is None or axes is None or axes.tolist() not in ([-1], [last]) or view.inputs[0] is None:
            return []
        grids.append(view.inputs[0])
    return grids


def _axis(grid: ir.Value, size: int | str | None) -> int | None:
    """The axis, counted from the end, along which `grid` counts from 0 to `size`, the same along all others."""
    node = producer(grid, "Expand", "Unsqueeze", "Cast", "Identity", "Range")
    if node is None or size is None:
        return None
    if node.op_type == "Range":
        start, _, step = (scalar(value) for value in node.inputs)
        return -1 if (start, step) == (0, 1) and dim(grid, 0) == size else None
    source = node.inputs[0]
    if source is None:
        return None
    axis = _axis(source, size)
    if axis is None or node.op_type != "Unsqueeze":
        return axis
    new = constant(node.inputs[1])
    wide = rank(grid)
    if new is None or wide is None:
        return None
    # axes put in behind it move it to the front
    kept = [place for place in range(wide) if place not in {int(place) % wide for place in new}]
    return kept[axis] - wide
