"""Does an artifact compute what the reference computes: differences by output, tolerances with reasons, the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import GraphwrightError
from ..manifest import OutputParity, Tolerances, Verified, Worst
from ..runtimes.base import Session
from ..spec import Precision
from .cases import Case, Reference

NEGLIGIBLE = 1e-6  # of the largest |reference|: below it a row counts as zero beside the others
SMALL = 1e-3  # of the largest |reference|: smaller values are taken as this large in a relative error
REASONS = 3  # failures that are spelled out; the others are counted


@dataclass(frozen=True, eq=False)
class Difference:
    """One output of one case. With a `reason`, the two could not be compared and there are no numbers."""

    output: str
    shape: tuple[int, ...] = ()
    reason: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    scale: float = 0.0  # largest |reference|
    cosines: np.ndarray = field(default_factory=lambda: np.zeros(0))  # float64, one per row
    width: int = 0  # elements of a row
    exact: bool = False  # integers and booleans: equal or not
    undefined: int = 0  # entries left out, since the reference is NaN there


@dataclass(frozen=True)
class Tolerance:
    """What a precision may differ by. Absolute limits are times max(1, largest |reference| of the case)."""

    reason: str
    single: float  # absolute, for floating outputs whose rows have one element: they have no direction
    absolute: float | None = None  # for the others
    min_cosine: float | None = None  # of each row
    mean_cosine: float | None = None  # over all rows of all cases

    def __str__(self) -> str:
        limits = [
            f"max abs <= {self.absolute:g} x max(1, largest |reference|)" if self.absolute is not None else "",
            f"each row's cosine >= {self.min_cosine:g}" if self.min_cosine is not None else "",
            f"mean row cosine >= {self.mean_cosine:g}" if self.mean_cosine is not None else "",
            f"rows of one element: max abs <= {self.single:g} x the same" if self.single != self.absolute else "",
            "integers and booleans equal",
        ]
        return "; ".join(filter(None, limits)) + f". Why: {self.reason}"


_INT8 = Tolerance(
    "8-bit rounding of weights and activations turns a row a little; further than this, rankings change.",
    single=0.1,
    min_cosine=0.96,
    mean_cosine=0.99,
)

TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(
        "float32 sums in another order, nothing else; a wrong formula differs by far more.",
        single=2e-5,
        absolute=2e-5,
    ),
    "fp16": Tolerance(
        "11 bits of mantissa round each value by up to 5e-4 of it, and that adds up over the layers.",
        single=1e-2,
        absolute=1e-2,
        min_cosine=0.999,
    ),
    "bf16": Tolerance(
        "8 bits of mantissa round each value by up to 4e-3 of it, and that adds up over the layers.",
        single=5e-2,
        absolute=5e-2,
        min_cosine=0.995,
    ),
    "int8": _INT8,
    "int8-dynamic": _INT8,
    "int4": Tolerance(
        "16 levels a block of weights keep a row's direction, not its values.",
        single=0.25,
        min_cosine=0.90,
        mean_cosine=0.97,
    ),
    "fp8": Tolerance(
        "4 bits of mantissa (E4M3) round weights and activations by up to 6% each.",
        single=0.15,
        min_cosine=0.95,
        mean_cosine=0.98,
    ),
    "nvfp4": Tolerance(
        "15 levels a block of 16, for weights and activations alike.",
        single=0.25,
        min_cosine=0.88,
        mean_cosine=0.95,
    ),
}


def tolerance(precision: Precision, given: Tolerances | None = None, output: str = "") -> Tolerance:
    """What an output of an artifact of `precision` may differ by from the float32 reference.

    What is `given` for the precision counts before the table, and what is given for the output before that.
    """
    allowed = TOLERANCES[precision]
    for own in (given.precisions.get(precision), given.outputs.get(output)) if given else ():
        if own is not None:
            allowed = replace(allowed, **own.limits, reason=f"set by the user: {own}. Else: {allowed.reason}")
    return allowed


def compare(reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """The difference of each output, by name, in float64; missing and extra outputs have a reason only.

    A row is an entry of axis 0, flattened; a 0-d output is one row. `max_rel` is |a - b| / max(|b|, 1e-3 * largest
    |b|), where b is the reference (an all-zero one counts as 1). A row's cosine is 1 where both rows are zero, or
    negligible beside the output's largest value, or of one element, which has no direction. Of integers and booleans it
    is 1 where the rows are equal, else 0.
    Entries where the reference itself is NaN have no right value: they are left out and counted.
    """
    came = ", ".join(outputs) or "none"
    found = {
        name: _difference(name, expected, outputs[name])
        if name in outputs
        else Difference(name, expected.shape, f"is missing; the outputs are {came}")
        for name, expected in reference.items()
    }
    extra = {
        name: Difference(name, array.shape, f"is no output of the reference; those are {', '.join(reference)}")
        for name, array in outputs.items()
        if name not in reference
    }
    return found | extra


def _difference(name: str, expected: np.ndarray, actual: np.ndarray) -> Difference:
    reason = _mismatch(expected, actual)
    if reason:
        return Difference(name, expected.shape, reason)
    exact = expected.dtype.kind in "biu"
    a, b = (_rows(array.astype(np.float64)) for array in (actual, expected))
    compared = np.isfinite(b)  # infinities are equal by now, NaN has no right value
    a, b = np.where(compared, a, 0.0), np.where(compared, b, 0.0)
    errors, sizes = np.abs(a - b), np.abs(b)
    scale = _largest(sizes)
    cosines = (_rows(expected) == _rows(actual)).all(axis=1).astype(np.float64) if exact else _cosines(a, b, scale)
    return Difference(
        name,
        expected.shape,
        max_abs=_largest(errors),
        max_rel=_largest(errors / np.maximum(sizes, SMALL * scale or 1.0)),
        scale=scale,
        cosines=cosines,
        width=b.shape[1],
        exact=exact,
        undefined=int(np.isnan(expected).sum()) if not exact else 0,
    )


def _mismatch(expected: np.ndarray, actual: np.ndarray) -> str:
    """Why the two cannot be compared by numbers; '' if they can."""
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, the reference's is {list(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype}, the reference's is {expected.dtype}"
    if expected.dtype.kind in "biu" or expected.size == 0:
        return ""
    if expected.dtype.kind not in "fV":  # V: bfloat16 and the 8-bit floats
        return f"is {expected.dtype}, which cannot be compared"
    undefined = np.isnan(expected)
    if undefined.all():
        return "cannot be judged: the reference is NaN everywhere"
    appeared = int((np.isnan(actual) & ~undefined).sum())
    if appeared:
        return f"is NaN at {appeared} of {actual.size} entries where the reference is a number"
    infinite = np.where(undefined, 0, np.isinf(actual) * np.sign(actual))
    moved = int((infinite != np.where(undefined, 0, np.isinf(expected) * np.sign(expected))).sum())
    return f"is infinite at other entries than the reference: {moved} of {actual.size} differ" if moved else ""


def _rows(array: np.ndarray) -> np.ndarray:
    """[rows, elements of a row]"""
    rows = array.shape[0] if array.ndim else 1
    return array.reshape(rows, array.size // rows if rows else 0)


def _largest(values: np.ndarray) -> float:
    # a manifest cannot hold infinity
    return float(min(values.max(initial=0.0), np.finfo(np.float64).max))


def _cosines(a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """float64 [rows]: the cosine of each row of `a` with that of `b`."""
    tops = np.abs(a).max(axis=1, initial=0.0), np.abs(b).max(axis=1, initial=0.0)
    same = (np.maximum(*tops) <= NEGLIGIBLE * scale) | (b.shape[1] == 1)
    # rows are scaled first: squares of very large or small values would leave float64
    a, b = (rows / np.where(top > 0, top, 1.0)[:, None] for rows, top in zip((a, b), tops, strict=True))
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    cosines = np.clip((a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0), -1.0, 1.0)
    return np.where(same, 1.0, cosines)


def check(
    reference: Reference,
    session: Session,
    cases: Iterable[Case],
    precision: Precision,
    given: Tolerances | None = None,
) -> Verified:
    """The verdict on an open artifact: its outputs in every case against the reference's; `given`: see `tolerance`.

    `reference` gives the outputs of a case: `lambda case: torch_session.run(case.feeds)`, or recorded ones by the
    case's name. A case in which the session raises has failed; an error of the reference is raised.
    """
    listed = list(cases)
    pairs, raised = _differences(reference, session, listed)
    allowed = {name: tolerance(precision, given, name) for name in (each.output for _, each in pairs)}
    parities = [_judge(name, [pair for pair in pairs if pair[1].output == name], allowed[name]) for name in allowed]
    failed = [f"{parity.output} {parity.reason}" for parity in parities if parity.verdict == "failed"]
    reasons = raised + failed if listed else ["there was no case to compare"]
    return Verified(
        verdict="failed" if reasons else "passed",
        cases=len(listed),
        rows=sum(len(difference.cosines) for _, difference in pairs),
        worst=_worst(pairs, allowed),
        outputs=parities,
        tolerance=_stated(tolerance(precision, given), allowed),
        reason=_few(reasons),
    )


def _differences(
    reference: Reference, session: Session, cases: list[Case]
) -> tuple[list[tuple[Case, Difference]], list[str]]:
    """The differences of every case; and, of the cases in which the session raised, what it said."""
    pairs: list[tuple[Case, Difference]] = []
    raised: list[str] = []
    for case in cases:
        expected = reference(case)
        try:
            outputs = session.run(case.feeds)
        except Exception as error:
            if not _is_of_runtime(error):
                raise
            raised.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        pairs += [(case, difference) for difference in compare(expected, outputs).values()]
    return pairs, raised


def _is_of_runtime(error: Exception) -> bool:
    """Ours, RuntimeError, or a backend's own class (ONNX Runtime's derive from Exception); others are our bugs."""
    return isinstance(error, (GraphwrightError, RuntimeError)) or type(error).__module__ != "builtins"


def _judge(name: str, differences: list[tuple[Case, Difference]], allowed: Tolerance) -> OutputParity:
    failures = [f"{reason} ({case.name})" for case, each in differences for reason in _failures(each, allowed)]
    cosines = np.concatenate([each.cosines for _, each in differences])
    numbers = [each for _, each in differences if not each.reason]
    limit = allowed.mean_cosine
    directed = [each.cosines for each in numbers if each.width > 1 and not each.exact]
    mean = float(np.concatenate(directed).mean()) if any(map(len, directed)) else 1.0
    if limit is not None and mean < limit:
        failures.append(f"has mean row cosine {mean:.6g}, below {limit:g}")
    undefined = sum(each.undefined for each in numbers)
    note = (
        f"{undefined} entries left out: NaN in the reference, or of a query that no key is allowed" if undefined else ""
    )
    # where nothing could be compared there is no number; zero cosines do not look like success
    empty = 1.0 if numbers else 0.0
    return OutputParity(
        output=name,
        verdict="failed" if failures else "passed",
        max_abs=max((each.max_abs for each in numbers), default=0.0),
        max_rel=max((each.max_rel for each in numbers), default=0.0),
        cosine=float(cosines.min()) if cosines.size else empty,
        mean_cosine=float(cosines.mean()) if cosines.size else empty,
        reason=_few(failures) or note,
    )


def _failures(difference: Difference, allowed: Tolerance) -> Iterator[str]:
    if difference.reason:
        yield difference.reason
    elif difference.exact:
        wrong = int((difference.cosines < 1).sum())
        if wrong:
            yield f"must be equal, but {wrong} of {len(difference.cosines)} rows are not"
    else:
        limit = _absolute_limit(difference, allowed)
        if limit is not None and difference.max_abs > limit:
            yield f"differs by {difference.max_abs:.6g}, above {limit:.6g}"
        lowest = float(difference.cosines.min(initial=1.0))
        if allowed.min_cosine is not None and difference.width > 1 and lowest < allowed.min_cosine:
            yield f"has a row of cosine {lowest:.6g}, below {allowed.min_cosine:g}"


def _absolute_limit(difference: Difference, allowed: Tolerance) -> float | None:
    factor = allowed.absolute if difference.width > 1 else allowed.single
    return None if factor is None else factor * max(1.0, difference.scale)


def _stated(general: Tolerance, allowed: Mapping[str, Tolerance]) -> str:
    """The tolerance, and that of each output that has its own."""
    own = [f"Output {name!r}: {each}" for name, each in allowed.items() if each != general]
    return " ".join([str(general), *own])


def _worst(pairs: list[tuple[Case, Difference]], allowed: Mapping[str, Tolerance]) -> Worst | None:
    """The compared output that uses up most of what is allowed; None where nothing was compared."""
    compared = [pair for pair in pairs if not pair[1].reason]
    if not compared:
        return None
    case, difference = max(compared, key=lambda pair: _use(pair[1], allowed[pair[1].output]))
    return Worst(
        output=difference.output,
        shape=list(difference.shape),
        case=case.name,
        max_abs=difference.max_abs,
        max_rel=difference.max_rel,
        cosine=float(difference.cosines.min(initial=1.0)),
    )


def _use(difference: Difference, allowed: Tolerance) -> float:
    """The share of the tolerance that is used up; above 1 it failed."""
    lowest = float(difference.cosines.min(initial=1.0))
    if difference.exact:
        return 0.0 if lowest == 1.0 else np.inf
    limit = _absolute_limit(difference, allowed)
    shares = [] if limit is None else [difference.max_abs / limit]
    if allowed.min_cosine is not None and difference.width > 1:
        shares.append((1 - lowest) / (1 - allowed.min_cosine))
    return max(shares)


def _few(reasons: list[str]) -> str:
    more = [f"and {len(reasons) - REASONS} more"] if len(reasons) > REASONS else []
    return "; ".join([*reasons[:REASONS], *more])
