"""One implicit stage of the Schrödinger flow: a minimising movement of any length (D7).

Given an anchor r and a length a, find ψ of norm one and the multiplier s with

    (2/a)(ψ − r) + (H[m] − s)ψ = 0,   m = ψ²,   H[m] = −σ²Δ + V[m],

the minimiser of F^σ(ψ²) + (2/a)‖ψ − r‖² on the sphere. It is computed by a fixed-point iteration on
the mean field and the multiplier (:mod:`fem_mf.flows.minimising_movement`) with linear solves; if
that iteration does not contract, or its operator is not positive, Newton's method on the sphere
(:mod:`fem_mf.stationary.newton_cg`) is used, which also computes minimisers. For convex F both
give the same ψ.

    loop = FixedPoint(Anderson(), StopTest())
    stage = ImplicitStage(problem, mean_field, loop, prefix="fem_mf_schrodinger_")
    psi = density.amplitude()
    anchor = Anchor(np.stack((psi, density.mass_amplitude())))
    result = stage.solve(anchor, Guess(psi, y, shift=0.0), a=0.05, origin=psi)

Newton's method for the moments needs the response of the fixed point to the potential. With n = ‖ψ̂‖
for the solution ψ̂ of (c + H[y]) ψ̂ = (2/a) r, a change Σ_j δw_j Q_j + δc of the operator, where the
constant is the feature Q_r = 1, changes ψ by −Σ_j δw_j (z_j − ⟨ψ, z_j⟩ψ), (c + H) z_j = Q_jψ,
and the unknown by −R δw with the rows

    R_ij = 2⟨Q_iψ, z_j⟩ − 2 y_i ⟨ψ, z_j⟩,
    R_rj = ((2/a)(1 − 2/n)(⟨r, z_j⟩ − ⟨ψ, z_j⟩⟨ψ, r⟩) + Σ_i w_i R_ij)/unit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fem_mf.density import Density, WorkDensity
from fem_mf.flows.minimising_movement import MovementUnknown
from fem_mf.flows.tableau import StageResult
from fem_mf.hamiltonian import MeanFieldHamiltonian
from fem_mf.mean_field.fixed_point import FixedPoint, InnerTolerance
from fem_mf.mean_field.moments import MeanField, Moments
from fem_mf.mean_field.newton import Newton
from fem_mf.mpi import ConvergenceError, LinearSolverError, StagnationError, global_sum
from fem_mf.observables import flat_scale
from fem_mf.petsc import Options, SpdSolver, default_options
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.stationary.newton_cg import Anchor, Descent
from fem_mf.typing import Array

__all__ = ["Guess", "ImplicitStage", "Movement"]

_LOG = logging.getLogger(__name__)
_RTOL = 1e-12  # relative tolerance of the last linear solves of a stage

_POSITIVE = 1.0 - 1e-2  # if ⟨ψ, |ψ|⟩ is smaller, ψ is an excited state or the mesh too coarse
# Newton's method takes over when a fixed point would need more than about three times as many
# evaluations: it costs about as much as thirty of them.
_PATIENCE = 10
_LONGEST_WAIT = 64  # stages solved by Newton's method before the fixed point is tried again
_STRONG = 0.01  # contraction factor above which a feature is worth a Newton correction


@dataclass(frozen=True)
class Guess:
    """Initial guess of a stage.

    Attributes:
        psi: owned values of ψ, with arbitrary norm.
        y: the mean field.
        shift: the multiplier s.
        predicted: whether s was extrapolated from earlier stages.
    """

    psi: Array
    y: Array
    shift: float
    predicted: bool = False


@dataclass(frozen=True, kw_only=True)
class Movement(StageResult):
    """A solved stage; its value is ψ and Mψ, ``(2, num_owned)``, and so is its rate.

    Attributes:
        anchor: r.
        length: a.
        overlap: ⟨ψ, r⟩.
        shift: s, the multiplier of ‖ψ‖ = 1.
    """

    anchor: Anchor
    length: float
    overlap: float
    shift: float

    @property
    def rate(self) -> Array:
        """(ψ − r)/a, and its product with M."""
        return np.asarray((self.value - self.anchor.values) / self.length)

    @property
    def psi(self) -> Array:
        """ψ, owned values."""
        return np.asarray(self.value[0])


class ImplicitStage:
    """Solver of implicit stages; it owns the matrix and the linear solver.

    Args:
        problem: the problem.
        mean_field: the mean field.
        fixed_point: the fixed-point iteration; its iteration limit applies to Newton steps too.
        prefix: prefix of the PETSc options.
        options: the user's PETSc options.
    """

    def __init__(
        self,
        problem: Problem,
        mean_field: MeanField,
        fixed_point: FixedPoint,
        *,
        prefix: str,
        options: Options | None = None,
    ) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        self.mean_field = mean_field
        self.operator = MeanFieldHamiltonian(problem, mean_field)
        self.density = WorkDensity(problem, np.ones(self._discrete.num_owned))
        self.unknown = MovementUnknown(mean_field)
        self._fixed_point, self.stop = fixed_point, fixed_point.stop
        newton = fixed_point.accelerator
        self._newton = newton if isinstance(newton, Newton) else None
        if self._newton is not None:
            if not isinstance(mean_field, Moments):
                raise ValueError(
                    "accelerator: Newton needs a functional whose every term is cylindrical; the "
                    "default for this one is Anderson()"
                )
            self._newton.bind(self._response, self._curvature)
        self.rtol, self._prefix, self._options = _RTOL, prefix, options
        self._stiffness = self.operator.largest_ratio()
        self._solver: SpdSolver | None = None
        self._defaults: dict[str, str | int | float] = {}
        self.right = self.operator.matrix.createVecLeft()
        self.solution = self.operator.matrix.createVecRight()
        self._evaluation: _Evaluation | None = None
        self._descent: Descent | None = None
        self.begin()

    def begin(self) -> None:
        """Forget what was learnt during one run, at the start of another."""
        self.tolerance = InnerTolerance(self.rtol, self.stop)
        self._turns = _Turns()
        self._scale = 0.0  # λ − min V at the start of the run

    def solver(self, a: float) -> SpdSolver:
        """The linear solver for a stage of this length."""
        dofs = self.problem.space.dofmap.index_map.size_global
        condition = 4.0 * (1.0 + 0.5 * a * self._stiffness)
        defaults = default_options(condition, dofs, self.problem.dim)
        if self._solver is None or defaults != self._defaults:
            if self._solver is not None:
                self._solver.destroy()
            self._defaults = defaults
            self._solver = SpdSolver(self.operator.matrix, self._prefix, defaults, self._options)
        return self._solver

    def solve(self, anchor: Anchor, guess: Guess, a: float, origin: Array) -> Movement:
        """Solve one stage. Collective.

        Args:
            anchor: r.
            guess: initial guess of the fixed-point iteration.
            a: the length of the stage, > 0.
            origin: owned values of ψ, with norm one, from which Newton's method descends.

        Returns:
            The solution of the stage.

        Raises:
            LinearSolverError: if the linear solver fails; Newton's method would hide this.
            StagnationError: if the tolerance is below rounding errors.
            ConvergenceError: if neither method converges, or ψ is not positive.
        """
        if self._turns.fixed_point(a):
            try:
                result = self.by_fixed_point(anchor, guess, a)
                self._turns.worked()
                return result
            except LinearSolverError:
                raise
            except ConvergenceError as error:
                _LOG.debug("%s; using Newton's method instead", error)
                self._turns.failed(a)
        try:
            return self.by_newton(anchor, a, origin)
        except StagnationError as error:
            raise StagnationError(
                f"fixed_point_tolerance = {self.stop.tolerance:.1e} cannot be reached: "
                f"{_reason(error)}; choose a larger one"
            ) from None
        except ConvergenceError as error:
            raise ConvergenceError(
                f"a stage of length {a:.3g} did not converge: {_reason(error)}; use a smaller dt, "
                "or allow more iterations (max_iterations)"
            ) from None

    def by_fixed_point(self, anchor: Anchor, guess: Guess, a: float) -> Movement:
        """Solve one stage by the fixed point on (y, c); see :meth:`solve`. Collective."""
        self.solution.array[:] = guess.psi
        if self._newton is not None:
            self._newton.rescale(a)
        if self._scale == 0.0:
            lowest = self._discrete.min(self.mean_field.potential(guess.y))
            self._scale = max(guess.shift - lowest, flat_scale(self.problem))
        c = 2.0 / a - guess.shift
        if not guess.predicted:
            c = self._positive(c, guess.y, a)
        # The contraction of a long step and the errors of its solves do not predict the next step.
        resolved = a * self._scale <= 1.0
        evaluation = self._evaluation = _Evaluation(self, anchor, a, inexact=resolved)
        record = self._fixed_point.solve(
            evaluation,
            self.unknown.begin(guess.y, c, 2.0 / a + self._scale),
            self.unknown,
            stop=replace(self.stop, patience=_PATIENCE, extrapolate=resolved),
            contraction=self.tolerance.expected_contraction,
            slow=self.unknown.slow,
        )
        if self.tolerance.floor == 0.0:  # ψ moves the moments, and n at least as fast
            self.tolerance.floor = max(1.0, self.mean_field.sensitivity(self.density))
        y = evaluation.polish()
        factor = record.contraction
        if np.isnan(factor) and self._newton is not None:
            factor = self._newton.radius
        self.tolerance.learn(record, factor)
        return self._result(
            self.density,
            anchor,
            a,
            overlap=evaluation.overlap,
            eigenvalue=evaluation.eigenvalue,
            y=y,
            iterations=record.iterations,
            linear_iterations=evaluation.linear_iterations,
        )

    def by_newton(self, anchor: Anchor, a: float, origin: Array) -> Movement:
        """Solve one stage by Newton's method on the sphere; see :meth:`solve`. Collective."""
        if self._descent is None:
            moments = self.mean_field if isinstance(self.mean_field, Moments) else None
            self._descent = Descent(self.problem, moments=moments)
        *_, last = iterates = list(
            self._descent.run(
                Density(self.problem, origin, normalised=True),
                residual=self.stop.tolerance,
                max_iterations=self.stop.max_iterations,
                anchor=anchor,
                length=a,
            )
        )
        return self._result(
            last.density,
            anchor,
            a,
            overlap=self._discrete.dot(last.density.amplitude(), anchor.load),
            eigenvalue=last.condition.eigenvalue,
            y=self.operator.evaluate(last.density),
            iterations=len(iterates),
            linear_iterations=sum(iterate.linear_iterations for iterate in iterates),
        )

    def _positive(self, c: float, y: Array, a: float) -> float:
        """An initial c for which c + H[y] is positive, since min V is below the spectrum of H."""
        if 1.0 / a <= c:  # V is non-negative, or s is a good guess for a short step
            return c
        return max(c, 1.0 / a - self._discrete.min(self.mean_field.potential(y)))

    def _result(
        self,
        density: Density,
        anchor: Anchor,
        a: float,
        *,
        overlap: float,
        eigenvalue: float,
        y: Array,
        iterations: int,
        linear_iterations: int,
    ) -> Movement:
        psi, mass_psi = density.amplitude(), density.mass_amplitude()
        if not self._discrete.dot(np.abs(psi), mass_psi) >= _POSITIVE:
            raise ConvergenceError(
                "ψ changes sign: the mesh is too coarse for m; refine it (mass='lumped' with "
                "degree 1 keeps ψ positive on coarse meshes)"
            )
        return Movement(
            value=np.stack((psi, mass_psi)),
            y=y,
            iterations=iterations,
            contraction=self.tolerance.contraction,
            linear_iterations=linear_iterations,
            anchor=anchor,
            length=a,
            overlap=overlap,
            shift=eigenvalue + 2.0 / a * (1.0 - overlap),
        )

    def _curvature(self, z: Array) -> Array:
        assert isinstance(self.mean_field, Moments)
        return self.unknown.curvature(z, self.mean_field.stiffness(z[:-1]))

    def _response(self, z: Array) -> Array:
        """R at z, ``(r + 1, r + 1)``, with zero columns for features too weak to matter."""
        assert isinstance(self.mean_field, Moments) and self._evaluation is not None
        evaluation, y = self._evaluation, z[:-1]
        evaluation(z, np.inf)
        a, anchor = evaluation.a, evaluation.anchor.load
        psi, mass_psi = self.density.amplitude(), self.density.mass_amplitude()
        loads = [*self.operator.basis_loads(psi), mass_psi]
        local = np.zeros((len(loads) + 1, len(loads)))
        solution = self.solution.duplicate()
        for j in [*self._strong(y, a), len(loads) - 1]:
            self.right.array[:] = loads[j]
            solution.set(0.0)
            self.solver(a).solve(self.right, solution, 1e-3, typical=False)
            values = owned_values(solution)
            local[:-1, j] = [values @ load for load in loads]
            local[-1, j] = values @ anchor
        solution.destroy()
        products = global_sum(self.problem.comm, local)
        along = products[-2]
        rows = 2.0 * (products[:-2] - np.outer(self.operator.evaluate(self.density), along))
        across = products[-1] - along * self._discrete.dot(psi, anchor)
        last = 2.0 / a * (1.0 - 2.0 / evaluation.norm) * across
        last += self.mean_field.coefficients(y) @ rows
        return np.vstack((rows, last / self.unknown.unit))

    def _strong(self, y: Array, a: float) -> npt.NDArray[np.intp]:
        """Features that affect the step noticeably; the others contract without Newton's help."""
        assert isinstance(self.mean_field, Moments)
        # R_jj is at most 2a ∫Q_j² dm if the operator is at least 1/a, as in resolved steps.
        bound = 2.0 * a * self.mean_field.second_moments(self.density)
        return np.flatnonzero(bound * np.abs(np.diag(self.mean_field.stiffness(y))) > _STRONG)


def _reason(error: ConvergenceError) -> str:
    """The message of an error without its advice, which addresses users of ``minimise``."""
    return str(error).partition(";")[0]


class _Evaluation:
    """The map z -> T(z) of one stage."""

    def __init__(self, stage: ImplicitStage, anchor: Anchor, a: float, *, inexact: bool) -> None:
        self.stage, self.anchor, self.a, self._inexact = stage, anchor, a, inexact
        self.linear_iterations, self.norm, self.overlap = 0, 1.0, 1.0
        self._rtol, self._y, self._c = stage.rtol, np.empty(0), 0.0
        self._z = np.empty(0)

    @property
    def eigenvalue(self) -> float:
        """λ = ⟨ψ, H[y]ψ⟩, computed from the equation."""
        return 2.0 / self.a * self.overlap / self.norm - self._c

    def __call__(self, z: Array, previous: float) -> Array:
        stage = self.stage
        self._y, self._c = stage.unknown.split(z)
        self._rtol = stage.rtol
        if self._inexact:
            self._rtol = stage.tolerance(previous, float(np.sqrt(stage.unknown.dot(z, z))))
        stage.operator.update(self._c, self._y)
        return self._solve()

    def _solve(self) -> Array:
        stage, load = self.stage, self.anchor.load
        stage.right.array[:] = (2.0 / self.a) * load
        solver = stage.solver(self.a)
        self.linear_iterations += solver.solve(stage.right, stage.solution, self._rtol)
        solution = owned_values(stage.solution)
        try:
            self.norm = stage.density.set_amplitude(solution, signed=True)
        except ValueError as error:
            raise ConvergenceError(f"time step failed: {error}; reduce dt") from None
        self.overlap = stage.problem.discretisation.dot(solution, load) / self.norm
        if not self.overlap > 0.0:
            raise ConvergenceError("time step failed: c + H[m] is not positive; reduce dt")
        y = stage.operator.evaluate(stage.density)
        c = self._c + 2.0 / self.a * self.overlap * (1.0 - 1.0 / self.norm)
        self._z = stage.unknown.join(y, c, self._y)
        return self._z

    def polish(self) -> Array:
        """Repeat the last linear solve with the full tolerance; return y of the result."""
        stage, before, rtol = self.stage, self._z, self._rtol
        if not self._inexact:
            return before[:-1]
        self._rtol = stage.rtol
        after = self._solve() if rtol > stage.rtol else before
        change = after - before
        stage.tolerance.measure(float(np.sqrt(stage.unknown.dot(change, change))), rtol)
        return after[:-1]


class _Turns:
    """Decides whether to try the fixed point or to use Newton's method directly."""

    def __init__(self) -> None:
        self._failures, self._wait, self._length = 0, 0, 0.0

    def fixed_point(self, a: float) -> bool:
        """Whether to try the fixed point at a stage of this length."""
        if self._wait == 0 or a < 0.5 * self._length:
            return True
        self._wait -= 1
        return False

    def worked(self) -> None:
        """Record that the fixed point converged, so the next stage tries it too."""
        self._failures = self._wait = 0

    def failed(self, a: float) -> None:
        """Record that the fixed point failed; double the waiting time before the next attempt."""
        self._failures += 1
        self._wait, self._length = min(2**self._failures, _LONGEST_WAIT), a
