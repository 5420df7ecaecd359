"""The package as it is installed: what is in it, what its modules need, and what importing it loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import graphwright
from graphwright import __main__ as command
from graphwright import cli

ROOT = Path(graphwright.__file__).resolve().parent
OUTSIDE = {"tests", "examples", "benchmarks", "docs", "constraints", "out", "build", "dist"}  # beside the package
HEAVY = ("numpy", "pydantic", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch", "transformers")
ABSENT = ("torch", "transformers", "tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
BACKENDS = ("polygraphy", "onnxruntime", "openvino")
NEEDS_TORCH = {
    "graphwright.export.front_end",
    "graphwright.export.huggingface",
    "graphwright.export.huggingface_inputs",
    "graphwright.export.prove",
    "graphwright.export.pt2_child",
    "graphwright.export.repairs",
    "graphwright.export.trace",
    "graphwright.runtimes.reference",
}
LINES = 400

BLOCKER = """
import importlib, json, sys

blocked, names = json.load(sys.stdin)

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def sources() -> list[Path]:
    """The package's own files, and not those of the folders beside it."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in OUTSIDE and path.name[0] != "."]
    found = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found]


def modules() -> list[str]:
    names = [".".join(("graphwright", *path.with_suffix("").parts)) for path in sources()]
    return sorted(name.removesuffix(".__init__") for name in names)


def child(code: str, *arguments: str, given: str = "") -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """The top-level names of what a fresh interpreter has loaded after `code`."""
    out = child(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")
    return {name.partition(".")[0] for name in json.loads(out.splitlines()[-1])}


def test_every_folder_of_the_package_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in sources() if path.name == "__init__.py"}
    assert listed == sorted(".".join(("graphwright", *folder.parts)) for folder in folders)
    strays = {str(path) for path in sources() if path.parent not in folders}
    assert not strays, f"modules in folders without an __init__.py: {strays}"


def test_no_module_is_loaded_twice_under_another_name() -> None:
    named = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    inside = {name: Path(file).resolve() for name, file in named.items() if file}
    ours = {name: path for name, path in inside.items() if path.is_relative_to(ROOT) and path.suffix == ".py"}
    package = {name: path for name, path in ours.items() if path.relative_to(ROOT) in sources()}
    assert "graphwright" in package
    # pytest itself imports the face a second time, under the checkout's name: it must bring nothing else with it
    twice = {name for name, path in package.items() if name.partition(".")[0] != "graphwright"}
    assert {package[name].relative_to(ROOT).as_posix() for name in twice} <= {"__init__.py"}


def test_every_module_is_imported_without_torch_and_backends() -> None:
    names = [name for name in modules() if name not in NEEDS_TORCH]
    failed = json.loads(child(BLOCKER, given=json.dumps([[*ABSENT, *BACKENDS], names])))
    assert failed == {}
    assert len(names) > 50


def test_modules_that_trace_or_run_torch_need_nothing_else() -> None:
    blocked = [name for name in (*ABSENT, *BACKENDS) if name != "torch"]
    assert json.loads(child(BLOCKER, given=json.dumps([blocked, sorted(NEEDS_TORCH)]))) == {}
    failed = json.loads(child(BLOCKER, given=json.dumps([[*ABSENT, *BACKENDS], sorted(NEEDS_TORCH)])))
    assert set(failed) == NEEDS_TORCH, "a module that needs no torch any more is no exception"


def test_import_graphwright_loads_nothing_heavy() -> None:
    assert loaded_by("import graphwright; dir(graphwright)") & set(HEAVY) == set()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from graphwright.cli import main\n"
        "sys.argv = ['graphwright', '--help']\n"
        "text = io.StringIO()\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):\n"
        "    main()\n"
        "assert 'ship' in text.getvalue()"
    )
    assert loaded_by(code) & set(HEAVY) == set()


def test_importing_the_command_runs_nothing() -> None:
    assert vars(command)["main"] is cli.main


def test_the_face_is_the_table_of_where_its_names_live() -> None:
    assert graphwright.__all__ == sorted([*graphwright._WHERE, "__version__"])
    assert dir(graphwright) == graphwright.__all__
    tree = ast.parse((ROOT / "__init__.py").read_text())
    checked = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == {name: f"graphwright.{module}" for name, module in graphwright._WHERE.items()}


@pytest.mark.parametrize("name", graphwright.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(graphwright, name)
    assert isinstance(value, str) if name == "__version__" else value.__name__ == name


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'graphwright' has no attribute 'shipp'"):
        _ = graphwright.shipp


def test_the_version_is_that_of_the_wheel() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == graphwright.__version__


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_files_are_short() -> None:
    counts = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked()}
    assert {name: count for name, count in counts.items() if count >= LINES} == {}


@pytest.mark.parametrize("opening", ["trust_remote_code=True", "weights_only=False", "allow_pickle=True"])
def test_no_loader_runs_code_of_a_model(opening: str) -> None:
    assert [str(path) for path in sources() if opening in (ROOT / path).read_text().replace(" ", "")] == []
