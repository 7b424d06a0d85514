"""Solvers: the only module that uses KSP, SNES, EPS and the options of PETSc.

    defaults = default_options(condition=1e4, dofs=66_000, dim=2)
    tolerances = configure(ksp, defaults, {"pc_type": "jacobi"})

Options are taken, in order of precedence, from the command line
(``-fem_mf_schrodinger_ksp_type ...``), the ``petsc_options`` argument, and the defaults. The
database is left unchanged. A solver keeps its preconditioner while the matrix changes, and a
preconditioner can be used on its own:

    solver = SpdSolver(matrix, "fem_mf_schrodinger_", {"ksp_type": "cg", "pc_type": "jacobi"})
    iterations = solver.solve(right, solution, rtol=1e-12)

    defaults = {"ksp_type": "preonly", "pc_type": "cholesky"}
    preconditioner = Preconditioner(matrix, "fem_mf_stationary_", defaults)
    preconditioner.apply(right, solution)

The module also has Newton's method and the lowest eigenpairs of symmetric operators:

    newton = NewtonSolver(residual, jacobian, matrix, "fem_mf_hjb_", {"pc_type": "lu"})
    steps = newton.solve(solution, tolerance=1e-12)
    start = np.random.default_rng(0).standard_normal((2, problem.discretisation.num_owned))
    mass = problem.mass_matrix
    lowest_states(matrix, mass, preconditioner.apply, start, tolerance=1e-6).values
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from petsc4py import PETSc
from slepc4py import SLEPc

import numpy as np

from fem_mf.mpi import ConvergenceError, LinearSolverError, all_ranks_agree

__all__ = [
    "LEAST_UNKNOWNS",
    "NewtonSolver",
    "Options",
    "Preconditioner",
    "SpdSolver",
    "States",
    "configure",
    "default_options",
    "default_preconditioner",
    "event",
    "lowest_states",
    "mumps",
    "shell_matrix",
    "solvers_in_force",
    "stage",
]

type Options = Mapping[str, str | int | float | bool | None]
type _Defaults = dict[str, str | int | float]
type _Action = Callable[[PETSc.Vec, PETSc.Vec], None]

_LOG = logging.getLogger(__name__)
_SYMMETRIC: Any = PETSc.Mat.Option.SYMMETRIC


@contextmanager
def stage(name: str) -> Generator[None]:
    """Log a part of the program as a PETSc stage (-log_view); also usable as a decorator."""
    part = PETSc.Log.Stage(f"fem_mf: {name}")
    part.push()
    try:
        yield
    finally:
        part.pop()


_event = cache(lambda name: PETSc.Log.Event(f"fem_mf: {name}"))  # because look-up by name is slow


@contextmanager
def event(name: str) -> Generator[None]:
    """Log a repeated operation as an event in the current stage; also usable as a decorator."""
    part = _event(name)
    part.begin()
    try:
        yield
    finally:
        part.end()


# Unpreconditioned condition number above which Jacobi needs more iterations than a factorisation
# or multigrid costs (measured at 66k dofs: 15 iterations at 30, some 100 at 1e3).
_JACOBI_CONDITION = 1e3
_DIRECT_DOFS = {1: 10_000_000, 2: 500_000, 3: 40_000}
# Takes half the time of multigrid at 185k dofs of degree 4 hexahedra; iterations grow as 1/h.
_INCOMPLETE_DOFS = {1: 0, 2: 0, 3: 400_000}
_MULTIGRID: _Defaults = {
    "pc_type": "gamg",
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}


_IN_FORCE: dict[str, str] = {}


def solvers_in_force() -> dict[str, str]:
    """The solvers set up so far, by prefix, for example ``"cg with lu by mumps"``."""
    return dict(_IN_FORCE)


def _describe(solver: PETSc.KSP | PETSc.SNES) -> str:
    """A text with method and preconditioner."""
    ksp = solver if isinstance(solver, PETSc.KSP) else solver.getKSP()
    pc = ksp.getPC()
    by = f" by {pc.getFactorSolverType()}" if pc.getType() in ("lu", "cholesky") else ""
    inner = f"{ksp.getType()} with {pc.getType()}{by}"
    return inner if ksp is solver else f"{solver.getType()}, {inner}"


def configure(solver: PETSc.KSP | PETSc.SNES, defaults: Options, chosen: Options) -> dict[str, Any]:
    """Set the options of a solver. Collective.

    Returns:
        The tolerances that the user has set.

    Raises:
        ValueError: if PETSc rejects an option, or does not know it.
    """
    prefix = solver.getOptionsPrefix()
    database = PETSc.Options(prefix)
    picked = database.getString("pc_type", str(chosen.get("pc_type", "")))
    if picked not in ("", defaults.get("pc_type"), "lu", "cholesky"):
        # Options of the default preconditioner are unknown to another one.
        defaults = {key: value for key, value in defaults.items() if key.startswith("ksp_")}
    options = {**defaults, **chosen}
    added = [key for key in options if not database.hasName(key)]
    tolerances: dict[str, Any] = {}
    error = None
    try:
        for key in added:
            value = options[key]
            database.setValue(key, "" if value is None else value)
        solver.setFromOptions()
        if isinstance(solver, PETSc.KSP):
            solver.setUp()  # reads the options of inner solvers
            values = zip(("rtol", "atol", "divtol", "max_it"), solver.getTolerances(), strict=True)
            tolerances = {k: v for k, v in values if database.hasName(f"ksp_{k}")}
        elif database.hasName("snes_atol"):
            tolerances = {"atol": solver.getTolerances()[1]}
        unknown = [k for k in chosen if k in added and not PETSc.Options().used(prefix + k)]
        if unknown:
            error = ValueError(
                f"PETSc does not know the options {unknown} here: they are misspelt, or belong to "
                "a solver that was not chosen"
            )
    except PETSc.Error as caught:
        code = caught.ierr  # type: ignore[attr-defined]
        error = ValueError(
            f"PETSc rejected the solver options {options} (prefix {prefix}): error code "
            f"{code}; is that solver in this build of PETSc?"
        )
    else:
        _IN_FORCE[prefix] = _describe(solver)
    finally:
        for key in added:
            database.delValue(key)
    all_ranks_agree(solver.comm.tompi4py(), error)
    return tolerances


def mumps(dim: int) -> _Defaults:
    """Options for a factorisation by MUMPS, with the fastest ordering in this dimension."""
    chosen: _Defaults = {"pc_factor_mat_solver_type": "mumps"}
    if dim < 3:
        # Approximate minimum fill: analysis and factorisation together take 0.4 of the time that
        # they take with the default nested dissection (16k to 260k dofs, degree 2 triangles).
        chosen["mat_mumps_icntl_7"] = 2
    return chosen


def default_options(condition: float, dofs: int, dim: int) -> _Defaults:
    """Options for CG with a preconditioner that suits this condition number and size.

    Args:
        condition: upper estimate of the condition number of the diagonally scaled matrix.
        dofs: global number of unknowns.
        dim: dimension of the mesh.
    """
    if condition <= _JACOBI_CONDITION and dim > 1:
        return {"ksp_type": "cg", "pc_type": "jacobi"}
    if dofs <= _DIRECT_DOFS[dim]:
        return {"ksp_type": "cg", "pc_type": "lu", **mumps(dim)}
    return {"ksp_type": "cg", **_MULTIGRID}


def default_preconditioner(dofs: int, dim: int) -> _Defaults:
    """Options for a preconditioner of an elliptic operator without the mass term of a time step.

    It is a factorisation if affordable, else an incomplete one in three dimensions, else multigrid.
    """
    if dofs <= _DIRECT_DOFS[dim]:
        # With approximate minimum fill MUMPS' Cholesky solves returned infinity on three ranks (3k
        # dofs, d = 2); METIS is right, and repeated factorisations are no slower (0.48 s against
        # 0.63 s at 199k dofs of degree 2).
        ordering = {"mat_mumps_icntl_7": 5}
        return {"ksp_type": "preonly", "pc_type": "cholesky", **mumps(dim), **ordering}
    if dofs <= _INCOMPLETE_DOFS[dim]:
        return {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "icc"}
    return {"ksp_type": "preonly", **_MULTIGRID}


def _reason(solver: PETSc.KSP | PETSc.SNES) -> str:
    """PETSc's name for the reason why an iteration ended."""
    value: Any = solver.getConvergedReason()
    names = vars(type(solver).ConvergedReason).items()
    return next((name for name, number in names if number == value), str(value))


class Preconditioner:
    """z = P⁻¹r for one symmetric positive definite matrix P, kept until it is rebuilt.

    Args and errors are those of :class:`SpdSolver`; a change of the matrix needs :meth:`rebuild`.
    """

    def __init__(
        self, matrix: PETSc.Mat, prefix: str, defaults: Options, options: Options | None = None
    ) -> None:
        matrix.setOption(_SYMMETRIC, True)
        self._matrix = matrix
        self.ksp = _ksp(matrix, prefix)
        configure(self.ksp, defaults, options or {})
        self.ksp.getPC().setReusePreconditioner(True)
        self.applications = 0

    def rebuild(self) -> None:
        """Rebuild the preconditioner from the current values of the matrix. Collective."""
        pc = self.ksp.getPC()
        pc.setReusePreconditioner(False)
        self.ksp.setOperators(self._matrix)  # otherwise setUp would do nothing
        self.ksp.setUp()
        pc.setReusePreconditioner(True)

    def apply(self, right: PETSc.Vec, solution: PETSc.Vec) -> None:
        """Overwrite ``solution`` with P⁻¹ times ``right``. Collective."""
        self.applications += 1
        self.ksp.solve(right, solution)


class SpdSolver:
    """Conjugate gradients (by default) for one symmetric positive definite matrix that changes.

    The preconditioner is kept while the matrix changes and rebuilt when the iterations have
    doubled since it was built (a diagonal one costs nothing and is always rebuilt).

    Args:
        matrix: the assembled matrix; the caller updates its values in place.
        prefix: prefix of the PETSc options, one for each role of a solver.
        defaults: options used unless overridden by the user or the command line.
        options: the user's ``petsc_options``, with keys without prefix.

    Raises:
        ValueError: if PETSc rejects the options (for example for a solver that is not built in).
    """

    def __init__(
        self, matrix: PETSc.Mat, prefix: str, defaults: Options, options: Options | None = None
    ) -> None:
        self.prefix = prefix
        self.ksp = _ksp(matrix, prefix)
        self._tolerances = {"atol": 1e-300, "divtol": 1e300, "max_it": 10_000}
        self._chosen = configure(self.ksp, defaults, options or {})
        # A direct solver as the whole method would apply a stale factorisation as if it were exact,
        # so it is always rebuilt, like a preconditioner that costs nothing.
        direct = self.ksp.getType() == "preonly"
        self.ksp.setInitialGuessNonzero(not direct)
        self._free_setup = direct or self.ksp.getPC().getType() in ("jacobi", "pbjacobi", "none")
        self._rebuild_next()

    def solve(
        self, right: PETSc.Vec, solution: PETSc.Vec, rtol: float, *, typical: bool = True
    ) -> int:
        """Solve to ``rtol`` times the norm of the right-hand side. Collective.

        Args:
            right: the right-hand side.
            solution: the initial guess, overwritten.
            rtol: relative tolerance of the preconditioned residual.
            typical: whether the iteration count reflects the age of the preconditioner.

        Returns:
            The number of iterations.

        Raises:
            ConvergenceError: with PETSc's reason and a remedy; a ``LinearSolverError`` if the
                matrix is not the cause.
        """
        with event("linear solve"):
            return self._solve(right, solution, rtol, typical)

    def _solve(self, right: PETSc.Vec, solution: PETSc.Vec, rtol: float, typical: bool) -> int:
        self.ksp.setTolerances(**{"rtol": rtol, **self._tolerances, **self._chosen})
        self.ksp.solve(right, solution)
        if self.ksp.is_diverged and not self._fresh:
            # Built for another matrix, the preconditioner may even be indefinite for this one.
            self._rebuild_next()
            solution.set(0.0)
            self.ksp.solve(right, solution)
        iterations = int(self.ksp.getIterationNumber())
        if self.ksp.is_diverged:
            self._rebuild_next()
            reason = _reason(self.ksp)
            # An indefinite matrix causes neither of these two reasons.
            gave_up = reason in ("DIVERGED_MAX_IT", "DIVERGED_DTOL")
            raise (LinearSolverError if gave_up else ConvergenceError)(
                f"the linear solver {self.prefix} stopped with {reason} "
                f"after {iterations} iterations; try a smaller dt, or options such as "
                f"-{self.prefix}pc_type lu -{self.prefix}pc_factor_mat_solver_type mumps"
            )
        if not self._free_setup:
            self._keep_or_rebuild(iterations, typical)
        return iterations

    def _rebuild_next(self) -> None:
        self._fresh, self._iterations_when_fresh = True, 0
        self.ksp.getPC().setReusePreconditioner(False)

    def _keep_or_rebuild(self, iterations: int, typical: bool) -> None:
        self._fresh = False
        self.ksp.getPC().setReusePreconditioner(True)
        if typical and self._iterations_when_fresh == 0:
            self._iterations_when_fresh = max(iterations, 1)
        elif typical and iterations > 2 * self._iterations_when_fresh + 4:
            _LOG.debug("%s: %d iterations, preconditioner rebuilt", self.prefix, iterations)
            self._rebuild_next()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective."""
        self.ksp.destroy()


def _ksp(matrix: PETSc.Mat, prefix: str) -> PETSc.KSP:
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOptionsPrefix(prefix)
    ksp.setOperators(matrix)
    return ksp


_MOST_STEPS = 25
_ROUNDING = 100.0  # largest ratio of residual to tolerance accepted from a stalled line search


class NewtonSolver:
    """Newton's method (SNES) for one nonlinear system whose data change.

    Args:
        residual: function of ``(x, f)`` that overwrites f with the residual at x. Collective.
        jacobian: function of ``(x, J)`` that sets the matrix J to the derivative at x. Collective.
        matrix: J, assembled or not.
        prefix: prefix of the PETSc options, one for each role of a solver.
        defaults: options used unless overridden by the user or the command line.
        options: the user's ``petsc_options``, with keys without prefix.

    Raises:
        ValueError: if PETSc rejects the options.
    """

    def __init__(
        self,
        residual: _Action,
        jacobian: Callable[[PETSc.Vec, PETSc.Mat], None],
        matrix: PETSc.Mat,
        prefix: str,
        defaults: Options,
        options: Options | None = None,
    ) -> None:
        self.prefix = prefix
        self.snes = PETSc.SNES().create(matrix.comm)
        self.snes.setOptionsPrefix(prefix)
        self._residual, self._jacobian = residual, jacobian
        # PETSc would keep the owner of the callables alive, which holds this solver: a cycle that
        # the garbage collector cannot detect. PETSc therefore gets a weak reference.
        this = weakref.proxy(self)
        self.snes.setFunction(lambda _, x, f: this._residual(x, f), matrix.createVecLeft())
        self.snes.setJacobian(lambda _, x, j, __: this._jacobian(x, j), matrix)
        chosen = configure(self.snes, {"snes_type": "newtonls", **defaults}, options or {})
        self._chosen_tolerance = chosen.get("atol")

    def solve(self, solution: PETSc.Vec, tolerance: float, *, scale: float = 1.0) -> int:
        """Solve to an absolute residual norm. Collective.

        Args:
            solution: the initial guess, overwritten.
            tolerance: tolerance of the Euclidean norm of the residual divided by ``scale``, unless
                the user has set another one (``snes_atol``).
            scale: the Euclidean norm of a residual of norm one.

        Returns:
            The number of Newton steps.

        Raises:
            ConvergenceError: with PETSc's reason and a remedy.
        """
        tolerance = scale * (self._chosen_tolerance or tolerance)
        self.snes.setTolerances(rtol=1e-14, atol=tolerance, stol=1e-14, max_it=_MOST_STEPS)
        self.snes.solve(None, solution)
        reason, iterations = _reason(self.snes), int(self.snes.getIterationNumber())
        # A line search that stalls at rounding level cannot reduce the residual further.
        stalled = reason == "DIVERGED_LINE_SEARCH"
        done = stalled and self.snes.getFunctionNorm() <= _ROUNDING * tolerance
        if self.snes.is_diverged and not done:
            raise ConvergenceError(
                f"Newton's method {self.prefix} stopped with {reason} "
                f"after {iterations} steps; use a smaller dt or a finer mesh"
            )
        return iterations


_MAX_ITERATIONS = 2000
LEAST_UNKNOWNS = 5  # least number of unknowns per eigenpair, required by SLEPc


@dataclass(frozen=True)
class States:
    """Eigenpairs Ax = μBx in increasing order.

    Attributes:
        values: Rayleigh quotients μ, each above the eigenvalue that it approximates.
        vectors: owned values of x, normalised to ⟨x, Bx⟩ = 1.
        iterations: iterations of LOBPCG.
    """

    values: list[float]
    vectors: list[Any]
    iterations: int


class _Shell:
    """A Python function as a PETSc matrix or preconditioner."""

    def __init__(self, apply: _Action) -> None:
        self.mult = self.apply = lambda _, x, y: apply(x, y)


def shell_matrix(like: PETSc.Mat, apply: _Action) -> PETSc.Mat:
    """A symmetric matrix defined by its action, with the layout of another. Collective."""
    sizes: Any = like.getSizes()
    shell = PETSc.Mat().createPython(sizes, context=_Shell(apply), comm=like.comm)
    shell.setOption(_SYMMETRIC, True)
    shell.setUp()
    return shell


def lowest_states(
    matrix: PETSc.Mat,
    mass: PETSc.Mat,
    precondition: _Action,
    start: Sequence[Any],
    *,
    tolerance: float,
    deflate: Sequence[Any] = (),
) -> States:
    """The lowest eigenpairs of Ax = μBx by LOBPCG (Knyazev 2001). Collective.

    A start that contains a good approximation of the ground state costs a few applications of each
    operator, and no factorisation.

    Args:
        matrix: A, symmetric.
        mass: B, symmetric and positive definite on the span of the start vectors.
        precondition: function of ``(r, z)`` that overwrites z with an approximation of (A − s)⁻¹r.
        start: owned values of one start vector per wanted pair; states orthogonal to all of them
            are not found, so they should be generic.
        tolerance: absolute tolerance of the Euclidean norm of the load vector Ax − μBx.
        deflate: owned values of vectors to whose B-orthogonal complement the search is restricted.

    Returns:
        As many pairs as start vectors.

    Raises:
        ValueError: if there are fewer unknowns than the work space of LOBPCG needs.
        ConvergenceError: if the tolerance is not reached.
    """
    size, count = matrix.getSize()[0], len(start)
    if size < LEAST_UNKNOWNS * count:
        raise ValueError(
            f"{size} degrees of freedom are too few for {count} eigenpairs: refine the mesh"
        )
    vectors = [matrix.createVecRight() for _ in (*start, *deflate)]
    for vector, values in zip(vectors, (*start, *deflate), strict=True):
        vector.array[:] = values
    found = iterations = 0
    # LOBPCG is faster; if its block becomes singular, Davidson's method is used instead.
    for method in (SLEPc.EPS.Type.LOBPCG, SLEPc.EPS.Type.GD):
        eps = _eigensolver(matrix, mass, precondition, method, count, tolerance)
        eps.setInitialSpace(vectors[:count])
        if deflate:
            eps.setDeflationSpace(vectors[count:])
        try:
            eps.solve()
            found, iterations = int(eps.getConverged()), int(eps.getIterationNumber())
        except (PETSc.Error, SystemError):
            found = 0
        if found >= count:
            break
        eps.destroy()
    else:
        raise ConvergenceError(
            f"LOBPCG and Davidson's method found {found} of {count} eigenpairs to "
            f"{tolerance:.1e} in {iterations} iterations; a stronger preconditioner helps "
            "(-fem_mf_stationary_pc_type cholesky "
            "-fem_mf_stationary_pc_factor_mat_solver_type mumps)"
        )
    pairs = [(eps.getEigenpair(i, vectors[i]), vectors[i].array.copy()) for i in range(count)]
    for item in (eps, *vectors):
        item.destroy()
    return States([float(np.real(value)) for value, _ in pairs], [x for _, x in pairs], iterations)


def _eigensolver(
    matrix: PETSc.Mat,
    mass: PETSc.Mat,
    precondition: _Action,
    method: str,
    count: int,
    tolerance: float,
) -> SLEPc.EPS:
    eps = SLEPc.EPS().create(matrix.comm)
    eps.setOperators(matrix, mass)
    eps.setProblemType(SLEPc.EPS.ProblemType.GHEP)
    eps.setType(method)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.SMALLEST_REAL)
    eps.setDimensions(count)
    eps.setTolerances(tolerance, _MAX_ITERATIONS)
    eps.setConvergenceTest(SLEPc.EPS.Conv.ABS)
    eps.getST().setType(SLEPc.ST.Type.PRECOND)
    inner = eps.getST().getKSP()
    inner.setType(PETSc.KSP.Type.PREONLY)
    inner.getPC().setType(PETSc.PC.Type.PYTHON)
    inner.getPC().setPythonContext(_Shell(precondition))
    return eps
