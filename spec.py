"""The frozen values that everything else speaks of: `ModelSpec`, `Target`, `Job`, precision."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import GraphwrightError, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4", "fp8", "nvfp4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# metadata keys that travel with a graph through all stages
PATH = "graphwright.path"  # on a node: its module's path in the source, set at export
SITE = "graphwright.site"  # on a node: the kind of the site that it is the core of, set at lift
RANGES = "graphwright.ranges"  # on a model: JSON, dynamic dim -> [min, max or null], as the export proved
COMPUTE = "graphwright.compute"  # on a target graph: the precision that its runtime is to compute float32 in

Feeds = Mapping[str, "np.ndarray"]
Calibration = Iterable[Feeds] | Callable[[], Iterable[Feeds]]


def pick(kind: str, name: str, allowed: Iterable[str]) -> str:
    """`name`, if it is one of `allowed`; else a UsageError that lists them and suggests the nearest."""
    names = sorted(allowed)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"Unknown {kind} {name!r}.{hint} Allowed: {', '.join(names) or 'none in this version'}.")


def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts, lists, tuples and caches under dotted names: `past_key_values.0.1`."""
    value = of_cache(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        yield name, value


def of_cache(value: Any) -> Any:
    """A cache of transformers as pairs of keys and values, one a layer, or as its two caches; else `value` itself."""
    known = sys.modules.get("transformers.cache_utils")
    if known is None or not isinstance(value, known.Cache):
        return value
    if isinstance(value, known.EncoderDecoderCache):
        return {"self": value.self_attention_cache, "cross": value.cross_attention_cache}
    return [(layer.keys, layer.values) for layer in value.layers]


def parts_of(dim: str) -> list[str]:
    """The names in a dim: one, or those of a sum, as in `past + sequence`."""
    return [part.strip() for part in dim.split("+")]


def size_of(dim: str, sizes: Mapping[str, int]) -> int:
    """The size of a dim, which may be a sum of dims and whole numbers."""
    return sum(int(part) if part.isdecimal() else sizes[part] for part in parts_of(dim))


@dataclass(frozen=True)
class ModelSpec:
    """A module with what is needed to export it, and to prove what was exported.

    `inputs`: example tensors by the name of `module.forward`'s parameter; nested values flatten to dotted names.
    `dynamic`: names of the dims that change, by (dotted) input name and axis; one name is one size everywhere. A dim
    may be the sum of others, as in `past + sequence`.
    `ranges`: (min, opt, max) of a dynamic dim; default: what the export proved.
    `calibration`: real inputs by name, as arrays: an iterable, or a function that returns one; parity is checked on
    them too.

    Raises InputError where the inputs do not fit the module, UsageError where dims or ranges do not fit the inputs.
    """

    module: torch.nn.Module
    inputs: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    calibration: Calibration | None = None
    name: str = "model"

    def __post_init__(self) -> None:
        _check_inputs(self)
        _check_calibration(self)
        _check_dynamic(self)
        _check_ranges(self)

    @property
    def tensors(self) -> dict[str, Any]:
        """The example tensors by dotted name."""
        return dict(flatten(self.inputs, ""))

    @property
    def sizes(self) -> dict[str, int]:
        """The example size of each dynamic dim that is no sum of others."""
        tensors = self.tensors
        return {
            dim: int(tensors[name].shape[axis])
            for name, axes in self.dynamic.items()
            for axis, dim in axes.items()
            if dim.isidentifier()
        }

    def samples(self) -> Iterator[Feeds]:
        """The calibration data, from the start. Raises InputError if the user's function raises."""
        if self.calibration is None:
            return
        try:
            yield from self.calibration() if callable(self.calibration) else self.calibration
        except GraphwrightError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"The calibration data of {self.name!r} raised {type(error).__name__}: {error}") from error


def _check_inputs(spec: ModelSpec) -> None:
    forward = getattr(spec.module, "forward", None)
    if isinstance(spec.module, type):
        raise InputError(f"ModelSpec.module is the class {spec.module.__name__} itself: give an instance of it.")
    if not callable(forward):
        raise InputError(f"ModelSpec.module must be a torch.nn.Module, but is a {type(spec.module).__name__}.")
    if not isinstance(spec.inputs, Mapping):
        raise InputError(
            f"ModelSpec.inputs must be a dict of example tensors by name, but is a {type(spec.inputs).__name__}."
        )
    if not spec.tensors:
        raise InputError("ModelSpec.inputs is empty: give one example tensor for each input of the module's forward.")
    for name, value in spec.tensors.items():
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise InputError(
                f"Input {name!r} is a {type(value).__name__}, not a tensor. "
                "Bake constants and flags into the module (a small wrapper's forward), and pass tensors only."
            )
    parameters = inspect.signature(forward).parameters
    accepted = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    required = [n for n in accepted if parameters[n].default is inspect.Parameter.empty]
    unknown = [name for name in spec.inputs if name not in accepted and not takes_any]
    missing = [name for name in required if name not in spec.inputs]
    if unknown or missing:
        wrong = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(missing)
        raise InputError(
            f"The inputs of {spec.name!r} do not match {type(spec.module).__name__}.forward "
            f"({'; '.join(wrong)}). It accepts: {', '.join(accepted)}; required: {', '.join(required) or 'none'}."
        )


def _check_calibration(spec: ModelSpec) -> None:
    if isinstance(spec.calibration, Iterator):
        raise InputError(
            f"The calibration data of {spec.name!r} is a {type(spec.calibration).__name__}, which can be read only "
            "once: give a list, or the function that makes it."
        )


def _check_dynamic(spec: ModelSpec) -> None:
    tensors = spec.tensors
    seen: dict[str, tuple[str, int]] = {}
    for name, axes in spec.dynamic.items():
        if name not in tensors:
            pick("input in ModelSpec.dynamic", name, tensors)
        if not isinstance(axes, Mapping):
            raise UsageError(
                f"ModelSpec.dynamic[{name!r}] must be a dict of names by axis, as in {{0: 'batch'}}, but is {axes!r}."
            )
        rank = len(tensors[name].shape)
        for axis, dim in axes.items():
            if not isinstance(axis, int) or not 0 <= axis < rank:
                exist = f"axes 0 to {rank - 1} exist. Negative axes are not taken." if rank else "it has no axes."
                raise UsageError(
                    f"Dynamic axis {axis!r} of input {name!r} ({dim!r}) is out of range: the example has rank {rank}, "
                    f"so {exist}"
                )
            if not isinstance(dim, str) or not _is_dim(dim):
                raise UsageError(
                    f"The name of axis {axis} of input {name!r} must be an identifier, or a sum of such as in "
                    f"'past + sequence', but is {dim!r}."
                )
            if not tensors[name].shape[axis]:
                raise UsageError(
                    f"Dynamic dim {dim!r} has size 0 in the example {name!r}: give an example with at least one entry."
                )
            first, size = seen.setdefault(dim, (f"{name}[{axis}]", int(tensors[name].shape[axis])))
            if int(tensors[name].shape[axis]) != size:
                raise UsageError(
                    f"Dynamic dim {dim!r} has two sizes in the example inputs: {first} is {size}, {name}[{axis}] is "
                    f"{int(tensors[name].shape[axis])}. One name means one size: rename one of the two."
                )

    _check_sums(spec)


def _is_dim(dim: str) -> bool:
    parts = parts_of(dim)
    return dim.isidentifier() or (
        len(parts) > 1
        and any(part.isidentifier() for part in parts)
        and all(part.isidentifier() or part.isdecimal() for part in parts)
    )


def _check_sums(spec: ModelSpec) -> None:
    sizes, tensors = spec.sizes, spec.tensors
    for name, axes in spec.dynamic.items():
        for axis, dim in axes.items():
            for part in parts_of(dim):
                if not part.isdecimal() and part not in sizes:
                    pick(f"dim in the sum {dim!r} of ModelSpec.dynamic[{name!r}]", part, sizes)
            size = int(tensors[name].shape[axis])
            if size != size_of(dim, sizes):
                raise UsageError(
                    f"Axis {axis} of input {name!r} is to be {dim}, which is {size_of(dim, sizes)} in the example "
                    f"inputs, but it is {size}."
                )


def _check_ranges(spec: ModelSpec) -> None:
    sizes = spec.sizes
    for dim, bounds in spec.ranges.items():
        if dim not in sizes:
            pick("dynamic dim in ModelSpec.ranges", dim, sizes)
        if not is_range(bounds):
            raise UsageError(
                f"Range of {dim!r} must be (min, opt, max), whole numbers with 1 <= min <= opt <= max, but is "
                f"{bounds!r}."
            )
        if bounds[0] == bounds[2]:
            raise UsageError(
                f"Range of {dim!r} holds one size only, {bounds[0]}: leave {dim!r} out of ModelSpec.dynamic and "
                "ModelSpec.ranges."
            )
        if not bounds[0] <= sizes[dim] <= bounds[2]:
            raise UsageError(
                f"Range of {dim!r} is {bounds[0]} to {bounds[2]}, but the example input has size {sizes[dim]}: "
                "widen the range or give an example inside it."
            )


def is_range(bounds: object) -> bool:
    """Whether it is (min, opt, max), whole numbers in that order, from 1."""
    if not isinstance(bounds, Sequence) or len(bounds) != 3 or not all(type(size) is int for size in bounds):
        return False
    low, opt, high = bounds
    return bool(1 <= low <= opt <= high)


@dataclass(frozen=True)
class Lowering:
    """What a graph is lowered for: the job, what the user set of the target, and what was chosen by measuring."""

    job: Job
    settings: Any = None  # of the target's runtime: an instance of its `Settings`
    choices: Mapping[str, str] = field(default_factory=dict)  # class of sites -> the form that was measured the fastest


@dataclass(frozen=True)
class Target:
    """A runtime plus its device profiles, the precisions it takes, its legal ops and its plain list of passes."""

    name: str
    runtime: str
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...]  # profiles of devices.py after the @; the first is the default, empty: this machine's own
    legal: Mapping[str, frozenset[str] | None]  # domain -> op types that the target graph may hold; None: all
    lower: Callable[[Lowering], list[Any]]  # the passes, in order
    needs: str  # what a machine must have to run it, in words
    # of a lifted graph: class of sites -> the forms that measuring may choose among, the default first
    alternatives: Callable[[Any], Mapping[str, tuple[str, ...]]] | None = None
    hinted: frozenset[Precision] = frozenset()  # of these the runtime computes a float32 graph in: it stays float32
    # a precision that it does not take -> why not, and what to take
    refused: Mapping[Precision, str] = field(default_factory=dict)
    joins: bool = False  # whether one artifact can be for several devices, joined by +


@dataclass(frozen=True)
class Job:
    """One thing to make: a target, its device profile and a precision. Written `target[@device][:precision]`."""

    target: str
    precision: Precision = "fp32"
    device: str = ""

    def __str__(self) -> str:
        return f"{self.target}{'@' + self.device if self.device else ''}:{self.precision}"

    @property
    def folder(self) -> str:
        """The name of its folder beside others'."""
        return str(self).replace(":", "-").replace("@", "-").replace("+", "-")
