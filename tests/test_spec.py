"""The frozen values: every message of a ModelSpec that does not fit, flattening, sizes, jobs, suggestions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from graphwright.errors import Exit, GraphwrightError, InputError, UsageError
from graphwright.passes import parse_job
from graphwright.spec import PRECISIONS, Feeds, Job, ModelSpec, flatten, pick

BOTH = {0: "batch", 1: "sequence"}


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return x if mask is None else x * mask


class Anything(torch.nn.Module):
    def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return x


def make(**changed: Any) -> ModelSpec:
    """A spec that fits: x [2, 5, 4] and mask [2, 5], batch and sequence dynamic."""
    fields: dict[str, Any] = {
        "module": Pair(),
        "inputs": {"x": torch.ones(2, 5, 4), "mask": torch.ones(2, 5)},
        "dynamic": {"x": BOTH, "mask": BOTH},
        "ranges": {"sequence": (1, 8, 64)},
        "name": "pair",
    }
    return ModelSpec(**{**fields, **changed})


def test_a_spec_that_fits() -> None:
    spec = make()
    assert list(spec.tensors) == ["x", "mask"]
    assert spec.sizes == {"batch": 2, "sequence": 5}
    assert list(spec.samples()) == []


def test_a_spec_is_frozen_and_replaced() -> None:
    spec = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]
    assert dataclasses.replace(spec, ranges={"batch": (1, 2, 3)}).ranges == {"batch": (1, 2, 3)}


def test_a_default_parameter_and_free_keywords_may_be_left_out_or_given() -> None:
    assert make(inputs={"x": torch.ones(2, 5)}, dynamic={"x": BOTH}).sizes == {"batch": 2, "sequence": 5}
    more = {"x": torch.ones(2), "other": torch.ones(3)}
    assert list(make(module=Anything(), inputs=more, dynamic={}, ranges={}).tensors) == ["x", "other"]


def test_arrays_serve_as_example_inputs() -> None:
    inputs = {"x": np.ones((2, 5, 4), np.float32), "mask": np.ones((2, 5), np.float32)}
    assert make(inputs=inputs).sizes == {"batch": 2, "sequence": 5}


TENSOR = torch.ones(2, 5, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"module": None}, "ModelSpec.module must be a torch.nn.Module, but is a NoneType."),
        ({"module": Pair}, "ModelSpec.module is the class Pair itself: give an instance of it."),
        ({"inputs": {}}, "ModelSpec.inputs is empty: give one example tensor for each input of the module's forward."),
        ({"inputs": {"x": []}}, "ModelSpec.inputs is empty: give one example tensor"),
        ({"inputs": [TENSOR]}, "ModelSpec.inputs must be a dict of example tensors by name, but is a list."),
        ({"inputs": {"x": 3}}, "Input 'x' is a int, not a tensor. Bake constants and flags into the module"),
        ({"inputs": {"x": [TENSOR, None]}}, "Input 'x.1' is a NoneType, not a tensor."),
        (
            {"inputs": {"y": TENSOR}},
            "The inputs of 'pair' do not match Pair.forward (unknown: y; missing: x). "
            "It accepts: x, mask; required: x.",
        ),
        ({"inputs": {"mask": TENSOR}}, "(missing: x)"),
        ({"inputs": {"x": TENSOR, "a": TENSOR, "b": TENSOR}}, "(unknown: a, b)"),
        (
            {"calibration": iter([])},
            "The calibration data of 'pair' is a list_iterator, which can be read only once: give a list, or the "
            "function that makes it.",
        ),
    ],
)
def test_inputs_that_do_not_fit_the_module(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make(**changed)
    assert caught.value.code is Exit.INPUT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dynamic": {"max": BOTH}},
            "Unknown input in ModelSpec.dynamic 'max'. Did you mean 'mask'? Allowed: mask, x.",
        ),
        (
            {"dynamic": {"mask": {2: "width"}}},
            "Dynamic axis 2 of input 'mask' ('width') is out of range: the example has rank 2, so axes 0 to 1 exist. "
            "Negative axes are not taken.",
        ),
        ({"dynamic": {"mask": {-1: "sequence"}}}, "Dynamic axis -1 of input 'mask' ('sequence') is out of range"),
        ({"dynamic": {"mask": {"0": "batch"}}}, "Dynamic axis '0' of input 'mask' ('batch') is out of range"),
        (
            {"inputs": {"x": torch.tensor(1.0)}, "dynamic": {"x": {0: "batch"}}},
            "Dynamic axis 0 of input 'x' ('batch') is out of range: the example has rank 0, so it has no axes.",
        ),
        (
            {"dynamic": {"x": ["batch", "sequence"]}},
            "ModelSpec.dynamic['x'] must be a dict of names by axis, as in {0: 'batch'}, but is ['batch', 'sequence'].",
        ),
        *(
            (
                {"dynamic": {"x": {0: name}}},
                "The name of axis 0 of input 'x' must be an identifier, or a sum of such as in 'past + sequence', but "
                f"is {name!r}.",
            )
            for name in ("a b", 7, "2", "1 + 1", "a +", "a + b * 2", "")
        ),
        (
            {"dynamic": {"x": {1: "sequence"}, "mask": {1: "batch + sequence"}}},
            "Unknown dim in the sum 'batch + sequence' of ModelSpec.dynamic['mask'] 'batch'. Allowed: sequence.",
        ),
        (
            {"dynamic": {"x": BOTH, "mask": {1: "batch + sequence"}}},
            "Axis 1 of input 'mask' is to be batch + sequence, which is 7 in the example inputs, but it is 5.",
        ),
        (
            {"inputs": {"x": torch.ones(0, 5)}, "dynamic": {"x": {0: "batch"}}},
            "Dynamic dim 'batch' has size 0 in the example 'x': give an example with at least one entry.",
        ),
        (
            {"dynamic": {"x": {1: "sequence"}, "mask": {0: "sequence"}}},
            "Dynamic dim 'sequence' has two sizes in the example inputs: x[1] is 5, mask[0] is 2. One name means one "
            "size: rename one of the two.",
        ),
        (
            {"ranges": {"sequense": (1, 8, 64)}},
            "Unknown dynamic dim in ModelSpec.ranges 'sequense'. Did you mean 'sequence'? Allowed: batch, sequence.",
        ),
        *(
            (
                {"ranges": {"sequence": bounds}},
                f"Range of 'sequence' must be (min, opt, max), whole numbers with 1 <= min <= opt <= max, but is "
                f"{bounds!r}.",
            )
            for bounds in [(1, 64), (0, 8, 64), (1, 80, 64), (9, 8, 64), 64, "abc", (1, 8.0, 64), (True, 8, 64)]
        ),
        (
            {"ranges": {"sequence": (5, 5, 5)}},
            "Range of 'sequence' holds one size only, 5: leave 'sequence' out of ModelSpec.dynamic and "
            "ModelSpec.ranges.",
        ),
        (
            {"ranges": {"sequence": (8, 8, 64)}},
            "Range of 'sequence' is 8 to 64, but the example input has size 5: widen the range or give an example "
            "inside it.",
        ),
        ({"ranges": {"sequence": (1, 2, 4)}}, "Range of 'sequence' is 1 to 4, but the example input has size 5"),
    ],
)
def test_dims_and_ranges_that_do_not_fit_the_inputs(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        make(**changed)
    assert caught.value.code is Exit.USAGE


# --- calibration data


def batches() -> Iterator[Feeds]:
    yield {"x": np.zeros((1, 3, 4), np.float32)}
    yield {"x": np.ones((2, 3, 4), np.float32)}


@pytest.mark.parametrize("calibration", [batches, list(batches())])
def test_samples_are_read_from_the_start_each_time(calibration: Any) -> None:
    spec = make(calibration=calibration)
    for _ in range(2):
        assert [sample["x"].shape for sample in spec.samples()] == [(1, 3, 4), (2, 3, 4)]


def break_off() -> Iterator[Feeds]:
    yield from batches()
    raise KeyError("text")


def give_up() -> Iterator[Feeds]:
    raise SystemExit(0)


def refuse() -> Iterator[Feeds]:
    raise UsageError("no such split")


@pytest.mark.parametrize(
    ("calibration", "kind", "message"),
    [
        (break_off, InputError, "The calibration data of 'pair' raised KeyError: 'text'"),
        (give_up, InputError, "The calibration data of 'pair' raised SystemExit: 0"),
        (7, InputError, "The calibration data of 'pair' raised TypeError: 'int' object is not iterable"),
        (refuse, UsageError, "no such split"),
    ],
)
def test_calibration_data_that_raises(calibration: Any, kind: type[GraphwrightError], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        list(make(calibration=calibration).samples())


# --- names


def test_flatten_gives_dotted_names_in_order() -> None:
    nested = {"ids": 1, "past": ((2, 3), [4]), "more": {"b": {7: 5}, "a": 6}}
    assert dict(flatten(nested, "")) == {
        "ids": 1,
        "past.0.0": 2,
        "past.0.1": 3,
        "past.1.0": 4,
        "more.b.7": 5,
        "more.a": 6,
    }
    assert list(flatten(5, "x")) == [("x", 5)]
    assert list(flatten([], "x")) == []


def test_nested_inputs_have_dotted_names() -> None:
    past = ((torch.ones(2, 3), torch.ones(2, 3)),)
    spec = make(
        module=Anything(),
        inputs={"x": torch.ones(2, 5), "past": past},
        dynamic={"x": BOTH, "past.0.0": {1: "past"}, "past.0.1": {1: "past"}},
    )
    assert list(spec.tensors) == ["x", "past.0.0", "past.0.1"]
    assert spec.sizes == {"batch": 2, "sequence": 5, "past": 3}


def test_pick_gives_the_name_back() -> None:
    assert pick("fruit", "fig", {"fig": 1, "apple": 2}) == "fig"


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        ("bananna", ["apple", "banana"], "Unknown fruit 'bananna'. Did you mean 'banana'? Allowed: apple, banana."),
        ("zzz", ["banana", "apple"], "Unknown fruit 'zzz'. Allowed: apple, banana."),
        ("fig", [], "Unknown fruit 'fig'. Allowed: none in this version."),
    ],
)
def test_pick_lists_what_is_allowed_and_suggests_the_nearest(name: str, allowed: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        pick("fruit", name, allowed)


@pytest.mark.parametrize(
    ("job", "text", "folder"),
    [
        (Job("ort-cpu"), "ort-cpu:fp32", "ort-cpu-fp32"),
        (Job("ort-cpu", "int8-dynamic"), "ort-cpu:int8-dynamic", "ort-cpu-int8-dynamic"),
        (Job("tensorrt-rtx", "fp16", "sm75+sm89"), "tensorrt-rtx@sm75+sm89:fp16", "tensorrt-rtx-sm75-sm89-fp16"),
    ],
)
def test_jobs_are_written_as_they_are_read(job: Job, text: str, folder: str) -> None:
    assert str(job) == text
    assert job.folder == folder
    assert parse_job(text) == job


def test_precisions_are_the_ones_of_the_type() -> None:
    assert PRECISIONS == ("fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4", "fp8", "nvfp4")
