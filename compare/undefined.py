"""Rows without a right value: queries that no attention mask allows any key.

torch, primitives and fused ops give the mean of V, NaN or 0 for such a row (docs/design.md). The lifted graph tells
which rows these are: its masks are run for the inputs of a case. The reference's outputs are NaN there from then on,
which leaves them out of every comparison and counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..export.graph_session import open_graph
from ..passes.lift.values import producer, rank
from ..passes.lower.simulate import simulated
from ..passes.region import LOWEST
from ..runtimes.base import Session
from ..spec import SITE
from .cases import Case

Outputs = dict[str, np.ndarray]
MASKS = {  # the input of an attention that is its mask, be it one of truth values or one that is added
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 5,
    ("com.microsoft", "MultiHeadAttention"): 5,
    ("com.microsoft", "GroupQueryAttention"): 10,
}
MASK_RANK = 4  # one of fewer axes, causal, leaves each query a key: its own


class UndefinedRows:
    """Finds the undefined rows of the attentions of a lifted or lowered graph; use it in a `with` block."""

    def __init__(self, graph: ir.Model) -> None:
        self._session = _masks(graph)

    def __enter__(self) -> UndefinedRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    def find(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Booleans [batch or 1, queries], one for each mask that leaves a row of `feeds` without a key."""
        if self._session is None:
            return []
        needed = {info.name: feeds[info.name] for info in self._session.inputs}
        return [rows for mask in self._session.run(needed).values() if (rows := _without_key(mask)).any()]

    def leave_out(self, case: Case, outputs: Mapping[str, np.ndarray]) -> Outputs:
        """`outputs` with NaN in their undefined rows: axes 0 and 1 are those of a mask's batch and queries."""
        made = dict(outputs)
        for rows in self.find(case.feeds):
            for name, array in made.items():
                fits = array.ndim >= 2 and array.shape[1] == rows.shape[1] and rows.shape[0] in (1, array.shape[0])
                if fits and array.dtype.kind == "f":
                    made[name] = np.where(_wide(rows, array), np.nan, array).astype(array.dtype)
        return made


def leave_out(lifted: ir.Model, recorded: Iterable[tuple[Case, Outputs]]) -> list[tuple[Case, Outputs]]:
    """Recorded cases, their outputs NaN where they are undefined."""
    with UndefinedRows(lifted) as undefined:
        return [(case, undefined.leave_out(case, outputs)) for case, outputs in recorded]


def _masks(graph: ir.Model) -> Session | None:
    """The part of the graph that makes its attentions' masks; None if no mask depends on an input."""
    model = simulated(graph)  # a mask in half precision tells as well as one in float32
    masks = dict.fromkeys(mask for node in model.graph for mask in _read_by(node))
    known = (ir.DataType.BOOL, ir.DataType.FLOAT)
    made = [mask for mask in masks if mask.producer() is not None and mask.dtype in known]
    if not made:
        return None
    model.graph.outputs[:] = made
    RemoveUnusedNodesPass()(model)
    unread = [value for value in model.graph.inputs if not value.consumers() and value not in made]
    for value in unread:
        model.graph.inputs.remove(value)
    return open_graph(model) if model.graph.inputs else None


def _read_by(node: ir.Node) -> list[ir.Value]:
    """The mask of an attention, be it one op, or primitives as a target has them: what is added before its Softmax."""
    index = MASKS.get((node.domain, node.op_type))
    if index is not None:
        return [mask for mask in node.inputs[index : index + 1] if mask is not None]
    if node.op_type == "Softmax" and node.metadata_props.get(SITE) == "attention":
        scores = node.inputs[0]
        added = []
        while (add := producer(scores, "Add")) is not None:
            scores, mask = add.inputs
            added += [mask] if mask is not None and rank(mask) == MASK_RANK else []
        return added
    return []


def _without_key(mask: np.ndarray) -> np.ndarray:
    """[batch or 1, heads or 1, queries, keys] -> [batch or 1, queries]: whether a head has no allowed key."""
    allows = np.asarray((mask if mask.dtype == np.bool_ else mask > LOWEST).any(axis=-1))
    return np.logical_not(np.asarray(allows.all(axis=1)))


def _wide(rows: np.ndarray, array: np.ndarray) -> np.ndarray:
    return rows.reshape(*rows.shape, *[1] * (array.ndim - 2))
