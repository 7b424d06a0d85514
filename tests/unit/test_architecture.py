"""The shape of the package: imports go one way, files and functions stay small."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fem_mf"

# A module imports from its own layer, without cycles, and from the layers above it in this list.
LAYERS = [
    ["errors", "parallel", "options", "solvers", "nonlinear", "eigensolvers"],
    ["meshing", "blocks", "features", "functionals", "network"],
    ["equations", "spaces", "collocation", "discretisation", "problem"],
    ["points", "density", "log_density"],
    ["observables", "boundary", "checks"],
    [
        "closure",
        "operators",
        "fixed_point",
        "newton",
        "inexact",
        "stage_data",
        "movement",
        "response",
        "extrapolation",
        "stages",
        "schemes",
        "clock",
        "arguments",
        "hessian",
        "tangent",
        "spectrum",
        "descent",
        "coarse",
        "state",
        "regularity",
        "riccati",
        "hjb_stage",
        "weighted",
        "classical",
        "edge_averaged",
        "langevin_stage",
    ],
    ["schrodinger", "hjb", "langevin", "stationary", "certificate"],
    ["relative_entropy", "window", "conditions"],
    [
        "decay",
        "history",
        "rows",
        "saved",
        "checkpoint",
        "series",
        "xdmf",
        "pvd",
        "sampled",
        "output",
    ],
    ["curves", "recorded", "perspective", "framing", "scenes", "film", "results", "plotting"],
    ["doctor", "__init__", "__main__"],
]
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}

MAX_FILE_LINES = 450
MAX_BODY_LINES = 60

FILES = sorted(PACKAGE.glob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(path: Path) -> set[str]:
    """Names of the modules of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found.update(resolve(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "fem_mf" if node.level else ""
            origin = ".".join(filter(None, [package, node.module]))
            if origin == "fem_mf":  # `from fem_mf import meshing`, or a name of __init__
                found.update(resolve(f"fem_mf.{alias.name}") for alias in node.names)
            else:
                found.add(resolve(origin))
    return found - {""}


def resolve(dotted: str) -> str:
    """Return the module of the package that a dotted name means, or "" if it is not ours."""
    head, _, rest = dotted.partition(".")
    if head != "fem_mf":
        return ""
    module = rest.partition(".")[0]
    return module if (PACKAGE / f"{module}.py").is_file() else "__init__"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function below its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


@each_file
def test_module_has_a_layer(path: Path) -> None:
    assert path.stem in LAYER_OF, f"{path.name}: add it to the layers"


@each_file
def test_imports_go_one_way(path: Path) -> None:
    below = LAYER_OF.get(path.stem, len(LAYERS))
    wrong = [m for m in imported_modules(path) if LAYER_OF.get(m, below) > below]
    assert not wrong, f"{path.name} imports {wrong}, which belong to later layers"


def test_no_import_cycles() -> None:
    graph = {path.stem: imported_modules(path) - {path.stem} for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def test_package_has_no_subpackages_and_no_utils() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py")]
    assert not [name for name in names if "util" in name or "helper" in name]
    assert not [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]


@each_file
def test_file_is_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@each_file
def test_functions_are_small(path: Path) -> None:
    functions = (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef))
    long = {f.name: body_lines(f) for f in functions if body_lines(f) > MAX_BODY_LINES}
    assert not long, f"{path.name}: bodies of more than {MAX_BODY_LINES} lines: {long}"
