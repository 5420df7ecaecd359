"""The latency plot: what is drawn of the samples, and what is not."""

import re

import pytest

from graphwright.compare.latency import Samples, summarize
from graphwright.compare.latency_plot import MAX_DOTS, Series, draw

SHAPES = {"input_ids": [1, 128]}


def dots(svg: str) -> int:
    return len(re.findall(r"<use [^>]*", svg))


def test_the_plot_keeps_the_extremes_when_it_thins_the_dots() -> None:
    times = [10.0] * 3000
    times[1234], times[77] = 29.0, 5.0
    plain, thinned = draw([Series("a", [10.0], None)], "a"), draw([Series("a", times, None)], "a")
    assert dots(thinned) - dots(plain) == pytest.approx(MAX_DOTS, abs=5)
    wide = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="fill: var', thinned)]
    assert max(wide) - min(wide) > 300  # of 691 points of width


def test_the_plot_draws_a_median_only_where_there_is_one() -> None:
    rows = summarize({"a": Samples(((12_340_000,) * 11,)), "b": Samples(((5_000_000,) * 3,))}, None, SHAPES)
    svg = draw([Series(name, [12.34], row) for name, row in rows.items()], "a")
    assert svg.count("12.3 ms") >= 1
    assert "5.00 ms" not in svg


def test_far_apart_contenders_get_a_logarithmic_axis() -> None:
    near = draw([Series("a", [5.0, 6.0], None), Series("b", [20.0], None)], "a")
    far = draw([Series("a", [5.0, 6.0], None), Series("b", [2000.0], None)], "a")
    assert "logarithmic" not in near
    assert "logarithmic" in far
    assert draw([], "a") == ""
