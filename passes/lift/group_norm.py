"""GroupNorm in the ways that exporters spell it -> one `GroupNormalization` (opset 21: scale and bias per channel).

    g = Reshape(x[N, C, ...], [N, G, -1]);  n = InstanceNormalization(g, ones[G], zeros[G]; epsilon)
    n = (g - mean(g)) / sqrt(variance(g) + epsilon), over all axes of g[N, G, ...] behind the second
    Reshape(n, shape of x) * scale[C, 1...] + bias[C, 1...]   ->   GroupNormalization(x, scale, bias; G, epsilon)

Legal cases: 1. the first Reshape keeps the batch and splits the C channels, a known number, into G groups, with what
is behind them in any shape; the second gives x its shape back (where G = C there may be none); 2. the scale and bias of
an InstanceNormalization are constants (one per group: they are merged into those of the channels); mean and variance
of the primitives are read as those of a LayerNorm are (see layer_norm.py); 3. scale and bias per channel, both
optional, constants or vectors that a Reshape or Unsqueeze gives dims of 1; others stay behind the norm; 4. nothing else
reads a value inside. One group is the LayerNorm of a whole sample, with an affine per channel. An
InstanceNormalization that no Reshape feeds is a standard op already, and no site.

Sources: Wu and He, "Group Normalization" (2018); ONNX operator specification, GroupNormalization-21.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..base import MisfitError
from ..prover import ProvedPass
from ..sites import inherit
from .means import Mean, deviates, variance_of
from .norms import divide, filled, read_root
from .values import add_constant, constant, dim, only_consumer, producer, rank

KIND = "group_norm"
_READ = ("ReduceMean", "Div", "Mul", "Sub", "InstanceNormalization")


@dataclass(frozen=True)
class Groups:
    """The normalised groups of x, before the affine of the channels: `scale` and `bias` are of the groups."""

    x: ir.Value
    count: int
    epsilon: float
    end: ir.Node
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None


class LiftGroupNorm(ProvedPass):
    """Groups of channels, each normalised -> `GroupNormalization`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "GroupNormalization":
                self.log.lifted(KIND, node, "GroupNormalization")
            elif node.domain == "" and node.op_type in _READ:
                modified |= self._lift(node)
        if modified:
            RemoveUnusedNodesPass()(model)  # else the rule of layers would find the primitives of what is lifted
        return ir.passes.PassResult(model, modified)

    def _lift(self, node: ir.Node) -> bool:
        instance = node.op_type == "InstanceNormalization"
        variance = None if instance else variance_of(node.outputs[0])
        grouped = node.inputs[0] if instance else variance.of if variance is not None else None
        x = _before_grouping(grouped)
        if x is None:
            return False  # a norm of something else
        try:
            groups = _of_instance(node, x) if variance is None else _of_primitives(variance, x)
            new, end = _read(groups)
        except MisfitError as misfit:
            if variance is None:  # the primitives may still be a LayerNorm of the groups, and its rule tells
                self.log.missed(KIND, node, node.op_type, str(misfit))
            return False
        return self.replace(KIND, end, new, "InstanceNormalization" if instance else "primitives")


def _before_grouping(grouped: ir.Value | None) -> ir.Value | None:
    """x of Reshape(x[N, C, ...]) -> [N, G, ...], G a divisor of C."""
    reshape = producer(grouped, "Reshape")
    x = reshape.inputs[0] if reshape is not None else None
    groups, channels = dim(grouped, 1), dim(x, 1)
    if not isinstance(groups, int) or not isinstance(channels, int) or channels % groups:
        return None
    return x if dim(x, 0) is not None and dim(x, 0) == dim(grouped, 0) and (rank(x) or 0) > 2 else None


def _of_instance(node: ir.Node, x: ir.Value) -> Groups:
    scale, bias = (constant(value) for value in node.inputs[1:])
    if scale is None or bias is None:
        raise MisfitError("the groups have a scale or bias that is computed")
    end, count = _regrouped(node, x), scale.size
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return Groups(x, count, epsilon, end, scale.reshape(-1), bias.reshape(-1))


def _of_primitives(variance: Mean, x: ir.Value) -> Groups:
    grouped, count = variance.of, dim(variance.of, 1)
    assert isinstance(count, int)
    if variance.axes != tuple(range(2 - (rank(grouped) or 0), 0)):
        raise MisfitError("the mean is not over all that is behind the groups")
    root = read_root(variance, grouped)
    end, scale = divide(root, [], lambda value: deviates(value, variance), "the deviation")
    if scale is not None:
        raise MisfitError("the groups are scaled before they are divided by their root")
    return Groups(x, count, root.epsilon, _regrouped(end, x))


def _regrouped(end: ir.Node, x: ir.Value) -> ir.Node:
    """The node that gives the normalised groups the shape of x. Raises MisfitError."""
    reshape = only_consumer(end.outputs[0], "Reshape")
    if reshape is not None and _shape(reshape.outputs[0]) == _shape(x):
        return reshape
    if _shape(end.outputs[0]) != _shape(x):
        raise MisfitError(f"the groups of {end.outputs[0].shape} do not become {x.shape} again")
    return end


def _shape(value: ir.Value) -> list[int | str | None]:
    """Its dims, of which two that are not known count as the same here: the proof tells."""
    return [dim(value, axis) for axis in range(rank(value) or 0)]


def _read(groups: Groups) -> tuple[ir.Node, ir.Node]:
    """The new node and the one that it stands for."""
    x, end = groups.x, groups.end
    channels, graph = dim(x, 1), end.graph
    assert isinstance(channels, int)
    assert graph is not None
    scale, bias = None, None
    behind = only_consumer(end.outputs[0], "Mul")
    if behind is not None and (scale := _per_channel(behind, end.outputs[0], channels)) is not None:
        end = behind
    behind = only_consumer(end.outputs[0], "Add")
    if behind is not None and (bias := _per_channel(behind, end.outputs[0], channels)) is not None:
        end = behind
    scale = scale if scale is not None else filled(graph, 1, [channels], x.dtype)
    bias = bias if bias is not None else filled(graph, 0, [channels], x.dtype)
    if groups.scale is not None and groups.bias is not None:
        scale, bias = _merge(graph, groups.scale, groups.bias, scale, bias)
    types = {value.dtype for value in (x, scale, bias, end.outputs[0])}
    if len(types) > 1:
        raise MisfitError(f"its types are mixed: {', '.join(sorted(str(dtype) for dtype in types))}")
    new = inherit(ir.node("GroupNormalization", [x, scale, bias], {"num_groups": groups.count}), end)
    new.attributes["epsilon"] = ir.AttrFloat32("epsilon", groups.epsilon)
    return new, end


def _merge(
    graph: ir.Graph, group_scale: np.ndarray, group_bias: np.ndarray, scale: ir.Value, bias: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """(n * group_scale + group_bias) * scale + bias as one scale and bias of the channels."""
    if (group_scale == 1).all() and (group_bias == 0).all():
        return scale, bias
    w, b = constant(scale), constant(bias)
    if w is None or b is None:
        raise MisfitError("groups and channels both have a scale or bias, and that of the channels is computed")
    repeats = w.size // group_scale.size
    shift = np.repeat(group_bias, repeats) * w + b
    return (
        add_constant(graph, f"{scale.name}.merged", np.repeat(group_scale, repeats) * w),
        add_constant(graph, f"{bias.name}.merged", shift),
    )


def _per_channel(node: ir.Node, before: ir.Value, channels: int) -> ir.Value | None:
    """The other operand of `node` as a vector of the channels, if it is one with dims of 1 around it."""
    other = node.inputs[1] if node.inputs[0] is before else node.inputs[0]
    behind = (rank(before) or 0) - 2
    shapes = ([channels, *[1] * behind], [1, channels, *[1] * behind])
    if other is None or other is before or _shape(other) not in shapes:
        return None
    array = constant(other)
    if array is not None:
        assert node.graph is not None
        return add_constant(node.graph, f"{other.name}.vector", array.reshape(channels))
    view = producer(other, "Reshape", "Unsqueeze")
    source = view.inputs[0] if view is not None else None
    return source if source is not None and _shape(source) == [channels] else None
