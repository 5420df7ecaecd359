"""manifest.json: the same after writing and reading, strict about keys and versions, and described by its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest

from graphwright.errors import Exit, InputError
from graphwright.manifest import (
    FILE,
    VERSION,
    Build,
    Latency,
    Manifest,
    OutputParity,
    Reference,
    SiteCount,
    SiteRecord,
    TargetRecord,
    Verified,
    Worst,
    read,
    write,
)


def full() -> Manifest:
    """A manifest with every field set to something else than its default."""
    latency = Latency(
        inputs={"x": [2, 5]}, median_ms=1.5, p90_ms=None, ratio_to_reference=2.0, samples=40, verdict="faster"
    )
    parity = OutputParity(
        output="y", verdict="failed", max_abs=0.5, max_rel=0.25, cosine=0.9, mean_cosine=0.95, reason="differs by 0.5"
    )
    record = TargetRecord(
        target="tensorrt-rtx",
        precision="fp16",
        device="sm75+sm89",
        status="built",
        reason="here",
        artifact="model.engine",
        graph="model.onnx",
        sha256={"model.engine": "ab" * 32, "model.onnx": "cd" * 32},
        sites={"attention": SiteCount(found=2, lifted=1, lowered_to={"Attention": 1})},
        precision_achieved={"fp16": 4},
        ops={"golden": {"MatMul": 4}},
        build=Build(
            runtime="tensorrt-rtx",
            versions={"tensorrt_rtx": "1.7"},
            options={"text": "a", "whole": 1, "part": 0.5, "flag": True, "list": ["a", "b"]},
            seconds=1.5,
            bytes=10,
            notes=["taken from the store"],
        ),
        verified=Verified(
            verdict="failed",
            cases=3,
            rows=6,
            worst=Worst(output="y", shape=[2, 5], case="batch=2", max_abs=0.5, max_rel=0.25, cosine=0.9),
            outputs=[parity],
            tolerance="rows within a cosine of 0.99",
            reason="y differs by 0.5",
        ),
        latency=latency,
    )
    return Manifest(
        source={"name": "tiny", "kind": "python file"},
        reference=Reference(runtime="torch", precision="fp32", version="2.9", latency=latency),
        dynamic={"batch": [1, 2, 8]},
        golden="golden.safetensors",
        sites=[
            SiteRecord(kind="attention", path="layers.0", status="missed", reason="a mask of rank 5", spelling="sdpa")
        ],
        targets=[record],
    )


def least() -> Manifest:
    record = TargetRecord(
        target="ort-cpu", precision="fp32", status="failed", verified=Verified(verdict="no device here")
    )
    reference = Reference(runtime="torch", precision="fp32", version="")
    return Manifest(source={}, reference=reference, targets=[record])


@pytest.mark.parametrize("make", [full, least])
def test_it_is_the_same_after_writing_and_reading(tmp_path: Path, make: Any) -> None:
    write(make(), tmp_path)
    assert read(tmp_path) == make()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_it_is_replaced_whole(tmp_path: Path) -> None:
    write(full(), tmp_path)
    write(least(), tmp_path)
    assert read(tmp_path) == least()


@pytest.mark.parametrize("make", [full, least])
def test_the_schema_describes_it(tmp_path: Path, make: Any) -> None:
    write(make(), tmp_path)
    schema = Manifest.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads((tmp_path / FILE).read_text()))


def change(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """`value` with what stands at `path` replaced."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    known = copied.get(path[0]) if isinstance(copied, dict) else copied[int(path[0])]
    copied[path[0]] = change(known, path[1:], new)  # type: ignore[index]
    return copied


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("version",), 2, r"version: Input should be 1"),
        (("extra",), 1, r"extra: Extra inputs are not permitted"),
        (("targets", 0, "verified", "extra"), 1, r"targets\.0\.verified\.extra: Extra inputs are not permitted"),
        (("targets", 0, "status"), "done", r"targets\.0\.status: Input should be 'built', 'lowered', 'failed' or "),
        (("targets", 0, "precision"), "fp12", r"targets\.0\.precision: Input should be 'fp32', "),
        (("targets", 0, "verified", "worst", "max_abs"), None, r"worst\.max_abs: Input should be a valid number"),
        (("targets",), None, r"targets: Input should be a valid "),
    ],
)
def test_what_is_not_of_this_form_is_rejected_by_both(
    tmp_path: Path, path: tuple[str | int, ...], new: Any, message: str
) -> None:
    value = change(full().model_dump(mode="json"), path, new)
    (tmp_path / FILE).write_text(json.dumps(value))
    wanted = rf"manifest\.json is no manifest of version {VERSION}: .*{message}"
    with pytest.raises(InputError, match=wanted) as caught:
        read(tmp_path)
    assert caught.value.code is Exit.INPUT
    assert not jsonschema.Draft202012Validator(Manifest.model_json_schema()).is_valid(value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"version": 1}'])
def test_what_is_no_manifest_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is no manifest of version 1: \S.*\.$"):
        read(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    wanted = r"holds no readable manifest\.json \(No such file or directory\): give a folder that `graphwright ship` or"
    with pytest.raises(InputError, match=wanted):
        read(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match=r"holds no readable manifest\.json \(Is a directory\)"):
        read(tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_json_lacks_are_refused_when_they_are_entered(value: float) -> None:
    with pytest.raises(pydantic.ValidationError, match="finite number"):
        Worst(output="y", shape=[1], max_abs=value, max_rel=0, cosine=1)


def test_a_record_one_folder_higher() -> None:
    record = full().targets[0]
    moved = record.prefixed("rtx")
    assert (moved.artifact, moved.graph) == ("rtx/model.engine", "rtx/model.onnx")
    assert moved.sha256 == {"rtx/model.engine": "ab" * 32, "rtx/model.onnx": "cd" * 32}
    assert record == full().targets[0], "the record itself is unchanged"
    failed = least().targets[0].prefixed("cpu")
    assert (failed.artifact, failed.graph, failed.sha256) == ("", "", {})


@pytest.mark.parametrize(
    ("verdict", "passed"), [("passed", True), ("failed", False), ("simulated", None), ("no device here", None)]
)
def test_passed_is_known_only_where_it_was_run(verdict: Any, passed: bool | None) -> None:
    assert Verified(verdict=verdict).passed is passed
