"""Nonlinear solves: the only module that touches SNES.

One solver serves a whole run; its two callables use data that change from step to step:

    defaults = {"ksp_type": "preonly", "pc_type": "lu"}
    solver = NewtonSolver(residual, jacobian, matrix, "fem_mf_hjb_", defaults)
    steps = solver.solve(solution, tolerance=1e-12)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

from fem_mf.errors import ConvergenceError
from fem_mf.options import Options, configure

__all__ = ["NewtonSolver"]

_ROUNDING = 100.0  # residual over tolerance that a stalled line search may leave

_REASONS = {
    value: name
    for name, value in vars(PETSc.SNES.ConvergedReason).items()
    if isinstance(value, int)
}


class NewtonSolver:
    """Newton's method (SNES) for one nonlinear system whose data change.

    Args:
        residual: ``(x, f)``, overwrites f with the residual at x. Collective.
        jacobian: ``(x, J)``, overwrites the matrix J with the derivative at x. Collective.
        matrix: J, assembled or not.
        prefix: of the options, one per role.
        defaults: options used when neither the user nor the command line says otherwise.
        options: the user's ``petsc_options``, keys without prefix.

    Raises:
        ValueError: PETSc refuses the options.
    """

    def __init__(
        self,
        residual: Callable[[PETSc.Vec, PETSc.Vec], None],
        jacobian: Callable[[PETSc.Vec, PETSc.Mat], None],
        matrix: PETSc.Mat,
        prefix: str,
        defaults: Options,
        options: Options | None = None,
    ) -> None:
        self.prefix = prefix
        self.snes = PETSc.SNES().create(matrix.comm)
        self.snes.setOptionsPrefix(prefix)
        self._work = matrix.createVecLeft()
        self._residual, self._jacobian = residual, jacobian
        # PETSc would keep alive what the callables belong to, which keeps this solver: a cycle that
        # the garbage collector cannot see. So PETSc gets a weak reference.
        this = weakref.ref(self)

        def evaluate(_: PETSc.SNES, x: PETSc.Vec, f: PETSc.Vec) -> None:
            solver = this()
            assert solver is not None
            solver._residual(x, f)

        def differentiate(_: PETSc.SNES, x: PETSc.Vec, j: PETSc.Mat, __: PETSc.Mat) -> None:
            solver = this()
            assert solver is not None
            solver._jacobian(x, j)

        self.snes.setFunction(evaluate, self._work)
        self.snes.setJacobian(differentiate, matrix)
        configure(self.snes, {"snes_type": "newtonls", **defaults}, options or {})

    def solve(self, solution: PETSc.Vec, tolerance: float, max_iterations: int = 25) -> int:
        """Solve to an absolute residual norm. Collective.

        Args:
            solution: the initial guess, overwritten.
            tolerance: of the Euclidean norm of the residual.
            max_iterations: Newton steps.

        Returns:
            The number of Newton steps.

        Raises:
            ConvergenceError: PETSc's reason and what to change.
        """
        self.snes.setTolerances(rtol=1e-14, atol=tolerance, stol=1e-14, max_it=max_iterations)
        self.snes.solve(None, solution)
        reason: Any = self.snes.getConvergedReason()
        iterations = int(self.snes.getIterationNumber())
        stalled = reason == PETSc.SNES.ConvergedReason.DIVERGED_LINE_SEARCH
        if stalled and self.snes.getFunctionNorm() <= _ROUNDING * tolerance:
            return iterations  # nothing left to gain
        if reason < 0:
            raise ConvergenceError(
                f"Newton's method {self.prefix} stopped with {_REASONS.get(reason, reason)} "
                f"after {iterations} steps; use a smaller dt or a finer mesh"
            )
        return iterations
