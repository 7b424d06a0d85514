"""Linear solves: the only module that touches KSP and the PETSc options database.

    solver = SpdSolver(matrix, "fem_mf_schrodinger_", defaults)
    iterations = solver.solve(right, solution, rtol=1e-12)

    preconditioner = Preconditioner(matrix, "fem_mf_stationary_", defaults)
    preconditioner.apply(right, solution)

Options come from, in this order: the command line (``-fem_mf_schrodinger_ksp_type ...``), the
``petsc_options`` argument, the defaults. Nothing stays behind in the database.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from petsc4py import PETSc

from fem_mf.errors import ConvergenceError
from fem_mf.parallel import all_ranks_agree

__all__ = ["Options", "Preconditioner", "SpdSolver", "default_options", "default_preconditioner"]

_LOG = logging.getLogger(__name__)

type Options = Mapping[str, str | int | float | bool | None]

# Unpreconditioned condition number above which Jacobi needs more iterations than a factorisation
# or multigrid costs (measured at 66k dofs: 15 iterations at 30, some 100 at 1e3).
_JACOBI_CONDITION = 1e3
_DIRECT_DOFS = {1: 10_000_000, 2: 500_000, 3: 40_000}
# Half the time of multigrid at 185k dofs of degree 4 hexahedra; its iterations grow with 1/h.
_INCOMPLETE_DOFS = {1: 0, 2: 0, 3: 400_000}
_REASONS = {
    value: name for name, value in vars(PETSc.KSP.ConvergedReason).items() if isinstance(value, int)
}


def _mumps(dim: int) -> dict[str, str | int | float]:
    chosen: dict[str, str | int | float] = {"pc_factor_mat_solver_type": "mumps"}
    if dim < 3:
        # Approximate minimum fill: analysis and factorisation together take 0.4 of the time that
        # they take with the default nested dissection (16k to 260k dofs, degree 2 triangles).
        chosen["mat_mumps_icntl_7"] = 2
    return chosen


def default_options(condition: float, dofs: int, dim: int) -> dict[str, str | int | float]:
    """CG with the preconditioner that is good at this condition number and size.

    Args:
        condition: of the diagonally scaled matrix, an upper estimate.
        dofs: global size.
        dim: of the mesh.
    """
    if condition <= _JACOBI_CONDITION and dim > 1:
        return {"ksp_type": "cg", "pc_type": "jacobi"}
    if dofs <= _DIRECT_DOFS[dim]:
        return {"ksp_type": "cg", "pc_type": "lu", **_mumps(dim)}
    return {
        "ksp_type": "cg",
        "pc_type": "gamg",
        "mg_levels_ksp_type": "chebyshev",
        "mg_levels_pc_type": "jacobi",
    }


def _configure(ksp: PETSc.KSP, defaults: Options, chosen: Options) -> dict[str, Any]:
    """Give a solver its options and return the tolerances that the user fixed. Collective.

    Raises:
        ValueError: PETSc refuses an option, or does not know one.
    """
    prefix = ksp.getOptionsPrefix()
    database = PETSc.Options(prefix)
    options = {**defaults, **chosen}
    added = [key for key in options if not database.hasName(key)]
    tolerances: dict[str, Any] = {}
    error = None
    try:
        for key in added:
            value = options[key]
            database.setValue(key, "" if value is None else value)
        ksp.setFromOptions()
        ksp.setUp()  # reads the options of inner solvers
        rtol, atol, divtol, max_it = ksp.getTolerances()
        values = {"rtol": rtol, "atol": atol, "divtol": divtol, "max_it": max_it}
        tolerances = {k: v for k, v in values.items() if database.hasName(f"ksp_{k}")}
        unknown = [k for k in chosen if k in added and not PETSc.Options().used(prefix + k)]
        if unknown:
            error = ValueError(
                f"PETSc does not know the options {unknown} here: misspelt, or of a solver "
                "that was not chosen"
            )
    except PETSc.Error as caught:
        code = caught.ierr  # type: ignore[attr-defined]
        error = ValueError(
            f"PETSc refused the solver options {options} (prefix {prefix}): error code "
            f"{code}; is that solver in this build of PETSc?"
        )
    finally:
        for key in added:
            database.delValue(key)
    all_ranks_agree(ksp.comm.tompi4py(), error)
    return tolerances


def default_preconditioner(dofs: int, dim: int) -> dict[str, str | int | float]:
    """A preconditioner for an elliptic operator without a time step to tame it.

    A factorisation where it is affordable, an incomplete one in three dimensions, multigrid beyond.

    Args:
        dofs: global size.
        dim: of the mesh.
    """
    if dofs <= _DIRECT_DOFS[dim]:
        return {"ksp_type": "preonly", "pc_type": "cholesky", **_mumps(dim)}
    if dofs <= _INCOMPLETE_DOFS[dim]:
        return {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "icc"}
    return {
        "ksp_type": "preonly",
        "pc_type": "gamg",
        "mg_levels_ksp_type": "chebyshev",
        "mg_levels_pc_type": "jacobi",
    }


class Preconditioner:
    """z = P⁻¹r for one symmetric positive definite matrix P, kept until it is rebuilt.

    Args:
        matrix: P, assembled; the caller may change its values and call :meth:`rebuild`.
        prefix: of the options, one per role.
        defaults: options used when neither the user nor the command line says otherwise.
        options: the user's ``petsc_options``, keys without prefix.

    Raises:
        ValueError: PETSc refuses the options (a solver that is not built in, say).
    """

    def __init__(
        self, matrix: PETSc.Mat, prefix: str, defaults: Options, options: Options | None = None
    ) -> None:
        symmetric: Any = PETSc.Mat.Option.SYMMETRIC
        matrix.setOption(symmetric, True)
        self.ksp = PETSc.KSP().create(matrix.comm)
        self.ksp.setOptionsPrefix(prefix)
        self.ksp.setOperators(matrix)
        _configure(self.ksp, defaults, options or {})
        self.ksp.getPC().setReusePreconditioner(True)
        self.applications = 0

    def rebuild(self) -> None:
        """Build it anew from the present values of the matrix. Collective."""
        pc = self.ksp.getPC()
        pc.setReusePreconditioner(False)
        self.ksp.setUp()
        pc.setReusePreconditioner(True)

    def apply(self, right: PETSc.Vec, solution: PETSc.Vec) -> None:
        """Overwrite ``solution`` with P⁻¹ times ``right``. Collective."""
        self.applications += 1
        self.ksp.solve(right, solution)


class SpdSolver:
    """Conjugate gradients (by default) for one symmetric positive definite matrix that changes.

    The preconditioner is kept while the matrix changes and rebuilt when the iterations have
    doubled since it was built (a diagonal one, free to build, is always fresh).

    Args:
        matrix: assembled; the caller updates its values in place.
        prefix: of the options, one per role.
        defaults: options used when neither the user nor the command line says otherwise.
        options: the user's ``petsc_options``, keys without prefix.

    Raises:
        ValueError: PETSc refuses the options (a solver that is not built in, say).
    """

    def __init__(
        self, matrix: PETSc.Mat, prefix: str, defaults: Options, options: Options | None = None
    ) -> None:
        self.prefix = prefix
        self.ksp = PETSc.KSP().create(matrix.comm)
        self.ksp.setOptionsPrefix(prefix)
        self.ksp.setOperators(matrix)
        self.ksp.setInitialGuessNonzero(True)
        # They replace those that a solve is asked for.
        self._chosen_tolerances = _configure(self.ksp, defaults, options or {})
        # A direct solver as the whole method would apply a stale factorisation as if it were exact:
        # it is always fresh, like a preconditioner that is free to build.
        direct = self.ksp.getType() == "preonly"
        self.ksp.setInitialGuessNonzero(not direct)
        self._free_setup = direct or self.ksp.getPC().getType() in ("jacobi", "pbjacobi", "none")
        self._iterations_when_fresh = 0
        self._fresh = True

    def solve(
        self, right: PETSc.Vec, solution: PETSc.Vec, rtol: float, *, typical: bool = True
    ) -> int:
        """Solve to ``rtol`` times the norm of the right-hand side. Collective.

        Args:
            right: the right-hand side.
            solution: the initial guess, overwritten.
            rtol: relative tolerance of the preconditioned residual.
            typical: whether its iterations say something about the preconditioner's age.

        Returns:
            The number of iterations.

        Raises:
            ConvergenceError: PETSc's reason and what to change.
        """
        tolerances: dict[str, Any] = {
            "rtol": rtol,
            "atol": 1e-300,
            "divtol": 1e300,
            "max_it": 10_000,
        }
        self.ksp.setTolerances(**{**tolerances, **self._chosen_tolerances})
        self.ksp.solve(right, solution)
        reason: Any = self.ksp.getConvergedReason()
        if reason < 0 and not self._fresh:
            # Built for another matrix, the preconditioner may even be indefinite for this one.
            self._rebuild_next()
            solution.set(0.0)
            self.ksp.solve(right, solution)
            reason = self.ksp.getConvergedReason()
        iterations = int(self.ksp.getIterationNumber())
        if reason < 0:
            self._rebuild_next()
            raise ConvergenceError(
                f"the linear solver {self.prefix} stopped with {_REASONS.get(reason, reason)} "
                f"after {iterations} iterations; try a smaller dt, or options such as "
                f"-{self.prefix}pc_type lu -{self.prefix}pc_factor_mat_solver_type mumps"
            )
        if not self._free_setup:
            self._decide_rebuild(iterations, typical)
        return iterations

    def _rebuild_next(self) -> None:
        self._fresh = True
        self._iterations_when_fresh = 0
        self.ksp.getPC().setReusePreconditioner(False)

    def _decide_rebuild(self, iterations: int, typical: bool) -> None:
        if self._fresh:
            self._fresh = False
            self.ksp.getPC().setReusePreconditioner(True)
        if not typical:
            return
        if self._iterations_when_fresh == 0:
            self._iterations_when_fresh = max(iterations, 1)
        elif iterations > 2 * self._iterations_when_fresh + 4:
            _LOG.debug("%s: %d iterations, preconditioner rebuilt", self.prefix, iterations)
            self._rebuild_next()

    def destroy(self) -> None:
        """Free the PETSc objects. Collective."""
        self.ksp.destroy()
