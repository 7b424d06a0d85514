"""One implicit stage of the Schrödinger flow: the kernel that every time scheme shares.

Given r, find ψ with  (2/a)(ψ − r) + (H[m] − s)ψ = 0,  m = ψ²/‖ψ‖²,  H[m] = −σ²Δ + V[m].

The scalar s is free (theory §3: any gauge gives the same trajectory). It is λ of the previous step
where that keeps the operator well above zero, and otherwise about min V + 1/a, lowered when V falls
on the way: the operator is then positive for every m and every step size (D7).

    stage = ImplicitStage(problem, closure, ...)
    result = stage.solve(r, guess, y0, a, shift)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fem_mf.closure import Closure
from fem_mf.density import Density
from fem_mf.errors import ConvergenceError
from fem_mf.features import Array
from fem_mf.fixed_point import Accelerator, FixedPointRecord, StopTest, solve
from fem_mf.operators import PotentialOperator
from fem_mf.problem import Problem
from fem_mf.solvers import Options, SpdSolver, default_options
from fem_mf.spaces import owned_values

__all__ = ["AffineInShift", "ImplicitStage", "StageResult"]


@dataclass(frozen=True)
class AffineInShift:
    """r = base + s · slope: what a stage starts from may depend on the gauge s."""

    base: Array
    slope: Array | None = None

    def at(self, shift: float) -> Array:
        """r for one s."""
        return self.base if self.slope is None else self.base + shift * self.slope


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """ψ (owned, not normalised), its rate f = (ψ − r)/a = −½(H − s)ψ, s, y and the record."""

    psi: Array
    rate: Array
    shift: float
    y: Array
    record: FixedPointRecord
    linear_iterations: int


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
        self._rtol, self._prefix, self._options = linear_tolerance, prefix, options
        self._stiffness = self.operator.largest_ratio()
        self._solver: SpdSolver | None = None
        self._defaults: dict[str, str | int | float] = {}
        self._right = self.operator.matrix.createVecLeft()
        self._solution = self.operator.matrix.createVecRight()
        self._linear = closure.basis is not None and closure.basis.shape[1] == 0
        # Learnt from stage to stage, for the tolerance of the inner solves: the contraction, the
        # first residual, and the error in y that a solve of relative tolerance 1 would leave.
        self._contraction, self._first_residual, self._gain = 1e-2, 0.0, np.inf

    def _prepare_solver(self, a: float) -> SpdSolver:
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
        self, r: AffineInShift, guess: Array, y: Array, a: float, shift: float, lowest: float
    ) -> StageResult:
        """Solve one stage. Collective.

        Args:
            r: the stage's start.
            guess: owned values of ψ to start from.
            y: mean field to start from.
            a: the stage's step, > 0.
            shift: the wanted s; it is lowered where the operator would not stay positive.
            lowest: min V at the start, to skip that test when 1/a is far above its change.

        Returns:
            The stage's solution; ``density`` holds it normalised.

        Raises:
            ConvergenceError: the fixed point or the linear solver failed.
        """
        problem, loads = self.problem, _Loads(self.problem, r)
        guarded = shift > lowest + 0.5 / a
        margin = 0.5 * abs(shift - lowest)
        state = _StageState(min(shift, lowest + 1.0 / a) if guarded else shift)
        self._solution.array[:] = guess

        def linear_solve(rtol: float) -> None:
            self._right.array[:] = (2.0 / a) * loads.at(state.shift)
            solver = self._prepare_solver(a)
            state.linear_iterations += solver.solve(self._right, self._solution, rtol)

        def evaluate(point: Array, previous: float) -> Array:
            potential = None
            if guarded:
                potential = self.closure.potential(point)
                smallest = -problem.max(float(-potential.min(initial=np.inf)))
                if state.shift > smallest + 1.75 / a:
                    state.shift = smallest + 1.0 / a - margin
                    raise _ShiftLowered(point)
            self.operator.update(2.0 / a - state.shift, point, potential)
            state.rtol = self._inner_tolerance(previous, point)
            linear_solve(state.rtol)
            self._normalise()
            return self.operator.order(self.density)

        record = None
        while record is None:
            try:
                record = solve(
                    evaluate,
                    y,
                    accelerator=self._accelerator,
                    stop=self._stop,
                    unknown=self.closure,
                    safeguard=self._safeguard,
                )
            except _ShiftLowered as lowered:  # another map y -> T(y): begin again, from here
                y = lowered.y
        final_y = self._polish(linear_solve, state) if state.rtol > self._rtol else None
        self._learn(record)
        psi = owned_values(self._solution).copy()
        return StageResult(
            psi=psi,
            rate=(psi - r.at(state.shift)) / a,
            shift=state.shift,
            y=self.operator.order(self.density) if final_y is None else final_y,
            record=record,
            linear_iterations=state.linear_iterations,
        )

    def _normalise(self) -> None:
        try:
            self.density.set_amplitude(owned_values(self._solution))
        except ValueError as error:
            raise ConvergenceError(
                f"a stage lost the density: {error}; use a smaller dt"
            ) from error

    def _polish(self, linear_solve: Callable[[float], None], state: _StageState) -> Array:
        before = self.operator.order(self.density)
        linear_solve(self._rtol)
        self._normalise()
        after = self.operator.order(self.density)
        change = after - before
        gain = float(np.sqrt(self.closure.dot(change, change))) / state.rtol
        self._gain = gain if np.isinf(self._gain) else max(gain, 0.5 * self._gain)
        return after

    def _inner_tolerance(self, previous: float, y: Array) -> float:
        # An evaluation of T need be no more accurate than a tenth of the residual it will leave.
        if self._linear:
            return self._rtol
        gain = self._gain
        if np.isinf(gain):
            gain = 1e3 * max(1.0, float(np.sqrt(self.closure.dot(y, y))))
        expected = previous if np.isfinite(previous) else self._first_residual
        wanted = 0.1 * min(self._contraction, 0.1) * expected / max(gain, 1e-300)
        return float(np.clip(wanted, self._rtol, 1e-3))

    def _learn(self, record: FixedPointRecord) -> None:
        self._first_residual = record.residuals[0]
        if np.isfinite(record.contraction):
            self._contraction = min(1.0, max(record.contraction, 1e-6))


class _ShiftLowered(Exception):
    """The gauge had to change at an iterate y, and with it the fixed-point map."""

    def __init__(self, y: Array) -> None:
        super().__init__("gauge lowered")
        self.y = y


@dataclass
class _StageState:
    """What changes while one stage is being solved."""

    shift: float
    rtol: float = 1.0
    linear_iterations: int = 0


class _Loads:
    """Load vectors M r(s), the two mass products done once per stage."""

    def __init__(self, problem: Problem, r: AffineInShift) -> None:
        self._base = problem.apply_mass(r.base)
        self._slope = None if r.slope is None else problem.apply_mass(r.slope)

    def at(self, shift: float) -> Array:
        """M r(s)."""
        return self._base if self._slope is None else self._base + shift * self._slope
