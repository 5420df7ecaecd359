"""A recipe's own rules, and what `ship` takes of it in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import graphwright as gw
from graphwright.compare.verify import recorded
from graphwright.errors import Exit, UsageError
from graphwright.passes.lower import TARGETS
from graphwright.recipe import make_recipe
from graphwright.recipe_schema import recipe_schema
from graphwright.runtimes import RUNTIMES

BASE: dict[str, Any] = {"source": "model.onnx", "targets": ["ort-cpu"], "out": "made"}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        return {"y": y, "best": y.argmax(dim=-1)}


def net() -> gw.ModelSpec:
    return gw.ModelSpec(Net().eval(), {"x": torch.randn(3, 16)}, {"x": {0: "batch"}}, name="net")


def refused(message: str, **given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe({**BASE, **given})
    assert re.search(message, str(caught.value)), str(caught.value)


def test_every_form_of_a_target_means_the_same() -> None:
    options = {"threads": 2, "spinning": False}
    forms = [("ort-cpu:fp32", options), {"target": "ort-cpu:fp32", "options": options}]
    recipes = [make_recipe({**BASE, "targets": [form]}) for form in forms]
    assert recipes[0] == recipes[1]
    assert list(recipes[0].options.values()) == [options]
    settings = recipes[0].targets[0].settings.model_dump()
    assert {name: settings[name] for name in options} == options
    assert settings["arena"] is True, "what was not given is the default"
    assert make_recipe(BASE).targets[0].options == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": []}, r"^targets: name at least one target\.$"),
        ({"targets": "ort-cpu"}, r"^targets: Input should be a list, but is 'ort-cpu'\.$"),
        ({"targets": [3]}, r"^targets\.0: Input should be a mapping, but is 3"),
        ({"targets": ["ort-cpu", ["ort-cuda"]]}, r"^targets\.1: Input should be a mapping"),
        ({"targets": ["ort-cpu", "ort-cpu:fp32"]}, r"^targets\.1: Target ort-cpu:fp32 is asked for more than once\.$"),
        (
            {"targets": [{"tarjet": "ort-cpu"}]},
            r"targets\.0\.target is missing\.\ntargets\.0\.tarjet: .*mean 'target'\?",
        ),
        (
            {"targets": [("ort-cpu", {"thread": 2})]},
            r"^targets\.0\.options\.thread: .*'thread'\. Did you mean 'threads'\?",
        ),
        (
            {"targets": [("ort-cpu", {"threads": "2"})]},
            r"^targets\.0\.options\.threads: .*valid integer, but is '2'\.$",
        ),
        ({"targets": [("ort-cpu", {"threads": True})]}, r"valid integer, but is True"),
        ({"targets": [("ort-cpu", {"arena": "yes"})]}, r"options\.arena: Input should be true or false, but is 'yes'"),
        ({"targets": [("ort-cqu", {"threads": 2})]}, r"^targets\.0\.target: Unknown target 'ort-cqu'\. Did you mean"),
        ({"opsett": 23}, r"^opsett: Unknown key 'opsett'\. Did you mean 'opset'\? Allowed: allow_code, "),
        ({"opset": 17}, r"^opset: .*greater than or equal to 18, but is 17\.$"),
        ({"opset": 23.0}, r"^opset: Input should be a valid integer, but is 23\.0"),
        ({"budget": float("inf")}, r"^budget: Input should be a finite number"),
        ({"budget": True}, r"^budget: Input should be a valid number, but is True"),
        ({"require": 1}, r"^require: Input should be true or false, but is 1"),
        ({"out": 3}, r"^out: Input should be a path, but is 3"),
        ({"ranges": {"n": (4, 2, 8)}}, r"^ranges\.n: must be \[min, opt, max\].*but is \(4, 2, 8\)"),
        ({"ranges": {"n": (1, 2)}}, r"^ranges\.n: must be"),
        ({"ranges": {"n": (1, 2.0, 3)}}, r"^ranges\.n: must be"),
        ({"ranges": {"n": "123"}}, r"^ranges\.n: must be"),
        ({"tolerances": {"fp32": {}}}, r"^tolerances\.fp32: Unknown key 'fp32'\. Allowed: outputs, precisions"),
        (
            {"tolerances": {"precisions": {"fp23": {}}}},
            r"precisions\.fp23: Unknown precision 'fp23'\. Did you mean 'fp32'",
        ),
        ({"tolerances": {"precisions": {"bf16": {}}}}, r"precisions\.bf16: no target of this run is of this precision"),
        ({"tolerances": {"outputs": {"y": {"absolut": 1}}}}, r"outputs\.y\.absolut: .*Did you mean 'absolute'\?"),
        ({"tolerances": {"outputs": {"y": {"absolute": 0}}}}, r"outputs\.y\.absolute: .*greater than 0"),
        ({"tolerances": {"outputs": {"y": {"min_cosine": 1.5}}}}, r"min_cosine: .*less than 1"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place_and_the_nearest(given: dict[str, Any], message: str) -> None:
    refused(message, **given)


def test_a_rule_over_several_options_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import model_validator

    from graphwright.runtimes import Settings

    class Pair(Settings):
        first: bool = False
        second: bool = False

        @model_validator(mode="after")
        def _both(self) -> Pair:
            if self.second and not self.first:
                raise ValueError("second applies with first alone")
            return self

    monkeypatch.setattr(type(RUNTIMES["ort-cuda"]), "settings", Pair)
    refused(r"^targets\.0\.options: second applies with first alone\.$", targets=[("ort-cuda", {"second": True})])
    assert make_recipe({**BASE, "targets": [("ort-cuda", {"second": True, "first": True})]})


def test_all_that_is_wrong_is_said_at_once_but_no_flood() -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe({**BASE, "opset": 3, "budget": -1, **{f"key{index}": "x" * 100_000 for index in range(30)}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("opset: ")
    assert lines[-1] == "... and 22 more."
    assert len(str(caught.value)) < 10_000


def test_the_schema_tells_editors_the_options_of_each_target() -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = {
        **BASE,
        "targets": [
            "ort-cpu:int8-dynamic",
            {"target": "tensorrt-rtx@sm75+sm89:fp16"},
            {"target": "ort-cpu", "options": {"threads": 2}},
        ],
        "ranges": {"sequence": [1, 128, 512]},
        "tolerances": {"precisions": {"fp16": {"absolute": 0.02}}, "outputs": {"y": {"min_cosine": 0.9}}},
    }
    jsonschema.validate(valid, schema)
    assert make_recipe(valid).opset == 23
    wrong: list[dict[str, Any]] = [
        {"opsett": 23},
        {"opset": 17},
        {"targets": []},
        {"targets": ["ort-cqu"]},
        {"targets": ["ort-cpu:fp16"]},
        {"targets": [{"target": "ort-cpu", "options": {"thread": 2}}]},
        {"targets": [{"target": "ort-cpu", "options": {"threads": 0}}]},
        {"targets": [{"target": "ort-cuda:fp16", "options": {"prepacking": True}}]},
        {"ranges": {"n": [1, 2]}},
        {"ranges": {"n": [1, 2, 3, 4]}},
        {"tolerances": {"precisions": {"fp23": {}}}},
        {"require": "yes"},
    ]
    for change in wrong:
        assert list(jsonschema.Draft202012Validator(schema).iter_errors({**valid, **change})), change
        with pytest.raises(UsageError):
            make_recipe({**valid, "tolerances": {}, **change})
    del valid["source"]
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(valid))


def test_the_schema_knows_every_job_of_every_target_and_every_option() -> None:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    for target in TARGETS.values():
        defaults = RUNTIMES[target.runtime].settings().model_dump(mode="json")
        for precision in target.precisions:
            for device in ("", *(f"@{device}" for device in target.devices if device)):
                entry = {"target": f"{target.name}{device}:{precision}", "options": defaults}
                assert not list(validator.iter_errors({**BASE, "targets": [entry, entry["target"]]})), entry


def test_ship_takes_options_ranges_and_tolerances(tmp_path: Path) -> None:
    made = gw.ship(
        net(),
        targets=[("ort-cpu:fp32", {"threads": 1}), "ort-cpu:int8-dynamic"],
        out=tmp_path / "made",
        ranges={"batch": (2, 3, 5)},
        tolerances={"outputs": {"y": {"absolute": 0.5}}},
        budget=0,
    )
    first, second = made.manifest.targets
    assert made.manifest.dynamic == {"batch": [2, 3, 5]}
    assert (first.options["threads"], second.options["threads"]) == (1, None)
    assert first.build is not None
    assert first.build.options["threads"] == 1
    assert "Output 'y': max abs <= 0.5 x" in first.verified.tolerance
    assert "set by the user: absolute 0.5" in first.verified.tolerance
    # what was allowed travels with each artifact, so that the device judges by the same
    alone = gw.load(made.out / "ort-cpu-fp32")
    assert alone.manifest.tolerances.outputs["y"].absolute == 0.5
    assert "set by the user: absolute 0.5" in gw.verify(None, alone).tolerance


def test_a_tighter_tolerance_fails_what_passed_before(tmp_path: Path) -> None:
    target = ["ort-cpu:int8-dynamic"]
    # 8 bits of 16 inputs: differences of some 1e-2
    tight = {"precisions": {"int8-dynamic": {"absolute": 1e-6}}}
    assert gw.ship(net(), target, tmp_path / "loose", budget=0).code is Exit.OK
    made = gw.ship(net(), target, tmp_path / "tight", tolerances=tight, budget=0)
    assert made.code is Exit.VERIFICATION
    reasons = {output.output: output.reason for output in made.manifest.targets[0].verified.outputs}
    assert re.search(r"differs by .*, above \d", reasons["y"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("z", r"Unknown output in the tolerances 'z'\. Allowed: best, y"), ("best", r"'best' is int64: it must be equal")],
)
def test_a_tolerance_of_no_output_or_of_integers_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        gw.ship(net(), ["ort-cpu"], tmp_path / "made", tolerances={"outputs": {name: {"absolute": 1.0}}}, budget=0)
    assert not (tmp_path / "made").exists()


def test_calibration_may_be_samples_or_where_they_lie(tmp_path: Path) -> None:
    sample = np.ones((2, 16), np.float32)
    np.savez(tmp_path / "sample.npz", x=sample)
    given: list[list[dict[str, np.ndarray]] | str] = [[{"x": sample}], str(tmp_path / "sample.npz")]
    for number, data in enumerate(given):
        made = gw.ship(net(), ["ort-cpu"], tmp_path / f"made{number}", calibration=data, budget=0)
        cases = [case.real for case, _ in recorded(gw.load(made.out / "ort-cpu-fp32"))]
        assert cases.count(True) == 1
