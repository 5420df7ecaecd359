"""Regions of elementwise ops read as a function of one tensor: run on sample points, whatever the order of the ops.

From a core (an Erf, a Tanh, a Sigmoid, ...) the region grows forward through ops whose other operand is a constant of
one element, the region's input, or inside the region, until it is one of the functions that are looked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .values import consumers, rank, scalar

# Where erf, tanh and the like bend; float64, so that equality is equality of functions
POINTS = np.concatenate([np.linspace(-6.0, 6.0, 97), [-20.0, -1e-3, 1e-3, 20.0]])
# Exporters write sqrt(2) and its kin with 6 to 17 digits: 1e-5 covers the shortest. In a half type each constant of a
# region may be off by one rounding, 2**-11 or 2**-8; the other activations are off by more than 1e-2.
TOLERANCE = 1e-5
HALVES = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
DEPTH = 16  # no spelling of an activation is deeper
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

Known = dict[ir.Value, np.ndarray | None]
Forms = Mapping[str, np.ndarray]  # names of functions, and what they are on POINTS

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Cast": np.positive,  # between float types: `_is_elementwise`
    "Erf": erf,
    "Exp": np.exp,
    "Tanh": np.tanh,
    "Sigmoid": sigmoid,
    "Clip": lambda x, low=-np.inf, high=np.inf: np.clip(x, low, high),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
}


@dataclass(frozen=True)
class Region:
    """How far the ops behind a core could be read as a function of one tensor."""

    end: ir.Node
    steps: int
    form: str = ""  # the function that it is
    reason: str = ""


def grow(core: ir.Node, source: ir.Value, forms: Forms, name: str) -> Region:
    """The region of `core` over `source`, as far as it goes: it ends where it is one of `forms`."""
    known: Known = {source: POINTS}
    result, node, steps = evaluate(core.outputs[0], known), core, 0
    while result is not None:
        made = node.outputs[0]
        for form, wanted in forms.items():
            if equal(result, wanted, source.dtype) and rank(made) == rank(source) and made.dtype is source.dtype:
                return Region(node, steps, form)
        if made.is_graph_output() or len(consumers(made)) != 1:
            reason = f"{node.op_type}, before the {name} is complete, is read by several nodes or is an output"
            return Region(node, steps, "", reason)
        node = consumers(made)[0]
        if not _is_elementwise(node):
            return Region(node, steps, "", f"the function that ends before {node.op_type} is no {name}")
        result, steps = evaluate(node.outputs[0], known), steps + 1
    reason = f"{node.op_type} has an operand that is neither a constant nor the {name}'s input"
    return Region(node, steps - 1, "", reason)


def sources(core: ir.Node, limit: int = 12) -> list[ir.Value]:
    """Values that the argument of `core` is computed from by elementwise ops, nearest first."""
    found: dict[ir.Value, None] = {}
    ahead = [core.inputs[0]]
    while ahead and len(found) < limit:
        value = ahead.pop(0)
        if value is None or value in found or scalar(value) is not None:
            continue
        found[value] = None
        node = value.producer()
        if node is not None and _is_elementwise(node):
            ahead.extend(node.inputs)
    return list(found)


def argument(core: ir.Node, source: ir.Value) -> np.ndarray | None:
    """What `core` is fed with, as a function of `source`."""
    return evaluate(core.inputs[0], {source: POINTS})


def equal(result: np.ndarray, wanted: np.ndarray, dtype: ir.DataType | None) -> bool:
    """Whether two functions are the same on the sample points, as far as constants of `dtype` tell."""
    tolerance = HALVES.get(dtype, TOLERANCE) if dtype is not None else TOLERANCE
    return bool(np.allclose(result, wanted, rtol=tolerance, atol=tolerance))


def evaluate(value: ir.Value | None, known: Known, depth: int = DEPTH) -> np.ndarray | None:
    """`value` on the sample points, as a function of the region's input; None if it is not one."""
    if value is None or depth == 0:
        return None
    if value in known:
        return known[value]
    number = scalar(value)
    if number is not None:
        return np.float64(number) * np.ones(())
    node = value.producer()
    if node is None or not _is_elementwise(node):
        return None
    operands = [evaluate(operand, known, depth - 1) for operand in node.inputs if operand is not None]
    known[value] = None
    if all(operand is not None for operand in operands):
        with np.errstate(all="ignore"):
            known[value] = _ELEMENTWISE[node.op_type](*operands, **_options(node))
    return known[value]


def _is_elementwise(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return all(value is not None and value.dtype in FLOATS for value in (node.inputs[0], node.outputs[0]))
    # an input that is left out stands before another only in a Clip without a lower bound
    return node.domain == "" and node.op_type in _ELEMENTWISE and None not in node.inputs


def _options(node: ir.Node) -> dict[str, float]:
    if node.op_type != "HardSigmoid":
        return {}
    return {"alpha": node.attributes.get_float("alpha", 0.2), "beta": node.attributes.get_float("beta", 0.5)}
