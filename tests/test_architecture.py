"""The shape of the package: imports go one way, files and functions stay readable."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fem_mf"

# A file, or a folder of files, imports from itself and from what stands before it.
ORDER = [
    *("typing", "mpi", "petsc", "equations", "points", "multiblock", "mesh"),
    *("spaces", "collocation", "discretisation", "problem", "density", "observables"),
    "boundary",
    *("functionals", "mean_field", "hamiltonian", "stationary", "flows"),
    *("first_variation", "output", "plotting", "case"),
    *("doctor", "__init__", "__main__"),
]
FOLDERS = ["flows", "functionals", "mean_field", "output", "plotting", "stationary"]

MAX_FILE_LINES = 550
MAX_BODY_LINES = 60

FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module(path: Path) -> str:
    """The dotted name of a file inside the package: "mesh", "flows.hjb", "flows" for its face."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def resolve(dotted: str) -> str:
    """The module of the package that a dotted name means, or "" if it is not ours."""
    head, _, rest = dotted.partition(".")
    if head != "fem_mf":
        return ""
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found.update(resolve(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            found.update(resolve(f"{node.module}.{alias.name}") for alias in node.names)
    return found - {""}


def place(name: str) -> int:
    """The place in the order of a module."""
    return ORDER.index(name.partition(".")[0])


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function below its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_the_order_names_every_file_and_folder_once() -> None:
    assert sorted(ORDER) == sorted({name.partition(".")[0] for name in MODULES})


@each_file
def test_imports_go_one_way(path: Path) -> None:
    own = place(module(path))
    wrong = [name for name in imported_modules(path) if place(name) > own]
    assert not wrong, f"{module(path)} imports {wrong}, which come after it"


def test_no_import_cycles() -> None:
    graph = {module(path): imported_modules(path) - {module(path)} for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_folders_are_families_and_there_is_no_place_for_leftovers() -> None:
    assert sorted({path.parent.name for path in FILES if path.parent != PACKAGE}) == FOLDERS
    assert not [name for name in MODULES if any(w in name for w in ("util", "helper", "common"))]


@each_file
def test_file_is_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@each_file
def test_functions_are_small(path: Path) -> None:
    functions = (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef))
    long = {f.name: body_lines(f) for f in functions if body_lines(f) > MAX_BODY_LINES}
    assert not long, f"{path.name}: bodies of more than {MAX_BODY_LINES} lines: {long}"
