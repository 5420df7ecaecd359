"""Rewrites of a traced program: operators that torch can trace and cannot convert, said in those that it can.

Each repair is a function of the operator's own arguments. It is traced at the operator's place with the shapes that
stand there, so that dims stay symbolic. `NotImplemented` leaves the operator as it is.

1. A float minus whole numbers, as in `(1.0 - mask) * low`: torch 2.13 fails on its own decomposition of it.
2. Attention on tensors without a head axis, or with several batch axes: converted for rank 4 alone.
3. A stable sort: ONNX's TopK is stable, but only the plain overloads are known.
4. FlexAttention: its score and mask functions, made for single places, take all places at once by broadcasting.
5. Keys of one head for queries of many, where torch.onnx writes the operator Attention (opset 23): it asks for equal
   heads, or for grouped ones, which say the same of one head.
6. Distances of all pairs, membership, and places in a sorted row: compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, disable_fake_tensor_cache
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten


def repair(program: ExportedProgram, opset: int | None = None) -> None:
    """Apply every repair to the program's graph and those of its branches, in place; or what `opset` alone needs."""
    repairs = _REPAIRS if opset is None else _AT_OPSET.get(opset, {})
    for part in program.graph_module.modules():
        if isinstance(part, GraphModule):
            found = [(node, repairs[node.target]) for node in part.graph.nodes if node.target in repairs]
            changed = [node for node, repaired in found if _expand(part, node, repaired)]
            if changed:
                part.recompile()


def _rsub(x: torch.Tensor, other: Any, alpha: Any = 1) -> Any:  # 1
    if x.is_floating_point() or not isinstance(other, float):
        return NotImplemented
    return aten.rsub.Scalar(x.to(torch.get_default_dtype()), other, alpha)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:  # 2
    if q.dim() == 4:
        return NotImplemented
    attend, lead = aten.scaled_dot_product_attention.default, q.shape[:-3]
    if q.dim() < 4:  # one head
        q, k, v = (x.unsqueeze(-3) for x in (q, k, v))
        mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(-3)
        if q.dim() == 4:
            return attend(q, k, v, mask, *args, **kwargs).squeeze(-3)
        return attend(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), mask, *args, **kwargs).squeeze(0).squeeze(-3)
    if attn_mask is not None and attn_mask.dim() > 3:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-3:]).flatten(0, -4)
    q, k, v = (x.flatten(0, -4) for x in (q, k, v))
    attended = attend(q, k, v, attn_mask, *args, **kwargs)
    return attended.reshape(*lead, *attended.shape[-3:])


def _sort(x: torch.Tensor, *, dim: int = -1, descending: bool = False, **_: Any) -> Any:  # 3
    return aten.sort.default(x, dim, descending)


def _argsort(x: torch.Tensor, *, dim: int = -1, descending: bool = False, **_: Any) -> Any:  # 3
    return aten.sort.default(x, dim, descending)[1]


def _flex_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: Callable[..., torch.Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    options: Any,  # noqa: ARG001 - of the compiled kernel
    score_buffers: tuple[Any, ...] = (),
    mask_buffers: tuple[Any, ...] = (),
) -> Any:  # 4
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)) * scale
    places = [torch.arange(size).view(-1, *[1] * (3 - axis)) for axis, size in enumerate(scores.shape)]
    allowed = block_mask[-1](*places, *mask_buffers)
    scores = torch.where(allowed, score(scores, *places, *score_buffers), float("-inf"))
    attended: torch.Tensor = torch.ops.aten._safe_softmax.default(scores, -1) @ v
    return attended, scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)


def _one_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # 5
    if kwargs.get("enable_gqa") or q.dim() != 4 or k.shape[1] == q.shape[1]:
        return NotImplemented
    return aten.scaled_dot_product_attention.default(q, k, v, *args, **{**kwargs, "enable_gqa": True})


def _distances(a: torch.Tensor, b: torch.Tensor, p: float = 2.0, *_: Any) -> Any:  # 6
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


def _is_in(x: torch.Tensor, known: torch.Tensor, *, invert: bool = False, **_: Any) -> Any:  # 6
    found = (x.unsqueeze(-1) == known.flatten()).any(-1)
    return ~found if invert else found


def _places(
    row: torch.Tensor,
    x: torch.Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: torch.Tensor | None = None,
) -> Any:  # 6
    if sorter is not None:
        row = row.gather(-1, sorter)
    row, x = row.unsqueeze(-2), x.unsqueeze(-1)
    below = row <= x if right or side == "right" else row < x
    return below.sum(-1).to(torch.int32 if out_int32 else torch.int64)


_REPAIRS: dict[Any, Callable[..., Any]] = {
    aten.rsub.Scalar: _rsub,
    aten.scaled_dot_product_attention.default: _attention,
    aten.sort.stable: _sort,
    aten.argsort.stable: _argsort,
    torch.ops.higher_order.flex_attention: _flex_attention,
    aten.cdist.default: _distances,
    aten.isin.Tensor_Tensor: _is_in,
    aten.searchsorted.Tensor: _places,
}
_AT_OPSET = {23: {aten.scaled_dot_product_attention.default: _one_head}}


def _expand(owner: GraphModule, node: Node, repaired: Callable[..., Any]) -> bool:
    """Put what the repair computes in the place of `node`; False where there is nothing to repair."""
    graph = owner.graph
    functions = [value for value in node.all_input_nodes if value.op == "get_attr"]
    inputs = [value for value in node.all_input_nodes if value.op != "get_attr"]

    def call(*values: Any) -> Any:
        given: dict[Node, Any] = dict(zip(inputs, values, strict=True))
        given |= {n: owner.get_submodule(str(n.target)) for n in functions}
        args, kwargs = map_arg(cast("Any", (node.args, node.kwargs)), given.__getitem__)
        return repaired(*args, **kwargs)

    values = [value.meta["val"] for value in inputs]
    mode = cast("FakeTensorMode", detect_fake_mode(values))
    with mode, disable_fake_tensor_cache(mode):  # see front_end.py
        if call(*values) is NotImplemented:
            return False
        traced = make_fx(call, pre_dispatch=True)(*values).graph
    with graph.inserting_before(node):
        places = dict(zip((n for n in traced.nodes if n.op == "placeholder"), inputs, strict=True))
        result = cast("Node", graph.graph_copy(traced, places))
    for made in set(places.values()) - set(inputs):
        made.meta = {**node.meta, "val": made.meta["val"]}
    node.replace_all_uses_with(result)
    _erase(graph, [node])
    return True


def _erase(graph: torch.fx.Graph, doomed: list[Node]) -> None:
    """Erase nodes and what they alone read; also writes in place, of which nobody but they knew."""
    while doomed:
        node = doomed.pop()
        if not node.users and node.op in ("call_function", "get_attr") and not node._erased:
            doomed += node.all_input_nodes
            graph.erase_node(node)
