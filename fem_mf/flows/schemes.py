"""Time schemes of the Schrödinger flow as chains of minimising movements (D7).

Each maps an :class:`Instant` (ψ and ∂_tψ now), a step and a guess for each of its stages to its
solved stages, the last of which ends the step. Every stage keeps the norm of ψ by a multiplier of
its own. A stage is the minimiser of an energy convex in m only if its anchor r is that of a
density: where more than 0.5 % of ∫r² lies where r < 0, the step is too long for the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fem_mf.density import Density
from fem_mf.flows.flow import GAMMA
from fem_mf.flows.schrodinger_stage import ImplicitStage
from fem_mf.mpi import ConvergenceError, global_sum
from fem_mf.problem import Problem
from fem_mf.stationary.newton_cg import Anchor, Guess, StageResult
from fem_mf.typing import Array

__all__ = ["SCHEMES", "Instant", "TooLongError", "backward_euler", "resolved_step"]

# 1 − ⟨r, |r|⟩/⟨r, r⟩, twice the share of r² that lies where r < 0, above which r is no amplitude.
_NEGATIVE = 1e-2


class TooLongError(ConvergenceError):
    """A step is too long for its scheme, which is known before its last stage is solved."""


@dataclass(frozen=True, kw_only=True)
class Instant:
    """ψ, its velocity and its numbers; all arrays are owned values.

    Attributes:
        density: m = ψ².
        psi: ψ, of norm one.
        mass_psi: Mψ.
        velocity: ∂_tψ, orthogonal to ψ.
        mass_velocity: M∂_tψ.
        y: the mean field.
        energy: F^σ(m).
        eigenvalue: λ.
    """

    density: Density
    psi: Array
    mass_psi: Array
    velocity: Array
    mass_velocity: Array
    y: Array
    energy: float
    eigenvalue: float


def backward_euler(
    stage: ImplicitStage, now: Instant, dt: float, guesses: Sequence[Guess]
) -> list[StageResult]:
    """One movement from ψ: for convex F the energy decreases for every dt."""
    anchor = Anchor(base=now.psi, load=now.mass_psi)
    return [stage.solve(anchor, guesses[0], dt, now.psi)]


def crank_nicolson(
    stage: ImplicitStage, now: Instant, dt: float, guesses: Sequence[Guess]
) -> list[StageResult]:
    """One movement of length dt/2 from ψ + (dt/2)∂_tψ; it does not damp what dt cannot resolve."""
    anchor = _along(now, 0.5 * dt)
    _check_positive(stage.problem, anchor, dt)
    return [stage.solve(anchor, guesses[0], 0.5 * dt, now.psi)]


def sdirk2(
    stage: ImplicitStage, now: Instant, dt: float, guesses: Sequence[Guess]
) -> list[StageResult]:
    """Two movements of length γdt, γ = 1 − 1/√2, stiffly accurate and L-stable (Alexander 1977).

    The second starts from ψ + ((1 − γ)/γ)(ψ₁ − ψ).
    """
    a = GAMMA * dt
    anchor = Anchor(base=now.psi, load=now.mass_psi)
    first = stage.solve(anchor, guesses[0], a, now.psi)
    rest = (1.0 - GAMMA) / GAMMA
    anchor = Anchor(
        base=now.psi + rest * (first.psi - now.psi),
        load=now.mass_psi + rest * (first.mass_psi - now.mass_psi),
    )
    _check_positive(stage.problem, anchor, dt)
    return [first, stage.solve(anchor, guesses[1], a, first.psi)]


type Scheme = Callable[[ImplicitStage, Instant, float, Sequence[Guess]], list[StageResult]]
SCHEMES: dict[str, Scheme] = {
    "backward-euler": backward_euler,
    "crank-nicolson": crank_nicolson,
    "sdirk2": sdirk2,
}
# An anchor of the scheme is ψ + this·dt ∂_tψ, to first order in dt.
_REACH = {"crank-nicolson": 0.5, "sdirk2": 1.0 - GAMMA}


def _along(now: Instant, dt: float) -> Anchor:
    return Anchor(base=now.psi + dt * now.velocity, load=now.mass_psi + dt * now.mass_velocity)


def _negative(problem: Problem, anchor: Anchor) -> float:
    """1 − ⟨r, |r|⟩/⟨r, r⟩. Collective."""
    local = [anchor.load @ np.abs(anchor.base), anchor.load @ anchor.base]
    mixed, square = global_sum(problem.comm, local)
    return float(1.0 - mixed / square)


def _check_positive(problem: Problem, anchor: Anchor, dt: float) -> None:
    if _negative(problem, anchor) > _NEGATIVE:
        raise TooLongError(
            f"a stage would start from an amplitude that changes sign; dt = {dt:.3g} is too long "
            "for the scheme"
        )


def resolved_step(problem: Problem, now: Instant, scheme: str, dt: float) -> float:
    """About the longest step, below dt, that the scheme resolves at an instant. Collective."""
    reach = _REACH.get(scheme, 0.0)
    for _ in range(60):
        dt *= 0.5
        if _negative(problem, _along(now, reach * dt)) <= _NEGATIVE:
            break
    return dt
