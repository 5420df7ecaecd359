"""What the parsers of TensorRT 10 lack, in ops that they have: for Jetson, which stays on 10.3.

RMSNormalization:  y = CastLike(f / Sqrt(ReduceMean(f f) + epsilon), x) scale, f = Cast(x, float32)
GroupNormalization: InstanceNormalization of [batch, groups, what is in one]; its scale and bias, which before opset 21
                   were one for each group, behind it
RotaryEmbedding:   the halves (or, interleaved, the neighbours) x1, x2 -> x1 cos - x2 sin, x2 cos + x1 sin
Legal cases: 1. RMSNormalization over the last axis; 2. RotaryEmbedding of [batch, heads, S, D] or, with `num_heads`,
[batch, S, heads D], whole or of the first columns, its caches by position or with `position_ids`. 3. A graph whose
nodes all mean the same at opset 20 is stamped with it; others keep theirs. 4. An op that the version does not import
is refused by name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import BuildError
from ...runtimes.tensorrt_versions import OPS_SINCE, OPSET_BEFORE_11, Version
from ...spec import SITE
from ..base import GraphPass
from ..lift.values import add_constant, dim, insert, rank
from ..schemas import misfit
from ..sites import path_of


class SayInOlderOps(GraphPass):
    """The graph in ops that `version` imports, and at an opset that it reads."""

    def __init__(self, version: Version) -> None:
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and OPS_SINCE.get(node.op_type, self.version) > self.version:
                _say(node, self.version)
                modified = True
        nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
        newer = model.opset_imports[""] > OPSET_BEFORE_11
        if self.version < (11, 0) and newer and not any(misfit(node, OPSET_BEFORE_11) for node in nodes):
            model.opset_imports[""] = OPSET_BEFORE_11
            modified = True
        return ir.passes.PassResult(model, modified)


def _say(node: ir.Node, version: Version) -> None:
    if node.op_type == "RMSNormalization":
        made = _rms_norm(node)
    elif node.op_type == "RotaryEmbedding":
        made = _rotary(node)
    elif node.op_type == "GroupNormalization":
        made = _group_norm(node)
    else:
        major, minor = version
        raise BuildError(f"TensorRT {major}.{minor} has no form for {node.op_type} at {path_of(node)}.")
    old = node.outputs[0]
    made.type, made.shape = old.type, old.shape
    if old.is_graph_output():
        made.name = old.name
    core = made.producer()
    if core is not None and SITE in node.metadata_props:
        core.metadata_props[SITE] = node.metadata_props[SITE]
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _rms_norm(node: ir.Node) -> ir.Value:
    x, scale = _given(node, 0), _given(node, 1)
    if node.attributes.get_int("axis", -1) not in (-1, (rank(x) or 0) - 1):
        raise BuildError(f"TensorRT has no form for the RMSNormalization at {path_of(node)}: not over its last axis.")
    wide = insert(node, "Cast", [x], to=int(ir.DataType.FLOAT))
    mean = insert(node, "ReduceMean", [insert(node, "Mul", [wide, wide]), _ints(node, [-1])], keepdims=1)
    epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
    shifted = insert(node, "Add", [mean, add_constant(_graph(node), f"number.{epsilon:g}.float", epsilon)])
    normal = insert(node, "Div", [wide, insert(node, "Sqrt", [shifted])])
    return insert(node, "Mul", [insert(node, "CastLike", [normal, x]), scale])


def _group_norm(node: ir.Node) -> ir.Value:
    x, scale, bias = (_given(node, index) for index in range(3))
    axes, dtype, groups = rank(x), x.dtype, node.attributes.get_int("num_groups")
    if axes is None or dtype is None:
        raise BuildError(f"TensorRT has no form for the GroupNormalization at {path_of(node)}: its rank is not known.")
    kind = dtype.name.lower()
    one, zero = (
        add_constant(_graph(node), f"{name}.{groups}.{kind}", np.full(groups, number, dtype.numpy()))
        for name, number in (("ones", 1), ("zeros", 0))
    )
    flat = insert(node, "Reshape", [x, _ints(node, [0, groups, -1])])
    normal = insert(
        node, "InstanceNormalization", [flat, one, zero], epsilon=node.attributes.get_float("epsilon", 1e-5)
    )
    back = insert(node, "Reshape", [normal, insert(node, "Shape", [x])])
    behind = _ints(node, list(range(1, axes - 1)))
    scale, bias = (insert(node, "Unsqueeze", [value, behind]) for value in (scale, bias))
    return insert(node, "Add", [insert(node, "Mul", [back, scale]), bias])


def _rotary(node: ir.Node) -> ir.Value:
    x, cos, sin = (_given(node, index) for index in range(3))
    heads, flat = node.attributes.get_int("num_heads", 0), rank(x) == 3
    size = dim(x, -1)
    if not isinstance(size, int) or not ((flat and heads) or rank(x) == 4):
        raise BuildError(f"TensorRT has no form for the RotaryEmbedding at {path_of(node)}: its size is not known.")
    size = size // heads if flat else size
    if flat:
        x = insert(
            node, "Transpose", [insert(node, "Reshape", [x, _ints(node, [0, 0, heads, size])])], perm=[0, 2, 1, 3]
        )
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        cos, sin = (insert(node, "Gather", [cache, _given(node, 3)]) for cache in (cos, sin))
    rotated = node.attributes.get_int("rotary_embedding_dim", 0) or size
    rest = None
    if rotated < size:
        x, rest = _split(node, x, [rotated, size - rotated])
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    if interleaved:
        x = insert(node, "Reshape", [x, _ints(node, [0, 0, 0, rotated // 2, 2])])
    part = 1 if interleaved else rotated // 2
    first, second = _split(node, x, [part, part])
    # one axis for the heads, and behind the neighbours one for the pair
    axes = _ints(node, [1, -1] if interleaved else [1])
    cos, sin = (insert(node, "Unsqueeze", [cache, axes]) for cache in (cos, sin))
    made = insert(
        node,
        "Concat",
        [_turned(node, "Sub", first, second, cos, sin), _turned(node, "Add", second, first, cos, sin)],
        axis=-1,
    )
    if interleaved:
        made = insert(node, "Reshape", [made, _ints(node, [0, 0, 0, rotated])])
    if rest is not None:
        made = insert(node, "Concat", [made, rest], axis=-1)
    if flat:
        made = insert(node, "Reshape", [insert(node, "Transpose", [made], perm=[0, 2, 1, 3]), _ints(node, [0, 0, -1])])
    return made


def _turned(node: ir.Node, op_type: str, one: ir.Value, other: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    return insert(node, op_type, [insert(node, "Mul", [one, cos]), insert(node, "Mul", [other, sin])])


def _split(node: ir.Node, value: ir.Value, sizes: list[int]) -> tuple[ir.Value, ir.Value]:
    made = ir.node("Split", [value, _ints(node, sizes)], {"axis": -1}, num_outputs=2)
    _graph(node).insert_before(node, made)
    return made.outputs[0], made.outputs[1]


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _ints(node: ir.Node, numbers: list[int]) -> ir.Value:
    return add_constant(_graph(node), f"shape.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph
