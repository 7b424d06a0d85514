"""The examples in the docstrings of the package run, and none has lost its indentation."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
import ufl

import fem_mf as mf
from fem_mf.hamiltonian import MeanFieldHamiltonian
from fem_mf.mean_field.moments import mean_field_of

pytest.importorskip("pyvista")
pytest.importorskip("imageio.v3")

ROOT = Path(__file__).resolve().parents[1]
LEAST_EXAMPLES, MOST_LINES = 46, 10

# --- what the docstrings hold ---------------------------------------------------------------


class Example(NamedTuple):
    """The code of one docstring, block after block as in a session."""

    where: str  # a module, or a class or function of a module, as in "plotting.film:film"
    blocks: list[str]

    @property
    def module(self) -> str:
        return self.where.partition(":")[0]


def docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of every docstring of a module, a class or a function."""
    for path in sorted((ROOT / "fem_mf").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "fem_mf").with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                name = "" if isinstance(node, ast.Module) else f":{node.name}"
                yield module.removesuffix(".__init__") + name, ast.get_docstring(node) or ""


def indented_blocks(text: str) -> list[str]:
    """Paragraphs indented by four spaces; sections such as "Args:" have no empty line above."""
    found = re.findall(r"(?<=\n\n) {4}.*(?:\n {4}.*|\n(?=\n {4}))*", text)
    return [textwrap.dedent(block) for block in found]


def is_code(block: str) -> bool:
    """Neither a command line nor a formula, which is not ASCII outside strings and comments."""
    bare = re.sub(r'"[^"]*"|#.*', "", block)
    return bare.isascii() and not block.startswith("python -m")


def examples() -> Iterator[Example]:
    for where, text in docstrings():
        blocks = [block for block in indented_blocks(text) if is_code(block)]
        if blocks:
            yield Example(where, blocks)


EXAMPLES = list(examples())


# --- what they may use ----------------------------------------------------------------------

# Modules whose examples are about a problem with lumped vertices, as the Langevin flow needs it.
LUMPED = {"flows.edge_averaged", "flows.langevin_stage"}

# What an example uses besides the names of its module, of the package and of ``namespace``.
PREPARATION = {
    "flows.edge_averaged": "mass_diagonal = problem.discretisation.mass_diagonal",
    "flows.decomposition": """
        from fem_mf.flows.tableau import SCHEMES
        density = mf.LogDensity.from_function(problem, well)
    """,
    "flows.hjb_stage": """
        from fem_mf.mean_field.fixed_point import Anderson, FixedPoint, StopTest
        r = well(problem.discretisation.owned_nodes)
    """,
    "flows.langevin_stage": """
        from fem_mf.mean_field.fixed_point import Anderson, FixedPoint, StopTest
        m = density.amplitude() ** 2
    """,
    "flows.schrodinger_stage": """
        from fem_mf.mean_field.fixed_point import Anderson, FixedPoint, StopTest
    """,
    "flows.tableau": """
        from fem_mf.flows.tableau import StageResult
        y = rate = np.ones(3)
        def solve(start, a, before):  # of ∂_t y = −y
            value = start / (1.0 + a)
            return StageResult(value=value, rate=-value, y=value, iterations=1)
    """,
    "functionals.network": "z = new_z = np.linspace(-1.0, 1.0, 5); y = np.ones(5)",
    "functionals.terms": "z, y = np.linspace(-1.0, 1.0, 5), np.ones(5)",
    "mean_field.fixed_point": "evaluate = lambda y, previous: 0.5 * y + 1.0",
    "observables": "u = v = w = well(problem.discretisation.owned_nodes)",
    "output.checkpoint": "Path('run').rename('old'); history = mf.History('run/history.csv', comm)",
    "output.history": "Path('run').rename('old')",
    "output.results": """
        with mf.Run("results/trap", problem) as run:
            list(run.steps(flow, start, t_end=1.0))
    """,
    "output.xdmf": "Path('run').rename('old')",
    "petsc": """
        ksp = PETSc.KSP().create(comm)
        ksp.setOptionsPrefix("fem_mf_example_")
        ksp.setOperators(matrix)
        residual = lambda x, f: matrix.mult(x, f)
        jacobian = lambda x, J: None
    """,
    "stationary.coarse_start": "problem = mf.Problem(mf.interval(comm, 3.0, h=0.01), F, sigma=0.5)",
    "stationary.newton_cg": """
        from fem_mf.stationary.hessian import Hessian
        from fem_mf.observables import first_order
        hessian, condition = Hessian(problem), first_order(problem, density)
        hessian.update(density, condition)
        psi, mass_psi, gradient = density.amplitude(), density.mass_amplitude(), condition.gradient
        precondition = problem.discretisation.solve_mass
    """,
}


def well(x: np.ndarray) -> np.ndarray:
    return x[0] ** 2 + x[1] ** 2


def neuron(x: np.ndarray, z: float) -> np.ndarray:
    return np.tanh(x[0] * z)


def namespace(lumped: bool) -> dict[str, Any]:
    """The names that all examples share, for a network on an interval."""
    comm, dt = MPI.COMM_WORLD, 0.05
    mesh = mf.interval(comm, radius=3.0, h=0.25)
    F = 0.1 * mf.Potential(well) + mf.NetworkLoss([-1.0, 1.0], [0.5, 1.0], neuron)
    mass = {"degree": 1, "mass": "lumped"} if lumped else {"degree": 2}
    problem = mf.Problem(mesh, F, sigma=0.5, **mass)
    start = mf.Density.from_function(problem, lambda x: np.exp(-well(x)))
    density = mf.Density.from_function(problem, lambda x: np.exp(-2.0 * well(x)))
    mean_field = mean_field_of(problem)
    y = mean_field.evaluate(density)
    operator = MeanFieldHamiltonian(problem, mean_field)
    operator.update(2.0 / dt, y)
    right, solution = operator.matrix.createVecs()
    right.set(1.0)
    solution.set(0.0)
    return {name: getattr(mf, name) for name in mf.__all__} | {
        "MPI": MPI,
        "Path": Path,
        "fem_mf": mf,
        "mf": mf,
        "np": np,
        "ufl": ufl,
        "comm": comm,
        "mesh": mesh,
        "F": F,
        "functional": F,
        "well": well,
        "neuron": neuron,
        "problem": problem,
        "start": start,
        "density": density,
        "flow": mf.SchrodingerFlow(problem, dt),
        "t": 0.0,
        "dt": dt,
        "t_end": 0.5,
        "mean_field": mean_field,
        "y": y,
        "V": mean_field.potential(y)[: problem.discretisation.num_owned],
        "v": density.amplitude(),
        "matrix": operator.matrix,
        "right": right,
        "solution": solution,
    }


@pytest.fixture(scope="module")
def common() -> dict[bool, dict[str, Any]]:
    return {lumped: namespace(lumped) for lumped in (False, True)}


@pytest.fixture(scope="module")
def run(common: dict[bool, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a history, a series of three steps, and a checkpoint."""
    names, folder = common[False], tmp_path_factory.mktemp("results") / "run"
    problem, comm = names["problem"], names["comm"]
    with (
        mf.XDMFSeries(folder / "series.xdmf", problem) as xdmf,
        mf.History(folder / "history.csv", comm) as history,
        mf.Checkpoint(folder / "checkpoint", problem, every=1) as checkpoint,
    ):
        for state in names["flow"].run(names["start"], t_end=0.1):
            xdmf.write(state.t, state.density)
            history.append(state)
            checkpoint.write(state)
    return folder


# --- tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.where)
def test_example_runs(
    example: Example,
    common: dict[bool, dict[str, Any]],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "meshes").symlink_to(ROOT / "meshes")
    monkeypatch.chdir(tmp_path)
    module = example.module
    home = importlib.import_module("fem_mf" if module == "__init__" else f"fem_mf.{module}")
    own = {name: value for name, value in vars(home).items() if not isinstance(value, ModuleType)}
    names = common[module in LUMPED] | own | {"PETSc": PETSc}
    exec(textwrap.dedent(PREPARATION.get(module, "")), names)
    for block in example.blocks:
        exec(compile(block, f"<docstring of {example.where}>", "exec"), names)


def test_examples_are_all_found_short_and_without_gaps() -> None:
    assert len(EXAMPLES) >= LEAST_EXAMPLES
    assert LUMPED | PREPARATION.keys() <= {example.module for example in EXAMPLES}
    for example in EXAMPLES:
        for block in example.blocks:
            assert "..." not in block, example.where
            assert len(block.splitlines()) <= MOST_LINES, example.where


# An assignment of a call, a call, the head of a block, an import, or a comment.
CODE = re.compile(
    r"^[\w.]+(, [\w.]+)* = [\w.]+\(.*[)\](,:]$|^[\w.]+\(.*\)$|^(for|while|with) .*:$"
    r"|^from \w+(\.\w+)* import |^import \w+|^\S.*\s# "
)


def test_no_example_lost_its_indentation() -> None:
    flush = [
        f"{where}: {line}"
        for where, text in docstrings()
        for line in text.splitlines()
        if CODE.search(line)
    ]
    assert not flush, "indent these by four spaces, below an empty line:\n" + "\n".join(flush)
