"""One implicit stage of the mean-field Hamilton–Jacobi–Bellman equation (D3, W1, W2, J2).

Given r, a drift v and a step a, find w and m ∝ e^{−v−w} with

    (w − r)/a = (σ²/2)Δw − (σ²/2)∇v·∇w − (σ²/4)|∇w|² + G[m] − s.

With v = 0 and G = V this is one backward Euler step of u, and with r = u_k, a = h one step of the
descent in relative entropy (J2). The boundary is an outflow: drift (σ²/2)∇(v + w) points outward
where m decays, and the flux (σ²/2)∂_nw is that of w itself, kept in the equation instead of being
given. For elements of degree k this "no boundary condition" acts as if the (k + 1)-th derivative
vanished there (Papanastasiou, Malamataris, Ellwood 1992; Griffiths 1997), so that quadratic
solutions are exact for k ≥ 2.

    settings = dict(safeguard=True, tolerance=1e-11, prefix="fem_mf_hjb_", options=None)
    stage = HJBStage(problem, closure, accelerator=Anderson(), stop=StopTest(), **settings)
    result = stage.solve(start=r, guess=r, y=y, a=0.05, shift=0.0)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, la
from dolfinx.fem import petsc as fem_petsc

from fem_mf import equations
from fem_mf.density import LogDensity
from fem_mf.mean_field.fixed_point import Accelerator, FixedPointRecord, StopTest, private, solve
from fem_mf.mean_field.moments import Closure
from fem_mf.mpi import ConvergenceError
from fem_mf.petsc import NewtonSolver, Options, mumps
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exact_measure, set_owned
from fem_mf.typing import Array

__all__ = ["HJBResult", "HJBStage", "stage_start"]

_LOG = logging.getLogger(__name__)
# Pseudo-time: the first step and the shortest, over min(a, 1); the longest before the stage itself,
# over a. 0.25 and doubling are as good as any on a network loss of weight 10 (a = 10 and 100).
_FIRST, _SHORTEST, _LONGEST = 0.25, 1e-4, 10.0
_ADD = la.InsertMode.add
# Functions of several forms, of which their annotations know one.
_assemble_matrix: Any = fem_petsc.assemble_matrix


@dataclass(frozen=True, kw_only=True)
class HJBResult:
    """A solved stage.

    Attributes:
        unknown: owned values of w, the additive constant as the equation gives it.
        density: m ∝ e^{−v−w}.
        rate: (w − r)/a.
        y: the mean field of m.
        record: of the fixed point.
        newton_iterations: of all its nonlinear solves together.
        newton_most: of the hardest of them.
    """

    unknown: Array
    density: LogDensity
    rate: Array
    y: Array
    record: FixedPointRecord
    newton_iterations: int
    newton_most: int


def stage_start(now: Array, dt: float, weights: Sequence[float], before: list[HJBResult]) -> Array:
    """r of a stage: the value at the start of the step and the rates of the stages before it."""
    rates = (c * result.rate for c, result in zip(weights, before, strict=True))
    return np.asarray(now + dt * sum(rates, np.zeros_like(now)))


class HJBStage:
    """Solves implicit stages; owns the forms, the Newton solver and the fixed point.

    Args:
        problem: the problem, of degree 2 at least.
        closure: the mean field.
        whole: whether the equation has the whole potential V (else only what depends on m).
        accelerator: how the fixed-point iteration is accelerated.
        stop: when to stop iterating.
        safeguard: whether overshooting steps are shortened.
        tolerance: tolerance of Newton's method, on the L² norm of the residual times a/(1 + a).
        prefix: prefix of the PETSc options.
        options: the user's PETSc options.
    """

    def __init__(
        self,
        problem: Problem,
        closure: Closure,
        *,
        whole: bool = True,
        accelerator: Accelerator,
        stop: StopTest,
        safeguard: bool,
        tolerance: float,
        prefix: str,
        options: Options | None,
    ) -> None:
        self.problem, self.closure, self._whole = problem, closure, whole
        self._accelerator, self._stop, self._safeguard = private(accelerator), stop, safeguard
        self._tolerance = tolerance
        self.w: fem.Function = problem.new_amplitude()
        self.drift: fem.Function = problem.new_amplitude()
        self._start: fem.Function = problem.new_amplitude()
        self._work: fem.Function = problem.new_amplitude()
        self._potential: fem.Function = problem.new_potential()
        one: Any = default_scalar_type(1.0)
        self._inertia, self._weight, self._shift = (
            fem.Constant(problem.mesh, one) for _ in range(3)
        )
        self._build_forms()
        self._matrix = fem_petsc.create_matrix(self._jacobian)
        self._solution = self._matrix.createVecRight()
        self._solver = NewtonSolver(
            self._assemble_residual,
            self._assemble_jacobian,
            self._matrix,
            prefix,
            {"ksp_type": "preonly", "pc_type": "lu", **mumps(problem.dim)},
            options,
        )

    def _build_forms(self) -> None:
        problem = self.problem
        degree = max(3 * problem.degree - 2, problem.degree + problem.potential_degree)
        dx, ds = exact_measure(problem.mesh, degree), ufl.ds(domain=problem.mesh)
        chi, delta = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
        # The equation times a/(1 + a): no step is so short or long that one part drowns the other.
        w, v, inertia, a = self.w, self.drift, self._inertia, self._weight
        value: Any = default_scalar_type(problem.sigma)
        sigma, potential = fem.Constant(problem.mesh, value), self._potential - self._shift
        residual = equations.mass(inertia * (w - self._start), chi, dx)
        residual += a * equations.hjb(w, chi, potential, sigma, dx, ds, v)
        self._residual = fem.form(residual)
        self._jacobian: Any = fem.form(ufl.derivative(residual, w, delta))

    def _load(self, x: PETSc.Vec) -> None:
        set_owned(self.w, np.asarray(x.array_r, dtype=np.float64))

    def _assemble_residual(self, x: PETSc.Vec, f: PETSc.Vec) -> None:
        self._load(x)
        f.array[:] = assemble_owned(self._residual, self._work)

    def _assemble_jacobian(self, x: PETSc.Vec, matrix: PETSc.Mat) -> None:
        self._load(x)
        matrix.zeroEntries()
        _assemble_matrix(matrix, self._jacobian)
        matrix.assemble()

    def rate(self, w: Array, potential: Array) -> Array:
        """(σ²/2)Δw − (σ²/2)∇v·∇w − (σ²/4)|∇w|² + V, owned values. Collective.

        Args:
            w: owned values.
            potential: V on the potential space, owned and ghosts.
        """
        self._set(inertia=0.0, weight=1.0, shift=0.0)
        self._potential.x.array[:] = potential
        self._solution.array[:] = w
        load = self._solution.duplicate()
        self._assemble_residual(self._solution, load)
        return -self.problem.solve_mass(np.array(load.array_r, dtype=np.float64))

    def linearised(self, w: Array) -> Callable[[Array], Array]:
        """The derivative of :meth:`rate` by w, as a map of owned values. Collective."""
        self._set(inertia=0.0, weight=1.0, shift=0.0)
        self._solution.array[:] = w
        self._assemble_jacobian(self._solution, self._matrix)
        return lambda delta: -self.problem.solve_mass(self.problem.multiply(self._matrix, delta))

    def _set(self, inertia: float, weight: float, shift: float) -> None:
        for constant, value in (
            (self._inertia, inertia),
            (self._weight, weight),
            (self._shift, shift),
        ):
            constant.value = np.asarray(value)

    def solve_frozen(
        self, start: Array, guess: Array, y: Array, a: float, shift: float
    ) -> tuple[Array, LogDensity, Array]:
        """Solve one stage with the potential of a given mean field. Collective.

        Args:
            start: owned values of r.
            guess: owned values of w to begin from.
            y: the mean field, which stays.
            a: the stage's step, > 0.
            shift: s.

        Returns:
            Owned values of w, the density e^{−v−w} and the mean field that it has.
        """
        evaluation = self._prepare(start, guess, a, shift)
        moments = evaluation(y, np.inf)
        assert evaluation.density is not None
        w = np.array(self._solution.array_r, dtype=np.float64)
        return w, evaluation.density, moments

    def encode(self, w: Array) -> Array:
        """The unknown of w: w itself."""
        return w

    def rate_of_w(self, result: HJBResult) -> Array:
        """∂_t w at a solved stage, owned values."""
        return result.rate

    def set_drift(self, v: Array) -> None:
        """Set v by its owned values. Collective."""
        set_owned(self.drift, v)

    def solve(self, start: Array, guess: Array, y: Array, a: float, shift: float) -> HJBResult:
        """Solve one stage; ``drift`` has been set. Collective.

        Args:
            start: owned values of r.
            guess: owned values of w to begin from.
            y: the mean field to begin from.
            a: the stage's step, > 0.
            shift: s.

        Returns:
            The stage's solution.

        Raises:
            ConvergenceError: Newton's method or the fixed point failed, in pseudo-time too.
        """
        try:
            return self._solve_directly(start, guess, y, a, shift)
        except ConvergenceError as error:
            return self._solve_in_pseudo_time(start, guess, y, a, shift, error)

    def _solve_in_pseudo_time(
        self, start: Array, guess: Array, y: Array, a: float, shift: float, error: ConvergenceError
    ) -> HJBResult:
        """Follow ∂w/∂s = rate(w) − (w − r)/a to its limit, the stage, by implicit steps.

        A step of length δ in s is a stage of length 1/(1/δ + 1/a). The stage minimises (J1) with
        e^{−v−r} as the reference, which is convex where F is, and the flow descends to it.
        """
        _LOG.info("a step of length %.3g needs pseudo-time: %s", a, error)
        shortest, delta = _SHORTEST * min(a, 1.0), _FIRST * min(a, 1.0)
        residuals: tuple[float, ...] = ()
        newton, most = 0, 0
        while True:
            short = 1.0 / (1.0 / delta + 1.0 / a)
            between = short * (guess / delta + start / a)
            try:
                result = self._solve_directly(between, guess, y, short, shift)
            except ConvergenceError as again:
                delta = 0.25 * min(delta, a)
                if delta < shortest:
                    raise again from error
                continue
            moved = self.problem.norm(result.unknown - guess)
            guess, y = result.unknown, result.y
            residuals += result.record.residuals
            newton, most = newton + result.newton_iterations, max(most, result.newton_most)
            _LOG.info("pseudo-time step %.3g: w moved by %.2e", delta, moved)
            if np.isinf(delta):
                return replace(
                    result,
                    record=replace(result.record, residuals=residuals),
                    newton_iterations=newton,
                    newton_most=most,
                )
            delta = 2.0 * delta if delta < _LONGEST * a else np.inf

    def _solve_directly(
        self, start: Array, guess: Array, y: Array, a: float, shift: float
    ) -> HJBResult:
        evaluation = self._prepare(start, guess, a, shift)
        record = solve(
            evaluation,
            y,
            accelerator=self._accelerator,
            stop=self._stop,
            unknown=self.closure,
            safeguard=self._safeguard,
        )
        w = np.array(self._solution.array_r, dtype=np.float64)
        assert evaluation.density is not None
        return HJBResult(
            unknown=w,
            density=evaluation.density,
            rate=(w - start) / a,
            y=evaluation.moments,
            record=record,
            newton_iterations=sum(evaluation.newton),
            newton_most=max(evaluation.newton),
        )

    def _prepare(self, start: Array, guess: Array, a: float, shift: float) -> _Evaluation:
        set_owned(self._start, start)
        self._set(inertia=1.0 / (1.0 + a), weight=a / (1.0 + a), shift=shift)
        self._solution.array[:] = guess
        return _Evaluation(self)


class _Evaluation:
    """The map y -> T(y): potential of y, Newton's method, mean field of the new density."""

    def __init__(self, stage: HJBStage) -> None:
        self.stage = stage
        self.newton: list[int] = []
        self.density: LogDensity | None = None
        self.moments = np.empty(0)

    def __call__(self, y: Array, previous: float) -> Array:
        stage, problem = self.stage, self.stage.problem
        potential = stage.closure.potential(y)
        stage._potential.x.array[:] = potential if stage._whole else potential - stage.closure.base
        tolerance = stage._tolerance * float(np.sqrt(problem.mean_mass))
        self.newton.append(stage._solver.solve(stage._solution, tolerance))
        u = stage._solution.array_r + stage.drift.x.array[: problem.num_owned]
        try:
            self.density = LogDensity(problem, u)
        except ValueError as error:
            raise ConvergenceError(f"a step lost the density: {error}; use a smaller dt") from None
        self.moments = stage.closure.order(self.density)
        return self.moments
