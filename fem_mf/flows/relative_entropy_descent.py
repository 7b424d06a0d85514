"""Descent in relative entropy (J1): a minimising movement for F^σ.

    descent = RelativeEntropyDescent(problem, step=0.5)
    for state in descent.run(start, t_end=10.0):
        print(state.energy, state.relative_entropy, state.slack)

This mirror-descent (JKO-type) scheme takes m_{k+1} as the minimiser of h⁻¹H(m|m_k) + F^σ(m). Its
optimality condition (J2) is one backward Euler step of the Hamilton–Jacobi–Bellman equation with
implicit mean field, and is solved as such. For convex F, comparison with m_k gives
F^σ(m_{k+1}) + h⁻¹H(m_{k+1}|m_k) ≤ F^σ(m_k) for every h; each state holds the difference as slack.
``demos/well_posedness.py`` has the explicit update m_{k+1} ∝ m_k exp(−h δF^σ/δm(m_k)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from fem_mf.density import Density
from fem_mf.flows.flow import HJBState
from fem_mf.flows.hjb import HJBFlow
from fem_mf.problem import Problem

__all__ = ["DescentState", "RelativeEntropyDescent"]


@dataclass(frozen=True, kw_only=True, repr=False)
class DescentState(HJBState):
    """One iterate m_k at t = kh; see :class:`fem_mf.flows.HJBState` for the rest.

    Attributes:
        relative_entropy: H(m_k|m_{k−1}); 0 at the start.
        slack: F^σ(m_{k−1}) − F^σ(m_k) − h⁻¹H(m_k|m_{k−1}) ≥ 0; 0 at the start.
    """

    relative_entropy: float = 0.0
    slack: float = 0.0


class RelativeEntropyDescent:
    """m_{k+1} = argmin h⁻¹H(m|m_k) + F^σ(m) (J1), by (J2).

    Args:
        problem: the problem, with natural boundary and degree at least 2.
        step: h > 0; for convex F the energy decreases for every h.
        options: further arguments of :class:`fem_mf.HJBFlow`, which takes the steps, other than
            scheme, form, decomposed and weighted.

    Raises:
        ValueError: if an argument is invalid; the message names it.
    """

    def __init__(self, problem: Problem, step: float, **options: Any) -> None:
        if options.keys() & {"scheme", "form", "decomposed", "weighted"}:
            raise ValueError("a step of the descent is a backward Euler step of u as a whole")
        self.problem, self.step = problem, float(step)
        self._flow = HJBFlow(problem, step, "backward-euler", **options)

    def run(
        self,
        start: Density | DescentState,
        t_end: float,
        *,
        steady_residual: float | None = None,
    ) -> Iterator[DescentState]:
        """Iterate up to t = kh = t_end; the start is yielded too. Collective at every step.

        Args:
            start: m_0, on the same problem (a ``LogDensity`` if ψ would be too small); or a state
                of this descent, to resume from.
            t_end: final time; the last step is shortened.
            steady_residual: residual at which to stop early, see :meth:`fem_mf.HJBFlow.run`.

        Returns:
            An iterator of states; each owns its density.

        Raises:
            TypeError, ValueError: as in :meth:`fem_mf.HJBFlow.run`.
            ConvergenceError: if a step fails; states already yielded remain valid.
        """
        return _compared(self._flow.run(start, t_end, steady_residual=steady_residual))


def _compared(states: Iterator[HJBState]) -> Iterator[DescentState]:
    before: HJBState | None = None
    for state in states:
        yield state if isinstance(state, DescentState) else _compare(state, before)
        before = state


def _compare(state: HJBState, before: HJBState | None) -> DescentState:
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    if before is None:
        return DescentState(**values)
    entropy = state.density.relative_entropy(before.density)
    slack = before.energy - state.energy - entropy / state.dt
    return DescentState(**values, relative_entropy=entropy, slack=slack)
