"""Time schemes of the Schrödinger flow as sequences of implicit stages.

Each maps a :class:`Rate` (ψ and ∂_tψ now), a step and a guess of the mean field of each stage to
its solved stages, the last of which ends the step. The flow in the gauge s is
f_s(ψ) = −½(H[m] − s)ψ = ∂_tψ + ½(s − λ)ψ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        acceleration: ∂_t²ψ by the difference of two velocities, None at the start.
    """

    psi: Array
    mass_psi: Array
    velocity: Array
    mass_velocity: Array
    eigenvalue: float
    y: Array
    acceleration: Array | None = None


def _predict(stage: ImplicitStage, now: Rate, time: float) -> Array:
    """ψ extrapolated to a later time, or its present value when that is far."""
    change = time * now.velocity
    if now.acceleration is None:
        return now.psi
    change += 0.5 * time**2 * now.acceleration
    size = stage.problem.dot(change, change)
    trusted = size <= _TRUST**2 * stage.problem.dot(now.psi, now.psi)
    return now.psi + change if trusted else now.psi


def backward_euler(
    stage: ImplicitStage, now: Rate, dt: float, mean_field: Sequence[Array]
) -> list[StageResult]:
    """ψ⁺ = ψ + dt f_s(ψ⁺)."""
    start = StageStart(base=now.psi, load=now.mass_psi)
    guess = _predict(stage, now, dt)
    return [stage.solve(start, guess, mean_field[0], dt, now.eigenvalue)]


def crank_nicolson(
    stage: ImplicitStage, now: Rate, dt: float, mean_field: Sequence[Array]
) -> list[StageResult]:
    """ψ⁺ = ψ + (dt/2)(f_s(ψ) + f_s(ψ⁺))."""
    half = 0.5 * dt
    kept = 1.0 - 0.5 * half * now.eigenvalue
    start = StageStart(
        base=kept * now.psi + half * now.velocity,
        load=kept * now.mass_psi + half * now.mass_velocity,
        slope=0.5 * half * now.psi,
        slope_load=0.5 * half * now.mass_psi,
    )
    guess = _predict(stage, now, dt)
    return [stage.solve(start, guess, mean_field[0], half, now.eigenvalue)]


def sdirk2(
    stage: ImplicitStage, now: Rate, dt: float, mean_field: Sequence[Array]
) -> list[StageResult]:
    """Two stages with γ = 1 − 1/√2, stiffly accurate and L-stable (Alexander 1977)."""
    a = _GAMMA * dt
    start = StageStart(base=now.psi, load=now.mass_psi)
    guess = _predict(stage, now, a)
    first = stage.solve(start, guess, mean_field[0], a, now.eigenvalue)
    rest = (1.0 - _GAMMA) * dt
    start = StageStart(
        base=now.psi + rest * first.rate,
        load=now.mass_psi + rest * stage.problem.apply_mass(first.rate),
    )
    guess = _predict(stage, now, dt)
    # Both stages must be stages of one and the same equation: the gauge of the first stays.
    return [first, stage.solve(start, guess, mean_field[-1], a, first.shift)]


type Scheme = Callable[[ImplicitStage, Rate, float, Sequence[Array]], list[StageResult]]
SCHEMES: dict[str, Scheme] = {
    "backward-euler": backward_euler,
    "crank-nicolson": crank_nicolson,
    "sdirk2": sdirk2,
}
