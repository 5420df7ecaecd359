"""The command: results, exit codes, and one clear paragraph for each kind of bad input."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jsonschema
import numpy as np
import onnx
import pytest

from graphwright.cli import main
from graphwright.store import hash_file

MODULE = """
import torch
import graphwright as gw

class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
    def forward(self, x):
        return {"y": self.linear(x) * 2}

def spec(inputs=None, **rest):
    torch.manual_seed(0)
    rest.setdefault("dynamic", {"x": {0: "batch"}})
    return gw.ModelSpec(Twice().eval(), inputs=inputs or {"x": torch.randn(2, 16)}, name="twice", **rest)

def wrong_name():
    return spec(inputs={"z": torch.randn(2, 16)}, dynamic={})

def wrong_axis():
    return spec(dynamic={"x": {5: "batch"}})

def raises():
    raise RuntimeError("no weights here")

number = 3
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a folder of its own that holds model.py."""
    (tmp_path / "model.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["graphwright", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return Result(int(stop.value.code or 0), said.out, said.err)

    return command


def refused(result: Result, code: int, message: str) -> None:
    """One paragraph on stderr, nothing on stdout, no traceback, nothing left behind."""
    text = " ".join(result.err.split())
    assert re.search(message, text), text
    assert result.code == code, text
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sorted(path.name for path in Path.cwd().iterdir() if path.name != "__pycache__") == ["model.py"]


def small_onnx(path: Path, external: str = "") -> None:
    weight = onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 16])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 16])
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def ship(run: Run, source: str, *more: str) -> Result:
    return run("ship", source, "--target", "ort-cpu:fp32", "--out", "made", "--budget", "0", *more)


@pytest.mark.parametrize("source", ["absent.onnx", "absent.py:spec", "no/such/folder"])
def test_a_missing_file_is_rejected(run: Run, source: str) -> None:
    refused(ship(run, source), 3, r"(does not exist|No such file).*")


@pytest.mark.parametrize("content", [b"", b"not a model at all", bytes(range(256)) * 4])
def test_a_file_that_is_no_onnx_is_rejected(run: Run, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-input"
    folder.mkdir()
    (folder / "bad.onnx").write_bytes(content)
    refused(ship(run, str(folder / "bad.onnx")), 3, r"bad\.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_its_folder_is_rejected(run: Run, tmp_path: Path, location: str) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-input"
    folder.mkdir()
    (folder.parent / "secret.bin").write_bytes(b"\0" * 1024)
    small_onnx(folder / "bad.onnx", external=location)
    refused(ship(run, str(folder / "bad.onnx")), 3, r"must be in a file below the model's own folder")


def test_an_unknown_target_lists_the_targets_and_suggests_the_nearest(run: Run) -> None:
    result = run("ship", "model.py:spec", "--target", "ort-cqu", "--out", "made")
    refused(result, 2, r"Unknown target 'ort-cqu'\. Did you mean 'ort-c.u'\? Allowed: openvino, ort-cpu, ")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("ort-cpu:fp31", r"Unknown precision 'fp31'\. Did you mean 'fp32'\?"),
        ("ort-cpu:fp16", r"fp16 on ort-cpu: .*Allowed: fp32, int8-dynamic"),
        ("tensorrt-rtx@sm98:fp16", r"Unknown device for tensorrt-rtx 'sm98'\. Did you mean 'sm89'"),
    ],
)
def test_an_unknown_precision_or_device_lists_what_the_target_takes(run: Run, target: str, message: str) -> None:
    refused(run("ship", "model.py:spec", "--target", target, "--out", "made"), 2, message)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("raises", 3, r"model\.py:raises raised RuntimeError: no weights here"),
        ("number", 3, r"model\.py:number is a int; it must be a graphwright\.ModelSpec"),
        ("spec2", 2, r"Unknown name in model\.py 'spec2'\. Did you mean 'spec'\?"),
        ("wrong_name", 3, r"do not match Twice\.forward \(unknown: z; missing: x\)\. It accepts: x"),
        ("wrong_axis", 2, r"Dynamic axis 5 of input 'x' \('batch'\) is out of range: the example has rank 2"),
    ],
)
def test_a_bad_factory_or_spec_is_explained(run: Run, name: str, code: int, message: str) -> None:
    refused(ship(run, f"model.py:{name}"), code, message)


def test_an_output_folder_that_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("ship", "model.py:spec", "--target", "ort-cpu", "--out", "model.py", "--budget", "0")
    refused(result, 2, r"output folder model\.py is a file")
    assert (tmp_path / "model.py").read_text() == MODULE


def test_an_output_folder_of_other_files_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    result = run("ship", "model.py:spec", "--target", "ort-cpu", "--out", str(other), "--budget", "0")
    refused(result, 2, r"holds other files and no manifest\.json")
    assert [path.name for path in other.iterdir()] == ["diary.txt"]


def test_an_output_folder_that_cannot_be_written_is_refused(run: Run) -> None:
    # /proc takes no new folders from anyone, root included
    result = run("ship", "model.py:spec", "--target", "ort-cpu", "--out", "/proc/graphwright", "--budget", "0")
    refused(result, 2, r"/proc/graphwright cannot be used")


def test_an_unknown_model_of_the_zoo_is_refused(run: Run) -> None:
    refused(ship(run, "zoo:none"), 2, r"not in this version|Unknown model of the zoo")


def test_allow_code_where_no_program_is_read(run: Run) -> None:
    refused(ship(run, "model.py:spec", "--allow-code"), 2, r"only a \.pt2 program has code to be allowed")
    refused(run("verify", "folder", "--allow-code"), 2, r"--allow-code is for a \.pt2 program, given as --source")


@pytest.mark.parametrize("verb", ["localize", "run", "bundle"])
def test_verbs_of_later_versions_say_so(run: Run, verb: str) -> None:
    refused(run(verb, "something", "--option"), 2, rf"`graphwright {verb}` is not in this version")


def test_debug_shows_the_traceback_too(run: Run) -> None:
    result = ship(run, "model.py:raises", "--debug")
    assert result.code == 3
    assert "Traceback" in result.err
    assert "no weights here" in result.err


def test_require_turns_an_absent_device_into_exit_5(run: Run) -> None:
    result = run("ship", "model.py:spec", "--target", "tensorrt:fp16", "--out", "made", "--require")
    text = " ".join(result.err.split())
    assert result.code == 5, text
    assert "this machine cannot run tensorrt:fp16" in text


def test_dry_run_prints_the_plan_and_makes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("ship", "model.py:spec", "--target", "ort-cpu:fp32", "--out", "made", "--dry-run", "--json")
    plan = json.loads(result.out)
    assert result.code == 0
    assert plan["steps"][0]["job"] == "ort-cpu:fp32"
    assert any("x: float32 [batch, 16]" in line for line in plan["plan"])
    assert not (tmp_path / "made").exists()


def test_ship_verify_and_bench(run: Run, tmp_path: Path) -> None:
    targets = ["--target", "ort-cpu:fp32", "--target", "ort-cpu:int8-dynamic", "--target", "ort-cuda:fp16"]
    shipped = run("ship", "model.py:spec", *targets, "--out", "made", "--budget", "2", "--json")
    assert shipped.code == 0, shipped.err
    manifest = json.loads(shipped.out)
    schema = json.loads(run("schema").out)
    jsonschema.validate(manifest, schema)
    assert manifest == json.loads((tmp_path / "made/manifest.json").read_text())
    assert [record["status"] for record in manifest["targets"]] == ["built", "built", "lowered"]
    assert [record["verified"]["verdict"] for record in manifest["targets"]] == ["passed", "passed", "simulated"]
    assert (tmp_path / "made/report.html").read_text().lower().startswith("<!doctype html>")
    verified = run("verify", "made", "--json")
    assert verified.code == 0
    assert json.loads(verified.out)["targets"][0]["verified"]["verdict"] == "passed"
    assert run("verify", "made", "--require").code == 5
    rows = json.loads(run("bench", "made", "--budget", "1", "--json").out)["rows"]
    assert set(rows) == {"ort-cpu:fp32", "ort-cpu:int8-dynamic", "ort-cuda:fp16"}


def test_a_second_run_replaces_the_first(run: Run, tmp_path: Path) -> None:
    both = ["--target", "ort-cpu:fp32", "--target", "ort-cpu:int8-dynamic"]
    assert run("ship", "model.py:spec", *both, "--out", "made", "--budget", "0").code == 0
    (tmp_path / "made/notes.txt").write_text("mine")
    assert run("ship", "model.py:spec", *both[2:], "--out", "made", "--budget", "0").code == 0
    left = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert left == ["golden.safetensors", "manifest.json", "notes.txt", "ort-cpu-int8-dynamic", "report.html"]


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--budget", "-1"], r"budget: .*greater than or equal to 0, but is -1"), (["--opset", "17"], r"opset: .*18")],
)
def test_a_setting_out_of_range_is_refused(run: Run, option: list[str], message: str) -> None:
    refused(run("ship", "model.py:spec", "--target", "ort-cpu", "--out", "made", *option), 2, message)


def test_one_target_twice_is_refused(run: Run) -> None:
    twice = ["--target", "ort-cpu", "--target", "ort-cpu:fp32"]
    refused(run("ship", "model.py:spec", *twice, "--out", "made"), 2, r"ort-cpu:fp32 is asked for more than once")


def test_a_wrong_artifact_fails_verification(run: Run, tmp_path: Path) -> None:
    made = ship(run, "model.py:spec")
    assert made.code == 0, made.err
    folder = tmp_path / "made/ort-cpu-fp32"
    model = onnx.load(folder / "model.onnx")
    weights = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [16, 16])
    array = onnx.numpy_helper.to_array(weights).copy()
    array[3, 4] += 0.5
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(model, folder / "model.onnx")
    changed = run("verify", "made")
    assert changed.code == 3
    assert "was changed since it was built" in changed.err
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["targets"][0]["sha256"]["model.onnx"] = hash_file(folder / "model.onnx")  # as if it had been built so
    (folder / "manifest.json").write_text(json.dumps(manifest))
    failed = run("verify", "made")
    assert failed.code == 1
    assert "failed" in failed.out


def test_export_optimize_and_build(run: Run, tmp_path: Path) -> None:
    exported = run("export", "model.py:spec", "--out", "golden.onnx", "--opset", "18", "--json")
    assert json.loads(exported.out)["opset"] == 18
    optimized = run("optimize", "golden.onnx", "--target", "tensorrt:fp16", "--out", "target.onnx", "--json")
    assert json.loads(optimized.out)["ops"]["Cast"] >= 1
    proofs = json.loads(optimized.out)["proofs"]
    assert proofs["asked"] >= proofs["run"] >= 0
    onnx.checker.check_model(str(tmp_path / "target.onnx"), full_check=True)
    built = run("build", "golden.onnx", "--target", "ort-cpu:int8-dynamic", "--out", "built")
    assert built.code == 0, built.err
    assert run("verify", "built").code == 0
    assert run("build", "golden.onnx", "--target", "ort-cuda:fp16", "--out", "cuda").code == 5
    assert not (tmp_path / "cuda").exists()


def test_lists_are_json_too(run: Run) -> None:
    assert isinstance(json.loads(run("models", "--json").out), list)
    assert {row["name"] for row in json.loads(run("targets", "--json").out)} >= {"ort-cpu", "ort-cuda", "tensorrt"}
    findings = {row["name"]: row for row in json.loads(run("doctor", "--json").out)}
    assert "vendor's own index" in findings["tensorrt"]["detail"]
    assert findings["target ort-cpu"]["state"] == "ok"


def start(tmp_path: Path, out: Path, **more: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    (tmp_path / "model.py").write_text(MODULE)
    command = [sys.executable, "-m", "graphwright", "ship", "model.py:spec", "-t", "ort-cpu:fp32", "--out", str(out)]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_a_disk_that_fills_is_exit_6_and_leaves_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    process = start(tmp_path, tmp_path / "made", preexec_fn=small_files)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert "cannot be written" in err
    assert "Traceback" not in err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, tmp_path / "made")
    for _ in range(600):
        if (tmp_path / "made").exists():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("verb", ["ship", "build"])
def test_help_shows_the_form_of_a_target(run: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "target[@device][:precision]" in run(verb, "--help").out


def test_an_interrupt_in_the_middle_of_an_exec_of_text_is_130_too(tmp_path: Path) -> None:
    """Python would end by the signal itself once a KeyboardInterrupt has passed through one."""
    (tmp_path / "model.py").write_text(
        "import signal, time\ndef spec():\n    exec('signal.raise_signal(signal.SIGINT); time.sleep(60)')\n"
    )
    command = [sys.executable, "-m", "graphwright", "ship", "model.py:spec", "-t", "ort-cpu:fp32", "--out", "made"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()
