"""Tokens as the rows of a matrix: what treats each token alone runs on [batch * length, width], and a linear layer is a
`Gemm` that adds its bias.

    LayerNormalization(Add(Add(MatMul(x[B, S, K], W), bias), skip))
        ->   LayerNormalization(Add(Gemm(x', W, bias), skip'))   with x' = Reshape(x, [-1, K])

*Token-wise* is: 1. MatMul with a constant matrix; an Add of a constant vector behind it becomes the Gemm's; 2. a norm,
Softmax, Split, Slice or Concat along the last axis; 3. an elementwise op on values of one shape, on constants of one
number, and on constant vectors along the last axis. Its values have a rank of 3 or more, and leading dims that are
known by number or name; what reads or makes them otherwise gets a Reshape. 4. Reshapes to and from rows that are there
already (GPT-2's) vanish. 5. Only around linear layers, and only where most of them have a bias: a MatMul without one
is as fast on rank 3, and needs no Reshape.

Measured on ONNX Runtime 1.31, an encoder of MiniLM's size: 1.08x at 8 x 128, 1.04x at 1 x 16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..base import GraphPass
from ..lift.values import add_constant, constant, dim, dims, insert, is_constant, only_sum, rank
from ..sites import inherit

_UNARY = frozenset(
    {
        *("Abs", "Cast", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign"),
        *("Sqrt", "Swish", "Tanh"),
    }
)
_BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"])
_ALONG_LAST = frozenset(["LayerNormalization", "RMSNormalization", "Softmax", "Split", "Concat"])
_OPS = _UNARY | _BINARY | _ALONG_LAST | {"MatMul", "Reshape"}

Key = tuple[int | str | None, ...]  # leading dims


@dataclass
class _State:
    graph: ir.Graph
    chosen: set[ir.Node]
    rows: dict[ir.Value, ir.Value] = field(default_factory=dict)  # value -> the same as a matrix
    leading: dict[Key, ir.Value] = field(default_factory=dict)  # leading dims -> their sizes, int64 [rank - 1]
    targets: dict[tuple[Key, int | None], ir.Value] = field(default_factory=dict)  # shape -> int64 [rank], computed
    done: set[ir.Node] = field(default_factory=set)  # biases that went into a Gemm


class FlattenRows(GraphPass):
    """[batch, length, width] -> [batch * length, width] between the ops that mix tokens."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in list(model.graphs()):
            nodes = list(graph)
            chosen = _around_linears({node for node in nodes if _is_token_wise(node)})
            if _pays(chosen):
                state = _State(graph, chosen)
                for node in nodes:
                    if node in chosen and node not in state.done:
                        _flatten(state, node)
                _tidy(state, nodes)
                modified = True
        return ir.passes.PassResult(model, modified)


def _around_linears(nodes: set[ir.Node]) -> set[ir.Node]:
    """5: those of `nodes` that a linear layer is joined to by others of them."""
    ahead = [node for node in nodes if node.op_type in ("MatMul", "Reshape")]
    found = set(ahead)
    while ahead:
        node = ahead.pop()
        beside = [value.producer() for value in node.inputs if value is not None]
        beside += [reader for value in node.outputs for reader in value.consumers()]
        for other in beside:
            if other in nodes and other not in found:
                found.add(other)
                ahead.append(other)
    return found


def _pays(nodes: set[ir.Node]) -> bool:
    """5: whether most of the linear layers have a bias, or are on rows already."""
    linear = [node for node in nodes if node.op_type == "MatMul"]
    views = sum(node.op_type == "Reshape" for node in nodes)
    if views == len(nodes):
        return False
    return sum(_bias(node) is not None for node in linear) + views > len(linear) / 2


def _is_token_wise(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in _OPS or not node.inputs or any(not out.name for out in node.outputs):
        return False
    first = node.inputs[0]
    if node.op_type == "Reshape":
        return _is_rows(node)
    data = [value for value in node.inputs if value is not None and not is_constant(value)]
    if not data or not all(_width(value) for value in (*data, *node.outputs)):
        return False
    key = _key(data[0])
    if any(_key(value) != key for value in (*data, *node.outputs)):
        return False
    if node.op_type == "MatMul":
        return first is data[0] and len(data) == 1 and rank(node.inputs[1]) == 2
    if node.op_type in _ALONG_LAST:
        axis = node.attributes.get_int("axis", 0 if node.op_type in ("Split", "Concat") else -1)
        weights = node.inputs[1:] if node.op_type != "Concat" else node.inputs[:0]
        every = node.op_type != "Concat" or len(data) == len(node.inputs)
        alone = node.op_type == "Split" or len(node.outputs) == 1
        return (
            every
            and alone
            and axis in (-1, len(key))
            and all(w is None or (is_constant(w) and rank(w) == 1) for w in weights)
        )
    return (
        all(value in data or _is_vector(value) for value in node.inputs if value is not None)
        and len({_width(value) for value in (*data, *node.outputs)}) == 1
    )


def _key(value: ir.Value) -> Key:
    return tuple((dims(value) or [None])[:-1])


def _width(value: ir.Value) -> int | None:
    """The last dim of a value of rank 3 or more whose dims are all known."""
    known = dims(value)
    if known is None or len(known) < 3 or None in known:
        return None
    return known[-1] if isinstance(known[-1], int) else None


def _is_vector(value: ir.Value) -> bool:
    """3: a constant of one number, or of one for each column."""
    shape = value.shape
    return is_constant(value) and shape is not None and all(size == 1 for size in list(shape)[:-1])


def _is_rows(node: ir.Node) -> bool:
    """4: a Reshape between a matrix and a value of higher rank, of one width."""
    source, made = node.inputs[0], node.outputs[0]
    if source is None or sorted((rank(source) or 0, rank(made) or 0))[0] != 2:
        return False
    matrix, other = (source, made) if rank(source) == 2 else (made, source)
    return _width(other) is not None and dim(matrix, -1) == _width(other)


def _flatten(state: _State, node: ir.Node) -> None:
    """The node's twin on rows, in front of it."""
    if node.op_type == "Reshape":
        return _flatten_view(state, node)
    if node.op_type == "MatMul":
        return _flatten_linear(state, node)
    inputs = [_as_row(state, node, value) for value in node.inputs]
    attributes: dict[str, object] = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type in _ALONG_LAST:
        attributes["axis"] = -1
    _twin(state, node, node.op_type, inputs, attributes)
    return None


def _flatten_view(state: _State, node: ir.Node) -> None:
    source, made = node.inputs[0], node.outputs[0]
    assert source is not None
    if rank(source) == 2:
        state.rows[made] = source
        if _is_lost(state, _key(made)):  # this view stays, to ask the sizes of
            state.chosen.discard(node)
            sizes = inherit(ir.node("Shape", [made], {"start": 0, "end": len(_key(made))}), node)
            state.graph.insert_after(node, sizes)
            state.leading[_key(made)] = sizes.outputs[0]
    else:
        ir.convenience.replace_all_uses_with(made, _rows(state, node, source), replace_graph_outputs=True)


def _flatten_linear(state: _State, node: ir.Node) -> None:
    x, weight = node.inputs
    assert x is not None
    bias = _bias(node)
    if bias is None:
        _twin(state, node, "MatMul", [_rows(state, node, x), weight], {})
        return
    add, vector = bias
    state.done.add(add)
    _twin(state, node, "Gemm", [_rows(state, node, x), weight, vector], {}, add.outputs[0])


def _bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The one Add behind a MatMul of a constant vector, and that vector as [width]."""
    found = only_sum(node)
    if found is None:
        return None
    add, other = found
    array, width = constant(other), _width(node.outputs[0])
    if array is None or array.size != width or array.shape[-1] != width or not _width(add.outputs[0]):
        return None
    assert node.graph is not None
    return add, other if array.ndim == 1 else add_constant(node.graph, f"{other.name}.row", array.reshape(-1))


def _twin(
    state: _State,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, object],
    made: ir.Value | None = None,
) -> None:
    """Put `op_type` in front of `node`; its outputs are the rows of the node's, or of `made`."""
    new = inherit(ir.node(op_type, inputs, attributes, num_outputs=len(node.outputs)), node)  # type: ignore[arg-type]
    new.metadata_props.update(node.metadata_props)
    state.graph.insert_before(node, new)
    outputs = [made] if made is not None else node.outputs
    for old, rows in zip(outputs, new.outputs, strict=True):
        rows.type, rows.shape = old.type, _row_shape(old)
        state.rows[old] = rows


def _as_row(state: _State, node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """An operand of the twin: rows of a computed value, a constant of rank 1 at most."""
    if value is None:
        return None
    if not is_constant(value):
        return _rows(state, node, value)
    array = constant(value) if (rank(value) or 0) > 1 else None
    return value if array is None else add_constant(state.graph, f"{value.name}.row", array.reshape(-1))


def _rows(state: _State, before: ir.Node, value: ir.Value) -> ir.Value:
    if value not in state.rows:
        target = add_constant(state.graph, f"rows.{_width(value)}", np.array([-1, _width(value)], np.int64))
        made = insert(before, "Reshape", [value, target])
        made.type, made.shape = value.type, _row_shape(value)
        state.rows[value] = made
        key = _key(value)
        if _is_lost(state, key):
            state.leading[key] = insert(before, "Shape", [value], start=0, end=len(key))
    return state.rows[value]


def _row_shape(value: ir.Value) -> ir.Shape:
    """As `[batch*length, width]`."""
    key = _key(value)
    known = [size for size in key if isinstance(size, int)]
    rows = int(np.prod(known)) if len(known) == len(key) else "*".join(map(str, key))
    return ir.Shape([rows, _width(value)])


def _is_lost(state: _State, key: Key) -> bool:
    """Whether a matrix does not tell the leading dims `key`, and nothing else does yet."""
    return key not in state.leading and sum(not isinstance(size, int) for size in key) > 1


def _tidy(state: _State, nodes: list[ir.Node]) -> None:
    """What else reads a value that has rows gets it in its own shape; nodes that have a twin go."""
    gone = state.chosen | state.done
    for value, rows in list(state.rows.items()):
        node = value.producer()
        if node not in gone:
            continue
        others = [use for use in value.uses() if use.node not in gone]
        if others or value.is_graph_output():
            _restore(state, value, rows)
    for node in reversed(nodes):
        if node in gone:
            state.graph.remove(node, safe=False)


def _restore(state: _State, value: ir.Value, rows: ir.Value) -> None:
    """`value` from its rows, behind them."""
    node = value.producer()
    assert node is not None
    key, width = _key(value), _width(value)
    known = [size if isinstance(size, int) else -1 for size in key]
    if known.count(-1) <= 1:
        target = add_constant(state.graph, f"shape.{'.'.join(map(str, known))}.{width}", np.array([*known, width]))
    else:
        target = _target(state, key, width)
    made = insert(node, "Reshape", [rows, target])
    made.type, made.shape = value.type, value.shape
    if value.is_graph_output():
        made.name, value.name = value.name, None
    ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)


def _target(state: _State, key: Key, width: int | None) -> ir.Value:
    """The shape [*key, width], behind the node that tells the sizes of `key`."""
    if (key, width) not in state.targets:
        sizes = state.leading[key].producer()
        assert sizes is not None
        last = add_constant(state.graph, f"shape.{width}", np.array([width], np.int64))
        node = inherit(ir.node("Concat", [state.leading[key], last], {"axis": 0}), sizes)
        state.graph.insert_after(sizes, node)
        state.targets[key, width] = node.outputs[0]
    return state.targets[key, width]
