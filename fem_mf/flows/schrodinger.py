"""The mean-field Schrödinger flow (D2), integrated in time by implicit schemes.

    flow = SchrodingerFlow(problem, dt=0.05, scheme="sdirk2")
    for state in flow.run(start, t_end=10.0):
        print(state.t, state.energy)

Every stage of a step is a minimising movement (D7): it keeps the norm of ψ by a multiplier, and is
solved by a fixed point on the mean field around linear solves, or by Newton's method on the sphere
(:mod:`fem_mf.flows.schrodinger_stage`). Backward Euler is one movement: the energy falls by at
least (2/dt)‖ψ⁺ − ψ‖² in a step of any length. A constant step too long for a scheme of order two
is replaced by one movement, or several if that fails, of the same total length.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fem_mf.density import Density
from fem_mf.flows.flow import (
    Clock,
    Extrapolation,
    Flow,
    State,
    Trajectory,
    check_scheme,
    check_step,
    check_tolerances,
)
from fem_mf.flows.schemes import SCHEMES, Instant, TooLongError, backward_euler, resolved_step
from fem_mf.flows.schrodinger_stage import ImplicitStage
from fem_mf.mean_field.fixed_point import Accelerator, Anderson, StopTest
from fem_mf.mean_field.moments import MeanField, Moments, mean_field_of
from fem_mf.mean_field.newton import Newton
from fem_mf.mpi import ConvergenceError, LinearSolverError, StagnationError, warn
from fem_mf.observables import hamiltonian
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.stationary.newton_cg import Guess, StageResult
from fem_mf.typing import Array

__all__ = ["SchrodingerFlow"]

_LOG = logging.getLogger(__name__)
_PREFIX = "fem_mf_schrodinger_"
_ROUNDING = 1e-13  # relative error allowed in the energy inequality of a movement
_MOST_MOVEMENTS = 64  # parts into which a step that fails is divided


class SchrodingerFlow(Flow[State]):
    """∂_tψ = (σ²/2)Δψ − ½(V[m_t] − λ_t)ψ (D2).

    Args:
        problem: the problem.
        dt: time step, > 0; the first one when ``tolerance`` is given.
        scheme: ``"backward-euler"`` (order 1; for convex F the energy decreases for every dt),
            ``"sdirk2"`` (order 2, L-stable) or ``"crank-nicolson"`` (order 2; it does not damp the
            components that dt does not resolve, so use it for resolved steps only).
        tolerance: None for constant steps; otherwise the L² error estimate of ψ that a step may
            make, by which dt is chosen and steps are rejected.
        accelerator: how the fixed-point iteration is accelerated: ``Picard()``, ``Anderson()`` or
            ``Newton()`` of ``fem_mf.mean_field``. The default is Newton where every term of F is
            cylindrical, else Anderson.
        fixed_point_tolerance: relative tolerance of the moments (or of m) and of the length of a
            stage; for Newton's method the tolerance of ψ.
        max_iterations: evaluations of one fixed point, and Newton steps of one stage.
        safeguard: whether fixed-point steps that overshoot are shortened.
        petsc_options: of the linear solver of the fixed point, without prefix (``ksp_rtol`` is
            1e-12 by default); ``-fem_mf_schrodinger_...`` on the command line takes precedence. The
            preconditioner of Newton's method listens to ``-fem_mf_stationary_...``.

    Raises:
        ValueError: naming the argument.
    """

    _kind = State

    def __init__(
        self,
        problem: Problem,
        dt: float,
        scheme: str = "backward-euler",
        *,
        tolerance: float | None = None,
        accelerator: Accelerator | None = None,
        fixed_point_tolerance: float = 1e-10,
        max_iterations: int = 100,
        safeguard: bool = True,
        petsc_options: Options | None = None,
    ) -> None:
        check_step(problem, dt)
        check_scheme(problem, scheme, sorted(SCHEMES))
        check_tolerances(
            problem,
            max_iterations,
            tolerance=tolerance,
            fixed_point_tolerance=fixed_point_tolerance,
        )
        self.problem = problem
        self._discrete = problem.discretisation
        self.dt = float(dt)
        self.scheme = scheme
        self.tolerance = tolerance
        self.mean_field = mean_field_of(problem)
        self._stage = ImplicitStage(
            problem,
            self.mean_field,
            accelerator=_default(self.mean_field) if accelerator is None else accelerator,
            stop=StopTest(tolerance=fixed_point_tolerance, max_iterations=max_iterations),
            safeguard=safeguard,
            prefix=_PREFIX,
            options=petsc_options,
        )

    def _begin(self, start: Density | State, **options: Any) -> _Trajectory:
        self._stage.begin()
        return _Trajectory(self, start, **options)

    # -- one step -------------------------------------------------------------------------------

    def _scheme_step(
        self, now: Instant, dt: float, guesses: list[Guess]
    ) -> tuple[Instant, list[StageResult]]:
        stages = SCHEMES[self.scheme](self._stage, now, dt, guesses)
        then = self._reached(stages[-1])
        if self.scheme == "backward-euler":
            self._check_descent(now, then, stages[0])
        return then, stages

    def _movements(self, now: Instant, dt: float) -> tuple[Instant, list[StageResult]]:
        """A step as one minimising movement, or as several that have its length together."""
        parts = 2 if self.scheme == "backward-euler" else 1
        while True:
            then, stages = now, []
            try:
                for _ in range(parts):
                    guess = Guess(then.psi, then.y, then.eigenvalue)
                    (stage,) = backward_euler(self._stage, then, dt / parts, [guess])
                    before, then = then, self._reached(stage)
                    self._check_descent(before, then, stage)
                    stages.append(stage)
                return then, stages
            except ConvergenceError as error:
                if parts >= _MOST_MOVEMENTS or isinstance(error, StagnationError):
                    raise type(error)(
                        f"a step of {dt:.3g} failed, also when divided into {parts}: {error}"
                    ) from None
                parts *= 2

    def _check_descent(self, before: Instant, after: Instant, stage: StageResult) -> None:
        """F^σ(m⁺) + (2/τ)‖ψ⁺ − ψ‖² ≤ F^σ(m), which may fail where F is not convex. Collective."""
        problem, weight = self.problem, 2.0 / stage.length
        moved = weight * stage.anchor.squared_distance(problem, after.psi, after.mass_psi)
        if after.energy + moved <= before.energy:
            return
        scale = max(1.0, abs(before.energy), abs(before.eigenvalue))
        diagonal = owned_values(self._stage.operator.constant_diagonal)
        allowance = _ROUNDING * scale + 10.0 * np.finfo(float).eps * abs(
            problem.discretisation.dot(diagonal * after.psi, after.psi)
        )
        allowance += 10.0 * self._stage.stop.tolerance**2 * (weight + scale)
        if not after.energy + moved <= before.energy + allowance:
            raise ConvergenceError(
                f"the energy changed by {after.energy - before.energy:+.1e} where a minimising "
                f"movement lowers it by at least {moved:.1e}: F is not convex there (use a smaller "
                "dt), or its derivative is wrong (check_derivative)"
            )

    def _warn(self, now: Instant, t: float, dt: float, parts: int, error: Exception) -> None:
        if not isinstance(error, TooLongError):
            warn(
                self.problem.comm,
                _LOG,
                "t = %.6g: a step of %.3g was replaced by %d minimising movement(s) of the same "
                "length together, of order 1 (column 'replaced'; said once): %s",
                *(t, dt, parts, error),
            )
            return
        warn(
            self.problem.comm,
            _LOG,
            "t = %.6g: dt = %.3g is too long for %s, and such steps are replaced by minimising "
            "movements of the same length, of order 1 (column 'replaced'; said once); %s resolves "
            "dt up to about %.2g there",
            *(t, dt, self.scheme, self.scheme),
            resolved_step(self.problem, now, self.scheme, dt),
        )

    # -- instants -------------------------------------------------------------------------------

    def _start(self, density: Density) -> Instant:
        psi, mass_psi = density.amplitude(), density.mass_amplitude()
        load = hamiltonian(self.problem, density)
        eigenvalue = self._discrete.dot(psi, load)
        velocity = -0.5 * (self._discrete.solve_mass(load) - eigenvalue * psi)
        mass_velocity = -0.5 * (load - eigenvalue * mass_psi)
        y = self.mean_field.evaluate(density)
        return self._instant(density, psi, mass_psi, velocity, mass_velocity, y)

    def _reached(self, stage: StageResult) -> Instant:
        """ψ at the end of a stage: the equation gives −½(H − λ)ψ = (⟨ψ, r⟩ψ − r)/a."""
        psi, mass_psi, anchor = stage.psi, stage.mass_psi, stage.anchor
        velocity = (stage.overlap * psi - anchor.base) / stage.length
        mass_velocity = (stage.overlap * mass_psi - anchor.load) / stage.length
        density = Density(self.problem, psi, normalised=True)
        return self._instant(density, psi, mass_psi, velocity, mass_velocity, stage.y)

    def _instant(
        self,
        density: Density,
        psi: Array,
        mass_psi: Array,
        velocity: Array,
        mass_velocity: Array,
        y: Array,
    ) -> Instant:
        problem = self.problem
        constant = problem.discretisation.dot(
            psi, problem.discretisation.multiply(self._stage.operator.constant, psi)
        )
        return Instant(
            density=density,
            psi=psi,
            mass_psi=mass_psi,
            velocity=velocity,
            mass_velocity=mass_velocity,
            y=y,
            energy=constant + self.mean_field.value(y, density),
            eigenvalue=constant + self.mean_field.work(y, density),
        )

    def _state(self, now: Instant, **numbers: float | int) -> State:
        problem = self.problem
        discrete = problem.discretisation
        dissipation = 4.0 * discrete.dot(now.velocity, now.mass_velocity)
        return State(
            density=now.density,
            energy=now.energy,
            eigenvalue=now.eigenvalue,
            residual=float(np.sqrt(max(dissipation, 0.0))),
            dissipation=dissipation,
            mass=discrete.dot(now.psi, now.mass_psi),
            boundary_mass=discrete.boundary_mass(now.psi),
            **numbers,  # type: ignore[arg-type]
        )


class _Trajectory(Trajectory[State]):
    """One run: the instant, and the memory of the stages before it."""

    def __init__(self, flow: SchrodingerFlow, start: Density | State) -> None:
        self._flow, self._memory = flow, _Memory(flow.problem, flow.mean_field)
        self._now = flow._start(start.density if isinstance(start, State) else start.copy())
        known = start if isinstance(start, State) else None
        self.state = known or flow._state(self._now, t=0.0, dt=0.0, next_dt=flow.dt, step=0)
        self.dt = flow.dt if flow.tolerance is None else self.state.next_dt

    def advance(self, clock: Clock) -> State:
        """Take one step that the clock accepts. Collective."""
        self._now, stages, counts = self._accepted_step(clock)
        self.state = self._flow._state(
            self._now,
            t=clock.t,
            dt=clock.last,
            next_dt=clock.dt,
            step=clock.step,
            fixed_point_iterations=sum(s.iterations for s in stages),
            linear_iterations=sum(s.linear_iterations for s in stages),
            contraction=self._flow._stage.tolerance.contraction,
            **counts,
        )
        return self.state

    def _accepted_step(self, clock: Clock) -> tuple[Instant, list[StageResult], dict[str, int]]:
        """The next instant, the stages that led there, and what is counted."""
        flow, now, memory = self._flow, self._now, self._memory
        rejected = 0
        while True:
            dt = clock.next_step()
            replaced = 0
            try:
                then, stages = flow._scheme_step(now, dt, memory.guesses(now, clock.t + dt))
            except StagnationError:
                raise
            except ConvergenceError as error:
                if flow.tolerance is not None:
                    if not clock.may_shrink:
                        raise
                    clock.reject(0.5)
                    rejected += 1
                    continue
                if isinstance(error, LinearSolverError):
                    raise
                then, stages = flow._movements(now, dt)
                replaced = len(stages)
                if not memory.warned:
                    flow._warn(now, clock.t, dt, replaced, error)
                memory.warned = True
            if flow.tolerance is None:
                clock.accept()
                break
            # ½ dt |∂_tψ⁺ − ∂_tψ| is the error of the embedded first-order scheme, ~ dt².
            error_of_step = (
                0.5 * dt * flow.problem.discretisation.norm(then.velocity - now.velocity)
            )
            factor = 0.9 * np.sqrt(flow.tolerance / max(error_of_step, 1e-300))
            if error_of_step <= flow.tolerance or not clock.may_shrink:
                clock.accept(float(np.clip(factor, 0.3, 3.0)))
                break
            clock.reject(float(np.clip(factor, 0.1, 0.8)))
            rejected += 1
        if replaced:
            memory.forget()
        else:
            memory.add(clock.t, stages)
        return then, stages, {"rejected": rejected, "replaced": replaced}


class _Memory:
    """The past of the stages of one run, from which the next ones are guessed.

    Stage values are less accurate than those at the end of a step, but as smooth in time: each
    stage has a past of its own.
    """

    def __init__(self, problem: Problem, mean_field: MeanField) -> None:
        self._problem, self._mean_field = problem, mean_field
        self.warned = False
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a step that was not the scheme's."""

        def field_norm(psi: Array) -> float:
            return float(np.sqrt(self._problem.discretisation.dot(psi, psi)))

        def y_norm(y: Array) -> float:
            return float(np.sqrt(self._mean_field.dot(y, y)))

        self._pasts = [
            (
                Extrapolation(3, field_norm),
                Extrapolation(4, y_norm),
                Extrapolation(4, lambda s: float(abs(s[0]))),
            )
            for _ in range(2)
        ]

    def add(self, t: float, stages: list[StageResult]) -> None:
        """Learn the stages of a step that ends at t."""
        for past, stage in zip(self._pasts, stages, strict=False):
            known = stage.psi, stage.y, np.array([stage.shift])
            for values, value in zip(past, known, strict=True):
                values.add(t, value)

    def guesses(self, now: Instant, t: float) -> list[Guess]:
        """Initial guesses of the stages of a step that ends at t. Collective."""
        guesses = []
        for past in self._pasts:
            psi, y, shift = (values.predict(t) for values in past)
            guesses.append(
                Guess(
                    now.psi if psi is None else psi,
                    now.y if y is None else y,
                    now.eigenvalue if shift is None else float(shift[0]),
                    predicted=shift is not None,
                )
            )
        return guesses


def _default(mean_field: MeanField) -> Accelerator:
    return Newton() if isinstance(mean_field, Moments) else Anderson(depth=10)
