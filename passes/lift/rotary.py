"""RotaryEmbedding as runtimes take it: cos and sin of batch 1, read by a larger batch, are expanded to it.

    RotaryEmbedding(X[B, ...], cos[1, S, D], sin[1, S, D])  ->  RotaryEmbedding(X, Expand(cos)[B, S, D], Expand(sin))

Legal case: no position ids, caches of rank 3 whose first dim is 1 (or unknown). The operator's text asks for caches of
the batch's size there; torch's exporter writes one row where all rows share their positions, and ONNX Runtime refuses
it. Each cache is expanded once, for all layers.

Source of the semantics: ONNX operator specification, RotaryEmbedding-23.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from .values import add_constant, dim, insert, rank

CACHES = (1, 2)
POSITIONS = 3


class LiftRotary(GraphPass):
    """Caches of batch 1 -> caches of the batch."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        expanded: dict[tuple[ir.Value, int | str | None], ir.Value] = {}
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "RotaryEmbedding":
                modified |= _expand(node, expanded)
                self.log.lifted("rotary", node, "RotaryEmbedding")
        return ir.passes.PassResult(model, modified)


def _expand(node: ir.Node, expanded: dict[tuple[ir.Value, int | str | None], ir.Value]) -> bool:
    x = node.inputs[0]
    if x is None or dim(x, 0) == 1 or (len(node.inputs) > POSITIONS and node.inputs[POSITIONS] is not None):
        return False
    modified = False
    for index in CACHES:
        cache = node.inputs[index]
        if cache is None or rank(cache) != 3 or (dim(cache, 0) != 1 and dim(cache, 0) is not None):
            continue
        batch = dim(x, 0)
        if (cache, batch) not in expanded or batch is None:
            assert node.graph is not None
            ones = add_constant(node.graph, "ones.2", np.ones(2, np.int64))
            size = insert(node, "Concat", [insert(node, "Shape", [x], start=0, end=1), ones], axis=0)
            full = insert(node, "Expand", [cache, size])
            full.type, full.shape = cache.type, ir.Shape([batch, dim(cache, 1), dim(cache, 2)])
            expanded[cache, batch] = full
        node.replace_input_with(index, expanded[cache, batch])
        modified = True
    return modified
