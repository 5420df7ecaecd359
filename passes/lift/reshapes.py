"""Views of a value, and the arithmetic that only recomputes their shapes, folded by the dims that are known.

    Reshape(x[B, S, 64], Concat(B, S, -1, 16))   ->   Reshape(x, [0, 0, -1, 16])

Legal cases: 1. a shape operand (of Reshape, Expand, ...) all of whose elements are numbers is a constant; 2. a
Reshape's target is one with 0 where it keeps the input's dim and at most one -1; an Expand's has 1 where it keeps it;
3. a Reshape of views, or views that in all put axes of 1 in, read what is viewed; 4. a view of views whose dims are
those of the value viewed is that value; so is an Expand, Slice, Transpose, Split or Concat that changes nothing; 5. a
Transpose of a Transpose is one, as is one between Reshapes that merge leading axes and part them again; 6. the size of
a dim is asked of one value for each name.

None of these needs a proof. Reshape, Squeeze and Unsqueeze keep the elements in their order (the operators' text), so
their result is told by its dims alone, and equal dims are equal numbers, or one name, which ONNX lets stand for one
size only. A Reshape of -1 beside a dim of size 0 would be undefined; names stand for 1 or more.

Source: ONNX operator specification, Reshape-21, Expand-13, Transpose-21; ONNX IR, symbolic dims.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .sizes import SHAPE_OPS, Dims, sizes
from .values import add_constant, constant, dims, producer, rank

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_SHAPED = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Slice": 1}  # op -> its first shape operand


class FoldReshapes(ir.passes.InPlacePass):
    """Constant targets, no view that another one undoes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in list(model.graphs()):
            sources: dict[str, ir.Value] = {}
            for node in list(graph):
                if node.domain != "":
                    continue
                modified |= _drop(node) or _simplify(node, sources)
        if modified:
            RemoveUnusedNodesPass()(model)  # a reader that is left over would count as one
        return ir.passes.PassResult(model, modified)


def _drop(node: ir.Node) -> bool:
    """4: whether `node` gives what is there already; its readers then read that."""
    made = node.outputs[0] if node.outputs else None
    if made is None or made.is_graph_output() or node.op_type not in _SAME:
        return False
    source = _SAME[node.op_type](node)
    if source is None:
        return False
    ir.convenience.replace_all_uses_with(made, source)
    return True


def _simplify(node: ir.Node, sources: dict[str, ir.Value]) -> bool:
    if node.op_type == "Shape":
        return _ask_once(node, sources)
    modified = node.op_type in _SHAPED and _constants(node)
    if node.op_type == "Reshape":
        return _part_again(node) or _retarget(node) or modified
    if node.op_type == "Expand":
        return _keep(node) or modified
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return _insert_axes(node)
    return _compose(node) if node.op_type == "Transpose" else modified


def _known(value: ir.Value | None) -> Dims | None:
    """The dims of `value`, if all are known."""
    own = dims(value)
    return None if own is None or None in own else own


def _viewed(node: ir.Node) -> list[ir.Value]:
    """What `node` is a view of, nearest first."""
    found: list[ir.Value] = []
    at: ir.Node | None = node
    while at is not None and at.inputs[0] is not None:
        found.append(at.inputs[0])
        at = producer(found[-1], *_VIEWS)
    return found


def _same_view(node: ir.Node) -> ir.Value | None:
    own = _known(node.outputs[0])
    return None if own is None else next((value for value in _viewed(node)[::-1] if dims(value) == own), None)


def _same_expand(node: ir.Node) -> ir.Value | None:
    own = _known(node.outputs[0])
    return node.inputs[0] if own is not None and dims(node.inputs[0]) == own else None


def _same_slice(node: ir.Node) -> ir.Value | None:
    steps = sizes(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else []
    forward = steps is not None and all(isinstance(step, int) and step > 0 for step in steps)
    return _same_expand(node) if forward else None


def _same_transpose(node: ir.Node) -> ir.Value | None:
    perm = _perm(node)
    return node.inputs[0] if perm is not None and perm == sorted(perm) else None


def _same_split(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _same_concat(node: ir.Node) -> ir.Value | None:
    """Of one part, or of all that a Split made."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    split, size = producer(node.inputs[0], "Split"), rank(node.outputs[0])
    if split is None or size is None or list(node.inputs) != list(split.outputs):
        return None
    axes = {each.attributes.get_int("axis", 0) % size for each in (node, split)}
    return split.inputs[0] if len(axes) == 1 else None


_SAME = {
    "Reshape": _same_view,
    "Squeeze": _same_view,
    "Unsqueeze": _same_view,
    "Flatten": _same_view,
    "Expand": _same_expand,
    "Slice": _same_slice,
    "Transpose": _same_transpose,
    "Split": _same_split,
    "Concat": _same_concat,
}


def _constants(node: ir.Node) -> bool:
    """1: shape operands of numbers alone become constants."""
    modified = False
    for index in range(_SHAPED[node.op_type], len(node.inputs)):
        value = node.inputs[index]
        if value is None or constant(value) is not None or producer(value, *SHAPE_OPS) is None:
            continue
        numbers = sizes(value)
        if numbers is not None and all(isinstance(size, int) for size in numbers) and rank(value) in (0, 1):
            array = np.array(numbers, np.int64 if value.dtype == ir.DataType.INT64 else np.int32)
            _feed(node, index, array.reshape(()) if rank(value) == 0 else array)
            modified = True
    return modified


def _axes(node: ir.Node, axes: list[int]) -> ir.Value:
    assert node.graph is not None
    return add_constant(node.graph, "axes." + ".".join(map(str, axes)), np.array(axes, np.int64))


def _stand_in(node: ir.Node, new: ir.Node) -> None:
    """`new` in the place of `node`."""
    assert node.graph is not None
    new.metadata_props.update(node.metadata_props)
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], node.outputs[:1], new.outputs)


def _feed(node: ir.Node, index: int, array: np.ndarray) -> None:
    assert node.graph is not None
    name = "shape." + ".".join(map(str, array.reshape(-1).tolist()))
    node.replace_input_with(index, add_constant(node.graph, name.replace("-", "m"), array))


def _retarget(node: ir.Node) -> bool:
    """2, 3: a Reshape of the first value viewed that a constant target can be given for."""
    own, old = _known(node.outputs[0]), constant(node.inputs[1])
    if own is None:
        return False
    for value in _viewed(node)[::-1]:
        target = _target(dims(value), own)
        if target is None or (value is node.inputs[0] and old is not None):
            continue
        node.replace_input_with(0, value)
        _feed(node, 1, np.array(target, np.int64))
        node.attributes.pop("allowzero", None)
        return True
    return False


def _target(source: Dims | None, wanted: Dims) -> list[int] | None:
    """`wanted` as a Reshape of `source` can be told it: sizes, 0 for a dim that stays where it is, one -1."""
    if source is None or 0 in wanted:  # 0 would be taken for a copy
        return None
    made: list[int] = []
    for axis, size in enumerate(wanted):
        stays = axis < len(source) and source[axis] == size
        made.append(size if isinstance(size, int) else 0 if stays else -1)
    return made if made.count(-1) <= 1 else None


def _insert_axes(node: ir.Node) -> bool:
    """3: a view of views that is but the first value viewed with axes of 1 put in."""
    own = _known(node.outputs[0])
    for value in _viewed(node)[:0:-1] if own is not None and not node.outputs[0].is_graph_output() else ():
        left = dims(value) or []
        axes: list[int] = []
        for axis, size in enumerate(own or []):
            if left and left[0] == size:
                left = left[1:]
            elif size == 1:
                axes.append(axis)
            else:
                break
        else:
            if left or rank(value) is None or len(axes) + (rank(value) or 0) != len(own or []):
                continue
            new = ir.node("Unsqueeze", [value, _axes(node, axes)])
            _stand_in(node, new)
            return True
    return False


def _keep(node: ir.Node) -> bool:
    """2: an Expand's target, 1 where the dim is the input's."""
    own, target = dims(node.inputs[0]), sizes(node.inputs[1])
    if own is None or target is None or constant(node.inputs[1]) is not None:
        return False
    kept: Dims = [*([1] * (len(target) - len(own))), *own[max(len(own) - len(target), 0) :]]
    made = [1 if size == old and size is not None else size for size, old in zip(target, kept, strict=True)]
    numbers = [size for size in made if isinstance(size, int)]
    if len(numbers) < len(made):
        return False
    _feed(node, 1, np.array(numbers, np.int64))
    return True


def _perm(node: ir.Node | None) -> list[int] | None:
    size = rank(node.inputs[0]) if node is not None else None
    if node is None or size is None:
        return None
    return [int(axis) for axis in node.attributes.get_ints("perm") or range(size)[::-1]]


def _compose(node: ir.Node) -> bool:
    """5: a Transpose of a Transpose."""
    inner = producer(node.inputs[0], "Transpose")
    perm, below = _perm(node), _perm(inner)
    if inner is None or perm is None or below is None:
        return False
    _transpose(node, inner.inputs[0], [below[axis] for axis in perm])
    return True


def _transpose(node: ir.Node, source: ir.Value | None, perm: list[int]) -> None:
    """Make `node` that Transpose of `source`; of none at all, its readers read the source."""
    node.replace_input_with(0, source)
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    if source is not None and perm == sorted(perm) and not node.outputs[0].is_graph_output():
        ir.convenience.replace_all_uses_with(node.outputs[0], source)


def _part_again(node: ir.Node) -> bool:
    """5: [A, B, C, D] -> [A * B, C, D] -> [A * B, D, C] -> [A, B, D, C] is a Transpose."""
    turned = producer(node.inputs[0], "Transpose")
    merged = producer(turned.inputs[0], "Reshape") if turned is not None else None
    perm, own = _perm(turned), _known(node.outputs[0])
    source = _known(merged.inputs[0]) if merged is not None else None
    flat = dims(merged.outputs[0]) if merged is not None else None
    if turned is None or merged is None or perm is None or own is None or source is None or flat is None:
        return False
    lead = len(source) - len(flat) + 1
    if lead < 2 or len(own) != len(source) or perm[0] != 0 or flat[1:] != source[lead:]:
        return False
    whole = [*range(lead), *(axis + lead - 1 for axis in perm[1:])]
    if own != [source[axis] for axis in whole]:
        return False
    _stand_in(node, ir.node("Transpose", [merged.inputs[0]], {"perm": whole}))
    return True


def _ask_once(node: ir.Node, sources: dict[str, ir.Value]) -> bool:
    """6: the size of one dim, by its name."""
    asked = sizes(node.outputs[0])
    if asked is None or len(asked) != 1 or not isinstance(name := asked[0], str):
        return False
    known = sources.setdefault(name, node.outputs[0])
    if known is node.outputs[0] or node.outputs[0].is_graph_output():
        return False
    ir.convenience.replace_all_uses_with(node.outputs[0], known)
    return True
