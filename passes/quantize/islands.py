"""Which ops compute in half, and which stay float32: islands, each with its reason.

1. *Products* (linear layers, convolutions, attention), where the time goes, are half.
2. *Sensitive* ops (long sums, powers, exponentials, softmax, angles) are float32. LayerNormalization,
   RMSNormalization and GroupNormalization take half and give half: by the standard they compute inside in float32.
3. All others follow what they read: half as soon as one computed operand is half. Three exceptions: sums and choices
   that Softmax alone reads stay float32 with it; so does a quotient whose divisor was computed in float32; and what
   only moves a tensor that products read is half, so that one cast serves them all.

An op of the first or third kind stays float32 all the same, where half would not do:
4. a constant of it would overflow, is a single number that half does not hold (an epsilon of 1e-12), or is a weight
   that is too small for full precision;
5. a value that it reads or gives does not fit (`Extents.misfit`): by its bound where it has one, else by what was seen
   on data, with a margin. What was computed with a constant that overflows (a mask of the lowest number) is taken not
   to fit, whatever the data say, up to the first product;
6. scores of an attention are so large that rounding one of them changes a weight by a factor: the attention, and what
   makes its queries and keys, up to and with the last product before it;
7. angles: what sines and cosines are computed from, up to and with the last product, unless rules bound it: an angle
   of 1000 in half is off by half a radian;
8. rows in front of a LayerNormalization whose mean is far above their spread, which rounding would wipe out: the sums
   of that residual stream, and the norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from ..lift.values import is_constant
from .intervals import Bounds
from .ranges import Ranges
from .rounding import HalfType, Weights

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization"})
SENSITIVE = frozenset(
    {
        *("InstanceNormalization", "BatchNormalization", "LpNormalization"),
        *("Softmax", "LogSoftmax", "Softplus", "CumSum", "Range", "Resize"),
        *("ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"),
        *("ReduceLogSumExp", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Tan", "Erf"),
    }
)
MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Tile", "Slice", "Split", "Concat"),
        *("Gather", "Identity", "Pad"),
    }
)
SCALED = frozenset({"Mul", "Div", "Gather", *PRODUCTS, *NORMS})  # a faint constant makes their whole result faint
BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
MASK = 3  # input of Attention

MARGIN = 4.0  # other inputs than those seen may go so many times farther
OFFSET = 8.0  # |mean| over deviation of a row, above which a LayerNormalization reads float32
ANGLE = 2**-6  # radians that rounding may turn an angle by
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_ANGLES = frozenset({"Sin", "Cos", "Tan"})


@dataclass(frozen=True)
class Extents:
    """How large the values of a graph are: bounds by rules, and what was seen on data (None: there were none)."""

    half: HalfType
    bounds: Bounds
    seen: Ranges | None = None

    def misfit(self, value: ir.Value) -> str:
        """Why half does not hold `value`, in words; '' if it does, or nothing is known of it."""
        bound = self.bounds.get(value)
        peak = self.seen.peak(value) if self.seen is not None else None
        if peak is not None and 0 < peak < self.half.smallest:
            return f"is at most {peak:.2g}, {self.half} is exact from {self.half.smallest:.2g} on"
        if bound is not None and bound.peak <= self.half.largest:
            return ""
        if peak is not None:
            large = peak * MARGIN > self.half.largest
            return f"reaches {peak:.3g}, {self.half} ends at {self.half.largest:.5g}" if large else ""
        return f"may reach {bound.peak:.3g}, {self.half} ends at {self.half.largest:.5g}" if bound is not None else ""


@dataclass
class Plan:
    """The ops that compute in half; and of those that might but do not, why."""

    half: set[ir.Node] = field(default_factory=set)
    islands: dict[ir.Node, str] = field(default_factory=dict)


class Planner:
    """Decides op by op, in the order of the graph."""

    def __init__(self, graph: ir.Graph, opset: int, weights: Weights, extents: Extents) -> None:
        self.graph, self.opset, self.weights, self.extents = graph, opset, weights, extents
        found = (value for node in graph for value in (*node.inputs, *node.outputs))
        self.floats = {value for value in found if value is not None and is_float(value)}
        self.plan = Plan()
        self.values: set[ir.Value] = set()  # that are half
        self.wide: set[ir.Value] = set()  # computed with a constant that overflows
        self.demands = self._demands()
        self.scores = _scores(graph)
        self.moved = self._moved()

    def run(self) -> Plan:
        """The whole plan."""
        for node in self.graph:
            if self._in_half(node):
                self.plan.half.add(node)
                self.values.update(value for value in node.outputs if value in self.floats)
        return self.plan

    def _in_half(self, node: ir.Node) -> bool:
        inputs = [value for index, value in enumerate(node.inputs) if value in self.floats and not is_mask(node, index)]
        operands = [value for value in inputs if value is not None]
        sensitive = node.op_type in SENSITIVE or node.op_type in BODIES or node in self.scores
        if not operands or sensitive or not self._is_typed(node):
            return False
        overflows = any(weight.overflows for weight in map(self.weights.look, operands) if weight is not None)
        if node.op_type not in PRODUCTS and (overflows or not self.wide.isdisjoint(operands)):
            self.wide.update(node.outputs)
            return False
        reason = self._reason(node, operands)
        computed = [value for value in operands if not is_constant(value)]
        # a table of embeddings is half the size and read in half; other ops on constants alone were folded
        wanted = (
            node.op_type in PRODUCTS
            or node in self.moved
            or any(value in self.values for value in computed)
            or (not computed and node.op_type == "Gather")
        )
        if wanted and reason:
            self.plan.islands[node] = reason
        divides = node.op_type == "Div" and node.inputs[1] in computed and node.inputs[1] not in self.values
        return wanted and not reason and not divides

    def _reason(self, node: ir.Node, operands: list[ir.Value]) -> str:
        """Why an op that half would suit stays float32; '' if it need not."""
        for value in operands:
            weight = self.weights.look(value)
            if weight is not None and weight.overflows:
                return f"its constant {value.name} holds {weight.peak:.3g}"
            if weight is not None and weight.is_lost and node.op_type not in PRODUCTS:
                return f"its constant {value.name} is {weight.peak:.3g}"
            if weight is not None and node.op_type in SCALED and weight.is_faint(self.extents.half):
                return f"its constant {value.name} is at most {weight.peak:.3g}"
        if node in self.demands:
            return self.demands[node]
        for value in (*operands, *(value for value in node.outputs if value in self.floats)):
            if not is_constant(value) and (reason := self.extents.misfit(value)):
                return f"{'its result' if value in node.outputs else 'what it reads'} {reason}"
        if node.op_type in PRODUCTS and any(value in self.wide and not self._was_seen(value) for value in operands):
            return "what it reads comes of a constant that overflows"
        return ""

    def _was_seen(self, value: ir.Value) -> bool:
        return self.extents.seen is not None and self.extents.seen.peak(value) is not None

    def _is_typed(self, node: ir.Node) -> bool:
        """Whether the op's schema takes half for each float32 input, and types each float32 output as one of these."""
        if node.domain != "" or not onnx.defs.has(node.op_type, self.opset, ""):
            return False
        schema, half = onnx.defs.get_schema(node.op_type, self.opset, ""), f"tensor({self.extents.half})"
        last_in, last_out = len(schema.inputs) - 1, len(schema.outputs) - 1  # the last may stand for many
        inputs = [schema.inputs[min(i, last_in)] for i, value in enumerate(node.inputs) if value in self.floats]
        outputs = [schema.outputs[min(i, last_out)] for i, value in enumerate(node.outputs) if value in self.floats]
        others = [value for value in node.outputs if isinstance(value.type, ir.SequenceType | ir.OptionalType)]
        types = {parameter.type_str for parameter in inputs}
        return (
            not others
            and all(half in parameter.types for parameter in inputs)
            and all(parameter.type_str in types for parameter in outputs)
        )

    def _demands(self) -> dict[ir.Node, str]:
        """Ops whose results must be exact, with the reason."""
        found: dict[ir.Node, str] = {}
        for node in self.graph:
            if node.domain == "" and node.op_type in _ANGLES and not self._is_small(node.inputs[0]):
                found |= dict.fromkeys(_sources(node.inputs[0], self.floats, products=True), "its result is an angle")
        seen = self.extents.seen
        for node in self.graph if seen is not None else ():
            name = str(node.outputs[0].name)
            score, offset = seen.scores.get(name, 0.0), seen.offsets.get(name, 0.0)  # type: ignore[union-attr]
            if score * self.extents.half.error > 1 or score * MARGIN > self.extents.half.largest:
                reason = f"scores of the attention reach {score:.3g}"
                makers = [n for value in node.inputs[:2] for n in _sources(value, self.floats, products=True)]
                found |= dict.fromkeys([node, *makers], reason)
            if offset > OFFSET:
                reason = f"rows in front of a norm have a mean of {offset:.3g} times their deviation"
                found |= dict.fromkeys([node, *_sources(node.inputs[0], self.floats, products=False)], reason)
        return found

    def _is_small(self, angle: ir.Value | None) -> bool:
        """Whether rules, not data, say that half is exact enough: positions grow with the length of the input."""
        bound = self.extents.bounds.get(angle) if angle is not None else None
        return bound is not None and bound.peak * self.extents.half.error < ANGLE

    def _moved(self) -> set[ir.Node]:
        """Ops that only move what products (or ops of this kind) alone read: half, cast once in front."""
        found: set[ir.Node] = set()
        for node in reversed(self.graph):
            results = [value for value in node.outputs if value in self.floats]
            readers = [reader for value in results for reader in value.consumers()]
            fits = node.domain == "" and node.op_type in MOVES and node not in self.demands and readers
            if fits and all(
                reader in found or (reader.op_type in PRODUCTS and reader.domain == "" and reader not in self.demands)
                for reader in readers
            ):
                found.add(node)
        return found


def _sources(value: ir.Value | None, floats: set[ir.Value], products: bool) -> Iterator[ir.Node]:
    """The ops that `value` comes of, back to norms, sensitive ops and, themselves included, products.

    Without `products` these are left out, but for those that add a bias.
    """
    ahead, seen = [value], set[ir.Node]()
    while ahead:
        value = ahead.pop()
        node = value.producer() if value is not None and value in floats else None
        if node is None or node in seen or node.domain != "" or node.op_type in (*SENSITIVE, *NORMS, *BODIES, "Cast"):
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            biased = node.op_type in ("Gemm", "Conv", "ConvTranspose") and len(node.inputs) > 2
            if (products and node.op_type != "Attention") or biased:
                yield node
            continue
        yield node
        ahead += node.inputs


def _scores(graph: ir.Graph) -> set[ir.Node]:
    """Elementwise ops whose every reader is Softmax, or one of them."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        readers = node.outputs[0].consumers()
        inner = node.op_type in ("Add", "Sub", "Mul", "Div", "Where") and not node.outputs[0].is_graph_output()
        if inner and readers and all(reader.op_type in _SOFTMAX or reader in found for reader in readers):
            found.add(node)
    return found


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` is a tensor of float32."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def is_mask(node: ir.Node, index: int) -> bool:
    """Whether the input is the mask of an Attention."""
    return node.op_type == "Attention" and node.domain == "" and index == MASK
