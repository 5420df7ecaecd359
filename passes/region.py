"""A part of a graph by itself: the nodes between leaves and results, as a model of its own that runs at small sizes.

Translation validation runs it (prover.py), and masks are read by it. Half precisions become float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..errors import GraphwrightError
from ..runtimes.ort_cpu import PROVIDER, OrtSession

LOWEST = -1e4  # added to a score, this or less leaves no weight
LARGEST = 400  # nodes in a region; a site is a few dozen

# How far the dims that a graph tells are believed, one after the other until a region can be run: as they are; only
# those said in the names of the inputs' dims, since inference makes up different names for equal sizes; with one size
# for all unknown dims of one axis, and with one for all but the first, which fits most sites of files that tell no
# shapes.
Trust = Literal["all", "inputs", "axes", "lengths"]
TRUST: tuple[Trust, ...] = ("all", "inputs", "axes", "lengths")

Functions = Mapping[ir.OperatorIdentifier, ir.Function]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_HALVES = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}  # and one rounding of each


class UnprovableError(GraphwrightError):
    """A region that cannot be run by itself."""


class Region:
    """The nodes between leaves and results, in order, and everything that flows in."""

    def __init__(
        self,
        old: ir.Value,
        new: ir.Value,
        leaves: list[ir.Value],
        rows: Rows | None = None,
        trust: Trust = "all",
        kept: Iterable[ir.Value] = (),
    ) -> None:
        self.trust = trust
        self.names_of_inputs = _names_of_inputs(old) if trust == "inputs" else None
        self.rows = rows
        self.results = {"old": old, "new": new}
        if rows is not None:
            self.results |= {"mask": rows.mask, "attention": new if rows.attention is None else rows.attention}
        # a leaf whose shape is not known cannot be drawn: what it is computed from takes its place
        self.leaves = dict.fromkeys(leaf for leaf in leaves if self._is_known(leaf) or leaf.producer() is None)
        self.constants: dict[ir.Value, None] = {}
        self._reaches: dict[ir.Value, bool] = dict.fromkeys([*leaves, *kept], True)
        self._sized: dict[ir.Value, bool] = {}
        found: dict[ir.Node, None] = {}
        for value in self.results.values():
            self._collect(value, found)
        self.nodes = list(found)

    def _collect(self, value: ir.Value, found: dict[ir.Node, None], depth: int = 0) -> None:
        """Producers of `value` down to the leaves, each after its own producers."""
        node = value.producer()
        if value in self.leaves or (node is not None and node in found):
            return
        if value.const_value is not None and node is None:
            self.constants[value] = None
            return
        is_data = value.dtype in (*_FLOATS, *_HALVES, ir.DataType.BOOL)
        free = is_data and self._is_known(value) and not self._reaches_leaf(value)
        if node is None or (free and not self._follows_from_sizes(value)):
            # an input of the graph, or data that the site only reads: any values will do, the same for both
            self.leaves[value] = None
            return
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is not None and source.producer() not in found and not self._reaches_leaf(source):
            self.leaves[source] = None
        if len(found) + depth > LARGEST:
            raise UnprovableError(f"its region has more than {LARGEST} nodes")
        for operand in node.inputs:
            if operand is not None:
                self._collect(operand, found, depth + 1)
        found[node] = None

    def _reaches_leaf(self, value: ir.Value) -> bool:
        """Whether `value` is computed from a leaf."""
        return _settle(value, self._reaches, lambda _, operands: any(operands))

    def _follows_from_sizes(self, value: ir.Value) -> bool:
        """Whether `value` is computed from constants and sizes alone: a causal mask is what it is, and not drawn."""

        def follows(value: ir.Value, operands: list[bool]) -> bool:
            return value.const_value is not None or (value.producer() is not None and all(operands))

        return _settle(value, self._sized, follows)

    def _is_known(self, value: ir.Value) -> bool:
        if value.shape is None or self.trust in ("axes", "lengths"):
            return value.shape is not None
        return all(isinstance(d, int) or (d.value is not None and self._is_trusted(d)) for d in value.shape)

    def _is_trusted(self, dim: ir.SymbolicDim) -> bool:
        return self.names_of_inputs is None or self.names_of_inputs.issuperset(names_in(dim))

    def dims(self, leaf: ir.Value) -> list[int | ir.SymbolicDim]:
        """The dims of a leaf; an unknown one that is guessed bears the name of its axis. Raises UnprovableError."""
        if leaf.shape is None or not self._is_known(leaf):
            raise UnprovableError(f"the shape of {leaf.name!r} is not known: {leaf.shape}")
        return [
            d if isinstance(d, int) or d.value is not None else ir.SymbolicDim(f"axis{self._guess(axis)}")
            for axis, d in enumerate(leaf.shape)
        ]

    def _guess(self, axis: int) -> int:
        return axis if self.trust == "axes" else min(axis, 1)

    def feeds(self, bound: Mapping[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
        """Random values of the leaves, their dims bound to sizes."""
        return {
            f"leaf{index}": _draw(leaf, [size_of(dim, bound) for dim in self.dims(leaf)], random)
            for index, leaf in enumerate(self.leaves)
        }

    def bind(self, bound: dict[str, int]) -> dict[str, int]:
        """`bound`, enlarged until every dim of a leaf has a size: of a convolution's length little is left."""
        dims = [dim for leaf in self.leaves for dim in self.dims(leaf)]
        for factor in (1, 16, 256, 4096):
            larger = {name: size * factor for name, size in bound.items()}
            if all(size_of(dim, larger) > 0 for dim in dims):
                return larger
        raise UnprovableError("its dims have no size at any small size of the inputs")

    def rounding(self) -> float:
        """One rounding of the type that the results have in the graph; of float32 it is left to the tolerance."""
        return _HALVES.get(self.results["old"].dtype or ir.DataType.FLOAT, 0.0)

    def open(self, functions: Functions) -> OrtSession:
        """The region as a session, all optimizations off. Raises UnprovableError where ONNX Runtime refuses it."""
        try:
            return OrtSession(self.model(functions), [PROVIDER], optimize=False)
        except GraphwrightError as error:
            raise UnprovableError(str(error)) from error

    def names(self) -> list[str]:
        """The free names in the leaves' dims."""
        dims = [dim for leaf in self.leaves for dim in self.dims(leaf) if not isinstance(dim, int)]
        return sorted({name for dim in dims for name in names_in(dim)})

    def digest(self) -> str:
        """SHA-256 of the structure: ops, attributes, wiring, constants, and what is known of the leaves."""
        numbers = {value: index for index, value in enumerate((*self.leaves, *self.constants))}
        total = hashlib.sha256()
        for leaf in self.leaves:
            total.update(f"{leaf.dtype} {[str(dim) for dim in self.dims(leaf)]}".encode())
        for value in self.constants:
            assert value.const_value is not None
            array = value.const_value.numpy()
            total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        for node in self.nodes:
            wiring = [numbers.get(operand) if operand is not None else None for operand in node.inputs]
            attributes = sorted((name, _text(attribute)) for name, attribute in node.attributes.items())
            total.update(f"{node.domain}.{node.op_type} {wiring} {attributes}".encode())
            for value in node.outputs:
                numbers[value] = len(numbers)
        total.update(repr([numbers[value] for value in self.results.values()]).encode())
        return total.hexdigest()

    def model(self, functions: Functions) -> bytes:
        """The region by itself: leaves in, the two results out; with those of `functions` that it calls."""
        values: dict[ir.Value, ir.Value] = {}
        for index, leaf in enumerate(self.leaves):
            values[leaf] = ir.Value(
                name=f"leaf{index}", type=_proved_type(leaf), shape=ir.Shape([None] * len(self.dims(leaf)))
            )
        for index, constant in enumerate(self.constants):
            values[constant] = ir.Value(name=f"constant{index}", const_value=_proved_constant(constant))
        nodes = [_copy(node, values, index) for index, node in enumerate(self.nodes)]
        opsets = [node.graph.opset_imports.get("", 23) for node in self.nodes if node.graph is not None]
        outputs = []
        for name, value in self.results.items():
            node = ir.node("Identity", [values[value]])
            node.outputs[0].name, node.outputs[0].type = name, _proved_type(value)
            nodes.append(node)
            outputs.append(node.outputs[0])
        graph = ir.Graph(
            [values[leaf] for leaf in self.leaves],
            outputs,
            nodes=nodes,
            initializers=[values[constant] for constant in self.constants],
            opset_imports={"": max(opsets, default=23), **{node.domain: 1 for node in nodes if node.domain}},
            name="region",
        )
        called = [function.clone() for function in _called(nodes, functions)]
        data: bytes = ir.to_proto(ir.Model(graph, ir_version=10, functions=called)).SerializeToString()
        return data


def _names_of_inputs(value: ir.Value) -> set[str]:
    """Names of the dims of the graph's inputs."""
    node = value.producer()
    inputs = node.graph.inputs if node is not None and isinstance(node.graph, ir.Graph) else ()
    dims = [dim for operand in inputs for dim in operand.shape or () if not isinstance(dim, int)]
    return {name for dim in dims if dim.value is not None for name in names_in(dim)}


def _called(nodes: Iterable[ir.Node], functions: Functions) -> list[ir.Function]:
    """Those of `functions` that the nodes call, or that these call."""
    found: dict[ir.OperatorIdentifier, ir.Function] = {}
    ahead = list(nodes)
    while ahead:
        key = ahead.pop().op_identifier()
        if key in functions and key not in found:
            found[key] = functions[key]
            ahead += functions[key]
    return list(found.values())


def _settle(value: ir.Value, known: dict[ir.Value, bool], told: Callable[[ir.Value, list[bool]], bool]) -> bool:
    """What is `told` of a value from the same about its operands, but for sizes; of each value once, however deep."""
    ahead = [value]
    while ahead:
        node = ahead[-1].producer()
        reads = node is not None and node.op_type not in ("Shape", "Size")
        operands = [v for v in node.inputs if v is not None] if node is not None and reads else []
        if ahead[-1] in known or all(operand in known for operand in operands):
            last = ahead.pop()
            known[last] = known[last] if last in known else told(last, [known[operand] for operand in operands])
        else:
            ahead += [operand for operand in operands if operand not in known]
    return known[value]


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], index: int) -> ir.Node:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        raise UnprovableError(f"{node.op_type} has a body")
    attributes = [_proved_attribute(attribute) for attribute in node.attributes.values()]
    copied = ir.Node(
        node.domain,
        node.op_type,
        [None if operand is None else values[operand] for operand in node.inputs],
        attributes,
        num_outputs=len(node.outputs),
        name=f"node{index}",
    )
    for number, (value, output) in enumerate(zip(node.outputs, copied.outputs, strict=True)):
        output.name = f"value{index}_{number}"
        values[value] = output
    return copied


def _proved_attribute(attribute: ir.Attr) -> ir.Attr:
    """Casts to a half type become casts to float32."""
    if attribute.name == "to" and attribute.as_int() in [int(half) for half in _HALVES]:
        return ir.AttrInt64("to", int(ir.DataType.FLOAT))
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
        return ir.AttrTensor(attribute.name, ir.tensor(attribute.as_tensor().numpy().astype(np.float32)))
    return attribute


def _proved_type(value: ir.Value) -> ir.TensorType:
    if value.dtype is None:
        raise UnprovableError(f"the type of {value.name!r} is not known")
    return ir.TensorType(ir.DataType.FLOAT if value.dtype in _HALVES else value.dtype)


def _proved_constant(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    if value.const_value.dtype in _HALVES:
        return ir.tensor(value.const_value.numpy().astype(np.float32))
    return value.const_value


def _text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        array = attribute.as_tensor().numpy()
        return f"{array.dtype}{array.shape}{array.tobytes()!r}"
    return repr(attribute.value)


def names_in(dim: ir.SymbolicDim) -> Iterable[str]:
    """The free names in a dim."""
    try:
        return dim.free_symbols()
    except ValueError:  # no expression: a name that another tool gave
        return [str(dim.value)]


def size_of(dim: int | ir.SymbolicDim, bound: Mapping[str, int]) -> int:
    """The size of a dim with its names bound. Raises UnprovableError where one is missing."""
    if isinstance(dim, int):
        return dim
    size = bound.get(str(dim.value)) or dim.evaluate(bound)
    if not isinstance(size, int):
        raise UnprovableError(f"the dim {dim.value!r} cannot be worked out")
    return size


def _draw(leaf: ir.Value, shape: list[int], random: np.random.Generator) -> np.ndarray:
    """Random values of a leaf."""
    dtype = _proved_type(leaf).dtype.numpy()
    if dtype == np.bool_:
        return np.asarray(random.random(shape) < 0.6)
    if np.issubdtype(dtype, np.integer):
        # a single one is most often a length, of which 0 leaves nothing to compare
        drawn = np.ones(shape) if np.prod(shape) == 1 else random.integers(0, 2, shape)
        return np.asarray(drawn).astype(dtype)
    return np.asarray(random.standard_normal(shape)).astype(dtype)


@dataclass(frozen=True)
class Rows:
    """What tells of an attention's result which rows are undefined: those of queries that the mask allows no key.

    `mask` broadcasts to [batch, heads, queries, keys]; `attention` is [batch, heads, queries, size]. The result that is
    proved may lie in another shape; `flipped`: with its last two axes swapped.
    """

    mask: ir.Value
    attention: ir.Value | None = None  # None: the result itself
    flipped: bool = False

    def undefined(self, results: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where the result "old" is undefined, as booleans that broadcast to it."""
        mask, old = results["mask"], results["old"]
        allows = np.asarray((mask if mask.dtype == np.bool_ else mask > LOWEST).any(axis=-1))
        left_out = ~np.broadcast_to(allows, results["attention"].shape[:-1])
        if self.flipped:
            return left_out.reshape(*old.shape[:-2], 1, old.shape[-1])
        return left_out.reshape(*old.shape[:-1], 1)


def evaluate(
    value: ir.Value, sizes: Iterable[tuple[int, Mapping[str, int]]], functions: Functions
) -> Iterator[np.ndarray | None]:
    """A value that follows from sizes alone at each of `sizes`: that of all other dims, and those of named ones.

    None where it cannot be run at these: a table of positions ends somewhere. Nothing where it cannot be run at all.
    """
    try:
        region = Region(value, value, [])
        names = region.names()
        session = region.open(functions)
    except UnprovableError:
        return
    random = np.random.default_rng(0)
    with session:
        for others, bound in sizes:
            try:
                yield session.run(region.feeds({**dict.fromkeys(names, others), **bound}, random))["old"]
            except GraphwrightError:
                yield None
