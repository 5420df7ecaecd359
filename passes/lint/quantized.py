"""What every rule about Q/DQ asks of a node."""

from __future__ import annotations

import onnx_ir as ir

from ..lift.values import constant, consumers, is_constant, producer

DataType = ir.DataType
Q, DQ = "QuantizeLinear", "DequantizeLinear"


def argument(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def stored(node: ir.Node) -> DataType | None:
    """The type that a Q or DQ stores numbers in."""
    if node.op_type == DQ:
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    zero = argument(node, 2)
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    asked = node.attributes.get_int("output_dtype", 0)
    return DataType(asked) if asked else DataType.UINT8


def quantizes_activation(node: ir.Node) -> bool:
    """Whether a Q or DQ is of a tensor that is computed."""
    source = producer(node.inputs[0], Q) if node.op_type == DQ else None
    return not is_constant(source.inputs[0] if source is not None else node.inputs[0])


def numbers(value: ir.Value | None) -> list[float]:
    """A constant's numbers, flat; none where it is no constant."""
    array = constant(value)
    return [] if array is None else array.astype(float).reshape(-1).tolist()


def dequantized(node: ir.Node) -> list[ir.Node]:
    """The DQs that feed a node."""
    found = [producer(value, DQ) for value in node.inputs]
    return [dq for dq in found if dq is not None]


def read_by(node: ir.Node, op_type: str) -> bool:
    """Whether a standard op of that name reads the node's first output."""
    return any(reader.domain == "" and reader.op_type == op_type for reader in consumers(node.outputs[0]))


def feeds_q(node: ir.Node) -> bool:
    """Whether a Q reads the node's first output."""
    return read_by(node, Q)
