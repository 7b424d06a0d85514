"""Time schemes of the Schrödinger flow as sequences of implicit stages.

Each maps a :class:`Rate` (ψ and ∂_tψ now) and a step to a :class:`StepResult`. The flow in the
gauge s is f_s(ψ) = −½(H[m] − s)ψ = ∂_tψ + ½(s − λ)ψ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fem_mf.features import Array
from fem_mf.stages import AffineInShift, ImplicitStage, StageResult

__all__ = ["SCHEMES", "Rate", "StepResult"]

_GAMMA = 1.0 - 1.0 / np.sqrt(2.0)
# Beyond this relative change in a step, the past says nothing useful about the next ψ.
_TRUST = 0.3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """ψ, its velocity and what is known of its past; all arrays are owned values.

    Attributes:
        psi: ψ, of mass one.
        velocity: ∂_tψ, orthogonal to ψ.
        eigenvalue: λ.
        y: the mean field.
        lowest: min V[m].
        acceleration: ∂_t²ψ by the difference of two velocities, None at the start.
        y_rate: ∂_t y by a difference, None at the start.
    """

    psi: Array
    velocity: Array
    eigenvalue: float
    y: Array
    lowest: float
    acceleration: Array | None = None
    y_rate: Array | None = None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves; ``error`` is the L² estimate of the embedded first-order scheme."""

    psi: Array
    norm: float
    rate: Array
    shift: float
    y: Array
    error: float
    fixed_point_iterations: int
    linear_iterations: int
    contraction: float


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
    return now.psi + change, now.y + time * now.y_rate


def _result(stage: ImplicitStage, now: Rate, dt: float, stages: list[StageResult]) -> StepResult:
    last = stages[-1]
    problem = stage.problem
    norm = float(np.sqrt(problem.dot(last.psi, problem.apply_mass(last.psi))))
    # ½ dt |∂_tψ⁺ − ∂_tψ|, parts along ψ taken out: they only rescale.
    rate = last.rate / norm
    difference = rate - now.velocity
    unit = last.psi / norm
    difference -= problem.dot(unit, problem.apply_mass(difference)) * unit
    size = problem.dot(difference, problem.apply_mass(difference))
    return StepResult(
        psi=last.psi,
        norm=norm,
        rate=last.rate,
        shift=last.shift,
        y=last.y,
        error=0.5 * dt * float(np.sqrt(max(size, 0.0))),
        fixed_point_iterations=sum(s.record.iterations for s in stages),
        linear_iterations=sum(s.linear_iterations for s in stages),
        contraction=last.record.contraction,
    )


def backward_euler(stage: ImplicitStage, now: Rate, dt: float) -> StepResult:
    """ψ⁺ = ψ + dt f_s(ψ⁺)."""
    guess, y = _predict(stage, now, dt)
    first = stage.solve(AffineInShift(now.psi), guess, y, dt, now.eigenvalue, now.lowest)
    return _result(stage, now, dt, [first])


def crank_nicolson(stage: ImplicitStage, now: Rate, dt: float) -> StepResult:
    """ψ⁺ = ψ + (dt/2)(f_s(ψ) + f_s(ψ⁺))."""
    guess, y = _predict(stage, now, dt)
    half = 0.5 * dt
    start = AffineInShift(
        (1.0 - 0.5 * half * now.eigenvalue) * now.psi + half * now.velocity,
        0.5 * half * now.psi,
    )
    first = stage.solve(start, guess, y, half, now.eigenvalue, now.lowest)
    return _result(stage, now, dt, [first])


def sdirk2(stage: ImplicitStage, now: Rate, dt: float) -> StepResult:
    """Two stages with γ = 1 − 1/√2, stiffly accurate and L-stable (Alexander 1977)."""
    a = _GAMMA * dt
    guess, y = _predict(stage, now, a)
    first = stage.solve(AffineInShift(now.psi), guess, y, a, now.eigenvalue, now.lowest)
    r = now.psi + (1.0 - _GAMMA) * dt * first.rate
    guess, y = _predict(stage, now, dt)
    # Both stages must be stages of one and the same equation: the gauge of the first stays.
    second = stage.solve(AffineInShift(r), guess, y, a, first.shift, now.lowest)
    return _result(stage, now, dt, [first, second])


SCHEMES: dict[str, Callable[[ImplicitStage, Rate, float], StepResult]] = {
    "backward-euler": backward_euler,
    "crank-nicolson": crank_nicolson,
    "sdirk2": sdirk2,
}
