"""The shape of the package: imports go one way, files and functions stay readable."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fem_mf"

# A file, or a folder of files, imports from itself and from what stands before it.
ORDER = [
    *("typing", "mpi", "petsc", "equations", "points", "multiblock", "mesh"),
    *("spaces", "collocation", "discretisation", "problem", "density", "observables"),
    *("boundary", "bregman"),
    *("functionals", "mean_field", "hamiltonian", "stationary", "flows"),
    *("first_variation", "output", "plotting", "case"),
    *("doctor", "__init__", "__main__"),
]
FOLDERS = ["flows", "functionals", "mean_field", "output", "plotting", "stationary"]

MAX_FILE_LINES = 550
MAX_BODY_LINES = 60

FILES = sorted(PACKAGE.rglob("*.py"))


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


def test_imports_go_one_way() -> None:
    wrong = {
        module(path): [n for n in imported_modules(path) if place(n) > place(module(path))]
        for path in FILES
    }
    assert not any(wrong.values()), {file: names for file, names in wrong.items() if names}


def test_no_import_cycles() -> None:
    graph = {module(path): imported_modules(path) - {module(path)} for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_folders_are_families_and_there_is_no_place_for_leftovers() -> None:
    assert sorted({path.parent.name for path in FILES if path.parent != PACKAGE}) == FOLDERS
    assert not [name for name in MODULES if any(w in name for w in ("util", "helper", "common"))]


def test_files_and_functions_are_small() -> None:
    long: dict[str, int] = {}
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long[module(path)] = lines
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and body_lines(node) > MAX_BODY_LINES:
                long[f"{module(path)}.{node.name}"] = body_lines(node)
    assert not long, f"more than {MAX_FILE_LINES} or {MAX_BODY_LINES} lines: {long}"
