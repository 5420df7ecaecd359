"""The grid of inputs, padded rows, the user's samples, and golden files: written, read back, damaged."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from graphwright.compare.cases import GRID, HEADER_BYTES, Case, cases, record, replay
from graphwright.errors import InputError, UsageError

IDS = np.arange(2, 22, dtype=np.int64).reshape(2, 10)
MASK = np.array([[1] * 10, [1] * 6 + [0] * 4], np.int64)
TEXT = {"input_ids": IDS, "attention_mask": MASK}
DIMS = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
RANGES = {"sequence": (1, 64, 512)}


def shapes(found: list[Case], name: str = "input_ids") -> list[tuple[int, ...]]:
    return [case.feeds[name].shape for case in found if not case.name.endswith("padded")]


def test_the_grid_holds_every_combination_and_the_example() -> None:
    found = shapes(cases(TEXT, DIMS, RANGES, ()))
    assert found == [*itertools.product((1, 3, 8), (1, 7, 33, 128)), (2, 10)]


def test_sizes_are_clipped_into_the_range_and_taken_once() -> None:
    found = shapes(cases(TEXT, DIMS, {"batch": (2, 2, 4), "sequence": (10, 16, 40)}, ()))
    assert found == [*itertools.product((2, 3, 4), (10, 33, 40))]  # the example's sizes are among them


def test_a_range_beyond_all_sizes_still_gives_two_sizes() -> None:
    wave = {"input_values": np.ones((1, 500), np.float32)}
    dims = {"input_values": {1: "samples"}}
    assert shapes(cases(wave, dims, {"samples": (400, 500, 9000)}, ()), "input_values") == [
        (1, 400),
        (1, 801),
        (1, 500),
    ]
    assert shapes(cases(wave, dims, {"samples": (500, 500, 500)}, ()), "input_values") == [(1, 500)]


def test_a_sum_of_dims_follows_them() -> None:
    feeds: dict[str, np.ndarray] = {"x": np.ones((2, 3), np.float32), "mask": np.ones((2, 5), np.int64)}
    dims = {"x": {1: "new"}, "mask": {0: "past", 1: "past + new"}}
    made = cases(feeds, dims, {"new": (1, 3, 3), "past": (1, 2, 8)}, ())
    assert {
        (case.feeds["mask"].shape[0] + case.feeds["x"].shape[1]) - case.feeds["mask"].shape[1] for case in made
    } == {0}
    assert shapes(made, "mask")[0] == (1, 2)
    wrong = {**feeds, "mask": np.ones((2, 6), np.int64)}
    with pytest.raises(InputError, match=r"^Calibration sample 0 has past \+ new of 6, but 5 is that sum\.$"):
        cases(feeds, dims, {}, [wrong])


def test_a_static_model_has_its_example_alone() -> None:
    (only,) = cases({"x": IDS}, {}, {}, ())
    assert (only.name, only.real) == ("example", False)
    np.testing.assert_array_equal(only.feeds["x"], IDS)


def test_many_dims_are_bounded_and_each_size_occurs() -> None:
    feeds = {"x": np.ones((2, 5, 5, 5), np.float32)}
    found = shapes(cases(feeds, {"x": {0: "n", 1: "a", 2: "b", 3: "c"}}, {"c": (1, 5, 7)}, ()), "x")
    assert found.pop() == (2, 5, 5, 5)
    assert len(found) == len(set(found)) == GRID < math.prod((3, 4, 4, 2))
    assert found[0] == (1, 1, 1, 1)
    assert found[-1] == (8, 128, 128, 7)
    for axis, sizes in enumerate([{1, 3, 8}, {1, 7, 33, 128}, {1, 7, 33, 128}, {1, 7}]):
        assert {shape[axis] for shape in found} == sizes


def test_a_dim_that_is_axis_0_here_and_axis_1_there_is_no_batch() -> None:
    feeds = {"input_ids": IDS, "position_ids": np.arange(10)}
    found = cases(feeds, {"input_ids": {1: "sequence"}, "position_ids": {0: "sequence"}}, {}, ())
    assert shapes(found) == [(2, 1), (2, 7), (2, 33), (2, 128), (2, 10)]


def test_tensors_are_tiled_and_cropped_from_the_example() -> None:
    by_name = {case.name: case.feeds for case in cases(TEXT, DIMS, RANGES, ())}
    np.testing.assert_array_equal(by_name["batch=3 sequence=7"]["input_ids"], IDS[[0, 1, 0], :7])
    np.testing.assert_array_equal(by_name["batch=1 sequence=33"]["input_ids"][0], np.tile(IDS[0], 4)[:33])
    assert all(feeds["input_ids"].dtype == np.int64 for feeds in by_name.values())


def test_a_cropped_mask_keeps_a_position_in_each_row() -> None:
    left = np.array([[1, 1, 1, 1], [0, 0, 1, 1]], bool)
    found = cases({"mask": left}, {"mask": {1: "sequence"}}, {}, ())
    assert all(case.feeds["mask"].any(axis=1).all() for case in found)
    hides = np.array([[0, 0, 0, 0], [1, 1, 0, 0]], bool)  # True: masked
    found = cases({"padding_mask": hides}, {"padding_mask": {1: "sequence"}}, {}, ())
    assert not any(case.feeds["padding_mask"].all(axis=1).any() for case in found)
    assert not any(case.name.endswith("padded") for case in found)


def test_padded_rows_keep_different_numbers_of_leading_ones() -> None:
    padded = {case.name: case.feeds for case in cases(TEXT, DIMS, RANGES, ()) if case.name.endswith("padded")}
    assert "batch=8 sequence=128 padded" in padded
    lengths = [128, 112, 96, 80, 64, 48, 32, 16]
    np.testing.assert_array_equal(
        padded["batch=8 sequence=128 padded"]["attention_mask"], np.arange(128) < np.array(lengths)[:, None]
    )
    for feeds in padded.values():
        mask = feeds["attention_mask"]
        assert mask.dtype == np.int64
        assert (mask[:, 0] == 1).all()
        assert (np.diff(mask) <= 0).all()
        assert len(set(mask.sum(axis=1))) > 1


def test_a_broadcast_mask_is_padded_along_its_last_axis() -> None:
    feeds = {"mask": np.ones((2, 1, 4, 4), bool)}
    found = cases(feeds, {"mask": {0: "batch"}}, {}, ())
    (wide,) = [case for case in found if case.name == "batch=8 padded"]
    assert wide.feeds["mask"].shape == (8, 1, 4, 4)
    assert wide.feeds["mask"].dtype == np.bool_
    assert wide.feeds["mask"].sum(axis=-1)[:, 0, 0].tolist() == [4, 3, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "feeds",
    [
        {"token_type_ids": np.ones((2, 4), np.int64)},
        {"mask": np.full((2, 4), 2, np.int64)},
        {"mask": np.ones((2, 4), np.float32)},
    ],
    ids=["no mask by name", "no flags", "additive"],
)
def test_only_flags_named_mask_are_padded(feeds: Mapping[str, np.ndarray]) -> None:
    found = cases(feeds, {next(iter(feeds)): {0: "batch", 1: "sequence"}}, {}, ())
    assert not any(case.name.endswith("padded") for case in found)


def test_samples_come_last_and_are_real() -> None:
    sample = {"attention_mask": np.ones((1, 5), np.int64), "input_ids": np.full((1, 5), 9)}
    found = cases(TEXT, DIMS, RANGES, iter([sample, sample]))
    assert [case.name for case in found if case.real] == ["sample 0", "sample 1"]
    assert found[-1].real
    assert found[-1].feeds["input_ids"] is sample["input_ids"]


FLOATS = {"x": np.zeros((2, 3), np.float32), "y": np.zeros((2,), np.float32)}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"x": FLOATS["x"], "z": FLOATS["y"]}, "sample 0 must hold x, y, but holds x, z: wrong y, z"),
        ([FLOATS["x"]], "sample 0 must be a dict of arrays, but is a list"),
        ({"x": FLOATS["x"].astype(np.float64), "y": FLOATS["y"]}, "must be float32, but is float64: use .astype"),
        ({"x": FLOATS["x"].tolist(), "y": FLOATS["y"]}, "must be a numpy array, but is a list"),
        (
            {"x": np.full((2, 3), np.nan, np.float32), "y": FLOATS["y"]},
            "'x' of calibration sample 0 holds NaN at 6 of 6",
        ),
        ({"x": FLOATS["x"][0], "y": FLOATS["y"]}, r"must have shape \[n, 3\], but has \[3\]"),
        ({"x": FLOATS["x"][:, :2], "y": FLOATS["y"]}, r"must have shape \[n, 3\].*, but has \[2, 2\]"),
        ({"x": FLOATS["x"], "y": FLOATS["y"][:1]}, r"'y'.*must have shape \[n\] \('n' is 1 to 4\), but has \[1\]"),
        ({"x": np.zeros((5, 3), np.float32), "y": np.zeros(5, np.float32)}, r"\('n' is 1 to 4\), but has \[5, 3\]"),
        ({"x": FLOATS["x"][:0], "y": FLOATS["y"][:0]}, r"but has \[0, 3\]"),
    ],
)
def test_a_sample_that_does_not_fit_is_rejected(sample: Mapping[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cases(FLOATS, {"x": {0: "n"}, "y": {0: "n"}}, {"n": (1, 2, 4)}, [sample])


def outputs(case: Case) -> dict[str, np.ndarray]:
    x = case.feeds["input_ids"].astype(np.float32)
    return {"a/b.0": x * 0.5, "total": x.sum(), "turned": x.T, "flags": x > 4}


def test_a_golden_file_gives_back_what_was_recorded(tmp_path: Path) -> None:
    recorded = [*cases(TEXT, DIMS, {"sequence": (1, 8, 16)}, [TEXT])]
    path = tmp_path / "golden.safetensors"
    assert record(outputs, recorded, path, 1 << 30) == len(recorded)
    read = replay(path)
    assert [(case.name, case.real) for case, _ in read] == [(case.name, case.real) for case in recorded]
    for (case, came), original in zip(read, recorded, strict=True):
        for found, expected in ((case.feeds, original.feeds), (came, outputs(original))):
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                assert found[name].shape == array.shape
                np.testing.assert_array_equal(found[name], array)


def test_cases_over_the_limit_are_dropped_from_the_end(tmp_path: Path) -> None:
    listed = cases(TEXT, DIMS, RANGES, ())
    path = tmp_path / "golden.safetensors"
    kept = record(outputs, listed, path, 20_000)
    assert 1 < kept < len(listed)
    assert [case.name for case, _ in replay(path)] == [case.name for case in listed[:kept]]
    assert path.stat().st_size < 30_000


def test_the_smallest_case_is_kept_in_any_limit(tmp_path: Path) -> None:
    listed = cases(TEXT, DIMS, RANGES, ())[::-1]
    assert record(outputs, listed, tmp_path / "golden", 1) == 1
    assert [case.name for case, _ in replay(tmp_path / "golden")] == ["batch=1 sequence=1"]


def test_recording_nothing_or_into_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no case to record"):
        record(outputs, [], tmp_path / "golden", 1)
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        record(outputs, cases(TEXT, {}, {}, ()), tmp_path / "none" / "golden", 1 << 20)


ONE = np.zeros(1, np.float32)


def damaged(tensors: Mapping[str, np.ndarray], listed: object) -> bytes:
    return safetensors.numpy.save(dict(tensors), metadata={"cases": json.dumps(listed)})


GOOD = {"0/in/x": ONE, "0/out/y": ONE}
LISTED = [{"name": "a", "real": False}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no readable golden file"),
        (damaged(GOOD, LISTED)[:-2], "is no readable golden file"),
        ((HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "claims a header of 8388609 bytes"),
        (safetensors.numpy.save(GOOD), "its metadata names no cases"),
        (damaged(GOOD, "a"), "its metadata names no cases"),
        (damaged(GOOD, [{"name": 1, "real": False}]), "does not describe a case"),
        (damaged(GOOD | {"1/in/x": ONE}, LISTED), "'1/in/x' names no input or output of its 1 cases"),
        (damaged(GOOD | {"-1/in/x": ONE}, LISTED), "'-1/in/x' names no input"),
        (damaged(GOOD | {"0/over/x": ONE}, LISTED), "'0/over/x' names no input"),
        (damaged({"0/in/x": ONE}, LISTED), "case 'a' lacks its inputs or its outputs"),
    ],
)
def test_a_damaged_golden_file_is_rejected(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        replay(path)


def test_a_missing_golden_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no readable golden file"):
        replay(tmp_path / "golden")
