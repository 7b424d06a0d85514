"""The well-posedness map over a whole time window: w ↦ m ↦ w̄ (theory §4), as an iteration.

    window = WindowMap(problem, start, length=0.5, steps=10)
    for sweep in window.iterate(8):
        print(sweep.distance, sweep.factor)

Freeze the trajectory of m, solve (W2) for w̄ with the potential G(m_t, ·), read off the new m. For
a short window the map is a contraction in sup_t‖∇w − ∇w'‖∞; its fixed point is the trajectory of
the backward Euler :class:`fem_mf.HJBFlow`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fem_mf.density import Density, LogDensity, log_density
from fem_mf.flows.decomposition import ClassicalPart, Quadratic
from fem_mf.flows.hjb_stage import HJBStage
from fem_mf.mean_field.fixed_point import Picard, StopTest
from fem_mf.mean_field.moments import make_closure
from fem_mf.mpi import positive
from fem_mf.observables import Regularity
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = ["Sweep", "WindowMap"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One application of the map.

    Attributes:
        number: 1 for the first.
        densities: m̄ at every step of the window, the start left out.
        distance: sup_t‖∇w̄ − ∇w‖∞ from the trajectory before.
        factor: this distance over the one before; NaN at first, and after a distance of zero.
    """

    number: int
    densities: list[LogDensity]
    distance: float
    factor: float


class WindowMap:
    """The map on [0, T], by backward Euler steps of (W2) with frozen mean field.

    Args:
        problem: the problem, natural boundary, degree 2 at least.
        start: m_0.
        length: T > 0.
        steps: of the window.
        v_start: v_0, see :meth:`fem_mf.HJBFlow.run`.
        newton_tolerance: of the residual of the equation.
        petsc_options: of Newton's method, prefix ``fem_mf_hjb_``.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        problem: Problem,
        start: Density,
        length: float,
        steps: int,
        *,
        v_start: Quadratic | None = None,
        newton_tolerance: float = 1e-11,
        petsc_options: Options | None = None,
    ) -> None:
        positive("length", length)
        if steps < 1:
            raise ValueError(f"steps is at least 1, not {steps}")
        if start.problem is not problem:
            raise ValueError("the start belongs to another problem; build it on the window's own")
        self.problem, self.length, self.steps = problem, float(length), steps
        self._closure = make_closure(problem)
        self._bounds = Regularity(problem)
        density = log_density(start)
        classical = ClassicalPart(
            problem, self._closure.base, density, v_start, newton_tolerance, petsc_options
        )
        self._w = density.log_values() - classical.values
        self._y = self._closure.order(density)
        dt = self.length / steps
        self._drifts = [classical.advance(k * dt, dt, ((1.0, ()),))[-1] for k in range(steps)]
        self._stage = HJBStage(
            problem,
            self._closure,
            whole=False,
            accelerator=Picard(),
            stop=StopTest(tolerance=1.0),
            safeguard=False,
            tolerance=newton_tolerance,
            prefix="fem_mf_hjb_",
            options=petsc_options,
        )

    def iterate(self, sweeps: int) -> Iterator[Sweep]:
        """Apply the map again and again, from w_t = w_0. Collective.

        Args:
            sweeps: how often.

        Raises:
            ConvergenceError: a step of the frozen equation failed.
        """
        trajectory = [self._w] * self.steps
        moments = [self._y] * self.steps
        last = np.nan
        for number in range(1, sweeps + 1):
            before = trajectory
            trajectory, moments, densities = self._apply(trajectory, moments)
            distance = max(
                self._bounds.gradient(new - old)
                for new, old in zip(trajectory, before, strict=True)
            )
            factor = distance / last if last > 0.0 else float("nan")
            yield Sweep(number=number, densities=densities, distance=distance, factor=factor)
            last = distance

    def _apply(
        self, guesses: list[Array], frozen: list[Array]
    ) -> tuple[list[Array], list[Array], list[LogDensity]]:
        w, trajectory, moments, densities = self._w, [], [], []
        for drift, guess, y in zip(self._drifts, guesses, frozen, strict=True):
            self._stage.set_drift(drift)
            w, density, new = self._stage.solve_frozen(w, guess, y, self.length / self.steps, 0.0)
            trajectory.append(w)
            moments.append(new)
            densities.append(density)
        return trajectory, moments, densities
