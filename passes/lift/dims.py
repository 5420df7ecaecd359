"""The dims of what an op makes, from those of its inputs: names and arithmetic where onnx's inference gives up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import onnx_ir as ir

from .sizes import Dims, Size, combine, sizes, total
from .values import broadcast, constant, dim, dims

WHOLE = 2**31 - 1  # a bound of Slice that means: to the end

# fmt: off
_SAME = (
    "Identity", "Cast", "CastLike", "Dropout", "Softmax", "LogSoftmax", "LayerNormalization",
    "RMSNormalization", "RotaryEmbedding", "Clip", "Trilu", "CumSum", "Neg", "Abs", "Sqrt",
    "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tanh", "Erf", "Sigmoid", "Relu", "Gelu", "Elu",
    "LeakyRelu", "HardSigmoid", "HardSwish", "Softplus", "Mish", "Sign", "Floor", "Ceil", "Round",
    "Not", "IsNaN", "IsInf", "QuantizeLinear", "DequantizeLinear", "ScatterND", "ScatterElements",
)
_BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "And", "Or", "Xor", "Equal",
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "PRelu",
)
_REDUCE = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum",
)
# fmt: on


def output_dims(node: ir.Node) -> list[Dims | None]:
    """Dims of the outputs of a standard node, as far as this knows the op; of those behind, nothing."""
    if node.domain != "" or node.op_type not in _OPS or not node.inputs:
        return []
    if node.op_type == "Split":
        return _split(node)
    return [_OPS[node.op_type](node)]


def _same(node: ir.Node) -> Dims | None:
    return dims(node.inputs[0])


def _broadcast(node: ir.Node) -> Dims | None:
    shape = broadcast([value for value in node.inputs if value is not None])
    return None if shape is None else [size if isinstance(size, int) else size.value for size in shape]


def _axes(node: ir.Node, size: int) -> list[int] | None:
    """The axes of an op that takes them as its second input, counted from the front of `size`."""
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) % size for axis in array.reshape(-1)]


def _transpose(node: ir.Node) -> Dims | None:
    known = dims(node.inputs[0])
    return known and [known[axis] for axis in node.attributes.get_ints("perm") or range(len(known))[::-1]]


def _reshape(node: ir.Node) -> Dims | None:
    source, target = dims(node.inputs[0]), sizes(node.inputs[1])
    if target is None:
        return None
    keeps = not node.attributes.get_int("allowzero", 0)
    copied = [_at(source, axis) if size == 0 and keeps else size for axis, size in enumerate(target)]
    rest = [size for size in copied if size != -1]
    if len(rest) == len(copied):
        return copied
    inferred = None if source is None or len(rest) + 1 < len(copied) else _quotient(source, rest)
    return [inferred if size == -1 else size for size in copied]


def _quotient(source: Dims, rest: Dims) -> Size:
    """What is left of the elements of `source` for the one dim that is inferred."""
    left, known = list(source), []
    for size in rest:
        if size in left and size is not None:
            left.remove(size)
        else:
            known.append(size)
    whole, part = total(left), total(known)
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    if part == 1:
        return whole
    quotient = combine("Div", whole, part)
    # a floor that does not come out even says nothing
    return quotient if quotient is not None and combine("Mul", quotient, part) == whole else None


def _at(known: Dims | None, axis: int) -> Size:
    return known[axis] if known is not None and axis < len(known) else None


def _expand(node: ir.Node) -> Dims | None:
    """Expand broadcasts both ways."""
    own, target = dims(node.inputs[0]), sizes(node.inputs[1])
    if own is None or target is None:
        return None
    pairs = list(zip_longest(own[::-1], target[::-1], fillvalue=1))[::-1]
    return [b if a == 1 else a if b in (1, a) or isinstance(a, int) else None for a, b in pairs]


def _matmul(node: ir.Node) -> Dims | None:
    one, other = dims(node.inputs[0]), dims(node.inputs[1])
    if one is None or other is None or min(len(one), len(other)) < 2:
        return None
    made = []
    for a, b in list(zip_longest(one[-3::-1], other[-3::-1], fillvalue=1))[::-1]:
        wide = {a, b} - {1}
        numbers = [size for size in wide if isinstance(size, int)]
        made.append(numbers[0] if numbers else wide.pop() if len(wide) == 1 else None if wide else 1)
    return [*made, one[-2], other[-1]]


def _einsum(node: ir.Node) -> Dims | None:
    terms, _, made = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    known: dict[str, Size] = {}
    for term, value in zip(terms.split(","), node.inputs, strict=True):
        own = dims(value)
        if own is None or len(own) != len(term):  # also of an ellipsis
            return None
        known.update({label: size for label, size in zip(term, own, strict=True) if size not in (1, None)})
        known.update({label: size for label, size in zip(term, own, strict=True) if label not in known})
    return [known[label] for label in made] if made and "." not in made else None


def _gemm(node: ir.Node) -> Dims | None:
    flips = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    return [dim(node.inputs[0], -1 if flips[0] else -2), dim(node.inputs[1], -2 if flips[1] else -1)]


def _unsqueeze(node: ir.Node) -> Dims | None:
    known = dims(node.inputs[0])
    count = constant(node.inputs[1])
    if known is None or count is None or (axes := _axes(node, len(known) + count.size)) is None:
        return None
    rest = iter(known)
    return [1 if axis in axes else next(rest) for axis in range(len(known) + len(axes))]


def _squeeze(node: ir.Node) -> Dims | None:
    known = dims(node.inputs[0])
    axes = _axes(node, len(known)) if known is not None else None
    return None if known is None or axes is None else [size for axis, size in enumerate(known) if axis not in axes]


def _concat(node: ir.Node) -> Dims | None:
    parts = [dims(value) for value in node.inputs]
    known = [part for part in parts if part]
    if len(known) < len(parts) or len({len(part) for part in known}) != 1:
        return None
    at = node.attributes.get_int("axis", 0) % len(known[0])
    made = [next((size for size in column if size is not None), None) for column in zip(*known, strict=True)]
    length: Size = 0
    for part in known:
        length = combine("Add", part[at], length)
    made[at] = length
    return made


def _split(node: ir.Node) -> list[Dims | None]:
    known = dims(node.inputs[0])
    if not known:
        return []
    at, count = node.attributes.get_int("axis", 0) % len(known), len(node.outputs)
    parts = sizes(node.inputs[1]) if len(node.inputs) > 1 else None
    whole = known[at]
    if parts is None and isinstance(whole, int):
        each = -(-whole // count)
        parts = [*([each] * (count - 1)), whole - each * (count - 1)]
    if parts is None or len(parts) != count:
        return []
    return [[*known[:at], part, *known[at + 1 :]] for part in parts]


def _slice(node: ir.Node) -> Dims | None:
    known, bounds = dims(node.inputs[0]), [sizes(value) for value in node.inputs[1:] if value is not None]
    if known is None or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    starts, ends, *rest = [bound for bound in bounds if bound is not None]
    axes = [int(str(axis)) for axis in rest[0]] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        known[axis] = _length(known[axis], start, end, step)
    return known


def _length(size: Size, start: Size, end: Size, step: Size) -> Size:
    """How much of `size` lies from `start` to `end`."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        return len(range(*slice(start, end, step).indices(size)))
    if step != 1 or size is None or end is None or not isinstance(start, int):
        return None
    end = size if end == size or (isinstance(end, int) and end >= WHOLE) else end
    if isinstance(end, int) and end < 0:
        end = combine("Max", combine("Add", size, end), 0)
    elif end != size:
        end = combine("Min", size, end)
    if start < 0:
        begin = combine("Max", combine("Add", size, start), 0)
        return combine("Max", combine("Sub", end, begin), 0)
    return end if start == 0 else combine("Max", combine("Sub", end, start), 0)


def _gather(node: ir.Node) -> Dims | None:
    data, index = dims(node.inputs[0]), dims(node.inputs[1])
    if not data or index is None:
        return None
    at = node.attributes.get_int("axis", 0) % len(data)
    return [*data[:at], *index, *data[at + 1 :]]


def _reduce(node: ir.Node) -> Dims | None:
    known = dims(node.inputs[0])
    axes = _axes(node, len(known)) if known else None
    if known is None or axes is None or not axes:
        return None
    keeps = node.attributes.get_int("keepdims", 1)
    return [1 if axis in axes else size for axis, size in enumerate(known) if keeps or axis not in axes]


def _range(node: ir.Node) -> Dims | None:
    start, limit, delta = (sizes(value) for value in node.inputs)
    if not start or not limit or delta != [1]:
        return None
    return [combine("Max", combine("Sub", limit[0], start[0]), 0) if start != [0] else limit[0]]


def _shape(node: ir.Node) -> Dims | None:
    known = sizes(node.outputs[0])
    return None if known is None else [len(known)]


def _constant_of_shape(node: ir.Node) -> Dims | None:
    return sizes(node.inputs[0])


def _tile(node: ir.Node) -> Dims | None:
    known, repeats = dims(node.inputs[0]), sizes(node.inputs[1])
    if known is None or repeats is None or len(known) != len(repeats):
        return None
    return [combine("Mul", size, count) if count != 1 else size for size, count in zip(known, repeats, strict=True)]


def _attention(node: ir.Node) -> Dims | None:
    query, value = dims(node.inputs[0]), dims(node.inputs[2])
    return [*query[:3], value[3]] if query is not None and value is not None and len(query) == len(value) == 4 else None


_OPS: dict[str, Callable[[ir.Node], Dims | None]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCE, _reduce),
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Split": _same,
    "Slice": _slice,
    "Gather": _gather,
    "Range": _range,
    "Shape": _shape,
    "ConstantOfShape": _constant_of_shape,
    "Tile": _tile,
    "Attention": _attention,
}
