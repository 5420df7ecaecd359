"""Sources: every form that names a model, and what is said of each that does not."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import graphwright as gw
from graphwright.errors import Exit, GraphwrightError, InputError, UsageError
from graphwright.export import load_source, open_reference, to_onnx

NEIGHBOUR = "import torch\nclass Double(torch.nn.Module):\n    def forward(self, x): return x * 2\n"
MODEL = """
import dataclasses
import torch
import graphwright as gw
from {neighbour} import Double

@dataclasses.dataclass
class Sizes:
    batch: int = 2

value = 7
spec = gw.ModelSpec(Double(), {{"x": torch.ones(Sizes().batch, 3)}}, name="double")

def factory():
    return spec

def late():
    import {late}
    return gw.ModelSpec({late}.Triple(), {{"x": torch.ones(2, 3)}})

def raises():
    raise ValueError("no weights")

def exits():
    raise SystemExit(0)

def refuses():
    raise gw.GraphwrightError("not in this shape")

def wants(size):
    return spec

def number():
    return 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with model.py, its neighbours, and a package; modules of earlier tests are forgotten."""
    monkeypatch.chdir(tmp_path)
    known, paths = set(sys.modules), list(sys.path)
    (tmp_path / "layers_of_test.py").write_text(NEIGHBOUR)
    (tmp_path / "late_layers_of_test.py").write_text(NEIGHBOUR.replace("Double", "Triple"))
    (tmp_path / "model.py").write_text(MODEL.format(neighbour="layers_of_test", late="late_layers_of_test"))
    (tmp_path / "models_of_test").mkdir()
    (tmp_path / "models_of_test" / "__init__.py").touch()
    (tmp_path / "models_of_test" / "own.py").write_text(
        MODEL.format(neighbour="layers_of_test", late="late_layers_of_test")
    )
    yield tmp_path
    sys.path[:] = paths
    for name in set(sys.modules) - known:
        if name.endswith("_of_test") or name.startswith(("models_of_test", "graphwright_source_")):
            del sys.modules[name]


def refused(source: str | Path, kind: type[GraphwrightError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_source(source)
    assert caught.value.code is (Exit.USAGE if kind is UsageError else Exit.INPUT)
    assert "\n" not in str(caught.value)


# --- what is taken


@pytest.mark.parametrize("name", ["spec", "factory"])
def test_a_file_with_a_spec_or_a_function_that_returns_one(folder: Path, name: str) -> None:
    loaded = load_source(f"model.py:{name}")
    assert (loaded.text, loaded.kind, loaded.spec.name) == (f"model.py:{name}", "python file", "double")
    assert loaded.found == "Double in model.py"
    assert load_source(f"{folder}/model.py:{name}").spec.name == "double"


def test_a_module_of_the_working_folder(folder: Path) -> None:
    loaded = load_source("models_of_test.own:factory")
    assert (loaded.kind, loaded.spec.name) == ("python module", "double")
    assert loaded.found == "Double in models_of_test.own"


def test_neighbours_can_be_imported_when_the_function_is_called(folder: Path) -> None:
    assert type(load_source("model.py:late").spec.module).__name__ == "Triple"


def test_a_file_named_like_a_library_does_not_replace_it(folder: Path) -> None:
    (folder / "model.py").rename(folder / "onnx.py")
    assert load_source("onnx.py:spec").spec.name == "double"
    assert sys.modules["onnx"] is onnx


def test_the_working_folder_does_not_come_before_what_is_installed(folder: Path) -> None:
    load_source("model.py:spec")
    load_source("models_of_test.own:spec")
    assert sys.path.index(str(folder)) == len(sys.path) - 1
    assert sys.path.count(str(folder)) == 1


def test_a_spec_or_a_source_is_taken_as_it_is() -> None:
    spec = gw.ModelSpec(torch.nn.Identity(), {"input": torch.ones(2)}, name="same")
    loaded = load_source(spec)
    assert (loaded.spec, loaded.kind, loaded.found) == (spec, "ModelSpec", "Identity")
    assert load_source(loaded) is loaded


def test_an_onnx_file(folder: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "negate.onnx")
    loaded = load_source(folder / "negate.onnx")
    assert (loaded.kind, loaded.spec.name, loaded.spec.sizes) == ("onnx file", "negate", {"rows": 2})
    with open_reference(loaded.spec) as session:
        np.testing.assert_array_equal(session.run({"x": np.ones(3, np.float32)})["y"], -np.ones(3))
    assert to_onnx(loaded.spec).opset_imports == {"": 20}
    assert to_onnx(loaded.spec, opset=20) is not to_onnx(loaded.spec, opset=20)
    with pytest.raises(UsageError, match="'negate' is an ONNX file of opset 20: opset 19 cannot be had"):
        to_onnx(loaded.spec, opset=19)


# --- what is not


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("missing.py:spec", InputError, r"^missing\.py does not exist or is no file\. A source is file\.py:name, "),
        ("models_of_test.py:spec", InputError, r"^models_of_test\.py does not exist"),
        ("missing.onnx", InputError, r"^missing\.onnx was not read: No such file or directory"),
        ("missing/folder", InputError, r"^missing/folder does not exist\. A source is "),
        ("weights.bin", InputError, r"^weights\.bin does not exist\. A source is "),
        ("nothing", UsageError, r"^'nothing' is no source\. A source is file\.py:name, package\.module:name, a "),
        ("no-module:spec", UsageError, r"^'no-module:spec' is no source"),
        ("", UsageError, r"^'' is no source"),
        ("model.py", UsageError, r"^model\.py is a file of no known form\. Name the ModelSpec in it, as in model\.py:"),
        ("none.pt2", InputError, r"^none\.pt2 does not exist or is no file"),
        ("zoo:bert", UsageError, r"^Unknown model of the zoo 'bert'\."),
        ("zoo:a:b", UsageError, r"^Unknown model of the zoo 'a:b'\."),
        ("no_such_package.models:spec", UsageError, r"^There is no module 'no_such_package\.models' here\. A source"),
        ("models_of_test.none:spec", UsageError, r"^There is no module 'models_of_test\.none' here"),
        ("model.py:factori", UsageError, r"^Unknown name in model\.py 'factori'\. Did you mean 'factory'\? Allowed: D"),
        ("models_of_test.own:spek", UsageError, r"^Unknown name in models_of_test\.own 'spek'\. Did you mean 'spec'\?"),
        ("model.py:", UsageError, r"^Unknown name in model\.py ''\."),
        ("model.py:raises", InputError, r"^model\.py:raises raised ValueError: no weights$"),
        ("model.py:exits", InputError, r"^model\.py:exits raised SystemExit: 0$"),
        ("model.py:wants", InputError, r"^model\.py:wants raised TypeError: wants\(\) missing 1 required positional"),
        ("model.py:number", InputError, r"^model\.py:number is a int; it must be a graphwright\.ModelSpec or a "),
        ("model.py:value", InputError, r"^model\.py:value is a int; it must be"),
    ],
)
def test_what_is_no_source_is_said(folder: Path, source: str, kind: type[GraphwrightError], message: str) -> None:
    refused(source, kind, message)


def test_a_file_of_another_kind_is_not_said_to_be_missing(folder: Path) -> None:
    (folder / "weights.bin").touch()
    refused(
        folder / "weights.bin", UsageError, rf"^{re.escape(str(folder))}/weights\.bin is a file of no known form\. A"
    )


def test_an_error_of_ours_in_the_users_code_stays_what_it_is(folder: Path) -> None:
    with pytest.raises(GraphwrightError, match=r"^not in this shape$"):
        load_source("model.py:refuses")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "raised ZeroDivisionError when it was imported: division by zero"),
        ("def", "raised SyntaxError when it was imported: "),
        ("import sys; sys.exit(0)", "raised SystemExit when it was imported: 0"),
        ("import no_such_library", "raised ModuleNotFoundError when it was imported: No module named"),
    ],
)
def test_a_file_that_cannot_be_imported(folder: Path, code: str, message: str) -> None:
    (folder / "bad.py").write_text(code)
    refused("bad.py:spec", InputError, rf"^bad\.py {message}")


def test_a_module_that_cannot_be_imported(folder: Path) -> None:
    (folder / "models_of_test" / "bad.py").write_text("1 / 0")
    (folder / "models_of_test" / "lacking.py").write_text("import no_such_library")
    refused(
        "models_of_test.bad:spec", InputError, r"^models_of_test\.bad raised ZeroDivisionError when it was imported"
    )
    refused("models_of_test.lacking:spec", InputError, "could not be imported: No module named 'no_such_library'")
