"""Imports run one way: no circle between modules, and no lower layer that knows of a higher one."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import graphwright

ROOT = Path(graphwright.__file__).resolve().parent
OUTSIDE = {"tests", "examples", "benchmarks", "out", "build", "dist"}

# folder or module -> what it must never import, at its top or inside of a function
FORBIDDEN = {
    "errors": {""},
    "spec": {"compare", "export", "models", "passes", "runtimes", "store", "manifest", "pipeline", "commands", "cli"},
    "store": {"compare", "export", "models", "passes", "runtimes", "manifest", "pipeline", "commands", "cli"},
    "runtimes": {"compare", "export", "models", "passes", "pipeline", "commands", "cli"},
    "passes": {"compare", "pipeline", "commands", "cli"},
    "export": {"compare", "pipeline", "commands", "cli"},
    "compare": {"pipeline", "commands", "cli"},
    "recipe": {"pipeline", "commands", "cli"},
    "recipe_file": {"pipeline", "commands", "cli"},
    "pipeline": {"commands", "cli"},
    "commands": {"cli"},
}
MODELS_MAY = {"errors", "spec", "models"}

Edges = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Module -> file; a name is relative to the package: `export.trace`, and `` is the package itself."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in OUTSIDE and path.name[0] != "."]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in files}
    return {".".join(part for part in parts[path] if part != "__init__"): path for path in files}


def imports(name: str, path: Path, known: Mapping[str, Path], *, inside: bool) -> set[str]:
    """The modules of the package that `path` imports; `inside`: also in functions. Not what only type checkers see."""
    tree = ast.parse(path.read_text())
    nodes = statements(tree, inside=inside)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            found |= targets(node, [part for part in package if part], known)
        elif isinstance(node, ast.Import):
            own = [alias.name for alias in node.names if alias.name.partition(".")[0] == "graphwright"]
            found |= {text.partition(".")[2] for text in own}
    return found - {name}


def targets(node: ast.ImportFrom, package: list[str], known: Mapping[str, Path]) -> set[str]:
    if node.level:
        base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
    elif node.module and node.module.partition(".")[0] == "graphwright":
        base = node.module.split(".")[1:]
    else:
        return set()
    names = {".".join([*base, alias.name]) for alias in node.names}
    # `from .base import Session` is the module base; `from . import base` is that module and not the folder
    return {name if name in known else ".".join(base) for name in names}


def statements(tree: ast.AST, *, inside: bool) -> Iterator[ast.AST]:
    """What runs when the module is imported; `inside`: and what its functions run."""
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if typing or (function and not inside):
            continue
        yield node
        yield from statements(node, inside=inside)


def edges(*, inside: bool) -> Edges:
    known = modules()
    return {name: imports(name, path, known, inside=inside) for name, path in known.items()}


def test_the_reader_sees_what_the_code_says() -> None:
    top, all_of_it = edges(inside=False), edges(inside=True)
    assert {"errors", "spec", "runtimes.base", "export.sources"} - top["export"] == {"runtimes.base"}
    assert "models.registry" in top["export.sources"]
    assert "export.onnx_source" not in top["export.sources"], "imported in a function"
    assert "export.onnx_source" in all_of_it["export.sources"]
    assert "runtimes" in top["runtimes.child"]
    assert "runtimes.base" not in all_of_it["artifact"], "for type checkers only"


def test_no_circle() -> None:
    graph = edges(inside=False)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")
    assert set(order) == set(graph)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_layer_knows_of_a_higher_one(layer: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, found in edges(inside=True).items()
        if name.partition(".")[0] == layer
        for target in sorted(found)
        if target.partition(".")[0] in FORBIDDEN[layer] or "" in FORBIDDEN[layer]
    ]
    assert wrong == []


def test_models_know_only_the_spec() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, found in edges(inside=True).items()
        if name.partition(".")[0] == "models"
        for target in sorted(found)
        if target.partition(".")[0] not in MODELS_MAY
    ]
    assert wrong == []
