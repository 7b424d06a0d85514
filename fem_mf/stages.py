"""One implicit stage of the Schrödinger flow: the kernel that every time scheme shares.

Given r, find ψ with  (2/a)(ψ − r) + (H[m] − s)ψ = 0,  m = ψ²/‖ψ‖²,  H[m] = −σ²Δ + V[m].

The scalar s is free (theory §3: any gauge gives the same trajectory). With s = λ, the eigenvalue at
the start of the step, ψ keeps its norm to first order and dt means what it says; the operator must
then be positive, which it is for steps that resolve the flow. A guarded stage takes s = min V + 1/a
where that is lower, and lowers it further when V falls on the way: its operator is positive for
every m and every step size (D7).

    stage = ImplicitStage(problem, closure, ...)
    result = stage.solve(start, guess, a, shift)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fem_mf.closure import Closure, MomentClosure
from fem_mf.density import Density
from fem_mf.errors import ConvergenceError
from fem_mf.features import Array
from fem_mf.fixed_point import Accelerator, StepRefused, StopTest, solve
from fem_mf.inexact import InnerTolerance
from fem_mf.newton import Newton
from fem_mf.operators import PotentialFloor, PotentialOperator
from fem_mf.options import Options, default_options
from fem_mf.problem import Problem
from fem_mf.response import response
from fem_mf.solvers import SpdSolver
from fem_mf.spaces import owned_values
from fem_mf.stage_data import Guess, StageResult, StageStart

__all__ = ["ImplicitStage"]


# ⟨ψ, |ψ|⟩/‖ψ‖² below which ψ is not that of a density: strict where a guarded step can replace it.
_POSITIVE = {False: 1.0 - 1e-4, True: 1.0 - 1e-2}
_UNGUARDED = 30  # evaluations of a fixed point before a guarded step is tried instead


class ImplicitStage:
    """Solves implicit stages; owns the matrix, the linear solver and the fixed point.

    Args:
        problem: the problem.
        closure: the mean field.
        accelerator: of the fixed point.
        stop: its stop test.
        safeguard: whether overshooting steps are shortened.
        linear_tolerance: relative tolerance of the last linear solve of a stage.
        prefix: of the PETSc options.
        options: the user's PETSc options.
    """

    def __init__(
        self,
        problem: Problem,
        closure: Closure,
        *,
        accelerator: Accelerator,
        stop: StopTest,
        safeguard: bool,
        linear_tolerance: float,
        prefix: str,
        options: Options | None,
    ) -> None:
        self.problem = problem
        self.closure = closure
        self.operator = PotentialOperator(problem, closure)
        self.density = Density(problem, np.ones(problem.num_owned))
        self._accelerator, self._stop, self._safeguard = accelerator, stop, safeguard
        self.rtol, self._prefix, self._options = linear_tolerance, prefix, options
        self._stiffness = self.operator.largest_ratio()
        self._solver: SpdSolver | None = None
        self._defaults: dict[str, str | int | float] = {}
        self.right = self.operator.matrix.createVecLeft()
        self.solution = self.operator.matrix.createVecRight()
        self.linear = closure.basis is not None and closure.basis.shape[1] == 0
        self.tolerance = InnerTolerance(self.rtol, stop)
        self.floor = PotentialFloor(problem, closure)
        self._evaluation: _Evaluation | None = None
        if isinstance(accelerator, Newton) and isinstance(closure, MomentClosure):
            accelerator.bind(self._response, closure.stiffness)

    def solver(self, a: float) -> SpdSolver:
        """The linear solver that suits a stage of this step."""
        dofs = self.problem.space.dofmap.index_map.size_global
        condition = 4.0 * (1.0 + 0.5 * a * self._stiffness)
        defaults = default_options(condition, dofs, self.problem.dim)
        if self._solver is None or defaults != self._defaults:
            if self._solver is not None:
                self._solver.destroy()
            self._defaults = defaults
            self._solver = SpdSolver(self.operator.matrix, self._prefix, defaults, self._options)
        return self._solver

    def solve(
        self,
        start: StageStart,
        guess: Guess,
        a: float,
        shift: float,
        *,
        guarded: bool = False,
    ) -> StageResult:
        """Solve one stage. Collective.

        Args:
            start: r.
            guess: ψ and y to start from.
            a: the stage's step, > 0.
            shift: s.
            guarded: lower s where the operator might not stay positive otherwise.

        Returns:
            The stage's solution.

        Raises:
            ConvergenceError: the fixed point or the linear solver failed, or ψ is not positive.
        """
        y = guess.y
        self.solution.array[:] = guess.psi
        if isinstance(self._accelerator, Newton):
            self._accelerator.rescale(a)
        stop = self._stop
        if not guarded:  # a step that needs more is too long for the gauge of λ
            stop = replace(stop, max_iterations=min(_UNGUARDED, stop.max_iterations))
        evaluation = self._evaluation = _Evaluation(self, start, y, a, shift, guarded)
        record = None
        while record is None:
            try:
                record = solve(
                    evaluation,
                    y,
                    accelerator=self._accelerator,
                    stop=stop,
                    unknown=self.closure,
                    safeguard=self._safeguard,
                    contraction=self.tolerance.expected_contraction,
                )
            except _ShiftLowered as lowered:  # another map y -> T(y): begin again, from here
                y = lowered.y
        if self.tolerance.floor == 0.0:
            self.tolerance.floor = self.closure.sensitivity(self.density)
        y = evaluation.polish()
        factor = record.contraction
        if np.isnan(factor) and isinstance(self._accelerator, Newton):
            factor = self._accelerator.radius
        self.tolerance.learn(record, factor)
        psi = owned_values(self.solution).copy()
        mass_unit = self.density.mass_amplitude()
        positivity = self.problem.dot(psi, mass_unit) / evaluation.norm
        if positivity < _POSITIVE[guarded]:
            raise ConvergenceError(
                "ψ changes sign: dt is too long for this scheme, or the mesh too coarse for m "
                "(mass='lumped' keeps ψ positive on coarse meshes)"
            )
        return StageResult(
            psi=psi,
            unit=self.density.amplitude(),
            norm=evaluation.norm,
            positivity=positivity,
            mass_unit=mass_unit,
            rate=(psi - start.base) / a,
            shift=evaluation.shift,
            y=y,
            record=record,
            linear_iterations=evaluation.linear_iterations,
        )

    def _response(self, y: Array) -> Array:
        """R at y, ``(r, r)``: minus the derivative of T by the potential's coefficients w."""
        assert isinstance(self.closure, MomentClosure) and self._solver is not None
        assert self._evaluation is not None
        self._evaluation(y, np.inf)
        vectors = (self.right, self.solution)
        return response(
            self.problem,
            self.closure,
            self.operator,
            self.density,
            self._solver,
            vectors,
            y=y,
            a=self._evaluation.a,
        )


class _Evaluation:
    """The map y -> T(y) of one stage, with the gauge that keeps its operator positive."""

    _REFUSALS = 3  # steps sent back before the gauge is lowered instead

    def __init__(
        self,
        stage: ImplicitStage,
        start: StageStart,
        y: Array,
        a: float,
        shift: float,
        guarded: bool,
    ) -> None:
        self.stage, self.a = stage, a
        self._start, self._wanted, self._guarded = start, shift, guarded
        self.shift = min(shift, stage.floor.exact(y) + 1.0 / a) if guarded else shift
        self.linear_iterations, self.norm = 0, 1.0
        self._rtol, self._refused = 1.0, 0
        self._moments = y

    def __call__(self, y: Array, previous: float) -> Array:
        stage = self.stage
        self._rtol = stage.rtol
        if self._guarded:
            self._guard(y, np.isfinite(previous))
        if not stage.linear:
            size = float(np.sqrt(stage.closure.dot(y, y)))
            self._rtol = stage.tolerance(previous, size)
        stage.operator.update(2.0 / self.a - self.shift, y)
        try:
            return self._solve()
        except ConvergenceError:
            self._refuse(np.isfinite(previous))
            raise

    def _refuse(self, possible: bool) -> None:
        """Send a step back that went too far, unless that has been tried."""
        if possible and self._refused < self._REFUSALS:
            self._refused += 1
            raise StepRefused

    def _guard(self, y: Array, may_refuse: bool) -> None:
        slack = 1.75 / self.a
        if self.shift <= self.stage.floor.bound(y) + slack:
            return
        smallest = self.stage.floor.exact(y)
        if self.shift <= smallest + slack:
            return
        self._refuse(may_refuse)
        # With a margin, so that it does not have to be lowered again and again.
        self.shift = smallest + 1.0 / self.a - 0.5 * abs(self._wanted - smallest)
        self._refused = 0
        raise _ShiftLowered(y)

    def _solve(self) -> Array:
        stage = self.stage
        stage.right.array[:] = (2.0 / self.a) * self._start.load
        solver = stage.solver(self.a)
        self.linear_iterations += solver.solve(stage.right, stage.solution, self._rtol)
        try:
            self.norm = stage.density.set_amplitude(owned_values(stage.solution))
        except ValueError as error:
            raise ConvergenceError(f"a stage lost the density: {error}; use a smaller dt") from None
        self._moments = stage.operator.order(stage.density)
        return self._moments

    def polish(self) -> Array:
        """Finish the last linear solve to the full tolerance; y of the result."""
        stage, before = self.stage, self._moments
        rtol, self._rtol = self._rtol, stage.rtol
        after = self._solve() if rtol > stage.rtol else before
        change = after - before
        stage.tolerance.measure(float(np.sqrt(stage.closure.dot(change, change))), rtol)
        return after


class _ShiftLowered(Exception):
    """The gauge had to change at an iterate y, and with it the fixed-point map."""

    def __init__(self, y: Array) -> None:
        super().__init__("gauge lowered")
        self.y = y
