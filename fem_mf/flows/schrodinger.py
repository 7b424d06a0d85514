"""The mean-field Schrödinger flow (D2), integrated in time by implicit schemes.

    flow = SchrodingerFlow(problem, dt=0.05, scheme="sdirk2")
    for state in flow.run(start, t_end=10.0):
        print(state.t, state.energy)

Every stage of a scheme (:mod:`fem_mf.flows.tableau`) is a minimising movement (D7): it preserves
the norm of ψ by its own multiplier, and is solved by a fixed-point iteration on the mean field with
linear solves, or by Newton's method on the sphere (:mod:`fem_mf.flows.schrodinger_stage`). Backward
Euler is one movement: in a step of any length the energy falls by at least (2/dt)‖ψ⁺ − ψ‖². A stage
minimises an energy convex in m only if its anchor r is the amplitude of a density: if more than
0.5 % of ∫r² lies where r < 0, the step is too long for the scheme. A constant step that is too long
is replaced by one movement, or several if that fails, of the same total length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fem_mf.density import Density
from fem_mf.flows.flow import (
    Clock,
    Extrapolation,
    Flow,
    State,
    Trajectory,
    counts,
)
from fem_mf.flows.schrodinger_stage import Guess, ImplicitStage, Movement
from fem_mf.flows.tableau import SCHEMES, solve_stages
from fem_mf.mean_field.fixed_point import Accelerator, Anderson
from fem_mf.mean_field.moments import Moments
from fem_mf.mean_field.newton import Newton
from fem_mf.mpi import (
    ConvergenceError,
    LinearSolverError,
    StagnationError,
    global_sum,
    warn,
)
from fem_mf.observables import hamiltonian
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.stationary.newton_cg import Anchor
from fem_mf.typing import Array

__all__ = ["SchrodingerFlow"]

_LOG = logging.getLogger(__name__)
_PREFIX = "fem_mf_schrodinger_"
_ROUNDING = 1e-13  # relative error allowed in the energy inequality of a movement
_MOST_MOVEMENTS = 64  # largest number of parts into which a step that fails is divided
# Above this value of 1 − ⟨r, |r|⟩/⟨r, r⟩, twice the share of r² where r < 0, r is not an amplitude.
_NEGATIVE = 1e-2


class TooLongError(ConvergenceError):
    """A step is too long for its scheme; this is detected before its last stage is solved."""


@dataclass(frozen=True, kw_only=True)
class Instant:
    """ψ, its velocity and its scalar quantities at one time.

    Attributes:
        density: m = ψ².
        value: owned values of ψ, with norm one, and of Mψ.
        rate: owned values of ∂_tψ, orthogonal to ψ, and of M∂_tψ.
        y: the mean field.
        energy: F^σ(m).
        eigenvalue: λ.
    """

    density: Density
    value: Array
    rate: Array
    y: Array
    energy: float
    eigenvalue: float

    @property
    def psi(self) -> Array:
        """ψ, owned values."""
        return np.asarray(self.value[0])


class SchrodingerFlow(Flow[State]):
    """∂_tψ = (σ²/2)Δψ − ½(V[m_t] − λ_t)ψ (D2).

    Args:
        problem: the problem.
        dt: time step, > 0; only the first one if ``tolerance`` is given.
        scheme: ``"backward-euler"`` (order 1; for convex F the energy decreases for every dt),
            ``"sdirk2"`` (order 2, L-stable) or ``"crank-nicolson"`` (order 2; it does not damp the
            components that dt does not resolve, so use it for resolved steps only).
        tolerance: None for constant steps; otherwise the largest estimated L² error of ψ per step,
            by which dt is chosen and steps are rejected.
        accelerator: how the fixed-point iteration is accelerated: ``Picard()``, ``Anderson()`` or
            ``Newton()`` of ``fem_mf.mean_field``. The default is Newton if every term of F is
            cylindrical, else Anderson.
        fixed_point_tolerance: relative tolerance of the moments (or of m) and of the length of a
            stage; for Newton's method the tolerance of ψ.
        max_iterations: most evaluations of one fixed point, and most Newton steps of one stage.
        safeguard: whether fixed-point steps that overshoot are shortened.
        petsc_options: PETSc options of the linear solver of the fixed point, without prefix
            (``ksp_rtol`` is 1e-12 by default); ``-fem_mf_schrodinger_...`` on the command line
            overrides them. Options of Newton's preconditioner are ``-fem_mf_stationary_...``.

    Raises:
        ValueError: if an argument is invalid; the message names it.
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
        super().__init__(
            problem,
            dt,
            accelerator,
            fixed_point_tolerance,
            max_iterations,
            safeguard,
            schemes=sorted(SCHEMES),
            scheme=scheme,
            tolerance=tolerance,
        )
        self.scheme = scheme
        self.tolerance = tolerance
        self._stage = ImplicitStage(
            problem, self.mean_field, self._fixed_point, prefix=_PREFIX, options=petsc_options
        )

    def _default_accelerator(self) -> Accelerator:
        return Newton() if isinstance(self.mean_field, Moments) else Anderson(depth=10)

    def _begin(self, start: Density | State, **options: Any) -> _Trajectory:
        self._stage.begin()
        return _Trajectory(self, start, **options)

    # -- one step -------------------------------------------------------------------------------

    def _scheme_step(
        self, now: Instant, dt: float, guesses: list[Guess], scheme: str
    ) -> tuple[Instant, list[Movement]]:
        tableau = SCHEMES[scheme]

        def solve(start: Array, a: float, before: list[Movement]) -> Movement:
            anchor = Anchor(start)
            if (before or tableau.explicit) and self._negative(anchor) > _NEGATIVE:
                raise TooLongError(
                    f"a stage would start from an amplitude that changes sign; dt = {dt:.3g} is "
                    "too long for the scheme"
                )
            origin = before[-1].psi if before else now.psi
            return self._stage.solve(anchor, guesses[len(before)], a, origin)

        stages = solve_stages(tableau, now.value, now.rate, dt, solve)
        then = self._reached(stages[-1])
        if scheme == "backward-euler":
            self._check_descent(now, then, stages[0])
        return then, stages

    def _negative(self, anchor: Anchor) -> float:
        """1 − ⟨r, |r|⟩/⟨r, r⟩. Collective."""
        local = [anchor.load @ np.abs(anchor.base), anchor.load @ anchor.base]
        mixed, square = global_sum(self.problem.comm, local)
        return float(1.0 - mixed / square)

    def _resolved_step(self, now: Instant, dt: float) -> float:
        """About the longest step, below dt, that the scheme resolves at an instant. Collective."""
        reach = SCHEMES[self.scheme].reach
        for _ in range(60):
            dt *= 0.5
            if self._negative(Anchor(now.value + reach * dt * now.rate)) <= _NEGATIVE:
                break
        return dt

    def _movements(self, now: Instant, dt: float) -> tuple[Instant, list[Movement]]:
        """A step as one minimising movement, or as several of the same total length."""
        parts = 2 if self.scheme == "backward-euler" else 1
        while True:
            then, stages = now, []
            try:
                for _ in range(parts):
                    guess = Guess(then.psi, then.y, then.eigenvalue)
                    then, (stage,) = self._scheme_step(then, dt / parts, [guess], "backward-euler")
                    stages.append(stage)
                return then, stages
            except ConvergenceError as error:
                if parts >= _MOST_MOVEMENTS or isinstance(error, StagnationError):
                    raise type(error)(
                        f"a step of {dt:.3g} failed, even when divided into {parts}: {error}"
                    ) from None
                parts *= 2

    def _check_descent(self, before: Instant, after: Instant, stage: Movement) -> None:
        """Check F^σ(m⁺) + (2/τ)‖ψ⁺ − ψ‖² ≤ F^σ(m), which needs F convex. Collective."""
        problem, weight = self.problem, 2.0 / stage.length
        moved = weight * stage.anchor.squared_distance(problem, *after.value)
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
                "length together, of order 1 (column 'replaced'; this warning appears once): %s",
                *(t, dt, parts, error),
            )
            return
        warn(
            self.problem.comm,
            _LOG,
            "t = %.6g: dt = %.3g is too long for %s, and such steps are replaced by minimising "
            "movements of the same length, of order 1 (column 'replaced'; this warning appears "
            "once); %s resolves dt up to about %.2g there",
            *(t, dt, self.scheme, self.scheme),
            self._resolved_step(now, dt),
        )

    # -- instants -------------------------------------------------------------------------------

    def _start(self, density: Density) -> Instant:
        psi, mass_psi = density.amplitude(), density.mass_amplitude()
        load = hamiltonian(self.problem, density)
        eigenvalue = self._discrete.dot(psi, load)
        velocity = -0.5 * (self._discrete.solve_mass(load) - eigenvalue * psi)
        rate = np.stack((velocity, -0.5 * (load - eigenvalue * mass_psi)))
        value = np.stack((psi, mass_psi))
        return self._instant(density, value, rate, self.mean_field.evaluate(density))

    def _reached(self, stage: Movement) -> Instant:
        """The end of a stage, where the equation gives −½(H − λ)ψ = (⟨ψ, r⟩ψ − r)/a."""
        rate = stage.overlap * stage.value
        rate -= stage.anchor.values
        rate /= stage.length
        density = Density(self.problem, stage.psi, normalised=True)
        return self._instant(density, stage.value, rate, stage.y)

    def _instant(self, density: Density, value: Array, rate: Array, y: Array) -> Instant:
        psi, discrete = value[0], self._discrete
        constant = discrete.dot(psi, discrete.multiply(self._stage.operator.constant, psi))
        return Instant(
            density=density,
            value=value,
            rate=rate,
            y=y,
            energy=constant + self.mean_field.value(y, density),
            eigenvalue=constant + self.mean_field.work(y, density),
        )

    def _state(self, now: Instant, **numbers: float | int) -> State:
        problem = self.problem
        discrete = problem.discretisation
        dissipation = 4.0 * discrete.dot(*now.rate)
        return State(
            density=now.density,
            energy=now.energy,
            eigenvalue=now.eigenvalue,
            residual=float(np.sqrt(max(dissipation, 0.0))),
            dissipation=dissipation,
            mass=discrete.dot(*now.value),
            boundary_mass=discrete.boundary_mass(now.psi),
            **numbers,  # type: ignore[arg-type]
        )


class _Trajectory(Trajectory[State]):
    """One run: the current instant, and the memory of earlier stages."""

    def __init__(self, flow: SchrodingerFlow, start: Density | State) -> None:
        self._flow, self._memory = flow, _Memory(flow)
        self._now = flow._start(start.density if isinstance(start, State) else start.copy())
        known = start if isinstance(start, State) else None
        self.state = known or flow._state(self._now, t=0.0, dt=0.0, next_dt=flow.dt, step=0)
        self.dt = flow.dt if flow.tolerance is None else self.state.next_dt

    def advance(self, clock: Clock) -> State:
        """Take one step that the clock accepts. Collective."""
        self._now, stages, numbers = self._accepted_step(clock)
        self.state = self._flow._state(self._now, **clock.numbers, **counts(stages), **numbers)
        return self.state

    def _accepted_step(self, clock: Clock) -> tuple[Instant, list[Movement], dict[str, int]]:
        """The next instant, the stages of its step, and the counters of the error control."""
        flow, now, memory = self._flow, self._now, self._memory
        rejected = 0
        while True:
            dt = clock.next_step()
            replaced = 0
            try:
                then, stages = flow._scheme_step(
                    now, dt, memory.guesses(now, clock.t + dt), flow.scheme
                )
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
            error_of_step = 0.5 * dt * flow._discrete.norm((then.rate - now.rate)[0])
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
    """Past stages of one run, from which the next ones are extrapolated.

    Stage values are less accurate than those at the end of a step, but equally smooth in time, so
    each stage is extrapolated from its own past.
    """

    def __init__(self, flow: SchrodingerFlow) -> None:
        self._flow, self.warned = flow, False
        self.forget()

    def forget(self) -> None:
        """Forget the past, after a step that was not computed by the scheme."""
        self._pasts = [
            (
                self._extrapolation(3, self._flow._discrete.dot),
                self._extrapolation(4, self._flow.mean_field.dot),
                self._extrapolation(4, np.dot),
            )
            for _ in SCHEMES[self._flow.scheme].implicit
        ]

    @staticmethod
    def _extrapolation(order: int, dot: Callable[[Array, Array], float]) -> Extrapolation:
        return Extrapolation(order, lambda value: float(np.sqrt(dot(value, value))))

    def add(self, t: float, stages: list[Movement]) -> None:
        """Store the stages of a step that ends at t."""
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
