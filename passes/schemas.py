"""What the operators' schemas allow of a node, at any opset."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir


def misfit(node: ir.Node, version: int) -> str:
    """What of a standard node its schema at opset `version` does not allow, in words; empty if it is legal."""
    schema = schema_of(node.op_type, version)
    if schema is None or schema.deprecated:
        return f"opset {version} has no such op"
    unknown = set(node.attributes) - set(schema.attributes)
    if unknown:
        return f"it has no attribute {sorted(unknown)[0]!r} there"
    missing = [name for name, known in schema.attributes.items() if known.required and name not in node.attributes]
    if missing:
        return f"it needs the attribute {missing[0]!r} there"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return f"it takes {schema.min_input} to {schema.max_input} inputs there, not {len(node.inputs)}"
    if len(node.outputs) > schema.max_output:
        return f"it has at most {schema.max_output} outputs there, not {len(node.outputs)}"
    return ""


@cache
def schema_of(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """The schema of a standard op; None if that opset has no such op."""
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None
