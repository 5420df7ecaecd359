"""Einsum of two tensors -> MatMul of views of them.

    Einsum(a, b; "bihd,bjhd->bhij")   ->   MatMul(Transpose(a), Transpose(b))

What is a product of matrices should be one: rules, quantization and most backends know `MatMul` alone. Legal cases:
1. two operands, no label twice in one of them, no ellipsis; 2. every label that is summed is in both; 3. at most one
summed label, and it is there; 4. each side has labels of its own: several of them are merged by a Reshape, whose sizes
are known or read off the operands, and split again behind.

Source of the semantics: ONNX operator specification, Einsum-12. Not a site of its own: it makes attention and linear
layers readable.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from ..prover import ProvedPass
from .operands import Part, Sizes
from .values import add_constant, constant, dims, insert


class UnfoldEinsum(ProvedPass):
    """A batched product of matrices, spelled as Einsum -> Transpose, Reshape, MatMul."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Einsum" and (terms := _terms(node)) is not None:
                try:
                    made = _product(node, *terms)
                except MisfitError:  # a size that is not known: it stays what it is
                    continue
                leaves = [value for value in node.inputs if value is not None]
                modified |= self.swap("einsum", node, made, node, "einsum", leaves, quiet=True)
        return ir.passes.PassResult(model, modified)


def _terms(node: ir.Node) -> tuple[str, str, str] | None:
    """Labels of the operands and of the result, where they are a batched product of matrices."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    inputs, _, out = equation.partition("->")
    terms = inputs.split(",")
    if "->" not in equation or "." in equation or len(terms) != 2 or len(node.inputs) != 2:
        return None
    left, right = terms
    summed = (set(left) | set(right)) - set(out)
    plain = all(len(set(term)) == len(term) for term in (left, right, out))
    own = [[label for label in out if label in term and label not in other] for term, other in (terms, terms[::-1])]
    fits = plain and len(summed) == 1 and summed <= set(left) & set(right) and all(own)
    known = all(
        dims(value) is not None and len(dims(value) or []) == len(t)
        for value, t in zip(node.inputs, terms, strict=True)
    )
    return (left, right, out) if fits and known else None


def _product(node: ir.Node, left: str, right: str, out: str) -> ir.Value:
    """The same as MatMul, in front of `node`."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    size = {**dict(zip(left, dims(a) or [], strict=True)), **dict(zip(right, dims(b) or [], strict=True))}
    (summed,) = set(left) - set(out)
    batch = [label for label in left if label in right and label != summed]
    rows = [label for label in left if label not in right]
    columns = [label for label in right if label not in left]
    sizes = Sizes(node, [a, b])
    # without a batch MatMul itself takes any number of rows' axes
    merged = [rows] if not batch else [["".join(rows)]]
    first = _view(sizes, a, left, [*batch, *merged[0], summed], size)
    second = _view(sizes, b, right, [*batch, summed, "".join(columns)], size)
    made = insert(node, "MatMul", [first, second])
    labels = [*batch, *merged[0], "".join(columns)]
    made.type, made.shape = node.outputs[0].type, ir.Shape([_one(label, size) for label in labels])
    return _spread(sizes, made, labels, out, size)


def _one(label: str, size: dict[str, int | str | None]) -> int | str | None:
    return size[label] if len(label) == 1 else None


def _view(sizes: Sizes, value: ir.Value, term: str, labels: list[str], size: dict[str, int | str | None]) -> ir.Value:
    """`value` with its axes in the order of `labels`, those of several letters merged."""
    flat = "".join(labels)
    known = constant(value)
    if known is not None and (flat != term or len(labels) < len(flat)):  # a weight is brought into place once
        assert sizes.before.graph is not None
        shape = [math.prod(int(size[letter] or 0) for letter in label) for label in labels]
        array = known.transpose([term.index(label) for label in flat]).reshape(shape)
        return add_constant(sizes.before.graph, f"{value.name}.{'.'.join(labels)}", np.ascontiguousarray(array))
    if flat != term:
        made = insert(sizes.before, "Transpose", [value], perm=[term.index(label) for label in flat])
        made.type, made.shape = value.type, ir.Shape([size[label] for label in flat])
        value = made
    if any(len(label) > 1 for label in labels):
        parts: list[Part] = [tuple(size[letter] for letter in label) for label in labels]
        made = insert(sizes.before, "Reshape", [value, sizes.vector(parts)])
        made.type, made.shape = value.type, ir.Shape([_one(label, size) for label in labels])
        value = made
    return value


def _spread(sizes: Sizes, made: ir.Value, labels: list[str], out: str, size: dict[str, int | str | None]) -> ir.Value:
    """The product with merged axes split again, in the order of `out`."""
    flat = "".join(labels)
    kind = made.type
    if any(len(label) > 1 for label in labels):
        made = insert(sizes.before, "Reshape", [made, sizes.vector([(size[letter],) for letter in flat])])
        made.type, made.shape = kind, ir.Shape([size[letter] for letter in flat])
    if flat != out:
        made = insert(sizes.before, "Transpose", [made], perm=[flat.index(letter) for letter in out])
        made.type, made.shape = kind, ir.Shape([size[letter] for letter in out])
    return made
