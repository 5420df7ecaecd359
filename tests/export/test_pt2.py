"""Sources of the form model.pt2: refused without leave, read in a process of their own, proved against torch."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

import graphwright as gw
from graphwright.cli import main
from graphwright.errors import BuildError, Exit, InputError, UsageError
from graphwright.export import load_source, open_reference, to_onnx
from graphwright.export.pt2 import from_pt2
from graphwright.spec import RANGES


class Cached(torch.nn.Module):
    """x [batch, 4] and a pair -> {"y": [batch, 4], "present": (..., )}"""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor], *, scale: torch.Tensor) -> Any:
        return {"y": self.linear(x) * scale + past[0], "present": (past[0] + x, past[1])}


def save(path: Path, module: torch.nn.Module | None = None, **changed: Any) -> Path:
    torch.manual_seed(0)
    batch = Dim("batch", max=64)
    given: dict[str, Any] = {
        "args": (torch.randn(2, 4), (torch.randn(2, 4), torch.randn(3))),
        "kwargs": {"scale": torch.ones(4)},
        "dynamic_shapes": {"x": {0: batch}, "past": ({0: batch}, None), "scale": None},
    }
    torch.export.save(torch.export.export((module or Cached()).eval(), **{**given, **changed}), path)
    return path


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["graphwright", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(str(stop.value.code))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pt2") / "cached.pt2")


def test_a_program_becomes_its_proved_golden_graph(program: Path) -> None:
    loaded = load_source(program, allow_code=True)
    spec = loaded.spec
    assert (loaded.kind, spec.name) == ("pt2 program", "cached")
    assert "operators; its golden graph, proved, is its reference" in loaded.found
    assert {name: list(value.shape) for name, value in spec.tensors.items()} == {
        "x": [2, 4],
        "past_0": [2, 4],
        "past_1": [3],
        "scale": [4],
    }
    batch = spec.dynamic["x"][0]
    assert spec.dynamic == {"x": {0: batch}, "past_0": {0: batch}}
    golden = to_onnx(spec)
    assert golden.opset_imports == {"": 23}
    assert json.loads(golden.metadata_props[RANGES]) == {batch: [1, 64]}
    assert [value.name for value in golden.graph.outputs] == ["y", "present.0", "present.1"]
    feeds = {name: np.asarray(value) for name, value in spec.tensors.items()}
    run = torch.export.load(program).module()
    past = (torch.from_numpy(feeds["past_0"]), torch.from_numpy(feeds["past_1"]))
    wanted = run(torch.from_numpy(feeds["x"]), past, scale=torch.from_numpy(feeds["scale"]))
    with open_reference(spec) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], wanted["y"].detach().numpy(), atol=1e-6)


def test_a_graph_that_onnx_runtime_refuses_is_written_in_an_older_opset(tmp_path: Path) -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, mask[:, None, None, :])

    sizes = {"x": {0: Dim("batch"), 2: Dim("length")}}
    sizes["mask"] = {0: sizes["x"][0], 1: sizes["x"][2]}
    args = (torch.randn(2, 2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
    path = save(tmp_path / "attention.pt2", Attention(), args=args, kwargs={}, dynamic_shapes=sizes)
    spec, _ = from_pt2(path, allow_code=True)
    assert to_onnx(spec).opset_imports == {"": 18}


def test_without_leave_it_is_not_read(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"can run code that is in it.* --allow-code, or allow_code=True") as caught:
        load_source(program)
    assert caught.value.code is Exit.USAGE
    with pytest.raises(UsageError, match="--allow-code"):
        gw.ship(program, ["ort-cpu"], tmp_path / "out")
    assert exit_code(monkeypatch, "export", str(program), "--out", str(tmp_path / "model.onnx")) == Exit.USAGE


def test_leave_where_there_is_nothing_to_allow() -> None:
    with pytest.raises(UsageError, match=r"^model\.onnx: only a \.pt2 program has code to be allowed"):
        load_source("model.onnx", allow_code=True)


class Canary:
    def __reduce__(self) -> Any:
        code = "__import__('pathlib').Path('canary').write_text(str(__import__('os').getpid()))"
        return eval, (f"{code} and __import__('torch').ones(1)",)


def test_code_in_it_runs_with_leave_alone_and_in_another_process(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(program) as whole, zipfile.ZipFile(hostile, "w") as changed:
        for item in whole.infolist():
            data = whole.read(item)
            if item.filename.endswith("model_constants_config.json"):
                config = json.loads(data)
                entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
                config["config"]["canary"] = entry
                data = json.dumps(config).encode()
                changed.writestr(
                    item.filename.replace("model_constants_config.json", "opaque_obj_0"), pickle.dumps(Canary())
                )
            changed.writestr(item, data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        load_source("hostile.pt2")
    assert not Path("canary").exists()
    load_source("hostile.pt2", allow_code=True)
    assert int(Path("canary").read_text()) != os.getpid()


def test_what_is_no_program(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^.*none\.pt2 does not exist"):
        load_source(tmp_path / "none.pt2", allow_code=True)
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(program.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.pt2 is no program that torch .* can read: "):
        load_source(cut, allow_code=True)
    assert (
        exit_code(monkeypatch, "export", str(cut), "--allow-code", "--out", str(tmp_path / "model.onnx")) == Exit.INPUT
    )


def test_a_reader_that_dies_is_an_error_of_the_file(program: Path) -> None:
    with pytest.raises(InputError, match=r"^The reader of .*cached\.pt2 died \(SIGABRT\)"):
        from_pt2(program, allow_code=True, command=(sys.executable, "-c", "import os; os.abort()"))


def test_sums_of_dims_are_kept_and_other_formulas_refused(tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y[1:]

    length = Dim("length", max=64)
    sizes = {"x": {0: length}, "y": {0: length + 1}}
    path = save(tmp_path / "both.pt2", Both(), args=(torch.ones(4), torch.ones(5)), kwargs={}, dynamic_shapes=sizes)
    spec, _ = from_pt2(path, allow_code=True)
    name = spec.dynamic["x"][0]
    assert spec.dynamic["y"] == {0: f"{name} + 1"}

    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y[::2]

    sizes = {"x": {0: length}, "y": {0: 2 * length}}
    path = save(tmp_path / "half.pt2", Half(), args=(torch.ones(4), torch.ones(8)), kwargs={}, dynamic_shapes=sizes)
    with pytest.raises(InputError, match=r"half\.pt2 has dims that cannot be varied in this version: .*2\*s"):
        load_source(path, allow_code=True)


def test_numbers_among_the_inputs_are_refused(tmp_path: Path) -> None:
    class Power(torch.nn.Module):
        def forward(self, x: torch.Tensor, power: int) -> torch.Tensor:
            return x**power

    path = save(tmp_path / "power.pt2", Power(), args=(torch.ones(2), 3), kwargs={}, dynamic_shapes=None)
    with pytest.raises(InputError, match=r"takes 3 as 'power', which is no tensor"):
        load_source(path, allow_code=True)


def test_what_has_no_onnx_form_is_an_error_of_the_build(tmp_path: Path) -> None:
    class Median(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.median(-1).values

    path = save(tmp_path / "median.pt2", Median(), args=(torch.ones(2, 3),), kwargs={}, dynamic_shapes=None)
    with pytest.raises(BuildError, match=r"'median' has no ONNX form at opset 23: .*median"):
        load_source(path, allow_code=True)


def test_the_whole_way(program: Path, tmp_path: Path) -> None:
    made = gw.ship(program, ["ort-cpu:fp32"], tmp_path / "out", budget=0, allow_code=True)
    assert made.passed
    assert made.manifest.source["kind"] == "pt2 program"
