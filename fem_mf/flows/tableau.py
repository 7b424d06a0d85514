"""Time schemes: diagonally implicit Runge–Kutta methods, and the loop over their stages.

For ∂_t y = f(y) a step of length dt solves, one after another, the stages

    y_i = r_i + a_ii dt f(y_i),    r_i = y + dt Σ_{j<i} a_ij k_j,    k_j = f(y_j),

and the last stage is the value at the end of the step (the schemes are stiffly accurate). A scheme
is given by the lower triangle of its coefficients, with a_11 = 0 if the first stage is y itself:

    SCHEMES["two-halves"] = Tableau(order=1, rows=((0.5,), (0.5, 0.5)))

A flow defines how one stage is solved; the result has the rate k_i = (y_i − r_i)/(a_ii dt).

    stages = solve_stages(SCHEMES["sdirk2"], y, rate, dt, solve)
    stages[-1].value
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fem_mf.typing import Array

__all__ = ["SCHEMES", "StageResult", "Tableau", "solve_stages"]


@dataclass(frozen=True, kw_only=True)
class Tableau:
    """The coefficients a_ij, j ≤ i, of a scheme.

    Attributes:
        order: order of convergence in dt.
        rows: a_i1, ..., a_ii for every stage i.
    """

    order: int
    rows: tuple[tuple[float, ...], ...]

    @property
    def explicit(self) -> bool:
        """Whether the first stage is the initial value, so that only its rate is needed."""
        return self.rows[0] == (0.0,)

    @property
    def implicit(self) -> tuple[tuple[float, ...], ...]:
        """The rows of the stages that must be solved."""
        return self.rows[self.explicit :]

    @property
    def times(self) -> tuple[float, ...]:
        """The time of each implicit stage after the start of the step, divided by dt."""
        return tuple(sum(row) for row in self.implicit)

    @property
    def reach(self) -> float:
        """The number for which, to first order, the farthest r_i is y + reach · dt f(y)."""
        return max(sum(row[:-1]) for row in self.implicit)


_GAMMA = 1.0 - 1.0 / np.sqrt(2.0)
SCHEMES = {
    "backward-euler": Tableau(order=1, rows=((1.0,),)),
    "crank-nicolson": Tableau(order=2, rows=((0.0,), (0.5, 0.5))),
    # L-stable (Alexander 1977).
    "sdirk2": Tableau(order=2, rows=((_GAMMA,), (1.0 - _GAMMA, _GAMMA))),
}


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A solved stage.

    Attributes:
        value: y_i, in the unknown of the flow.
        y: the mean field.
        iterations: evaluations of the mean field.
        contraction: contraction factor of the fixed-point iteration; NaN if not measured.
        linear_iterations: number of linear iterations, summed over all linear solves.
        newton_iterations: number of Newton iterations, summed over all nonlinear solves.
        newton_most: largest number of Newton iterations of one nonlinear solve.
    """

    value: Array
    y: Array
    iterations: int
    contraction: float = float("nan")
    linear_iterations: int = 0
    newton_iterations: int = 0
    newton_most: int = 0


class Stage(Protocol):
    """What the later stages of a step need to know about a stage."""

    @property
    def rate(self) -> Array:
        """k_i."""


def solve_stages[S: Stage](
    scheme: Tableau,
    value: Array,
    rate: Array | None,
    dt: float,
    solve: Callable[[Array, float, list[S]], S],
) -> list[S]:
    """Solve the stages of one step in turn. Collective if ``solve`` is.

    Args:
        scheme: the scheme.
        value: y.
        rate: f(y), or None; only schemes whose first stage is explicit need it.
        dt: length of the step.
        solve: maps r_i, a_ii dt and the previous stages to the solved stage.
    """
    stages: list[S] = []
    rates = [rate] if scheme.explicit and rate is not None else []
    for *weights, a in scheme.implicit:
        start = value
        for weight, before in zip(weights, rates, strict=True):
            start = start + dt * weight * before
        stages.append(solve(start, a * dt, stages))
        rates.append(stages[-1].rate)
    return stages
