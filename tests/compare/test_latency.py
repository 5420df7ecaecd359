"""Latency: the schedule and the statistics on a clock of the test's own, the whole of it once on the real one."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from graphwright.compare.latency import (
    MAX_CALLS,
    MEDIAN_FLOOR,
    MIN_CALLS,
    NONE,
    P90_FLOOR,
    REST,
    ROUNDS_FLOOR,
    WARM_CALLS,
    Samples,
    measure,
    milliseconds,
    summarize,
)
from graphwright.errors import BuildError, GraphwrightError, ResourceError, UsageError

SHAPES = {"x": [1, 16]}
FEEDS = {"x": np.zeros((1, 16), np.float32)}


class Hall:
    """A place with its own time: calls and sleeps cost what the test says, and all is written down."""

    def __init__(self) -> None:
        self.ns = 0
        self.calls: list[str] = []
        self.sleeps: list[float] = []

    def clock(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        self.sleeps.append(seconds)
        self.calls.append("rest")

    def contender(self, name: str, cost: Callable[[int], float]) -> Callable[[], object]:
        """A callable that costs `cost(number of the call)` ms."""
        made = 0

        def call() -> object:
            nonlocal made
            self.ns += round(cost(made) * 1e6)
            made += 1
            self.calls.append(name)
            return object()

        return call

    def measure(self, contenders: Mapping[str, Callable[[], object]], budget: float) -> dict[str, Samples]:
        return measure(contenders, budget, clock=self.clock, sleep=self.sleep)


def steady(ms: float) -> Callable[[int], float]:
    return lambda _: ms


def noisy(ms: float, seed: int) -> Callable[[int], float]:
    noise = np.random.default_rng(seed)
    return lambda _: ms * float(noise.lognormal(0, 0.05))


def blocks(calls: list[str]) -> list[tuple[str, int]]:
    """(name, calls) between two rests."""
    found: list[tuple[str, int]] = []
    for name in calls:
        if name == "rest":
            found.append(("", 0))
        else:
            found[-1] = (name, found[-1][1] + 1)
    return found


def rounds_of(count: int, ms: float, calls: int = 3) -> Samples:
    return Samples(tuple((round(ms * 1e6),) * calls for _ in range(count)))


def test_every_round_rests_before_each_block_and_moves_the_order_on() -> None:
    hall = Hall()
    names = ["a", "b", "c"]
    samples = hall.measure({name: hall.contender(name, steady(40)) for name in names}, budget=12)
    order = [name for name, _ in blocks(hall.calls)][len(names) :]  # the warm-ups come first
    rounds = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert rounds[:4] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert set(hall.sleeps) == {REST}
    assert {len(own.blocks) for own in samples.values()} == {len(rounds)}


def test_the_first_call_of_a_block_is_not_counted() -> None:
    hall = Hall()

    def sleepy(_: int) -> float:
        return 500 if hall.calls[-1] == "rest" else 40

    samples = hall.measure({"a": hall.contender("a", sleepy), "b": hall.contender("b", sleepy)}, budget=30)
    assert len(samples["a"]) > MEDIAN_FLOOR
    assert set(samples["a"].ms) == {40.0}


@pytest.mark.parametrize(("ms", "calls"), [(0.01, MAX_CALLS), (10, 10), (400, MIN_CALLS)])
def test_a_block_holds_as_many_calls_as_fit_a_tenth_of_a_second_within_limits(ms: float, calls: int) -> None:
    hall = Hall()
    samples = hall.measure({"a": hall.contender("a", steady(ms))}, budget=30)
    assert {len(block) for block in samples["a"].blocks} == {calls}


def test_warm_up_goes_on_until_three_calls_agree() -> None:
    hall = Hall()
    hall.measure({"a": hall.contender("a", lambda number: max(10.0, 100 - 15 * number))}, budget=20)
    assert blocks(hall.calls)[0] == ("a", 9)  # 100, 85, ..., 25, then 10, 10, 10


def test_warm_up_is_capped_in_calls_and_in_time() -> None:
    hall = Hall()
    hall.measure({"a": hall.contender("a", lambda number: 1 + number % 2)}, budget=20)
    assert blocks(hall.calls)[0] == ("a", WARM_CALLS)
    hall = Hall()
    hall.measure({"a": hall.contender("a", lambda number: 1000 + 500 * (number % 2))}, budget=20)
    assert blocks(hall.calls)[0] == ("a", 4)  # a quarter of the budget: 1, 2.5, 3.5, 5 s


@pytest.mark.parametrize("budget", [0.1, 0.5, 3, 10, 47])
def test_the_budget_bounds_all_of_it(budget: float) -> None:
    hall = Hall()
    contenders = {name: hall.contender(name, steady(ms)) for name, ms in (("a", 30), ("b", 90), ("c", 5))}
    samples = hall.measure(contenders, budget)
    assert hall.ns <= budget * 1e9 + 90e6, "more than one warm-up call too long"
    assert len({len(own.blocks) for own in samples.values()}) == 1
    if budget >= 10:
        assert hall.ns >= 0.8 * budget * 1e9, "time was left unused"


def test_a_slow_round_is_finished_and_kept() -> None:
    hall = Hall()
    samples = hall.measure({"a": hall.contender("a", lambda number: 5000 if number == 20 else 40)}, budget=4)
    assert max(samples["a"].ms) == 5000
    assert len({len(block) for block in samples["a"].blocks}) == 1


def test_a_budget_too_small_for_all_gives_no_samples_and_says_so() -> None:
    hall = Hall()
    samples = hall.measure({"a": hall.contender("a", steady(900)), "b": hall.contender("b", steady(900))}, budget=1)
    rows = summarize(samples, "a", SHAPES)
    assert [len(own) for own in samples.values()] == [0, 0]
    assert rows["b"].verdict == f"too few samples (0 of {MEDIAN_FLOOR}): raise --budget"


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_bad_budget_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="seconds above 0, but is"):
        measure({"a": object}, budget)


@pytest.mark.parametrize("at", [0, 25])  # in the warm-up, in a block
@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (ValueError("bad shape"), GraphwrightError, "^b raised ValueError: bad shape"),
        (BuildError("no kernel"), BuildError, "^b: no kernel"),
        (MemoryError(), ResourceError, "^b: memory ran out"),
    ],
)
def test_an_error_names_the_contender(at: int, raised: Exception, kind: type[Exception], words: str) -> None:
    hall = Hall()

    def cost(number: int) -> float:
        if number == at:
            raise raised
        return 40

    with pytest.raises(kind, match=words) as caught:
        hall.measure({"a": hall.contender("a", steady(40)), "b": hall.contender("b", cost)}, budget=20)
    assert caught.value.__cause__ is raised


def test_the_clock_may_be_coarser_than_a_call() -> None:
    hall = Hall()
    samples = hall.measure({"a": hall.contender("a", steady(0)), "b": hall.contender("b", steady(0))}, budget=20)
    assert summarize(samples, "a", SHAPES)["b"].ratio_to_reference == 1


@pytest.mark.parametrize(("floor", "q"), [(MEDIAN_FLOOR, 0.5), (P90_FLOOR, 0.9)], ids=["median", "p90"])
def test_the_floors_are_the_smallest_that_99_percent_confidence_allows(floor: int, q: float) -> None:
    def at_most_one_above(n: int) -> float:
        return float(q**n + n * (1 - q) * q ** (n - 1))

    assert at_most_one_above(floor) <= 0.01 < at_most_one_above(floor - 1)


@pytest.mark.parametrize(
    ("count", "median", "p90"),
    [
        (MEDIAN_FLOOR - 1, False, False),
        (MEDIAN_FLOOR, True, False),
        (P90_FLOOR - 1, True, False),
        (P90_FLOOR, True, True),
    ],
)
def test_no_number_below_its_floor(count: int, median: bool, p90: bool) -> None:
    row = summarize({"a": rounds_of(count, 2.0, calls=1)}, None, SHAPES)["a"]
    assert (row.median_ms is not None, row.p90_ms is not None, row.samples) == (median, p90, count)
    assert row.verdict.startswith("measured in" if median else f"too few samples ({count} of {MEDIAN_FLOOR})")


def test_quantiles_keep_outliers() -> None:
    own = Samples(tuple((round(ms * 1e6),) for ms in [*range(1, 100), 10_000]))
    row = summarize({"a": own}, None, SHAPES)["a"]
    assert row.median_ms == 50.5
    assert row.p90_ms == pytest.approx(90.1)
    assert row.inputs == SHAPES
    assert max(own.ms) == 10_000


def test_a_ratio_above_one_is_faster_and_below_one_is_slower() -> None:
    hall = Hall()
    costs = {"torch": 20.0, "quick": 10.0, "slow": 40.0}
    contenders = {name: hall.contender(name, noisy(ms, seed)) for seed, (name, ms) in enumerate(costs.items())}
    rows = summarize(hall.measure(contenders, budget=60), "torch", SHAPES)
    quick, slow = rows["quick"], rows["slow"]
    medians = [row.median_ms for row in (rows["torch"], quick) if row.median_ms is not None]
    assert quick.ratio_to_reference == pytest.approx(2, rel=0.05)
    assert quick.ratio_to_reference == pytest.approx(medians[0] / medians[1])
    assert slow.ratio_to_reference == pytest.approx(0.5, rel=0.05)
    assert rows["torch"].ratio_to_reference == 1
    assert rows["torch"].verdict == "the reference"


def interval(verdict: str) -> tuple[float, float]:
    low, _, high = verdict.split("95% CI ")[1].split(",")[0].partition(" to ")
    return float(low), float(high)


def test_the_verdict_says_how_much_faster_with_an_interval() -> None:
    hall = Hall()
    contenders = {"torch": hall.contender("torch", noisy(20, 1)), "quick": hall.contender("quick", noisy(10, 2))}
    samples = hall.measure(contenders, budget=40)
    verdict = summarize(samples, "torch", SHAPES)["quick"].verdict
    low, high = interval(verdict)
    middle = float(verdict.split("x")[0])
    assert verdict.endswith(f"{len(samples['torch'].blocks)} rounds)")
    assert "x faster than torch (95% CI" in verdict
    assert 1.9 < low < middle < high < 2.1
    assert verdict == summarize(samples, "torch", SHAPES)["quick"].verdict


def test_a_slower_one_is_called_slower() -> None:
    samples = {"torch": rounds_of(8, 10), "slow": rounds_of(8, 16)}
    verdict = summarize(samples, "torch", SHAPES)["slow"].verdict
    assert verdict == "slower: 0.62x the speed of torch (95% CI 0.62 to 0.62, 8 rounds)"


def test_equal_ones_show_no_difference() -> None:
    hall = Hall()
    contenders = {"torch": hall.contender("torch", noisy(20, 1)), "same": hall.contender("same", noisy(20, 2))}
    verdict = summarize(hall.measure(contenders, budget=40), "torch", SHAPES)["same"].verdict
    low, high = interval(verdict)
    assert verdict.startswith("no difference shown from torch (95% CI")
    assert low <= 1 <= high
    assert high - low < 0.1


def test_load_that_differs_between_rounds_does_not_move_the_interval() -> None:
    load = np.random.default_rng(0).uniform(1, 5, size=30)
    samples = {
        "torch": Samples(tuple((round(20e6 * by),) * 3 for by in load)),
        "quick": Samples(tuple((round(10e6 * by),) * 3 for by in load)),
    }
    assert (
        "2.00x faster than torch (95% CI 2.00 to 2.00, 30 rounds)"
        in summarize(samples, "torch", SHAPES)["quick"].verdict
    )


def test_the_interval_of_an_even_pair_holds_one_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).lognormal(16, 0.2, size=(2, 12, 3))
        pair = [Samples(tuple(tuple(map(int, block)) for block in side)) for side in noise]
        held += "no difference" in summarize({"a": pair[0], "b": pair[1]}, "a", SHAPES)["b"].verdict
    assert held >= 180


def test_too_few_rounds_give_no_verdict() -> None:
    samples = {"torch": rounds_of(ROUNDS_FLOOR - 1, 10), "quick": rounds_of(ROUNDS_FLOOR - 1, 5)}
    verdict = summarize(samples, "torch", SHAPES)["quick"].verdict
    assert verdict == f"too few rounds (5 of {ROUNDS_FLOOR}) to compare with torch: raise --budget"


def test_too_few_samples_of_the_reference_are_said_to_be_its() -> None:
    samples = {"torch": rounds_of(3, 100, calls=3), "quick": rounds_of(3, 1, calls=30)}
    row = summarize(samples, "torch", SHAPES)["quick"]
    assert row.verdict == "too few samples of torch (9 of 11): raise --budget"
    assert row.ratio_to_reference is None


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown reference 'torch'"):
        summarize({"a": Samples()}, "torch", SHAPES)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, NONE), (0.01234, "0.0123"), (1.8, "1.80"), (12.34, "12.3"), (99.97, "100"), (4321.4, "4321")],
)
def test_milliseconds_have_three_digits(ms: float | None, text: str) -> None:
    assert milliseconds(ms) == text
