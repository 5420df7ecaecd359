"""Einsum of two tensors -> MatMul of views of them.

    Einsum(a, b; "bihd,bjhd->bhij")   ->   MatMul(Transpose(a), Transpose(b))

What is a product of matrices should be one: rules, quantization and most backends know `MatMul` alone. Legal cases:
1. two operands, no label twice in one of them; an ellipsis stands for labels, and without "->" the result has those
that occur once, in the order of the alphabet; 2. every label that is summed is in both, and of one size there; there is
one at least; 3. each side has labels of its own. Where several labels are summed, or are of one side alone, a Reshape
merges them, whose sizes are known or read off the operands, and behind they are split again. A weight comes second.

Source of the semantics: ONNX operator specification, Einsum-12. Not a site of its own: it makes attention and linear
layers readable.
"""

from __future__ import annotations

import math
from string import ascii_letters

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..base import MisfitError
from ..prover import ProvedPass
from .frames import Dim
from .operands import Part, Sizes, unsqueeze
from .values import add_constant, constant, dims, insert

Terms = tuple[str, str, str]


class UnfoldEinsum(ProvedPass):
    """A batched product of matrices, spelled as Einsum -> Transpose, Reshape, MatMul."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = idle = False
        for node in list(model.graph.all_nodes()):
            if node.domain == "" and node.op_type == "Einsum" and (terms := _terms(node)) is not None:
                done = self._unfold(node, terms)
                modified, idle = modified or done, idle or not done
        if idle:
            RemoveUnusedNodesPass()(model)  # what was made for a rewrite that was not made after all
        return ir.passes.PassResult(model, modified)

    def _unfold(self, node: ir.Node, terms: Terms) -> bool:
        try:
            made = _product(node, *terms)
        except MisfitError:  # a size that is not known: it stays what it is
            return False
        leaves = [value for value in node.inputs if value is not None]
        return self.swap("einsum", node, made, node, "einsum", leaves, quiet=True)


def _terms(node: ir.Node) -> Terms | None:
    """Labels of the operands and of the result, where they are a batched product of matrices."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, right, out = _spelled_out(equation, [len(dims(value) or ()) for value in node.inputs]) or ("", "", "")
    summed = (set(left) | set(right)) - set(out)
    plain = all(len(set(term)) == len(term) for term in (left, right, out))
    own = [set(left) - set(right), set(right) - set(left)]
    fits = plain and summed and summed <= set(left) & set(right) and all(own)
    known = [len(dims(value) or ()) for value in node.inputs] == [len(left), len(right)]
    return (left, right, out) if fits and known else None


def _spelled_out(equation: str, ranks: list[int]) -> Terms | None:
    """The labels of an equation of two operands, those that it leaves out filled in."""
    inputs, arrow, out = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or len(ranks) != 2:
        return None
    if not arrow:
        once = sorted(label for label in set(inputs) - {",", "."} if inputs.count(label) == 1)
        out = "..." * ("..." in inputs) + "".join(once)
    free = "".join(label for label in ascii_letters if label not in equation)
    hidden = {rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term}
    if len(hidden) > 1 or not all(0 <= count <= len(free) for count in hidden):
        return None
    labels = free[: max(hidden, default=0)]
    left, right, out = (term.replace("...", labels) for term in (*terms, out))
    return left, right, out


def _product(node: ir.Node, left: str, right: str, out: str) -> ir.Value:
    """The same as MatMul, in front of `node`. Raises MisfitError where a size is missing."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    wider = constant(b) is None and len(set(right) - set(left)) > 1 == len(set(left) - set(right))
    if constant(a) is not None or wider:
        a, b, left, right = b, a, right, left
    size = _sizes(node, dict(zip(left, _own(a), strict=True)), dict(zip(right, _own(b), strict=True)), out)
    summed = "".join(label for label in left if label not in out)
    columns = "".join(label for label in right if label not in left)
    sizes = Sizes(node, [a, b])
    rows = [label for label in left if label not in right]
    lead = [label for label in left if label in right and label in out]
    if lead:  # all rows but the last are broadcast with the batch
        # in the order that they have where there are more elements: that is not transposed then
        order = left if _longest(summed, size) > _longest(columns, size) else out
        *outer, row = sorted(rows, key=order.index)
        lead, rows = sorted([*lead, *outer], key=order.index), [row]
    first = _view(sizes, a, left, [*lead, *rows, summed])
    second = _view(sizes, b, right, [*(label for label in lead if label in right), summed, columns])
    made = insert(node, "MatMul", [first, _spaced(sizes, second, [label in right for label in lead])])
    labels = [*lead, *rows, columns]
    made.type, made.shape = node.outputs[0].type, ir.Shape([_one(label, size) for label in labels])
    return _spread(sizes, made, labels, out, size)


def _longest(labels: str, size: dict[str, Dim]) -> float:
    """The largest size of `labels`; one that the inputs bring is larger than any number."""
    return max(float(known) if isinstance(known := size[label], int) else math.inf for label in labels)


def _spaced(sizes: Sizes, value: ir.Value, has: list[bool]) -> ir.Value:
    """`value` with an axis of one for each batch axis that it has not, but for those in front."""
    behind = has[has.index(True) :] if has else []
    missing = [axis for axis, own in enumerate(behind) if not own]
    return unsqueeze(value, missing, sizes) if missing else value


def _own(value: ir.Value) -> list[Dim]:
    array = constant(value)
    return list(array.shape) if array is not None else dims(value) or []


def _sizes(node: ir.Node, left: dict[str, Dim], right: dict[str, Dim], out: str) -> dict[str, Dim]:
    """The size of each label; of one that both have, one side may be broadcast. Raises MisfitError for a summed one."""
    size = {**left, **right}
    made = dims(node.outputs[0]) or []
    told = dict(zip(out, made, strict=True)) if len(made) == len(out) else {}
    for label in left.keys() & right.keys():
        pair = {left[label], right[label]}
        if 0 in pair or (1 in pair and len(pair) > 1 and label not in out):
            raise MisfitError(f"the label {label!r} has the sizes {left[label]} and {right[label]}")
        wide = pair - {1} or {1}
        size[label] = wide.pop() if len(wide) == 1 else told.get(label)
    return size


def _one(label: str, size: dict[str, Dim]) -> Dim:
    return size[label] if len(label) == 1 else None


def _view(sizes: Sizes, value: ir.Value, term: str, labels: list[str]) -> ir.Value:
    """`value` with its axes in the order of `labels`, those of several letters merged."""
    flat = "".join(labels)
    size = dict(zip(term, _own(value), strict=True))
    perm = [term.index(label) for label in flat]
    known = constant(value)
    if known is not None and (flat != term or len(labels) < len(flat)):  # a weight is brought into place once
        assert sizes.before.graph is not None
        moved, lengths = known.transpose(perm), iter(known.transpose(perm).shape)
        array = moved.reshape([int(np.prod([next(lengths) for _ in label])) for label in labels])
        return add_constant(sizes.before.graph, f"{value.name}.{'.'.join(labels)}", np.ascontiguousarray(array))
    if flat != term:
        made = insert(sizes.before, "Transpose", [value], perm=perm)
        made.type, made.shape = value.type, ir.Shape([size[label] for label in flat])
        value = made
    if any(len(label) > 1 for label in labels):
        parts: list[Part] = [tuple(size[letter] for letter in label) for label in labels]
        made = insert(sizes.before, "Reshape", [value, sizes.vector(parts)])
        made.type, made.shape = value.type, ir.Shape([_one(label, size) for label in labels])
        value = made
    return value


def _spread(sizes: Sizes, made: ir.Value, labels: list[str], out: str, size: dict[str, Dim]) -> ir.Value:
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
