"""float16 or bfloat16, strongly typed: every cast is in the graph; inputs and outputs keep their types.

Each float32 op falls into one of three classes. *Products* (where the time goes) compute in half. *Sensitive* ops (sums
over many terms, exponentials, norms, softmax) always compute in float32. Everything else follows its computed inputs:
half as soon as one of them is half, but for sums, products and choices that Softmax alone reads: the masks among them
may hold float32's lowest number, which must not become -inf.

Legal cases: 1. graphs without If, Loop and Scan bodies, all types known; 2. an op whose ONNX schema takes and gives the
half type, else it stays float32; 3. constants are rounded to the nearest, and an op stays float32 where a constant
would overflow or, in other ops than products, being a single number, lose more than 0.1 % (an epsilon of 1e-12 would
become 0). What comes out of an op with such an overflowing constant may not fit either (a mask of the lowest number):
the ops behind it stay float32 too, up to the next product or sensitive op. An additive mask of an Attention is clipped
into the range of half: float32's lowest value must not become -inf, which a row of padding would turn into NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ...errors import BuildError
from ..base import GraphPass
from ..lift.values import add_constant, constant, insert
from ..sites import SiteLog, path_of

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "Einsum"})
SENSITIVE = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"),
        *("BatchNormalization", "LpNormalization", "Softmax", "LogSoftmax", "Softplus", "CumSum", "Range", "Resize"),
        *("ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"),
        *("ReduceLogSumExp", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Tan", "Erf"),
    }
)
BODIES = frozenset({"If", "Loop", "Scan"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
MASK = 3  # input of Attention
_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}


@dataclass
class _State:
    """What is known of one graph on the way through it."""

    graph: ir.Graph
    opset: int
    floats: set[ir.Value]  # float32 before this pass
    wide: set[ir.Value] = field(default_factory=set)  # float32 for what half cannot hold
    scores: set[ir.Node] = field(default_factory=set)  # ops that only Softmax reads in the end
    casts: dict[tuple[ir.Value, ir.DataType, bool], ir.Value] = field(default_factory=dict)


class HalfPrecision(GraphPass):
    """float32 -> `dtype` wherever it is safe."""

    def __init__(self, dtype: ir.DataType, log: SiteLog | None = None) -> None:
        super().__init__(log)
        self.half = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for node in graph:
            if node.op_type in BODIES:
                raise BuildError(
                    f"{node.op_type} {node.name!r} has a body, which cannot be lowered to {self.half.name} in this "
                    "version: unroll it, or ask for fp32."
                )
        ShapeInferencePass()(model)
        _check_types(graph)
        floats = {value for node in graph for value in (*node.inputs, *node.outputs) if _is_float(value)}
        state = _State(graph, model.opset_imports[""], {value for value in floats if value is not None})
        state.scores = _scores(graph)
        for node in list(graph):
            if node.op_type != "Cast":  # says its own type, and takes any
                self._type(state, node)
        self._keep_outputs(state)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, True)

    def _type(self, state: _State, node: ir.Node) -> None:
        wanted = self.half if self._in_half(state, node) else ir.DataType.FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value in state.floats and value.dtype != wanted:
                clip = wanted == self.half and _is_mask(node, index)
                node.replace_input_with(index, self._cast(state, node, value, wanted, clip))
        if wanted == self.half:
            for value in node.outputs:
                if value in state.floats:
                    value.type = ir.TensorType(wanted)  # not .dtype: clones of a graph share their type objects

    def _in_half(self, state: _State, node: ir.Node) -> bool:
        inputs = [
            value
            for index, value in enumerate(node.inputs)
            if value is not None and value in state.floats and not _is_mask(node, index)
        ]
        if not inputs or node.op_type in SENSITIVE or node in state.scores or not self._is_typed(state, node):
            return False
        overflows = any(self._overflows(value) for value in inputs)
        if node.op_type in PRODUCTS:
            return not overflows
        if overflows or not state.wide.isdisjoint(inputs):
            state.wide.update(node.outputs)
            return False
        computed = [value for value in inputs if constant(value) is None]
        # a table of embeddings is half the size and read in half; other ops on constants alone were folded
        wanted = any(value.dtype == self.half for value in computed) or (not computed and node.op_type == "Gather")
        return wanted and not any(self._vanishes(value) for value in inputs)

    def _is_typed(self, state: _State, node: ir.Node) -> bool:
        """Whether the op's schema takes half for each float32 input, and types each float32 output as one of these."""
        if node.domain != "" or not onnx.defs.has(node.op_type, state.opset, ""):
            return False
        schema, half = onnx.defs.get_schema(node.op_type, state.opset, ""), f"tensor({self.half.name.lower()})"
        last_in, last_out = len(schema.inputs) - 1, len(schema.outputs) - 1  # the last may stand for many
        inputs = [schema.inputs[min(i, last_in)] for i, value in enumerate(node.inputs) if value in state.floats]
        outputs = [schema.outputs[min(i, last_out)] for i, value in enumerate(node.outputs) if value in state.floats]
        others = [value for value in node.outputs if isinstance(value.type, ir.SequenceType | ir.OptionalType)]
        types = {parameter.type_str for parameter in inputs}
        return (
            not others
            and all(half in parameter.types for parameter in inputs)
            and all(parameter.type_str in types for parameter in outputs)
        )

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return array.astype(_NUMPY[self.half]).astype(np.float32)

    def _overflows(self, value: ir.Value) -> bool:
        array = constant(value)
        return array is not None and bool(np.any(np.isfinite(array) & ~np.isfinite(self._rounded(array))))

    def _vanishes(self, value: ir.Value) -> bool:
        """Whether a single number loses more than its type's normal rounding: it is too small for it."""
        array = constant(value)
        if array is None or array.size != 1:
            return False
        # bfloat16 keeps 8 bits: 0.4 % is its normal rounding
        allowed = 1e-3 if self.half == ir.DataType.FLOAT16 else 4e-3
        return not np.allclose(self._rounded(array), array, rtol=allowed, atol=0, equal_nan=True)

    def _cast(self, state: _State, node: ir.Node, value: ir.Value, dtype: ir.DataType, clip: bool) -> ir.Value:
        """`value` as `dtype`: a converted constant, or one Cast that all readers share."""
        if (value, dtype, clip) in state.casts:
            return state.casts[value, dtype, clip]
        array = constant(value)
        limit = np.float32(ml_dtypes.finfo(_NUMPY[self.half]).max)  # type: ignore[no-untyped-call]
        if array is not None and dtype == self.half:
            array, name = (np.clip(array, -limit, limit), "clipped.") if clip else (array, "")
            with np.errstate(over="ignore"):
                array = array.astype(_NUMPY[dtype])
            made = add_constant(state.graph, f"{value.name}.{name}{dtype.name.lower()}", array)
        else:
            source = value
            if clip:
                bounds = (("min", -limit), ("max", limit))
                ends = [add_constant(state.graph, f"half.{name}", np.array(bound)) for name, bound in bounds]
                source = insert(node, "Clip", [value, *ends])
                source.shape, source.type = value.shape, value.type
            made = insert(node, "Cast", [source], to=int(dtype))
            made.shape, made.type = value.shape, ir.TensorType(dtype)
        state.casts[value, dtype, clip] = made
        return made

    def _keep_outputs(self, state: _State) -> None:
        """Outputs stay float32 under their names."""
        graph = state.graph
        for index, value in enumerate(list(graph.outputs)):
            if value in state.floats and value.dtype == self.half:
                name, value.name = value.name, f"{value.name}.{self.half.name.lower()}"
                cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
                cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
                cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]


def _scores(graph: ir.Graph) -> set[ir.Node]:
    """Elementwise ops whose every reader is Softmax, or one of them."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        readers = node.outputs[0].consumers()
        inner = node.op_type in ("Add", "Sub", "Mul", "Div", "Where") and not node.outputs[0].is_graph_output()
        if inner and readers and all(reader.op_type in _SOFTMAX or reader in found for reader in readers):
            found.add(node)
    return found


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _is_mask(node: ir.Node, index: int) -> bool:
    return node.op_type == "Attention" and node.domain == "" and index == MASK


def _check_types(graph: ir.Graph) -> None:
    for node in graph:
        if node.domain == "" and any(value.type is None for value in node.outputs if value.name):
            raise BuildError(f"The type of what {node.op_type} at {path_of(node)} gives could not be inferred.")
