"""Time schemes of the Schrödinger flow as sequences of implicit stages.

Each maps a :class:`Rate` (ψ and ∂_tψ now), a step and a guess for each of its stages to
its solved stages, the last of which ends the step. The flow in the gauge s is
f_s(ψ) = −½(H[m] − s)ψ = ∂_tψ + ½(s − λ)ψ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fem_mf.features import Array
from fem_mf.stage_data import Guess, StageResult, StageStart
from fem_mf.stages import ImplicitStage

__all__ = ["SCHEMES", "Rate", "backward_euler"]

_GAMMA = 1.0 - 1.0 / np.sqrt(2.0)


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
    """

    psi: Array
    mass_psi: Array
    velocity: Array
    mass_velocity: Array
    eigenvalue: float
    y: Array


def backward_euler(
    stage: ImplicitStage, now: Rate, dt: float, guesses: Sequence[Guess], *, guarded: bool = False
) -> list[StageResult]:
    """ψ⁺ = ψ + dt f_s(ψ⁺); ``guarded``: with a gauge s that works for every dt."""
    start = StageStart(base=now.psi, load=now.mass_psi)
    return [stage.solve(start, guesses[0], dt, now.eigenvalue, guarded=guarded)]


def crank_nicolson(
    stage: ImplicitStage, now: Rate, dt: float, guesses: Sequence[Guess]
) -> list[StageResult]:
    """ψ⁺ = ψ + (dt/2)(f_λ(ψ) + f_λ(ψ⁺))."""
    half = 0.5 * dt
    start = StageStart(
        base=now.psi + half * now.velocity, load=now.mass_psi + half * now.mass_velocity
    )
    return [stage.solve(start, guesses[0], half, now.eigenvalue)]


def sdirk2(
    stage: ImplicitStage, now: Rate, dt: float, guesses: Sequence[Guess]
) -> list[StageResult]:
    """Two stages with γ = 1 − 1/√2, stiffly accurate and L-stable (Alexander 1977)."""
    a = _GAMMA * dt
    start = StageStart(base=now.psi, load=now.mass_psi)
    first = stage.solve(start, guesses[0], a, now.eigenvalue)
    rest = (1.0 - _GAMMA) * dt
    start = StageStart(
        base=now.psi + rest * first.rate,
        load=now.mass_psi + rest * stage.problem.apply_mass(first.rate),
    )
    return [first, stage.solve(start, guesses[1], a, now.eigenvalue)]


type Scheme = Callable[[ImplicitStage, Rate, float, Sequence[Guess]], list[StageResult]]
SCHEMES: dict[str, Scheme] = {
    "backward-euler": backward_euler,
    "crank-nicolson": crank_nicolson,
    "sdirk2": sdirk2,
}
