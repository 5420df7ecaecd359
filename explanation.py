"""What lift understood, told as one colleague tells another: what was found where, how it was written, what became of
it, and how that is known. Equal sites of a stack of layers are told once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.padding import Padding
from rich.text import Text

from .manifest import SiteRecord

NAMES = {
    "attention": "attention",
    "layer_norm": "layer norm",
    "rms_norm": "RMS norm",
    "group_norm": "group norm",
    "residual_norm": "residual sum and norm",
    "tied_weight": "tied weight",
}
# words of the log -> what they mean
MEANINGS = {
    "softmax(QK)V": "a softmax between two products",
    "Q (Kt V)": "the product of K and V first, then Q with that",
    "scaled scores": "the scores are scaled by a number",
    "scaled Q, K": "the scale stands at Q, at K, or at both",
    "scaled by a tensor": "the scores are scaled by a tensor that is the same for all keys, which goes to Q",
    "soft-cap": "a soft-cap by tanh",
    "added mask": "a mask or bias is added to the scores",
    "Where mask": "Where sets the scores of forbidden keys to a low number",
    "multiplied mask": "masked scores are multiplied by 0 before the mask is added",
    "shifted": "the row's maximum is taken off, which softmax does not see",
    "lower bound": "the scores are bounded from below",
    "NaN guard": "a guard against rows with no allowed key",
    "zeroed weights": "the weights of forbidden keys are set to 0, which they are already",
    "scaled weights": "the weights are scaled by a number, which goes to the result",
    "gate": "the weights are multiplied by a gate that is the same for all keys, which goes to the result",
    "regrouped axes": "batch and heads are merged for the products and are axes of their own again",
    "Attention": "the exporter's own op",
    "primitives": "written out in elementary ops",
}
COLOURS = {"lifted": "green", "declined": "yellow", "missed": "red"}


def explain(sites: Iterable[SiteRecord], proofs: str = "") -> Iterator[Text | Padding]:
    """A line of totals, then a paragraph for each kind of site; `proofs`: what proving cost, in words."""
    listed = list(sites)
    counts = [f"{sum(site.status == status for site in listed)} {status}" for status in COLOURS]
    yield Text(f"{len(listed)} sites: {', '.join(counts)}.{' ' * bool(proofs)}{proofs}")
    groups: dict[tuple[str, ...], list[str]] = {}
    for site in listed:
        # the numbers of a proof differ where its random inputs do: equal sites are told by what they are
        key = (site.kind, site.status, site.became, site.spelling, site.reason)
        groups.setdefault(key, []).append(site.path)
    proved: dict[tuple[str, ...], str] = {
        (site.kind, site.status, site.became, site.spelling, site.reason): site.proof for site in listed
    }
    order = {"missed": 0, "declined": 1, "lifted": 2}
    for told, paths in sorted(groups.items(), key=lambda item: order[item[0][1]]):
        kind, status, became, spelling, reason = told
        yield Text("")
        title = Text(NAMES.get(kind, kind.replace("_", " ")), style="bold")
        title.append(f" x {len(paths)}" if len(paths) > 1 else "", style="bold")
        title.append(f", {status}", style=COLOURS[status])
        yield title
        yield from (
            Padding(Text(line), (0, 0, 0, 2), expand=False)
            for line in _lines(became, spelling, reason, paths, proved[told])
        )


def _lines(became: str, spelling: str, reason: str, paths: list[str], proof: str) -> Iterator[str]:
    yield f"in {'; '.join(abbreviate(paths))}"
    told = [MEANINGS.get(word, word) for word in _words(spelling)]
    native = became == spelling
    if told and not native:
        yield f"found: {'; '.join(_counted(told))}"
    if became:
        yield f"is: {became}{', as it came' if native else ''}"
    if reason:
        yield f"{'a function, because' if became else 'because'}: {reason}"
    if proof:
        yield f"proved: {proof}"


def _words(spelling: str) -> list[str]:
    if spelling in MEANINGS:
        return [spelling]
    # "scaled Q, K" holds the mark that stands between words
    return [word.replace("Q; K", "Q, K") for word in spelling.replace("Q, K", "Q; K").split(", ") if word]


def _counted(words: list[str]) -> list[str]:
    return [f"{word} ({count} times)" if (count := words.count(word)) > 1 else word for word in dict.fromkeys(words)]


def abbreviate(paths: Iterable[str]) -> list[str]:
    """Paths that differ in one number as one: layers.0.attn, layers.1.attn -> layers.{0..1}.attn."""
    shapes: dict[str, list[list[int]]] = {}
    for path in paths:
        numbers = [int(number) for number in re.findall(r"(?<![^.])\d+(?![^.])", path)]
        shapes.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "{}", path), []).append(numbers)
    return [shape.format(*map(_span, zip(*found, strict=True))) for shape, found in shapes.items()]


def _span(numbers: tuple[int, ...]) -> str:
    listed = sorted(set(numbers))
    if len(listed) == 1:
        return str(listed[0])
    if listed == list(range(listed[0], listed[-1] + 1)):
        return f"{{{listed[0]}..{listed[-1]}}}"
    return "{" + ",".join(map(str, listed)) + "}"
