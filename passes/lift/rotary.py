"""Rotary position embedding, whatever the exporter spelled -> one `RotaryEmbedding` (opset 23) of [batch, heads, S, D].

    y_j = x_j cos_j - x_k sin_j,  y_k = x_k cos_j + x_j sin_j   ->   RotaryEmbedding(X, cos[B, S, R/2], sin[B, S, R/2])

From each sum of two products the columns of the last axis are read (columns.py), forward to where all of them are
there. Legal cases: 1. j and k are one half apart, or neighbours (interleaved=1); 2. the first R columns are rotated,
the others pass (rotary_embedding_dim=R); 3. a pair's two cos, and its two sin, are shown to be equal from the dataflow
and taken from before they were doubled; sin may have its sign in it; 4. cos and sin are the same for all heads; x of
[batch, S, heads, D] or [S, batch, heads, D] is transposed and back; 5. they have one row for the whole batch or one for
each: the first are expanded to the batch, once for all layers, since the operator's text asks for it and ONNX Runtime
insists; 6. float, float16 and bfloat16 (casts around the rotation stay where they are). A ready-made `RotaryEmbedding`
of the first columns alone takes in the columns that pass (2), and its caches are expanded (5).

Source: Su et al., RoFormer, arXiv:2104.09864; ONNX operator specification, RotaryEmbedding-23.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass, Prover
from ..sites import SiteLog, inherit
from .columns import Columns, select, typed
from .moves import MOVED, Ids
from .rotation import JOINS, PLAIN, Rotation, is_site, leaf_of, may_rotate, products, read_rotation, sums_of
from .sizes import Size
from .values import add_constant, dim, insert, only_consumer, producer, rank

CACHES = (1, 2)
POSITIONS = 3


class LiftRotary(ProvedPass):
    """y = x cos + rotated(x) sin -> `RotaryEmbedding`; caches of batch 1 -> caches of the batch."""

    def __init__(self, log: SiteLog | None = None, prover: Prover | None = None) -> None:
        super().__init__(log, prover)
        self._caches: dict[object, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in list(model.graphs()):
            self._caches = {}
            columns, done = Columns(graph), set[ir.Node]()
            for node in list(graph):
                if node.domain == "" and node.op_type == "RotaryEmbedding":
                    modified |= self._take_over(node, columns)
                elif node not in done and may_rotate(node):
                    modified |= self._lift(node, columns, done)
        return ir.passes.PassResult(model, modified)

    def _lift(self, node: ir.Node, columns: Columns, done: set[ir.Node]) -> bool:
        """Grow from one sum to where all columns are there; the furthest value that is a rotation is replaced."""
        value: ir.Value | None = node.outputs[0]
        best, reason, site = None, "", False
        while value is not None:
            ids = columns.summed(value)
            site = site or (ids is not None and is_site(columns, ids))
            if ids is None or not site or products(columns, int(ids.reshape(-1)[0])) is None:
                break
            try:
                best = value, read_rotation(columns, value, ids)
            except MisfitError as misfit:
                reason = reason if best is not None else str(misfit)
            reader = only_consumer(value, *JOINS)
            value = reader.outputs[0] if reader is not None else None
        if not site:
            return False
        done |= sums_of(best[0] if best is not None else node.outputs[0])
        if best is None:
            self.log.missed("rotary", node, "products", reason)
            return False
        try:
            return self._replace(node, best[0], best[1], columns)
        except MisfitError as misfit:
            self.log.missed("rotary", node, best[1].spelling, str(misfit))
            return False

    def _replace(self, first: ir.Node, value: ir.Value, found: Rotation, columns: Columns) -> bool:
        end, roots = value.producer(), list[ir.Value]()  # roots: what cos and sin are made of
        assert end is not None
        x = _operand(columns, found.x, value, first)
        if found.perm != PLAIN:
            x = _transposed(insert(first, "Transpose", [x], perm=found.perm), x, found.perm)
        made = [self._cache(columns, ids, found, x, first, roots) for ids in (found.cos, found.sin)]
        attributes = {"interleaved": 1} if found.interleaved else {}
        if (size := 2 * found.cos.size) < found.x.size:
            attributes["rotary_embedding_dim"] = size
        rotary = inherit(ir.node("RotaryEmbedding", [x, *made], attributes), first)
        end.graph.insert_before(end, rotary)  # type: ignore[union-attr]
        new, spelling = typed(rotary.outputs[0], x.dtype, x.shape), found.spelling
        if found.perm != PLAIN:
            back = [found.perm.index(axis) for axis in PLAIN]
            new = typed(insert(end, "Transpose", [new], perm=back), value.dtype, value.shape)
            spelling = f"{spelling}, {''.join('BHSD'[axis] for axis in back)}"
        leaves = [_source(columns, found.x), *(root for root in roots if root.const_value is None)]
        kept = [root for root in roots if root.const_value is not None]
        return self.swap("rotary", end, new, rotary, spelling, leaves, kept=kept)

    def _cache(
        self, columns: Columns, ids: Ids, found: Rotation, x: ir.Value, first: ir.Node, roots: list[ir.Value]
    ) -> ir.Value:
        """[batch, length, columns], of the type of x."""
        made = columns.make(ids, first, roots)
        own = [dim(made, axis) for axis in range((rank(made) or 0) - 1)]
        batch, length = found.lead
        if not _agree(own, [batch, length]):
            raise MisfitError(f"cos or sin is of {made.shape}, not [batch, length, columns]")
        if dim(made, -1) != ids.size:
            raise MisfitError(f"cos or sin has {dim(made, -1)} columns instead of {ids.size}")
        key = (made, x.dtype, tuple(found.lead))
        if key not in self._caches:
            dtype, cache = made.dtype, made
            if not _same(own, [batch, length]):
                cache = _view(cache, own, [batch, length], first)
            if dtype != x.dtype:
                assert x.dtype is not None
                cache = typed(insert(first, "Cast", [cache], to=int(x.dtype)), x.dtype, cache.shape)
            self._caches[key] = cache
        return self._expanded(self._caches[key], x, first)

    def _expanded(self, cache: ir.Value, x: ir.Value, before: ir.Node) -> ir.Value:
        """`cache` of one row for the batch of x."""
        batch = dim(x, 0)
        if rank(cache) != 3 or batch == 1 or dim(cache, 0) not in (1, None):
            return cache
        key = (cache, batch) if batch is not None else (cache, x)
        if key not in self._caches:
            assert before.graph is not None
            ones = add_constant(before.graph, "ones.2", np.ones(2, np.int64))
            size = key[1], "size"
            if size not in self._caches:
                parts = [insert(before, "Shape", [x], start=0, end=1), ones]
                self._caches[size] = insert(before, "Concat", parts, axis=0)
            full = insert(before, "Expand", [cache, self._caches[size]])
            self._caches[key] = typed(full, cache.dtype, ir.Shape([batch, dim(cache, 1), dim(cache, 2)]))
        return self._caches[key]

    def _take_over(self, node: ir.Node, columns: Columns) -> bool:
        """A ready-made RotaryEmbedding: caches for the batch, and the columns that pass."""
        x, *caches = node.inputs[:POSITIONS]
        positions = node.inputs[POSITIONS] if len(node.inputs) > POSITIONS else None
        modified = False
        for index, cache in zip(CACHES, caches, strict=True):
            if x is not None and cache is not None and positions is None:
                full = self._expanded(cache, x, node)
                node.replace_input_with(index, full)
                modified |= full is not cache
        whole = _widened(node, columns)
        if whole is None:
            self.log.lifted("rotary", node, "RotaryEmbedding")
            return modified
        x, end = whole
        new = ir.node("RotaryEmbedding", [x, *node.inputs[1:]], dict(node.attributes))
        if not new.attributes.get_int("rotary_embedding_dim", 0):
            new.attributes["rotary_embedding_dim"] = ir.AttrInt64(
                "rotary_embedding_dim", int(str(dim(node.inputs[0], -1)))
            )
        return self.replace("rotary", end, inherit(new, node), "RotaryEmbedding, partial") or modified


def _source(columns: Columns, ids: Ids) -> ir.Value:
    """The value that the columns `ids` are taken from."""
    leaves = {leaf_of(columns, symbol) for symbol in ids.tolist()}
    source = leaves.pop()
    if leaves or not isinstance(source, ir.Value) or (ids < 0).any():
        raise MisfitError("the columns that are rotated and those that pass are not of one value")
    return source


def _operand(columns: Columns, ids: Ids, like: ir.Value, before: ir.Node) -> ir.Value:
    """The value whose columns are `ids`, of the type of `like`."""
    found = [value for value in columns.found.get(ids.tobytes(), []) if rank(value) == 4]
    value = next((value for value in found if value.dtype == like.dtype), found[0] if found else None)
    at = columns.factors[abs(int(ids[0]))][0]
    while value is None:
        own = columns.taken(at)
        order = (
            {symbol: column for column, symbol in enumerate(own.tolist())} if own is not None and own.ndim == 1 else {}
        )
        if rank(at) == 4 and order.keys() >= set(ids.tolist()):
            value = select(at, [order[symbol] for symbol in ids.tolist()], before)
        elif (node := producer(at, *MOVED)) is not None and node.inputs[0] is not None:
            at = node.inputs[0]
        else:
            raise MisfitError("the columns that are rotated and those that pass are not of one value of rank 4")
    if value.dtype != like.dtype:
        assert like.dtype is not None
        value = typed(insert(before, "Cast", [value], to=int(like.dtype)), like.dtype, value.shape)
    return value


def _widened(node: ir.Node, columns: Columns) -> tuple[ir.Value, ir.Node] | None:
    """For a RotaryEmbedding of the first columns of x, behind which the others are put: x, and the Concat."""
    made, part = node.outputs[0], node.inputs[0]
    end = only_consumer(made, "Concat")
    if end is None or part is None or rank(part) != 4 or end.attributes.get_int("axis", 0) not in (-1, 3):
        return None
    parts = [columns.taken(part if value is made else value) for value in end.inputs]
    known = [ids for ids in parts if ids is not None]
    if end.inputs[0] is not made or len(known) < len(parts) or not isinstance(dim(part, -1), int):
        return None
    found = columns.found.get(np.concatenate(known).tobytes(), [])
    whole = [value for value in found if rank(value) == 4 and value.dtype == part.dtype]
    return (whole[0], end) if whole else None


def _agree(own: list[Size], wanted: list[Size]) -> bool:
    """Whether dims are the same but for axes of one."""
    return _same(*([size for size in sizes if size != 1] for sizes in (own, wanted)))


def _same(own: list[Size], wanted: list[Size]) -> bool:
    """Whether dims are the same; what is not known may be anything, as the proof will tell."""
    return len(own) == len(wanted) and all(a == b or None in (a, b) for a, b in zip(own, wanted, strict=True))


def _view(cache: ir.Value, own: list[Size], wanted: list[Size], before: ir.Node) -> ir.Value:
    """`cache` with leading dims `wanted`, which are `own` but for axes of one."""
    assert before.graph is not None
    shape = ir.Shape([*wanted, dim(cache, -1)])
    for axis in range(len(own)):
        if own[axis] == 1 and _same([*own[:axis], *own[axis + 1 :]], wanted):
            axes = add_constant(before.graph, f"axis.{axis}", np.array([axis]))
            return typed(insert(before, "Squeeze", [cache, axes]), cache.dtype, shape)
    if wanted[0] != 1:
        raise MisfitError(f"cos or sin of {cache.shape} is not [batch, length, columns]")
    target = add_constant(before.graph, f"one.row.{dim(cache, -1)}", np.array([1, -1, dim(cache, -1)]))
    return typed(insert(before, "Reshape", [cache, target]), cache.dtype, shape)


def _transposed(made: ir.Value, source: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    shape = None if source.shape is None else ir.Shape([source.shape[axis] for axis in perm])
    return typed(made, source.dtype, shape)
