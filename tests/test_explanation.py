"""The explanation of a lift: totals, equal sites told once, misses first, in words."""

from __future__ import annotations

from rich.console import Console

from graphwright.explanation import abbreviate, explain
from graphwright.manifest import SiteRecord


def told(sites: list[SiteRecord], proofs: str = "") -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(*explain(sites, proofs), sep="\n")
    return captured.get()


def attention(layer: int, **changes: str) -> SiteRecord:
    known = {"spelling": "softmax(QK)V, scaled scores, scaled Q, K, added mask", "became": "Attention"}
    known |= {"status": "lifted", "proof": "equal at 3 shapes"} | changes
    return SiteRecord(kind="attention", path=f"encoder.layer.{layer}.self", **known)  # type: ignore[arg-type]


def test_equal_sites_are_told_once_and_misses_first() -> None:
    miss = attention(7, status="missed", became="", proof="", spelling="softmax", reason="softmax is over axis 2")
    text = told([*map(attention, range(6)), miss], "7 proofs, 1 of them run.")
    assert text.startswith("7 sites: 6 lifted, 0 declined, 1 missed. 7 proofs, 1 of them run.")
    assert text.index("attention, missed") < text.index("attention x 6, lifted")
    assert "because: softmax is over axis 2" in text
    assert "in encoder.layer.{0..5}.self" in text
    assert "the scores are scaled by a number; the scale stands at Q, at K, or at both; a mask or bias is added" in text
    assert "is: Attention\n" in text
    assert "proved: equal at 3 shapes" in text


def test_a_function_says_why_it_is_one_and_a_ready_op_that_it_came_so() -> None:
    clip = attention(0, became="graphwright.ClippedAttention", spelling="softmax(QK)V", reason="Clip stands there")
    ready = attention(1, spelling="Attention", proof="")
    text = told([clip, ready])
    assert "is: graphwright.ClippedAttention\n" in text
    assert "a function, because: Clip stands there" in text
    assert "is: Attention, as it came\n" in text


def test_words_that_recur_are_counted() -> None:
    assert "a mask or bias is added to the scores (2 times)" in told([attention(0, spelling="added mask, added mask")])


def test_paths_are_abbreviated_by_their_numbers() -> None:
    assert abbreviate(["a.0.b", "a.1.b", "a.2.b"]) == ["a.{0..2}.b"]
    assert abbreviate(["a.0.b", "a.4.b", "c"]) == ["a.{0,4}.b", "c"]
    assert abbreviate(["a.0.b.1", "a.1.b.1", "layer2.x"]) == ["a.{0..1}.b.1", "layer2.x"]
    assert abbreviate([]) == []
