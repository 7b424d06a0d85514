"""The linear solver: right answers, ages of preconditioners, options and their errors."""

import re
import subprocess
import sys

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.petsc import SpdSolver, default_options, solvers_in_force
from tests.rows import rows

COMM = MPI.COMM_WORLD
PREFIX = "fem_mf_test_"
CG = {"ksp_type": "cg", "pc_type": "jacobi"}
LU = {"ksp_type": "cg", "pc_type": "lu"}


class System:
    """M + c A of a small problem, c changes, and random exact solutions."""

    def __init__(self, c=1.0):
        zero = mf.Potential(lambda x: 0 * x[0])
        self.problem = mf.Problem(mf.box(COMM, 1.0, 0.4), zero, 1.0, 2)
        self.matrix = self.problem.stiffness.copy()
        self.right, self.solution = self.matrix.createVecs()
        self._rng = np.random.default_rng(2)
        self.set(c)

    def set(self, c):
        self.problem.mass_matrix.copy(self.matrix, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        self.matrix.axpy(c, self.problem.stiffness, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
        self.exact = self._rng.normal(size=self.right.getLocalSize())
        x = self.right.duplicate()
        x.array[:] = self.exact
        self.matrix.mult(x, self.right)

    def error(self):
        return np.abs(self.solution.array - self.exact).max()


@rows(
    "options",
    [
        CG,
        LU,
        {"ksp_type": "preonly", "pc_type": "lu"},
        {"ksp_type": "preonly", "pc_type": "cholesky", "pc_factor_mat_solver_type": "mumps"},
        {"ksp_type": "cg", "pc_type": "gamg", "mg_levels_pc_type": "jacobi"},
        {"ksp_type": "cg", "pc_type": "icc"},
        {"ksp_type": "gmres", "pc_type": "sor", "ksp_gmres_restart": 100},
        {"ksp_type": "minres", "pc_type": "none"},
    ],
)
def test_solves_while_the_matrix_changes(options):
    system = System(0.01)
    solver = SpdSolver(system.matrix, PREFIX, options)
    for c in (0.01, 0.02, 0.5, 10.0, 0.01, 1e3):
        system.set(c)
        iterations = solver.solve(system.right, system.solution, 1e-13)
        assert iterations >= 1
        assert system.error() < 1e-7 * max(1.0, c), c
    solver.destroy()


def test_tolerance_is_relative_and_the_guess_is_used():
    system = System()
    solver = SpdSolver(system.matrix, PREFIX, CG)
    counts = []
    for rtol in (1e-2, 1e-6, 1e-12):
        system.solution.set(0.0)
        counts.append(solver.solve(system.right, system.solution, rtol))
    assert counts[0] < counts[1] < counts[2]
    assert solver.solve(system.right, system.solution, 1e-10) == 0
    system.right.scale(1e-30)
    system.solution.set(0.0)
    assert abs(solver.solve(system.right, system.solution, 1e-12) - counts[2]) <= 1
    assert np.abs(system.solution.array * 1e30 - system.exact).max() < 1e-6


def test_preconditioner_is_kept_and_rebuilt_when_it_has_aged():
    system = System(0.1)
    solver = SpdSolver(system.matrix, PREFIX, LU)

    def iterations(c):
        system.set(c)
        system.solution.set(0.0)
        count = solver.solve(system.right, system.solution, 1e-12)
        assert system.error() < 1e-7
        return count

    fresh = iterations(0.1)
    assert fresh <= 2
    kept = [iterations(c) for c in (0.1001, 0.1002, 0.1003)]
    assert all(fresh < k <= 2 * fresh + 4 for k in kept)  # not exact any more, but good enough
    aged = iterations(20.0)
    assert aged > 2 * fresh + 4
    assert iterations(20.0) <= 2  # rebuilt


def test_preconditioner_of_another_matrix_is_no_reason_to_fail():
    # the factorisation of an indefinite matrix is useless for the definite one that follows
    system = System(1.0)
    system.matrix.axpy(-30.0, system.problem.mass_matrix)
    solver = SpdSolver(system.matrix, PREFIX, {"ksp_type": "gmres", "pc_type": "lu"})
    system.right.set(1.0)
    solver.solve(system.right, system.solution, 1e-10)
    solver.ksp.setType("cg")
    system.set(1.0)
    solver.solve(system.right, system.solution, 1e-12)
    assert system.error() < 1e-7


def test_failure_names_the_reason_and_a_remedy():
    system = System(1.0)
    system.matrix.axpy(-30.0, system.problem.mass_matrix)
    system.right.set(1.0)
    solver = SpdSolver(system.matrix, PREFIX, {"ksp_type": "cg", "pc_type": "none"})
    with pytest.raises(mf.ConvergenceError, match=f"{PREFIX} stopped with DIVERGED_INDEFINITE"):
        solver.solve(system.right, system.solution, 1e-12)
    system.set(1e4)
    solver = SpdSolver(system.matrix, PREFIX, CG, {"ksp_max_it": 3})
    with pytest.raises(mf.ConvergenceError, match=f"MAX_IT after 3 iter.* -{PREFIX}pc_type lu"):
        solver.solve(system.right, system.solution, 1e-14)


def test_options_come_from_the_command_line_then_the_argument_then_the_defaults(database):
    system = System()
    before = database.getAll()

    def types(**options):
        ksp = SpdSolver(system.matrix, PREFIX, CG, options).ksp
        return ksp.getType(), ksp.getPC().getType()

    assert types() == ("cg", "jacobi")
    assert types(pc_type="lu") == ("cg", "lu")
    database[PREFIX + "ksp_type"] = "gmres"
    database[PREFIX + "pc_type"] = "sor"
    assert types(pc_type="lu", ksp_type="cg") == ("gmres", "sor")
    assert database.getAll() == before | {PREFIX + "ksp_type": "gmres", PREFIX + "pc_type": "sor"}


def test_values_of_all_kinds(database):
    before = database.getAll()
    options = {
        "ksp_type": "gmres",
        "ksp_gmres_restart": 17,
        "ksp_gmres_breakdown_tolerance": 0.2,
        "ksp_gmres_modifiedgramschmidt": None,
        "ksp_error_if_not_converged": False,
    }
    system = System()
    ksp = SpdSolver(system.matrix, PREFIX, CG, options).ksp
    assert ksp.getType() == "gmres" and not ksp.getErrorIfNotConverged()
    assert database.getAll() == before


@rows(
    ("options", "text"),
    [
        ({"ksp_tipe": "cg"}, r"does not know the options \['ksp_tipe'\]"),
        ({"pc_type": "lu", "mg_levels_ksp_type": "cg"}, r"\['mg_levels_ksp_type'\]"),
        ({"pc_type": "hypre"}, "rejected the solver options .*is that solver in this build"),
        ({"ksp_type": "conjugate"}, "rejected the solver options"),
        ({"pc_type": "lu", "pc_factor_mat_solver_type": "pastix"}, "rejected the solver options"),
    ],
)
def test_wrong_options_are_errors_and_leave_the_database_clean(database, options, text):
    before, system = database.getAll(), System()
    with pytest.raises(ValueError, match=text):
        SpdSolver(system.matrix, PREFIX, CG, options)
    assert database.getAll() == before
    SpdSolver(system.matrix, PREFIX, CG).solve(system.right, system.solution, 1e-12)
    assert system.error() < 1e-7


def test_defaults_suit_condition_size_and_dimension():
    def kind(condition, dofs, dim):
        return default_options(condition, dofs, dim)["pc_type"]

    assert kind(30.0, 10**6, 2) == kind(30.0, 10**6, 3) == "jacobi"
    assert kind(1e5, 10**3, 1) == kind(1e5, 10**4, 2) == kind(1e5, 10**4, 3) == "lu"
    assert kind(1e5, 10**6, 2) == kind(1e5, 10**6, 3) == "gamg"
    system = System(1e3)
    for condition, dofs, dim in ((30.0, 10, 2), (1e5, 10, 2), (1e5, 10**7, 2)):
        defaults = default_options(condition, dofs, dim)
        solver = SpdSolver(system.matrix, PREFIX, defaults, defaults)  # all of them are known
        system.solution.set(0.0)
        solver.solve(system.right, system.solution, 1e-13)
        assert system.error() < 1e-4


PROGRAM = """
import fem_mf as mf
from mpi4py import MPI
import numpy as np

F = mf.Potential(lambda x: x[0] ** 2) + mf.MeanInteraction(1.0, 0.5)
problem = mf.Problem(mf.interval(MPI.COMM_WORLD, 3.0, 0.25), F, sigma=0.5)
start = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] ** 2)))
with mf.Run(FOLDER, problem) as run:
    for state in run.steps(mf.SchrodingerFlow(problem, 0.1), start, 0.3):
        pass
mf.minimise(problem)
"""


def test_the_log_of_petsc_has_our_stages_and_events(tmp_path, monkeypatch):
    monkeypatch.setenv("PETSC_OPTIONS", "-log_view")
    program = PROGRAM.replace("FOLDER", repr(str(tmp_path / "run")))
    command = [sys.executable, "-c", program]
    log = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for stage in ("features", "certificate", "output"):
        assert re.search(rf"^ *\d+: *fem_mf: {stage}", log, re.MULTILINE), stage
    for event in ("fixed point", "linear solve"):
        assert re.search(rf"^fem_mf: {event} +[1-9]", log, re.MULTILINE), event


def test_solvers_in_force_are_named():
    problem = System().problem
    flow = mf.SchrodingerFlow(problem, 0.1, petsc_options={"pc_type": "jacobi"})
    list(flow.run(mf.Density.from_function(problem, lambda x: np.exp(-(x[0] ** 2))), 0.1))
    assert solvers_in_force()["fem_mf_schrodinger_"] == "cg with jacobi"
