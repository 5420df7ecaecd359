"""Q, K, V and masks of an attention, brought to the axes of the standard: [batch, heads, length, size].

Views of batch and heads that the exporter made are undone where they can be, else followed by a Reshape. Sizes that are
not known as numbers are read off Q, K, V or the mask when the graph runs: never off the scores, which are to go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..base import MisfitError
from .frames import Dim, Group, same_size, split, times
from .scores import Mask, is_float, unscaled
from .values import add_constant, constant, dim, dims, insert, producer, rank

Dims = tuple[Dim, ...]
_QUOTIENT = re.compile(r"floor\((\w+)/(\d+)\)")
_MULTIPLE = re.compile(r"(\d+)\*(\w+)")
Part = tuple[Dim, ...]  # factors of one dim of a shape to be made


@dataclass
class Sizes:
    """Makes shape vectors in front of one node, from sizes of the values it may read."""

    before: ir.Node
    sources: list[ir.Value] = field(default_factory=list)

    def vector(self, parts: Sequence[Part], infer: bool = True) -> ir.Value:
        """The int64 vector of `parts`, each a product of sizes; with `infer` one that is not known is -1.

        Raises MisfitError where a size can be had from nowhere.
        """
        made: list[int | ir.Value] = []
        for part in parts:
            total = times(part)
            size = total if isinstance(total, int) else self._find(part)
            if size is None:
                if not infer:
                    raise MisfitError(f"the size {total} is not that of an axis of Q, K, V or a mask")
                size, infer = -1, False
            made.append(size)
        if infer and sum(not isinstance(size, int) for size in made) == 1:
            made = [size if isinstance(size, int) else -1 for size in made]
        return self._concat(made)

    def _find(self, part: Part) -> ir.Value | None:
        """A vector of one element: the product of a part's factors."""
        factors: list[ir.Value] = []
        for factor in part if self._axis(times(part)) is None else (times(part),):
            found = self._constant([factor]) if isinstance(factor, int) else self._named(factor)
            if found is None:
                return None
            factors.append(found)
        total = factors[0]
        for other in factors[1:]:
            total = insert(self.before, "Mul", [total, other])
        return total

    def _named(self, size: Dim) -> ir.Value | None:
        """A vector of one element: a size that an axis has, or the whole part of such a one over a number."""
        if (found := self._axis(size)) is not None:
            return insert(self.before, "Shape", [found[0]], start=found[1], end=found[1] + 1)
        if (quotient := _QUOTIENT.fullmatch(str(size))) is not None:
            whole, number = self._named(quotient[1]), quotient[2]
        else:  # an axis that is a multiple of it
            number, whole = self._multiple(size)
        return None if whole is None else insert(self.before, "Div", [whole, self._constant([int(number)])])

    def _multiple(self, size: Dim) -> tuple[str, ir.Value | None]:
        for known in (known for source in self.sources for known in dims(source) or ()):
            product = _MULTIPLE.fullmatch(str(known))
            if product is not None and product[2] == size:
                return product[1], self._named(known)
        return "1", None

    def _axis(self, size: Dim) -> tuple[ir.Value, int] | None:
        for source in self.sources if isinstance(size, str) else ():
            for axis, known in enumerate(dims(source) or ()):
                if known == size:
                    return source, axis
        return None

    def _constant(self, numbers: list[int]) -> ir.Value:
        assert self.before.graph is not None
        return add_constant(self.before.graph, f"shape.{'.'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def _concat(self, made: list[int | ir.Value]) -> ir.Value:
        runs: list[list[int] | ir.Value] = []
        for size in made:
            if isinstance(size, int) and runs and isinstance(runs[-1], list):
                runs[-1].append(size)
            else:
                runs.append([size] if isinstance(size, int) else size)
        values = [self._constant(run) if isinstance(run, list) else run for run in runs]
        return values[0] if len(values) == 1 else insert(self.before, "Concat", values, axis=0)


@dataclass(frozen=True)
class Heads:
    """What batch and heads of the standard are, made of the lead axes of the scores."""

    batch: Dims
    heads: Dims

    @classmethod
    def of(cls, leads: Sequence[Dims], query: ir.Value) -> Heads:
        """Taken from the first arrangement of two axes that was met, or from what Q was before its axes were merged."""
        for lead in leads:
            if len(lead) == 2:
                return cls(lead[:1], lead[1:])
        lead = leads[0]
        if len(lead) == 1:
            merged = _merged(query)
            known = dims(merged) or []
            return cls((known[0],), (known[1],)) if merged is not None else cls(lead, (1,))
        return cls(lead[:-1], lead[-1:]) if lead else cls((1,), (1,))

    def of_lead(self, lead: Dims) -> list[Dims] | None:
        """The axes of `lead` that make the batch, and those that make the heads; None where an axis must be split."""
        if len(lead) == 2 and not (len(self.batch) == 1 and lead[0] == 1 != self.batch[0]):
            return [lead[:1], lead[1:]]
        return split(lead, [self.batch, self.heads])


def _merged(value: ir.Value) -> ir.Value | None:
    """[B, H, S, D] of what was reshaped from it to [B*H, S, D]."""
    node = producer(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    own, merged = dims(source), dims(value)
    if source is None or own is None or merged is None or (len(own), len(merged)) != (4, 3):
        return None
    known = None not in (own[1], own[2], own[3]) and own[2:] == merged[1:]
    return source if known and (merged[0] is None or own[0] is None or same_size(own[:2], merged[:1])) else None


def bring(value: ir.Value, lead: Dims, heads: Heads, sizes: Sizes, one_head: bool = False) -> ir.Value:
    """An operand [*lead, length, size] as [batch, heads, length, size]; what the product broadcast is repeated.

    With `one_head` a single head stays one: K and V may serve all heads of Q.
    """
    own = dims(value)
    if own is None:
        raise MisfitError(f"the rank of {value.name!r} is not known")
    tail, front = own[-2:], [1] * (len(lead) + 2 - len(own)) + own[:-2]
    merged = _merged(value) if len(lead) == 1 else None
    if merged is not None and [times((d,)) for d in (dims(merged) or [])[:2]][1] == times(heads.heads):
        return merged
    wide = [axis for axis, size in enumerate(front) if size == 1 and lead[axis] != 1]
    if one_head and len(lead) == 2 and wide and wide[-1] == 1:
        wide = wide[:-1]
    if wide:
        full = [lead[axis] if axis in wide else size for axis, size in enumerate(front)]
        shape = sizes.vector([*((size,) for size in full), (1,), (1,)], infer=False)
        value = _shaped(insert(sizes.before, "Expand", [value, shape]), value, [*full, *tail])
    elif len(own) < len(lead) + 2:
        value = unsqueeze(value, list(range(len(lead) + 2 - len(own))), sizes)
    return _regroup(value, heads, tail, sizes)


def _regroup(value: ir.Value, heads: Heads, tail: list[Dim], sizes: Sizes) -> ir.Value:
    lead = (dims(value) or [])[:-2]
    if len(lead) == 2:
        return value
    if len(lead) == 1 and heads.heads == (1,):
        return unsqueeze(value, [1], sizes)
    if not lead:
        return unsqueeze(value, [0, 1], sizes)
    shape = [times(heads.batch), times(heads.heads), *tail]
    parts: list[Part] = [heads.batch, heads.heads, *((size,) for size in tail)]
    own = Sizes(sizes.before, [value, *sizes.sources])
    return _shaped(insert(sizes.before, "Reshape", [value, own.vector(parts)]), value, shape)


def restore(made: ir.Value, lead: Dims, heads: Heads, sizes: Sizes) -> ir.Value:
    """[batch, heads, length, size] with batch and heads as `lead` again."""
    tail = (dims(made) or [])[-2:]
    if len(lead) == 2:
        return made
    if heads == Heads((1,), (1,)) and not lead:
        return squeeze(made, [0, 1], sizes)
    if len(lead) == 1 and heads.heads == (1,):
        return squeeze(made, [1], sizes)
    own = Sizes(sizes.before, [made, *sizes.sources])
    shape = own.vector([*((size,) for size in lead), *((size,) for size in tail)])
    return _shaped(insert(sizes.before, "Reshape", [made, shape]), made, [*lead, *tail])


def bring_mask(mask: Mask, value: ir.Value, heads: Heads, keys: Group, sizes: Sizes) -> ir.Value:
    """`value`, which broadcasts to the scores in the mask's frame, as one that broadcasts to [batch, heads, S, T]."""
    own = dims(value)
    frame = mask.frame
    if own is None or len(own) > len(frame.axes):
        raise MisfitError(f"a mask of shape {value.shape} broadcasts the scores {[axis.size for axis in frame.axes]}")
    own = [*[1] * (len(frame.axes) - len(own)), *own]
    for size, axis in zip(own, frame.axes, strict=True):
        if axis.size == 1 and size not in (1, None):
            raise MisfitError(f"a mask of shape {value.shape} broadcasts the scores {[a.size for a in frame.axes]}")
    queries: Group = "rows" if keys == "columns" else "columns"
    order = [position for group in ("lead", queries, keys) for position in frame.where(group)]
    if order != sorted(order):
        value, own = _reorder(value, own, order, sizes)
    lead, rows, columns = (frame.sizes(group) for group in ("lead", queries, keys))
    groups = heads.of_lead(lead)
    if groups is None:  # [B*H, ...] in the place of [B, H, ...]
        wanted: list[tuple[Dims, Part]] = [(lead, ()), (rows, rows), (columns, columns)]
        if own[0] == 1:
            wanted = [((), (1,)), (lead, (1,)), *wanted[1:]]
        else:
            wanted = [((), heads.batch), (lead, heads.heads), *wanted[1:]]
    else:
        wanted = [(group, group) for group in (*groups, rows, columns)]
    return _merge(value, own, wanted, sizes)


def _reorder(value: ir.Value, own: list[Dim], order: list[int], sizes: Sizes) -> tuple[ir.Value, list[Dim]]:
    if (missing := len(own) - (rank(value) or 0)) > 0:
        value = unsqueeze(value, list(range(missing)), sizes)
    moved = [own[axis] for axis in order]
    made = insert(sizes.before, "Transpose", [value], perm=order)
    return _shaped(made, value, moved), moved


def _merge(value: ir.Value, own: list[Dim], wanted: list[tuple[Dims, Part]], sizes: Sizes) -> ir.Value:
    """`own` axes, run by run, as the part that each run is wanted to be; runs of ones stay one."""
    if all(len(run) == 1 for run, _ in wanted):
        return value  # its axes are the standard's; fewer of them broadcast
    full: list[Dim] = []
    shape: list[Part] = []
    place = 0
    for run, part in wanted:
        sizes_here = own[place : place + len(run)]
        place += len(run)
        idle = all(size == 1 for size in sizes_here)
        full += sizes_here if idle or len(run) == 1 else run
        if not run:
            shape.append(part if part else (1,))
        elif len(run) == 1:
            shape.append(part if part != run else (sizes_here[0],))
        else:
            shape.append((1,) if idle else part)
    maker = Sizes(sizes.before, [value, *sizes.sources])
    if full != own:
        vector = maker.vector([(size,) for size in full], infer=False)
        value = _shaped(insert(sizes.before, "Expand", [value, vector]), value, full)
        maker = Sizes(sizes.before, [value, *sizes.sources])
    return _shaped(insert(sizes.before, "Reshape", [value, maker.vector(shape)]), value, list(map(times, shape)))


def unsqueeze(value: ir.Value, axes: list[int], sizes: Sizes) -> ir.Value:
    """`value` with further axes of one, counted in the result."""
    own = dims(value) or []
    made: list[Dim] = list(own)
    for axis in axes:
        made.insert(axis, 1)
    return _shaped(insert(sizes.before, "Unsqueeze", [value, sizes._constant(axes)]), value, made)


def is_one_group(value: ir.Value) -> bool:
    """Whether K or V is [batch, groups, 1, length, size]."""
    return rank(value) == 5 and dim(value, 2) == 1


def squeeze(value: ir.Value, axes: list[int], sizes: Sizes) -> ir.Value:
    """`value` without `axes`, all of them of one."""
    node = producer(value, "Unsqueeze")
    known = constant(node.inputs[1]) if node is not None else None
    if node is not None and node.inputs[0] is not None and known is not None and known.tolist() == axes:
        return node.inputs[0]
    left = [size for axis, size in enumerate(dims(value) or []) if axis not in axes]
    return _shaped(insert(sizes.before, "Squeeze", [value, sizes._constant(axes)]), value, left)


def _shaped(made: ir.Value, like: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    made.type, made.shape = like.type, ir.Shape(shape)
    return made


def swapped(value: ir.Value, before: ir.Node) -> tuple[ir.Value, float]:
    """`value` with its last two axes swapped, and the factor that it was multiplied by before it was transposed."""
    node = producer(value, "Transpose", "Reshape", "Unsqueeze")
    own = rank(value) or 0
    if node is not None and node.op_type == "Unsqueeze":
        axes = constant(node.inputs[1])
        if node.inputs[0] is not None and axes is not None and 0 <= axes.min() <= axes.max() < own - 2:
            turned, scale = swapped(node.inputs[0], before)
            return unsqueeze(turned, axes.tolist(), Sizes(before)), scale
        node = None
    if node is not None and node.op_type == "Transpose":
        source, scale = unscaled(node.inputs[0])
        perm = list(node.attributes.get_ints("perm") or range(own)[::-1])
        perm[-1], perm[-2] = perm[-2], perm[-1]
        return source if perm == list(range(own)) else _transpose(node, source, perm, value), scale
    flat = producer(node.inputs[0], "Transpose") if node is not None else None
    if flat is not None and flat.attributes.get_ints("perm") == (0, 2, 1):
        inner = _merged_in(flat.inputs[0], value)
        if inner is not None:
            return unscaled(inner)
    return _transpose(before, value, [*range(own - 2), own - 1, own - 2], value), 1.0


def _transpose(before: ir.Node, source: ir.Value, perm: list[int], value: ir.Value) -> ir.Value:
    """`value` with its last two axes swapped, as a Transpose of `source`; made once."""
    for reader in source.consumers():
        same = reader.op_type == "Transpose" and list(reader.attributes.get_ints("perm") or ()) == perm
        if same and reader.graph is before.graph:
            return reader.outputs[0]
    made = insert(before, "Transpose", [source], perm=perm)
    own = dims(value)
    made.type = value.type
    made.shape = None if own is None else ir.Shape([*own[:-2], own[-1], own[-2]])
    return made


def _merged_in(flat: ir.Value | None, value: ir.Value) -> ir.Value | None:
    """[B, H, S, D] of [B, H, S, D] -> [B*H, S, D] -> [B*H, D, S] -> [B, H, D, S], if batch and heads stay apart."""
    inner = _merged(flat) if flat is not None else None
    own, back = dims(inner), dims(value)
    if inner is None or own is None or back is None or len(back) != 4:
        return None
    return inner if back[1:] == [own[1], own[3], own[2]] and back[0] in (own[0], None) else None


def unrepeated(value: ir.Value) -> tuple[ir.Value, int]:
    """K or V before each of its heads was repeated for several heads of Q, and how often that was; 1 if it was not."""
    node = producer(value)
    if node is None or rank(value) != 4:
        return value, 1
    if node.op_type == "Transpose" and node.inputs[0] is not None:
        perm = list(node.attributes.get_ints("perm") or (3, 2, 1, 0))
        source, times_ = _repeated(node.inputs[0], perm[1])
        if times_ == 1:
            return value, 1
        own = dims(source) or []
        made = insert(node, "Transpose", [source], perm=perm)
        return _shaped(made, value, [own[axis] for axis in perm]), times_
    return _repeated(value, 1)


def _repeated(value: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """x of Reshape(Expand(Unsqueeze(x))) or of a Gather that repeat each entry of `axis`, and how often."""
    node = producer(value, "Reshape", "Gather")
    if node is None:
        return value, 1
    if node.op_type == "Gather":
        index, heads = constant(node.inputs[1]), dim(node.inputs[0], axis)
        if index is None or not isinstance(heads, int) or node.attributes.get_int("axis", 0) != axis or not heads:
            return value, 1
        count = index.size // heads
        same = index.ndim == 1 and np.array_equal(index, np.repeat(np.arange(heads), count))
        source = node.inputs[0]
        return (source, count) if same and source is not None else (value, 1)
    wide = producer(node.inputs[0], "Expand")
    thin = producer(wide.inputs[0], "Unsqueeze", "Reshape") if wide is not None else None
    if wide is None or thin is None or thin.inputs[0] is None:
        return value, 1
    source = thin.inputs[0]
    own, before, after, made = dims(source), dims(thin.outputs[0]), dims(wide.outputs[0]), dims(value)
    if own is None or before is None or after is None or made is None or len(own) != 4 or len(before) != 5:
        return value, 1
    repeats, heads = after[axis + 1], own[axis]
    kept = before == [*own[: axis + 1], 1, *own[axis + 1 :]] and after == [*own[: axis + 1], repeats, *own[axis + 1 :]]
    if not kept or not isinstance(repeats, int) or not isinstance(heads, int):
        return value, 1
    return (source, repeats) if made == [*own[:axis], heads * repeats, *own[axis + 1 :]] else (value, 1)


def cast(value: ir.Value, dtype: ir.DataType | None, before: ir.Node) -> ir.Value:
    """`value` in the float type `dtype`."""
    if dtype is None or value.dtype == dtype or not is_float(value.dtype):
        return value
    made = insert(before, "Cast", [value], to=int(dtype))
    made.type, made.shape = ir.TensorType(dtype), value.shape
    return made
