"""Recipes in files: the command line over them, errors with their lines, and a saved one that does the same again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphwright as gw
from graphwright.cli import main
from graphwright.errors import UsageError
from graphwright.recipe_file import read_recipe
from graphwright.yaml_text import read_file, read_text

ROOT = Path(gw.__file__).resolve().parent
MODULE = """
import numpy as np
import torch
import graphwright as gw

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
    def forward(self, x):
        return {"y": self.linear(x).tanh()}

def spec():
    torch.manual_seed(0)
    return gw.ModelSpec(Net().eval(), inputs={"x": torch.randn(2, 16)}, dynamic={"x": {0: "batch"}}, name="small")

def samples():
    return [{"x": np.ones((3, 16), np.float32)}]
"""
RECIPE = """\
source: model.py:spec
out: made
targets:
  - ort-cpu:fp32
  - target: ort-cpu:int8-dynamic
    options: {threads: 1}
ranges:
  batch: [1, 4, 16]
calibration: model.py:samples
tolerances:
  outputs: {y: {absolute: 0.2}}
budget: 0
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a folder that holds model.py and run.yaml."""
    (tmp_path / "model.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["graphwright", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Result(int(stop.value.code or 0), said.out, said.err)

    return command


def with_line(*changes: tuple[str, str]) -> None:
    """run.yaml with pieces of its text replaced."""
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("run.yaml").write_text(text)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in ("seconds", "notes", "sha256")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_a_recipe_runs_and_its_saved_form_does_the_same_from_the_store(run: Run, tmp_path: Path) -> None:
    first = run("ship", "--recipe", "run.yaml", "--option", "arena=false", "--save-recipe", "saved.yaml", "--json")
    assert first.code == 0, first.err
    manifest = json.loads(first.out)
    assert manifest["dynamic"] == {"batch": [1, 4, 16]}
    assert [record["options"]["arena"] for record in manifest["targets"]] == [False, False]
    assert [record["options"]["threads"] for record in manifest["targets"]] == [None, 1]
    assert manifest["tolerances"]["outputs"]["y"]["absolute"] == 0.2
    saved = read_file(tmp_path / "saved.yaml").value
    assert saved["opset"] == 23, "defaults are filled in"
    assert {"spinning", "arena", "threads", "prepacking"} <= set(saved["targets"][0]["options"])

    again = run("ship", "--recipe", "saved.yaml", "--json")
    assert again.code == 0, again.err
    assert "as the command line says" not in again.err, "nothing but the recipe acts"
    assert without_times(json.loads(again.out)) == without_times(manifest)
    assert "export: from the store" in again.err
    assert re.search(r"reference: \d+ cases from the store", again.err)
    for record in json.loads(again.out)["targets"]:
        assert "taken from the store" in record["build"]["notes"]
    # and what it says of itself is what it was made from
    third = run("ship", "--recipe", "saved.yaml", "--dry-run", "--save-recipe", "third.yaml")
    assert third.code == 0, third.err
    assert read_file(tmp_path / "third.yaml").value == saved


def test_flags_say_all_that_a_recipe_says(run: Run, tmp_path: Path) -> None:
    flags = [
        *("model.py:spec", "--out", "made", "--target", "ort-cpu:fp32", "--target", "ort-cpu:int8-dynamic"),
        *("--option", "ort-cpu:int8-dynamic.threads=1", "--range", "batch=1:4:16", "--calibration", "model.py:samples"),
        *("--tolerance", "outputs.y.absolute=0.2", "--budget", "0"),
    ]
    by_flags = run("ship", *flags, "--dry-run", "--save-recipe", "flags.yaml")
    by_recipe = run("ship", "--recipe", "run.yaml", "--dry-run", "--save-recipe", "recipe.yaml")
    assert (by_flags.code, by_recipe.code) == (0, 0), by_flags.err + by_recipe.err
    assert by_flags.out == by_recipe.out
    assert read_file(tmp_path / "flags.yaml").value == read_file(tmp_path / "recipe.yaml").value
    assert not (tmp_path / "made").exists()


def test_a_flag_counts_before_the_recipe_and_the_plan_says_so(run: Run) -> None:
    more = ["--range", "batch=1:2:8", "--option", "threads=2", "--tolerance", "outputs.y.absolute=0.3"]
    result = run("ship", "--recipe", "run.yaml", "--dry-run", "--require", "--opset", "20", *more)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "  batch: 1 to 8" in lines
    assert "ranges.batch: [1, 2, 8] as the command line says, in place of [1, 4, 16] in run.yaml" in lines
    assert "tolerances.outputs.y.absolute: 0.3 as the command line says, in place of 0.2 in run.yaml" in lines
    assert "ort-cpu:int8-dynamic: option threads 2 as the command line says, in place of 1 in the recipe" in lines
    assert any(line.startswith("ort-cpu:fp32: will ") and ", options threads=2, because" in line for line in lines)
    assert not any(line.startswith(("opset", "require")) for line in lines), "the recipe says nothing of them"
    assert "tolerance of output 'y': absolute 0.3, in place of the table's" in lines


def test_targets_named_by_flags_replace_those_of_the_recipe(run: Run) -> None:
    result = run("ship", "--recipe", "run.yaml", "--dry-run", "--json", "--target", "ort-cuda:fp16", "--no-require")
    steps = json.loads(result.out)["steps"]
    assert [(step["job"], step["options"]) for step in steps] == [("ort-cuda:fp16", {})]
    assert any(
        line.startswith('targets: ["ort-cuda:fp16"] as the command line says')
        for line in json.loads(result.out)["plan"]
    )


def test_paths_start_at_the_folder_of_the_recipe(run: Run, tmp_path: Path) -> None:
    inner = tmp_path / "runs/first"
    inner.mkdir(parents=True)
    text = RECIPE.replace("model.py", "../../model.py")
    (inner / "run.yaml").write_text(text)
    made = run(
        "ship", "--recipe", "runs/first/run.yaml", "--target", "ort-cpu", "--save-recipe", "saved.yaml", "--json"
    )
    assert made.code == 0, made.err
    assert json.loads(made.out)["source"]["text"] == "model.py:spec"
    assert (inner / "made/manifest.json").is_file()
    saved = read_file(tmp_path / "saved.yaml").value
    assert (saved["source"], saved["calibration"], saved["out"]) == (
        "model.py:spec",
        "model.py:samples",
        "runs/first/made",
    )
    # --out is seen from the current folder, as any flag
    assert run("ship", "--recipe", "runs/first/run.yaml", "--target", "ort-cpu", "--out", "here").code == 0
    assert (tmp_path / "here/manifest.json").is_file()


@pytest.mark.parametrize("source", ["zoo:none@small", "package.module:name", "/absolute/model.onnx"])
def test_a_source_that_is_no_relative_path_stays_as_it_is(source: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RECIPE.replace("model.py:spec", source))
    assert read_recipe(tmp_path / "run.yaml", {}).recipe().source == source


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ([("budget", "bugdet")], 2, r"run\.yaml:12:1: bugdet: Unknown key 'bugdet'\. Did you mean 'budget'\?"),
        ([("threads", "thread")], 2, r"run\.yaml:6:15: targets\.1\.options\.thread: .*Did you mean 'threads'\?"),
        ([("threads: 1", "threads: one")], 2, r"run\.yaml:6:15: .*valid integer, but is 'one'"),
        ([("ort-cpu:fp32", "ort-cup:fp32")], 2, r"run\.yaml:4:5: targets\.0\.target: .*Did you mean 'ort-cpu'\?"),
        ([("int8-dynamic", "int8")], 2, r"run\.yaml:5:5: targets\.1\.target: Unknown precision for ort-cpu 'int8'"),
        ([("ort-cpu:int8-dynamic", "ort-cpu")], 2, r"run\.yaml:5:5: targets\.1: Target ort-cpu:fp32 is asked .* once"),
        ([("4, 16", "32, 16")], 2, r"run\.yaml:8:3: ranges\.batch: must be \[min, opt, max\]"),
        ([("batch", "bach")], 2, r"run\.yaml:8:3: ranges\.bach: .*Did you mean 'batch'\?"),
        ([("1, 4, 16", "3, 4, 16")], 2, r"run\.yaml:8:3: ranges\.batch: .*example input has size 2"),
        ([("absolute", "absolut")], 2, r"run\.yaml:11:17: tolerances\.outputs\.y\.absolut: .*mean 'absolute'"),
        ([("py:samples", "py:sample")], 2, r"run\.yaml:9:1: calibration: .*Did you mean 'samples'\?"),
        ([("py:spec", "py:spek")], 2, r"run\.yaml:1:1: source: .*Did you mean 'spec'\?"),
        ([("model.py:spec", "absent.onnx")], 3, r"run\.yaml:1:1: source: .*absent\.onnx"),
        ([("model.py:samples", "absent")], 3, r"run\.yaml:9:1: calibration: .*is no calibration data"),
        ([("source: model.py:spec\n", "")], 2, r"run\.yaml:1:1: source is missing\."),
        ([("budget: 0", "budget: no")], 2, r"run\.yaml:12:1: budget: .*valid number, but is 'no'"),
        ([("budget: 0", "out: twice")], 2, r"run\.yaml:12:1: the key 'out' stands here twice"),
        ([("budget: 0", "allow_code: true")], 2, r"run\.yaml:1:1: source: .*only a \.pt2 program has code"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_column(
    run: Run, changes: list[tuple[str, str]], code: int, message: str, tmp_path: Path
) -> None:
    with_line(*changes)
    result = run("ship", "--recipe", "run.yaml")
    assert result.code == code, result.err
    assert re.search(f"^error: {message}", result.err), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "-1"], r"^error: budget: .*but is -1"),
        (["--opset", "99"], r"^error: opset: .*but is 99"),
        (["--range", "batch=4:2:8"], r"^error: ranges\.batch: must be \[min, opt, max\].* is \[4, 2, 8\]"),
        (["--range", "batch=4"], r"^error: ranges\.batch: must be"),
        (
            ["--range", "bach=1:2:8"],
            r"^error: Unknown dynamic dim in ModelSpec\.ranges 'bach'\. Did you mean 'batch'\?",
        ),
        (["--target", "ort-cup"], r"^error: targets\.0\.target: Unknown target 'ort-cup'"),
        (["--tolerance", "outputs.y.absolut=1"], r"^error: tolerances\.outputs\.y\.absolut: Unknown key"),
        (["--tolerance", "precisions.fp61.absolute=1"], r"^error: tolerances\.precisions\.fp61: .*mean 'fp16'"),
        (["--option", "thread=1"], r"^error: Unknown option .*'thread'\. Did you mean 'threads'\?"),
        (["model.py:spek"], r"^error: Unknown name in model\.py 'spek'"),
    ],
)
def test_what_is_wrong_in_a_flag_is_not_said_of_the_file(run: Run, flags: list[str], message: str) -> None:
    result = run("ship", "--recipe", "run.yaml", "--dry-run", *flags)
    assert result.code == 2, result.err
    assert re.search(message, result.err), result.err


@pytest.mark.parametrize("text", ["", "[1]", "3", "just words", "# a comment\n", "~"])
def test_what_is_no_mapping_is_no_recipe(run: Run, text: str) -> None:
    Path("run.yaml").write_text(text)
    result = run("ship", "--recipe", "run.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: run.yaml:1:1: a recipe is a mapping")


def test_a_run_without_a_source_or_a_recipe_says_what_is_missing(run: Run) -> None:
    result = run("ship", "model.py:spec")
    assert result.code == 2
    assert "--target, --out missing: give it, or a recipe with --recipe" in result.err
    assert run("ship", "--recipe", "absent.yaml").err == "error: absent.yaml does not exist or is no file.\n"


@pytest.mark.parametrize("file", ["model.py", "saved.json", "absent/saved.yaml", "folder.yaml"])
def test_a_recipe_is_saved_to_a_yaml_file_alone(run: Run, file: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    result = run("ship", "--recipe", "run.yaml", "--dry-run", "--save-recipe", file)
    assert result.code == 2
    assert "--save-recipe must name a .yaml file in a folder that exists" in result.err
    assert (tmp_path / "model.py").read_text() == MODULE
    same = run("ship", "--recipe", "run.yaml", "--dry-run", "--save-recipe", f"{tmp_path}/run.yaml")
    assert (same.code, (tmp_path / "run.yaml").read_text()) == (2, RECIPE)
    assert "would replace" in same.err


def test_optimize_build_and_export_take_options_and_ranges(run: Run, tmp_path: Path) -> None:
    exported = run("export", "model.py:spec", "--out", "golden.onnx", "--range", "batch=1:4:8")
    assert exported.code == 0, exported.err
    assert "  batch: 1 to 8" in exported.err
    optimized = run("optimize", "golden.onnx", "--out", "target.onnx", "--option", "threads=2")
    assert optimized.code == 0, optimized.err
    flags = ["--range", "batch=1:4:8", "--option", "ort-cpu.threads=2"]
    built = run("build", "golden.onnx", "--out", "built", *flags, "--json")
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    assert (manifest["dynamic"], manifest["targets"][0]["options"]["threads"]) == ({"batch": [1, 4, 8]}, 2)
    for verb, out in (("optimize", "again.onnx"), ("build", "again")):
        wrong = run(verb, "golden.onnx", "--out", out, "--option", "thread=2")
        assert (wrong.code, wrong.out) == (2, "")
        assert "Unknown option for ort-cpu:fp32 'thread'. Did you mean 'threads'?" in wrong.err
        wrong = run(verb, "golden.onnx", "--out", out, "--range", "bach=1:2:3")
        assert (wrong.code, wrong.out) == (2, "")
        assert not (tmp_path / out).exists()


def test_the_schemas_are_printed(run: Run) -> None:
    assert "verified" in json.dumps(json.loads(run("schema").out))
    assert json.loads(run("schema", "manifest").out) == json.loads(run("schema").out)
    assert json.loads(run("schema", "recipe").out)["title"] == "graphwright recipe"
    assert "Did you mean 'recipe'?" in run("schema", "recipes").err


def test_a_builder_beyond_its_limits_costs_its_target(run: Run, tmp_path: Path) -> None:
    with_line(("budget: 0", "budget: 0\nbuild_seconds: 0.01"))
    result = run("ship", "--recipe", "run.yaml", "--target", "ort-cpu", "--json")
    assert result.code == 6, result.err
    (record,) = json.loads(result.out)["targets"]
    assert record["status"] == "failed"
    assert "0.01" in record["reason"]
    assert run("ship", "--recipe", "run.yaml", "--build-seconds", "600").code == 0
    refused = run("ship", "--recipe", "run.yaml", "--build-memory-gb", "0")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: build_memory_gb: Input should be greater than 0, but is 0.0.")


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_recipe_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = list(RECIPE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 8)))
        piece = st.binary(max_size=6) | st.sampled_from(
            [b"[", b"]", b"{", b": ", b"\n", b"- ", b"&a", b"*a", b"!", b"~", b"'"]
        )
        text[start:end] = data.draw(piece)
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(bytes(text))
    try:
        read_recipe(path, {}).recipe()
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert message == "" or message.startswith(str(path))


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_exit_2(run: Run, seed: int) -> None:
    Path("run.yaml").write_bytes(np.random.default_rng(seed).bytes(300))
    result = run("ship", "--recipe", "run.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: run.yaml:")
    assert "Traceback" not in result.err


def test_the_example_is_valid(run: Run, tmp_path: Path) -> None:
    for name in ("minilm.yaml", "minilm.py", "sentences.txt"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / name, tmp_path / "examples" / name)
    result = run("ship", "--recipe", "examples/minilm.yaml", "--dry-run")
    assert result.code == 0, result.err
    assert "ort-cpu:int8-dynamic: will lower, build, verify, measure, options threads=2, spinning=false" in result.out
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_the_example_runs(run: Run, tmp_path: Path) -> None:
    for name in ("minilm.yaml", "minilm.py", "sentences.txt"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / name, tmp_path / "examples" / name)
    result = run("ship", "--recipe", "examples/minilm.yaml", "--budget", "3", "--json")
    assert result.code == 0, result.err
    assert [record["status"] for record in json.loads(result.out)["targets"]] == ["built"] * 3
    assert (tmp_path / "out/minilm/report.html").is_file()


def test_the_recipe_of_the_docs_is_complete_and_has_the_defaults(run: Run, tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "docs.yaml").write_text(text)
    recipe = read_recipe(tmp_path / "docs.yaml", {}).recipe()
    fields = type(recipe).model_fields
    assert set(read_text(text, "docs").value) == set(fields), "each key is shown"
    for name in ("opset", "budget", "build_seconds", "build_memory_gb", "require", "allow_code"):
        assert getattr(recipe, name) == fields[name].default
