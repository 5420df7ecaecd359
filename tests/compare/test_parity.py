"""Parity: metrics against numbers by hand, tolerances just below and just above, each failure by name."""

import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graphwright.compare.cases import Case, cases, record, replay
from graphwright.compare.parity import TOLERANCES, Difference, check, compare, tolerance
from graphwright.errors import InputError
from graphwright.manifest import Verified
from graphwright.runtimes.base import Session, TensorInfo
from graphwright.spec import PRECISIONS, Precision


def difference(expected: np.ndarray, actual: np.ndarray) -> Difference:
    return compare({"y": expected}, {"y": actual})["y"]


def test_metrics_of_a_matrix_by_hand() -> None:
    expected = np.array([[3, 4], [0, 0], [0, 2], [1, 1]], np.float32)
    actual = np.array([[3, 4], [0, 0], [2, 0], [-1, -1]], np.float32)
    found = difference(expected, actual)
    assert found.reason == ""
    assert found.max_abs == 2.0
    assert found.max_rel == 2.0 / (1e-3 * 4)  # the reference's 0 counts as a thousandth of its largest value
    assert found.scale == 4.0
    np.testing.assert_allclose(found.cosines, [1, 1, 0, -1], atol=1e-15)


def test_relative_error_where_the_reference_is_not_small() -> None:
    found = difference(np.array([2.0, -8.0]), np.array([2.5, -7.0]))
    assert (found.max_abs, found.max_rel) == (1.0, 0.25)


def test_a_cosine_by_hand_at_extreme_sizes() -> None:
    for size in (1e-300, 1.0, 1e300):
        found = difference(np.array([[1.0, 0.0]]) * size, np.array([[1.0, 1.0]]) * size)
        assert found.cosines.tolist() == pytest.approx([1 / math.sqrt(2)], abs=1e-15)


def test_float32_is_compared_in_float64() -> None:
    expected = np.full((1, 3), 1 + 2**-23, np.float32)
    assert difference(expected, np.ones((1, 3), np.float32)).max_abs == 2.0**-23
    half = np.full((1, 2), 60000, np.float16)  # squares of these leave float16 and sums float32's exact integers
    assert difference(half, half).cosines.tolist() == pytest.approx([1.0])


def test_rows_negligible_beside_the_output_have_no_direction() -> None:
    expected = np.array([[1000.0, 0.0], [1e-7, 0.0]])
    assert difference(expected, np.array([[1000.0, 0.0], [0.0, 1e-7]])).cosines.tolist() == [1, 1]
    assert difference(np.zeros((1, 2)), np.array([[0.0, 1e-3]])).cosines.tolist() == [0]


@pytest.mark.parametrize(("shape", "rows"), [((), 1), ((3,), 3), ((3, 1), 3), ((0, 4), 0), ((2, 0), 2), ((2, 3, 4), 2)])
def test_a_row_is_an_entry_of_the_first_axis(shape: tuple[int, ...], rows: int) -> None:
    found = difference(np.ones(shape, np.float32), np.ones(shape, np.float32))
    assert (found.reason, found.max_abs, found.cosines.tolist()) == ("", 0.0, [1.0] * rows)


def test_a_number_alone_has_no_direction() -> None:
    found = difference(np.array([1e-4, -2.0]), np.array([-1e-4, -2.0]))
    assert found.cosines.tolist() == [1, 1]
    assert found.max_abs == 2e-4


def test_an_all_zero_reference_counts_as_one() -> None:
    assert difference(np.zeros(3), np.array([0, 0.5, 0])).max_rel == 0.5


def test_integers_and_booleans_are_equal_or_not() -> None:
    big = np.array([[2**53, 1], [5, 6]])
    found = difference(big, big + np.array([[1, 0], [0, 0]]))  # float64 cannot tell 2**53 from 2**53 + 1
    assert (found.exact, found.cosines.tolist()) == (True, [0, 1])
    assert difference(np.array([True, False]), np.array([True, True])).cosines.tolist() == [1, 0]


def test_infinities_in_place_are_left_out() -> None:
    expected = np.array([[1.0, -np.inf], [2.0, np.inf]])
    found = difference(expected, expected + np.array([[0.5, 0], [0, 0]]))
    assert (found.reason, found.max_abs, found.scale) == ("", 0.5, 2.0)


def test_entries_without_a_right_value_are_left_out_and_counted() -> None:
    found = difference(np.array([[1.0, np.nan, np.nan]]), np.array([[1.0, 7.0, np.nan]]))
    assert (found.reason, found.max_abs, found.undefined) == ("", 0.0, 2)


ONES = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("expected", "actual", "reason"),
    [
        (ONES, ONES[:1], "has shape [1, 2], the reference's is [2, 2]"),
        (ONES, ONES.astype(np.float16), "is float16, the reference's is float32"),
        (ONES, np.array([[1, np.nan], [1, 1]], np.float32), "is NaN at 1 of 4 entries where the reference is a number"),
        (ONES, np.array([[1, np.inf], [1, -np.inf]], np.float32), "is infinite at other entries than the reference: 2"),
        (ONES * np.inf, -ONES * np.inf, "is infinite at other entries than the reference: 4 of 4 differ"),
        (ONES * np.inf, ONES, "is infinite at other entries than the reference: 4 of 4 differ"),
        (ONES * np.nan, ONES * np.nan, "cannot be judged: the reference is NaN everywhere"),
        (ONES.astype(str), ONES.astype(str), "which cannot be compared"),
    ],
)
def test_what_cannot_be_compared_says_why(expected: np.ndarray, actual: np.ndarray, reason: str) -> None:
    assert reason in difference(expected, actual).reason


def test_bfloat16_is_compared_by_its_numbers() -> None:
    ones = ONES.astype(ml_dtypes.bfloat16)
    found = difference(ones, ones * ml_dtypes.bfloat16(1.5))
    assert (found.reason, found.max_abs) == ("", 0.5)


def test_missing_and_extra_outputs_are_named() -> None:
    found = compare({"logits": ONES}, {"output_0": ONES})
    assert found["logits"].reason == "is missing; the outputs are output_0"
    assert found["output_0"].reason == "is no output of the reference; those are logits"


WEIGHT = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


class Linear(Session):
    """x @ WEIGHT and the argmax of it, with a drift added to one element; drops, renames or raises on request."""

    provider = "numpy"
    inputs = (TensorInfo("x", "float32", ("batch", 4)),)
    outputs = (TensorInfo("embedding", "float32", ("batch", 6)), TensorInfo("best", "int64", ("batch",)))

    def __init__(self, drift: float = 0.0, name: str = "embedding", error: Exception | None = None) -> None:
        self.drift, self.name, self.error = drift, name, error

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.error is not None and len(feeds["x"]) == 8:
            raise self.error
        product = feeds["x"] @ WEIGHT
        best = product.argmax(axis=1)
        product[-1, -1] += self.drift
        return {self.name: product, "best": best}

    def _close(self) -> None:
        pass


EXAMPLE = {"x": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)}
CASES = cases(EXAMPLE, {"x": {0: "batch"}}, {}, ())


def exact(case: Case) -> dict[str, np.ndarray]:
    return Linear().run(case.feeds)


def verify(session: Session, precision: Precision = "fp32") -> Verified:
    return check(exact, session, CASES, precision)


def test_an_exact_artifact_passes() -> None:
    found = verify(Linear())
    assert (found.verdict, found.reason, found.cases, found.rows) == ("passed", "", 3, 2 * (1 + 3 + 8))
    assert [(parity.output, parity.verdict, parity.max_abs) for parity in found.outputs] == [
        ("embedding", "passed", 0.0),
        ("best", "passed", 0.0),
    ]
    assert "2e-05 x max(1, largest |reference|)" in found.tolerance
    assert "Why: float32 sums in another order" in found.tolerance
    assert Verified.model_validate_json(found.model_dump_json()) == found


class Wide(Session):
    """Rows of one or of a thousand elements, off by `error` in each case."""

    provider = "numpy"
    inputs = (TensorInfo("x", "float32", ("batch", "width")),)
    outputs = (TensorInfo("y", "float64", ("batch", "width")),)

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        y = feeds["x"].astype(np.float64)
        y[0, -1] += self.error
        return {"y": y}

    def _close(self) -> None:
        pass


def wide(error: float, precision: Precision, scale: float, width: int) -> Verified:
    case = Case("only", {"x": np.full((2, width), scale, np.float32)})
    return check(lambda case: Wide().run(case.feeds), Wide(error), [case], precision)


@pytest.mark.parametrize("scale", [0.25, 1.0, 64.0])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_drift_is_caught_just_above_the_absolute_tolerance(precision: Precision, scale: float) -> None:
    factor = TOLERANCES[precision].absolute
    assert factor is not None
    limit = factor * max(1.0, scale)
    # the row is long enough for its cosine to stay above the limit
    assert wide(limit * 0.999, precision, scale, 1000).verdict == "passed"
    found = wide(limit * 1.001, precision, scale, 1000)
    assert found.verdict == "failed"
    assert "y differs by" in found.reason
    assert f"above {limit:.6g} (only)" in found.reason


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_one_element_are_held_to_an_absolute_limit(precision: Precision) -> None:
    limit = tolerance(precision).single * 8
    assert wide(limit * 0.999, precision, 8.0, 1).verdict == "passed"
    found = wide(limit * 1.001, precision, 8.0, 1)
    assert (found.verdict, found.outputs[0].cosine) == ("failed", 1.0)


def turned(cosine: float, rows: int, turned_rows: int, precision: Precision) -> Verified:
    """`rows` rows of (1, 0), of which `turned_rows` came back with the given cosine."""
    expected = np.tile([1.0, 0.0], (rows, 1))
    actual = expected.copy()
    actual[:turned_rows] = [cosine, math.sqrt(1 - cosine**2)]
    return check(lambda case: {"y": expected}, Fixed({"y": actual}), [Case("only", {})], precision)


class Fixed(Session):
    """Gives the outputs that it was made with."""

    provider = "numpy"
    inputs = ()
    outputs = ()

    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self.fixed = outputs

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.fixed

    def _close(self) -> None:
        pass


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4", "fp8", "nvfp4"])
def test_a_row_is_caught_just_below_the_cosine_limit(precision: Precision) -> None:
    limit = tolerance(precision).min_cosine
    assert limit is not None
    assert turned(limit + 1e-4, 100, 1, precision).verdict == "passed"
    found = turned(limit - 1e-4, 100, 1, precision)
    assert found.verdict == "failed"
    assert f"y has a row of cosine {limit - 1e-4:.6g}, below {limit:g} (only)" in found.reason


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4", "fp8", "nvfp4"])
def test_the_mean_is_caught_just_below_its_limit(precision: Precision) -> None:
    limit = tolerance(precision).mean_cosine
    assert limit is not None
    assert turned(limit + 1e-4, 10, 10, precision).verdict == "passed"
    found = turned(limit - 1e-4, 10, 10, precision)
    assert found.verdict == "failed"
    assert f"y has mean row cosine {limit - 1e-4:.6g}, below {limit:g}" in found.reason
    assert found.outputs[0].mean_cosine == pytest.approx(limit - 1e-4)


def test_every_precision_has_a_tolerance_with_a_reason() -> None:
    assert set(TOLERANCES) == set(PRECISIONS)
    for precision in PRECISIONS:
        assert len(tolerance(precision).reason) > 20
        assert tolerance(precision).reason in str(tolerance(precision))


def test_the_worst_is_what_uses_most_of_the_tolerance() -> None:
    large, small = (Case(name, {"x": np.full((2, 3), value, np.float32)}) for name, value in [("1e4", 1e4), ("1", 1.0)])
    found = check(lambda case: Wide().run(case.feeds), Wide(2.0**-10), [large, small], "fp32")
    assert found.worst is not None  # the error is the same, but in the small case only it is above the limit
    assert (found.worst.output, found.worst.case, found.worst.shape) == ("y", "1", [2, 3])
    assert (found.worst.max_abs, found.worst.max_rel) == (2.0**-10, 2.0**-10)
    assert found.reason == "y differs by 0.000976562, above 2e-05 (1)"


def test_each_output_has_its_own_verdict() -> None:
    found = verify(Linear(drift=0.5))
    assert found.verdict == "failed"
    assert [(parity.output, parity.verdict) for parity in found.outputs] == [
        ("embedding", "failed"),
        ("best", "passed"),
    ]
    assert found.outputs[0].max_abs == pytest.approx(0.5, rel=1e-5)


def test_a_renamed_output_fails_by_name() -> None:
    found = verify(Linear(name="output_0"))
    verdicts = {parity.output: (parity.verdict, parity.cosine) for parity in found.outputs}
    assert verdicts == {"embedding": ("failed", 0.0), "output_0": ("failed", 0.0), "best": ("passed", 1.0)}
    assert "embedding is missing; the outputs are output_0, best (batch=1)" in found.reason
    assert "output_0 is no output of the reference" in found.reason
    assert Verified.model_validate_json(found.model_dump_json()) == found


def test_an_integer_that_differs_fails_at_any_precision() -> None:
    found = check(lambda case: {"ids": np.array([1, 2])}, Fixed({"ids": np.array([1, 3])}), [Case("only", {})], "int4")
    assert (found.verdict, found.reason) == ("failed", "ids must be equal, but 1 of 2 rows are not (only)")
    assert found.worst is not None
    assert found.worst.output == "ids"


def test_entries_left_out_are_said_in_a_passed_verdict() -> None:
    expected = np.array([[1.0, np.nan]])
    found = check(lambda case: {"y": expected}, Fixed({"y": np.array([[1.0, 0.0]])}), [Case("only", {})], "fp32")
    assert found.verdict == "passed"
    assert found.outputs[0].reason == "1 entries left out: NaN in the reference, or of a query that no key is allowed"


class Refused(Exception):
    """Stands where a backend has an error class of its own."""


@pytest.mark.parametrize("error", [InputError("too wide"), RuntimeError("too wide"), Refused("too wide")])
def test_a_session_that_raises_fails_that_case_by_name(error: Exception) -> None:
    found = verify(Linear(error=error))
    assert (found.verdict, found.cases) == ("failed", 3)
    assert found.reason == f"batch=8: {type(error).__name__}: too wide"
    assert [parity.verdict for parity in found.outputs] == ["passed", "passed"]  # in the cases that ran


def test_a_bug_in_a_session_is_raised() -> None:
    with pytest.raises(TypeError, match="a bug"):
        verify(Linear(error=TypeError("a bug")))


def test_a_feed_that_the_artifact_refuses_fails_its_case() -> None:
    short = Case("short", {"x": np.ones((1, 3), np.float32)})
    found = check(lambda case: {"embedding": np.zeros((1, 6))}, Linear(), [short], "fp32")
    assert found.verdict == "failed"
    assert "short: InputError: Input 'x' must have shape [batch, 4], but has [1, 3]" in found.reason


def test_no_case_proves_nothing() -> None:
    found = check(exact, Linear(), [], "fp32")
    assert (found.verdict, found.reason, found.worst) == ("failed", "there was no case to compare", None)


def test_many_failures_are_counted() -> None:
    many = [Case(f"case {index}", EXAMPLE) for index in range(9)]
    found = check(exact, Linear(drift=1.0), many, "fp32")
    assert found.outputs[0].reason.count("differs by") == 3
    assert found.outputs[0].reason.endswith("and 6 more")


def test_recorded_outputs_stand_in_for_the_reference(tmp_path: Path) -> None:
    assert record(exact, CASES, tmp_path / "golden", 1 << 20) == 3
    read = replay(tmp_path / "golden")
    recorded = {case.name: outputs for case, outputs in read}
    for drift, verdict in ((0.0, "passed"), (0.5, "failed")):
        found = check(lambda case: recorded[case.name], Linear(drift), [case for case, _ in read], "fp32")
        assert (found.verdict, found.cases) == (verdict, 3)
