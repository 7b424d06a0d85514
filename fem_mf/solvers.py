"""Linear solves: the only module that touches KSP.

A solver keeps its preconditioner while the matrix changes, and a preconditioner can be used alone:

    solver = SpdSolver(matrix, "fem_mf_schrodinger_", {"ksp_type": "cg", "pc_type": "jacobi"})
    iterations = solver.solve(right, solution, rtol=1e-12)

    defaults = {"ksp_type": "preonly", "pc_type": "cholesky"}
    preconditioner = Preconditioner(matrix, "fem_mf_stationary_", defaults)
    preconditioner.apply(right, solution)
"""

from __future__ import annotations

import logging
from typing import Any

from petsc4py import PETSc

from fem_mf.errors import ConvergenceError, LinearSolverError
from fem_mf.options import Options, configure

__all__ = ["Preconditioner", "SpdSolver"]

_LOG = logging.getLogger(__name__)

_REASONS = {
    value: name for name, value in vars(PETSc.KSP.ConvergedReason).items() if isinstance(value, int)
}
# What does not come from a matrix that is indefinite.
_GAVE_UP = (PETSc.KSP.ConvergedReason.DIVERGED_MAX_IT, PETSc.KSP.ConvergedReason.DIVERGED_DTOL)


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
        self._matrix = matrix
        configure(self.ksp, defaults, options or {})
        self.ksp.getPC().setReusePreconditioner(True)
        self.applications = 0

    def rebuild(self) -> None:
        """Build it anew from the present values of the matrix. Collective."""
        pc = self.ksp.getPC()
        pc.setReusePreconditioner(False)
        self.ksp.setOperators(self._matrix)  # without it, setUp sees nothing to do
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
        self._chosen_tolerances = configure(self.ksp, defaults, options or {})
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
            ConvergenceError: PETSc's reason and what to change; a ``LinearSolverError`` where the
                matrix is not to blame.
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
            kind = LinearSolverError if reason in _GAVE_UP else ConvergenceError
            raise kind(
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
