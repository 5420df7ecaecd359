"""softmax(cap tanh(scale Q Kt / cap) + mask) V in products and Softmax; heads that share K and V get an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...errors import BuildError
from ...spec import SITE
from ..lift.values import add_constant, dim, insert, rank
from ..sites import path_of


@dataclass
class Parts:
    """An Attention whose Q, K and V are [batch, heads, length, size]; `heads` of Q, `fewer` of K and V."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    heads: int
    fewer: int
    scale: float
    cap: float
    mode: int  # which scores are its fourth output
    flat: bool  # whether it was given, and gives, [batch, length, heads * size]
    now: ir.Value = field(init=False)  # the keys without a past

    @property
    def dtype(self) -> ir.DataType:
        """Of Q, and of what comes out."""
        return self.query.dtype or ir.DataType.FLOAT

    def put(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        """A new op of the attention's type in front of the node."""
        made = insert(self.node, op_type, inputs, **attributes)
        made.type = ir.TensorType(self.dtype)
        return made

    def split(self, value: ir.Value, count: int) -> ir.Value:
        """[batch, length, count * size] -> [batch, count, length, size]."""
        made = self.put("Transpose", [self.put("Reshape", [value, self.ints([0, 0, count, -1])])], perm=[0, 2, 1, 3])
        last = dim(value, 2)
        made.shape = ir.Shape([dim(value, 0), count, dim(value, 1), last // count if isinstance(last, int) else None])
        return made

    def merged(self, value: ir.Value) -> ir.Value:
        """[batch, heads, length, size] as the node itself gives it."""
        if not self.flat:
            return value
        return self.put("Reshape", [self.put("Transpose", [value], perm=[0, 2, 1, 3]), self.ints([0, 0, -1])])

    def ints(self, numbers: list[int]) -> ir.Value:
        """A constant list."""
        assert isinstance(self.node.graph, ir.Graph)
        name = f"shape.{'.'.join(map(str, numbers))}"
        return add_constant(self.node.graph, name, np.array(numbers, np.int64))

    def number(self, number: float) -> ir.Value:
        """A constant of the attention's type."""
        assert isinstance(self.node.graph, ir.Graph)
        name = f"number.{number:g}.{self.dtype.name.lower()}"
        return add_constant(self.node.graph, name, np.array(number, self.dtype.numpy()))


def of_rank_four(node: ir.Node, mask: ir.Value) -> ir.Value:
    """A mask of up to four axes, which are the last ones, as one of four."""
    missing = 4 - (rank(mask) or 4)
    if not missing:
        return mask
    assert isinstance(node.graph, ir.Graph)
    axes = add_constant(node.graph, f"axes.to.{missing}", np.arange(missing, dtype=np.int64))
    made = insert(node, "Unsqueeze", [mask, axes])
    made.type = mask.type
    made.shape = ir.Shape([1] * missing + list(mask.shape or ()))
    return made


def in_primitives(parts: Parts, *, with_scores: bool = False) -> list[ir.Value]:
    """Y, and `with_scores` those that the node's mode asks for; both [batch, heads, ...]."""
    groups = parts.heads // parts.fewer
    query, key, value, mask = parts.query, parts.key, parts.value, parts.mask
    if mask is not None:
        mask = of_rank_four(parts.node, mask)
    if groups > 1:  # [batch, heads of K, groups, length, size]
        query = _heads(parts, query, [parts.fewer, groups])
        key, value = (parts.put("Unsqueeze", [v, parts.ints([2])]) for v in (key, value))
        mask = None if mask is None else _grouped_mask(parts, mask, groups)
    # the root of the scale at Q and at K each, as the parser itself has it: half precision does not overflow there
    root = parts.number(math.sqrt(parts.scale))
    kt = parts.put("Transpose", [parts.put("Mul", [key, root])], perm=_swapped(groups))
    raw = parts.put("MatMul", [parts.put("Mul", [query, root]), kt])
    capped = raw
    if parts.cap:
        cap = parts.number(parts.cap)
        capped = parts.put("Mul", [parts.put("Tanh", [parts.put("Div", [raw, cap])]), cap])
    masked = capped if mask is None else _masked(parts, capped, mask, float(parts.dtype.min))
    weights = parts.put("Softmax", [masked], axis=-1)
    core = weights.producer()
    assert core is not None
    core.metadata_props[SITE] = parts.node.metadata_props.get(SITE, "attention")
    made = [parts.put("MatMul", [weights, value])]
    if with_scores:
        if parts.mode == 2 and mask is not None:  # what is forbidden is minus infinity where it is looked at
            masked = _masked(parts, capped, mask, -math.inf)
        made.append([raw, capped, masked, weights][parts.mode])
    return made if groups == 1 else [_heads(parts, each, [parts.heads], grouped=True) for each in made]


def _masked(parts: Parts, scores: ir.Value, mask: ir.Value, forbidden: float) -> ir.Value:
    if mask.dtype == ir.DataType.BOOL:
        return parts.put("Where", [mask, scores, parts.number(forbidden)])
    return parts.put("Add", [scores, mask])


def _grouped_mask(parts: Parts, mask: ir.Value, groups: int) -> ir.Value:
    if dim(mask, 1) == 1:
        made = insert(parts.node, "Unsqueeze", [mask, parts.ints([2])])
    elif dim(mask, 1) == parts.heads:
        made = _heads(parts, mask, [parts.fewer, groups])
    else:
        raise BuildError(
            f"TensorRT has no form for the Attention at {path_of(parts.node)}: its mask has {dim(mask, 1)} heads, "
            f"where 1 or {parts.heads} are wanted."
        )
    made.type = mask.type
    return made


def _swapped(groups: int) -> list[int]:
    return [0, 1, 2, 4, 3] if groups > 1 else [0, 1, 3, 2]


def _heads(parts: Parts, value: ir.Value, heads: list[int], *, grouped: bool = False) -> ir.Value:
    """[batch, heads..., length, size] with `heads` in the place of its own."""
    size = dim(value, -1)
    if not grouped and isinstance(size, int):
        shape = parts.ints([0, *heads, -1, size])
    else:
        ends = [insert(parts.node, "Shape", [value], start=start, end=end) for start, end in ((0, 1), (-2, None))]
        shape = insert(parts.node, "Concat", [ends[0], parts.ints(heads), ends[1]], axis=0)
    made = insert(parts.node, "Reshape", [value, shape])
    made.type = value.type
    return made
