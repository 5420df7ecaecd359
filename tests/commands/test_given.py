"""--option, --range and --tolerance: what they mean, and what of them is refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field

from graphwright.commands.given import in_words, options_of, ranges_of, tolerances_of, with_options
from graphwright.errors import UsageError
from graphwright.passes.lower import parse_job
from graphwright.recipe import make_recipe
from graphwright.runtimes import RUNTIMES, Settings

FP32, INT8, CUDA = (parse_job(text) for text in ("ort-cpu:fp32", "ort-cpu:int8-dynamic", "ort-cuda:fp16"))
JOBS = [FP32, INT8, CUDA]


class Many(Settings):
    """One field of each kind that a target may have."""

    count: int = 1
    share: float = 0.5
    on: bool = False
    text: str = ""
    choice: Literal["fast", "1"] = "fast"
    names: list[str] = Field(default_factory=list)
    limit: int | None = 4


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(RUNTIMES["ort-cuda"]), "settings", Many)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("count=3", 3), ("share=1", 1), ("share=1e-3", 1e-3), ("on=true", True), ("limit=null", None)],
        # what an option of text is given is text, whatever it looks like
        *[("text=3", "3"), ("text=true", "true"), ("text=a=b: [", "a=b: ["), ("text=", ""), ("choice=1", "1")],
        *[("names=[a, b]", ["a", "b"]), ("names=[]", [])],
    ],
)
@pytest.mark.usefixtures("many")
def test_a_value_is_of_the_type_of_its_option(text: str, value: Any) -> None:
    (found,) = options_of([text], [CUDA])[CUDA].values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count=two", r"option count of ort-cuda: .*valid integer, but is 'two'"),
        ("count=1.5", r"option count of ort-cuda: .*valid integer, but is 1\.5"),
        ("on=yes", r"option on of ort-cuda: .*but is 'yes'"),
        ("choice=slow", r"option choice of ort-cuda: Input should be 'fast' or '1'"),
        ("coutn=1", r"Unknown option for ort-cuda:fp16 'coutn'\. Did you mean 'count'\?"),
        ("count", r"--option count must be as in --option ort-cpu\.threads=2"),
        ("=1", r"must be as in"),
        (".count=1", r"--option \.count=1 must be as in"),
    ],
)
@pytest.mark.usefixtures("many")
def test_a_value_that_does_not_fit_is_refused(text: str, message: str) -> None:
    recipe = make_recipe({"source": "x.onnx", "targets": ["ort-cuda:fp16"], "out": "made"})
    with pytest.raises(UsageError, match=message):
        with_options(recipe, [text])


def test_an_option_without_a_target_is_for_each_that_has_it() -> None:
    assert options_of(["threads=2"], JOBS) == {FP32: {"threads": 2}, INT8: {"threads": 2}, CUDA: {}}
    with pytest.raises(UsageError, match=r"Unknown option for ort-cuda:fp16 'threads'\. Allowed: arena"):
        options_of(["threads=2"], [CUDA])


def test_an_option_with_a_target_is_for_it_alone() -> None:
    assert options_of(["ort-cpu.threads=2"], JOBS) == {FP32: {"threads": 2}, INT8: {"threads": 2}, CUDA: {}}
    assert options_of(["ort-cpu:fp32.threads=2"], JOBS) == {FP32: {"threads": 2}, INT8: {}, CUDA: {}}
    device = parse_job("tensorrt-rtx@sm89:fp16")
    with pytest.raises(UsageError, match=r"Unknown option for tensorrt-rtx@sm89:fp16 'threads'"):
        options_of(["tensorrt-rtx@sm89:fp16.threads=2"], [device])
    for wrong in ("ort-cup.threads=2", "ort-cpu:fp16.threads=2", "ort-cpu@x.threads=2"):
        with pytest.raises(UsageError, match=r"Unknown target in --option .*Allowed: ort-cpu, ort-cpu:fp32"):
            options_of([wrong], JOBS)


def test_two_options_that_contradict_each_other_are_refused() -> None:
    same = ["threads=2", "ort-cpu.threads=2"]
    assert options_of(same, JOBS)[FP32] == {"threads": 2}
    for second in ("threads=3", "ort-cpu.threads=3", "ort-cpu:fp32.threads=3"):
        with pytest.raises(UsageError, match=r"--option for ort-cpu:fp32: threads is given as 2 and as 3"):
            options_of(["threads=2", second], JOBS)


def test_options_count_before_those_of_the_recipe() -> None:
    targets = [("ort-cpu:fp32", {"threads": 4, "arena": False}), "ort-cpu:int8-dynamic"]
    recipe = make_recipe({"source": "x.onnx", "targets": targets, "out": "made"})
    changed, notes = with_options(recipe, ["threads=2", "arena=false"])
    assert changed.options == {FP32: {"threads": 2, "arena": False}, INT8: {"threads": 2, "arena": False}}
    assert notes == ["ort-cpu:fp32: option threads 2 as the command line says, in place of 4 in the recipe"]
    assert with_options(recipe, None) == (recipe, [])


def test_options_are_told_as_they_are_written() -> None:
    assert in_words({}) == ""
    assert in_words({"threads": None, "arena": False}) == ", options threads=null, arena=false"


def test_ranges() -> None:
    assert ranges_of(None) == {}
    assert ranges_of(["batch=1:4:8", "past + sequence=1:2:3"]) == {"batch": [1, 4, 8], "past + sequence": [1, 2, 3]}
    for wrong in ("batch", "=1:2:3"):
        with pytest.raises(UsageError, match=r"must be as in --range sequence=1:128:512"):
            ranges_of([wrong])
    with pytest.raises(UsageError, match=r"--range batch is given as \[1, 4, 8\] and as \[1, 2, 8\]"):
        ranges_of(["batch=1:4:8", "batch=1:2:8"])


def test_tolerances_of_outputs_with_dotted_names() -> None:
    given = ["precisions.fp16.absolute=0.02", "outputs.past.0.1.min_cosine=0.9", "outputs.past.0.1.absolute=1e-2"]
    assert tolerances_of(given) == {
        "precisions": {"fp16": {"absolute": 0.02}},
        "outputs": {"past.0.1": {"min_cosine": 0.9, "absolute": 0.01}},
    }
    for wrong in ("fp16.absolute=1", "absolute=1", "precisions.fp16.absolute"):
        with pytest.raises(UsageError, match=r"must be as in"):
            tolerances_of([wrong])
    with pytest.raises(UsageError, match=r"--tolerance absolute is given as 1 and as 2"):
        tolerances_of(["outputs.y.absolute=1", "outputs.y.absolute=2"])
