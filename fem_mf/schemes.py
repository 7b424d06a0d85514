"""Time schemes of the Schrödinger flow as sequences of implicit stages.

Each maps a :class:`Rate` (ψ and ∂_tψ now) and a step to its solved stages, the last of which ends
the step. The flow in the gauge s is f_s(ψ) = −½(H[m] − s)ψ = ∂_tψ + ½(s − λ)ψ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fem_mf.features import Array
from fem_mf.stages import ImplicitStage, StageResult, StageStart

__all__ = ["SCHEMES", "Rate"]

_GAMMA = 1.0 - 1.0 / np.sqrt(2.0)
# Beyond this relative change in a step, the past says nothing useful about the next ψ.
_TRUST = 0.3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """ψ, its velocity and what is known of its past; all arrays are owned values.

    Attributes:
        psi: ψ, of mass one.
        mass_psi: Mψ.
        velocity: ∂_tψ, orthogonal to ψ.
        mass_velocity: M∂_tψ.
        eigenvalue: λ.
        y: the mean field.
        dt: the step that led here, 0 at the start.
        acceleration: ∂_t²ψ by the difference of two velocities, None at the start.
        y_rate: first divided difference of y, None at the start.
        y_curvature: second divided difference of y, None with fewer than three values.
    """

    psi: Array
    mass_psi: Array
    velocity: Array
    mass_velocity: Array
    eigenvalue: float
    y: Array
    dt: float = 0.0
    acceleration: Array | None = None
    y_rate: Array | None = None
    y_curvature: Array | None = None


def _predict(stage: ImplicitStage, now: Rate, time: float) -> tuple[Array, Array]:
    """ψ and y extrapolated to a later time, or their present values when that is far."""
    change = time * now.velocity
    if now.acceleration is not None:
        change = change + 0.5 * time**2 * now.acceleration
    problem = stage.problem
    if now.y_rate is None or problem.dot(change, change) > _TRUST**2 * problem.dot(
        now.psi, now.psi
    ):
        return now.psi, now.y
    y = now.y + time * now.y_rate
    if now.y_curvature is not None:
        y = y + time * (time + now.dt) * now.y_curvature
    return now.psi + change, y


def backward_euler(stage: ImplicitStage, now: Rate, dt: float) -> list[StageResult]:
    """ψ⁺ = ψ + dt f_s(ψ⁺)."""
    guess, y = _predict(stage, now, dt)
    start = StageStart(base=now.psi, load=now.mass_psi)
    return [stage.solve(start, guess, y, dt, now.eigenvalue)]


def crank_nicolson(stage: ImplicitStage, now: Rate, dt: float) -> list[StageResult]:
    """ψ⁺ = ψ + (dt/2)(f_s(ψ) + f_s(ψ⁺))."""
    guess, y = _predict(stage, now, dt)
    half = 0.5 * dt
    kept = 1.0 - 0.5 * half * now.eigenvalue
    start = StageStart(
        base=kept * now.psi + half * now.velocity,
        load=kept * now.mass_psi + half * now.mass_velocity,
        slope=0.5 * half * now.psi,
        slope_load=0.5 * half * now.mass_psi,
    )
    return [stage.solve(start, guess, y, half, now.eigenvalue)]


def sdirk2(stage: ImplicitStage, now: Rate, dt: float) -> list[StageResult]:
    """Two stages with γ = 1 − 1/√2, stiffly accurate and L-stable (Alexander 1977)."""
    a = _GAMMA * dt
    guess, y = _predict(stage, now, a)
    start = StageStart(base=now.psi, load=now.mass_psi)
    first = stage.solve(start, guess, y, a, now.eigenvalue)
    rest = (1.0 - _GAMMA) * dt
    start = StageStart(
        base=now.psi + rest * first.rate,
        load=now.mass_psi + rest * stage.problem.apply_mass(first.rate),
    )
    guess, y = _predict(stage, now, dt)
    # Both stages must be stages of one and the same equation: the gauge of the first stays.
    return [first, stage.solve(start, guess, y, a, first.shift)]


SCHEMES: dict[str, Callable[[ImplicitStage, Rate, float], list[StageResult]]] = {
    "backward-euler": backward_euler,
    "crank-nicolson": crank_nicolson,
    "sdirk2": sdirk2,
}
