"""The mean-field Schrödinger flow (D2), integrated in time by implicit schemes.

    flow = SchrodingerFlow(problem, dt=0.05, scheme="sdirk2")
    for state in flow.run(start, t_end=10.0):
        print(state.t, state.energy)

ψ is advanced without normalisation and rescaled after each step, which loses no order (theory §3).
Inside a step a fixed point on the mean field surrounds linear solves of
(2/a + H[m] − s)ψ = (2/a) r; see :mod:`fem_mf.stages`. A constant step too long for its scheme is
replaced by a guarded backward Euler step, for which energy decreases whatever dt (D7).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from fem_mf.arguments import check_run, check_scheme, check_step, check_tolerances
from fem_mf.clock import Clock
from fem_mf.closure import Closure, MomentClosure, make_closure
from fem_mf.density import Density
from fem_mf.errors import ConvergenceError
from fem_mf.extrapolation import Extrapolation
from fem_mf.features import Array
from fem_mf.fixed_point import Accelerator, Anderson, StopTest
from fem_mf.newton import Newton
from fem_mf.observables import hamiltonian, warn_if_truncated
from fem_mf.options import Options
from fem_mf.problem import Problem
from fem_mf.schemes import SCHEMES, Rate, backward_euler
from fem_mf.stage_data import Guess, StageResult
from fem_mf.stages import ImplicitStage
from fem_mf.state import State

__all__ = ["SchrodingerFlow"]

_LOG = logging.getLogger(__name__)
_PREFIX = "fem_mf_schrodinger_"
_POSITIVE = 1.0 - 1e-12


class SchrodingerFlow:
    """∂_tψ = (σ²/2)Δψ − ½(V[m_t] − λ_t)ψ (D2).

    Args:
        problem: the problem.
        dt: time step, > 0; the first one when ``tolerance`` is given.
        scheme: ``"backward-euler"`` (order 1, energy decreasing for every dt), ``"crank-nicolson"``
            (order 2) or ``"sdirk2"`` (order 2, L-stable).
        tolerance: None for constant steps; otherwise the L² error estimate of ψ that a step may
            make, by which dt is chosen and steps are rejected.
        accelerator: of the fixed point: ``Picard()``, ``Anderson()`` or ``Newton()``. The default
            is Newton where every term of F is cylindrical, else Anderson.
        fixed_point_tolerance: relative, on the moments (or on m).
        max_iterations: of one fixed point.
        safeguard: shorten fixed-point steps that overshoot.
        linear_tolerance: relative, of the linear solves.
        petsc_options: of the linear solver, without prefix; ``-fem_mf_schrodinger_...`` on the
            command line goes before them.

    Raises:
        ValueError: naming the argument.
    """

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
        linear_tolerance: float = 1e-12,
        petsc_options: Options | None = None,
    ) -> None:
        check_step(dt)
        check_scheme(scheme, sorted(SCHEMES))
        check_tolerances(
            max_iterations,
            tolerance=tolerance,
            fixed_point_tolerance=fixed_point_tolerance,
            linear_tolerance=linear_tolerance,
        )
        self.problem = problem
        self.dt = float(dt)
        self.scheme = scheme
        self.tolerance = tolerance
        self.closure = make_closure(problem)
        self._stage = ImplicitStage(
            problem,
            self.closure,
            accelerator=_default(self.closure) if accelerator is None else accelerator,
            stop=StopTest(tolerance=fixed_point_tolerance, max_iterations=max_iterations),
            safeguard=safeguard,
            linear_tolerance=linear_tolerance,
            prefix=_PREFIX,
            options=petsc_options,
        )

    def run(
        self, start: Density | State, t_end: float, *, steady_residual: float | None = None
    ) -> Iterator[State]:
        """Integrate from t = 0; yields the start too. Collective at every step.

        Args:
            start: m_0, of the same problem; or a state of this flow, from which it goes on.
            t_end: final time, reached exactly (the last step is shortened).
            steady_residual: stop earlier, when ‖Hψ − λψ‖ is at most this.

        Returns:
            An iterator of states; each owns its density.

        Raises:
            ValueError: start of another problem, or t_end not a non-negative number.
            ConvergenceError: a step failed; states already yielded stay valid.
        """
        check_run(self.problem, start, t_end)
        return self._run(start, float(t_end), steady_residual)

    def _run(self, start: Density | State, t_end: float, steady: float | None) -> Iterator[State]:
        self._forget()
        if isinstance(start, State):
            rate, state = self._rate_of(start.density), start
        else:
            rate = self._rate_of(start)
            state = self._state(start.copy(), rate, t=0.0, dt=0.0, next_dt=self.dt, step=0)
        warn_if_truncated(self.problem, state.density)
        yield state
        dt = self.dt if self.tolerance is None else state.next_dt
        clock = Clock(dt, t_end, state.t, state.step)
        while not clock.done and (steady is None or state.residual > steady):
            rate, stages, rejected = self._accepted_step(rate, clock)
            state = self._state(
                Density(self.problem, rate.psi, normalised=True),
                rate,
                t=clock.t,
                dt=clock.last,
                next_dt=clock.dt,
                step=clock.step,
                fixed_point_iterations=sum(s.record.iterations for s in stages),
                linear_iterations=sum(s.linear_iterations for s in stages),
                contraction=self._stage.tolerance.contraction,
                rejected=rejected,
            )
            yield state
        warn_if_truncated(self.problem, state.density)

    # -- one step -------------------------------------------------------------------------------

    def _accepted_step(self, now: Rate, clock: Clock) -> tuple[Rate, list[StageResult], int]:
        rejected = 0
        while True:
            dt = clock.next_step()
            try:
                stages = self._step(now, clock.t, dt)
            except ConvergenceError:
                if self.tolerance is None or not clock.may_shrink:
                    raise
                clock.reject(0.5)
                rejected += 1
                continue
            then = self._advance(stages[-1])
            if self.tolerance is None:
                self._remember(clock.t + dt, stages)
                clock.accept()
                return then, stages, rejected
            # ½ dt |∂_tψ⁺ − ∂_tψ| is the error of the embedded first-order scheme, ~ dt².
            error = 0.5 * dt * self.problem.norm(then.velocity - now.velocity)
            factor = 0.9 * np.sqrt(self.tolerance / max(error, 1e-300))
            if error <= self.tolerance or not clock.may_shrink:
                self._remember(clock.t + dt, stages)
                clock.accept(float(np.clip(factor, 0.3, 3.0)))
                return then, stages, rejected
            clock.reject(float(np.clip(factor, 0.1, 0.8)))
            rejected += 1

    def _step(self, now: Rate, t: float, dt: float) -> list[StageResult]:
        """The stages of a step: of the scheme where dt resolves the flow, else guarded."""
        try:
            return SCHEMES[self.scheme](self._stage, now, dt, self._guesses(now, t + dt))
        except ConvergenceError as error:
            if self.tolerance is not None:
                raise
            _LOG.info("t = %.6g: a guarded backward Euler step of %.3g (%s)", t, dt, error)
        self._forget()
        return backward_euler(self._stage, now, dt, [Guess(now.psi, now.y)], guarded=True)

    def _guesses(self, now: Rate, t: float) -> list[Guess]:
        # Stage values are less accurate than those at the end of a step, but as smooth in time:
        # each stage has a past of its own.
        guesses = []
        for amplitudes, moments in self._pasts:
            psi, y = amplitudes.predict(t), moments.predict(t)
            guesses.append(Guess(now.psi if psi is None else psi, now.y if y is None else y))
        return guesses

    def _remember(self, t: float, stages: list[StageResult]) -> None:
        for (amplitudes, moments), stage in zip(self._pasts, stages, strict=False):
            amplitudes.add(t, stage.psi)
            moments.add(t, stage.y)

    def _forget(self) -> None:
        def field_norm(psi: Array) -> float:
            return float(np.sqrt(self.problem.dot(psi, psi)))

        def y_norm(y: Array) -> float:
            return float(np.sqrt(self.closure.dot(y, y)))

        self._pasts = [(Extrapolation(3, field_norm), Extrapolation(4, y_norm)) for _ in range(2)]

    def _rate_of(self, start: Density) -> Rate:
        psi = start.amplitude()
        load = hamiltonian(self.problem, start)
        eigenvalue = self.problem.dot(psi, load)
        velocity = -0.5 * (self.problem.solve_mass(load) - eigenvalue * psi)
        mass_psi = self.problem.apply_mass(psi)
        return Rate(
            psi=psi,
            mass_psi=mass_psi,
            velocity=velocity,
            mass_velocity=-0.5 * (load - eigenvalue * mass_psi),
            eigenvalue=eigenvalue,
            y=self.closure.order(start),
        )

    def _advance(self, last: StageResult) -> Rate:
        # The rate −½(H − s)ψ of the last stage, rescaled with ψ, and its part along ψ, which is
        # ½(s − λ), taken out: no further solve is needed for the residual of the flow.
        if last.positivity < _POSITIVE:  # the rate is that of ψ, but |ψ| goes on
            return self._rate_of(Density(self.problem, last.unit, normalised=True))
        psi, mass_psi = last.unit, last.mass_unit
        rate = last.rate / last.norm
        along = self.problem.dot(mass_psi, rate)
        velocity = rate - along * psi
        return Rate(
            psi=psi,
            mass_psi=mass_psi,
            velocity=velocity,
            mass_velocity=self.problem.apply_mass(velocity),
            eigenvalue=last.shift - 2.0 * along,
            y=last.y,
        )

    def _state(self, density: Density, rate: Rate, **numbers: float | int) -> State:
        problem, psi = self.problem, rate.psi
        constant = problem.dot(psi, problem.multiply(self._stage.operator.constant, psi))
        dissipation = 4.0 * problem.dot(rate.velocity, rate.mass_velocity)
        return State(
            density=density,
            energy=constant + self.closure.value(rate.y, density),
            eigenvalue=constant + self.closure.work(rate.y, density),
            residual=float(np.sqrt(dissipation)),
            dissipation=dissipation,
            mass=problem.dot(psi, rate.mass_psi),
            boundary_mass=problem.boundary_mass(psi),
            **numbers,  # type: ignore[arg-type]
        )


def _default(closure: Closure) -> Accelerator:
    return Newton() if isinstance(closure, MomentClosure) else Anderson(depth=10)
