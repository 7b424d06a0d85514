"""One implicit stage of the mean-field Hamilton–Jacobi–Bellman equation (D3, W2, J2).

Given r, a drift v and a length a, find w and m ∝ e^{−v−w} with

    (w − r)/a = (σ²/2)Δw − (σ²/2)∇v·∇w − (σ²/4)|∇w|² + G[m] − s.

With v = 0 and G = V this is one backward Euler step of u, and with r = u_k, a = h one step of the
descent in relative entropy (J2). Each fixed-point iteration on the mean field uses Newton's method:

    stage = HJBStage(HJBOperator(problem), mean_field, FixedPoint(Anderson(), StopTest()))
    result = stage.solve(r, guess=r, y=y, a=0.1, shift=0.0)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from fem_mf.density import LogDensity
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.flows.tableau import StageResult
from fem_mf.mean_field.fixed_point import FixedPoint
from fem_mf.mean_field.moments import MeanField
from fem_mf.mpi import ConvergenceError
from fem_mf.typing import Array

__all__ = ["HJBResult", "HJBStage"]

_LOG = logging.getLogger(__name__)
# Pseudo-time steps: the first and the shortest, divided by min(a, 1), and the longest, divided by
# a. For a network loss of weight 10 (a = 10 and 100) no choice beat 0.25 and doubling.
_FIRST, _SHORTEST, _LONGEST = 0.25, 1e-4, 10.0


@dataclass(frozen=True, kw_only=True)
class HJBResult(StageResult):
    """A solved stage; its value is w (or φ, see :mod:`fem_mf.flows.hopf_cole`).

    Attributes:
        rate: k = (w − r)/a.
        density: m ∝ e^{−v−w}.
    """

    rate: Array
    density: LogDensity


class HJBStage:
    """Solver of implicit stages.

    Args:
        operator: the operator of u, or of w with the drift v.
        mean_field: the mean field.
        fixed_point: the fixed-point iteration.
        whole: whether the equation has the whole potential V (else only the part depending on m).
    """

    def __init__(
        self,
        operator: HJBOperator,
        mean_field: MeanField,
        fixed_point: FixedPoint,
        *,
        whole: bool = True,
    ) -> None:
        self.operator, self.mean_field, self._fixed_point = operator, mean_field, fixed_point
        self._discrete = operator.problem.discretisation
        self._base = 0.0 if whole else mean_field.base

    def encode(self, w: Array) -> Array:
        """The unknown of the stage for a given w, here w itself."""
        return w

    def rate_of_w(self, result: HJBResult) -> Array:
        """∂_t w at a solved stage, owned values."""
        return result.rate

    def set_drift(self, v: Array) -> None:
        """Set v by its owned values. Collective."""
        self.operator.set_drift(v)

    def solve(self, start: Array, guess: Array, y: Array, a: float, shift: float) -> HJBResult:
        """Solve one stage, after the drift has been set. Collective.

        Args:
            start: owned values of r.
            guess: owned values of the initial w.
            y: the initial mean field.
            a: the length of the stage, > 0.
            shift: s.

        Returns:
            The solution of the stage.

        Raises:
            ConvergenceError: if Newton's method or the fixed point fails, also in pseudo-time.
        """
        try:
            return self._solve_directly(start, guess, y, a, shift)
        except ConvergenceError as error:
            return self._solve_in_pseudo_time(start, guess, y, a, shift, error)

    def _solve_in_pseudo_time(
        self, start: Array, guess: Array, y: Array, a: float, shift: float, error: ConvergenceError
    ) -> HJBResult:
        """Integrate ∂w/∂s = rate(w) − (w − r)/a by implicit steps to its limit, the stage.

        A step of length δ in s is a stage of length 1/(1/δ + 1/a). The stage minimises (J1) with
        the reference e^{−v−r}, a convex problem if F is convex, and the flow descends to it.
        """
        _LOG.info("a step of length %.3g needs pseudo-time: %s", a, error)
        shortest, delta = _SHORTEST * min(a, 1.0), _FIRST * min(a, 1.0)
        iterations, newton, most = 0, 0, 0
        while True:
            short = 1.0 / (1.0 / delta + 1.0 / a)
            between = short * (guess / delta + start / a)
            try:
                result = self._solve_directly(between, guess, y, short, shift)
            except ConvergenceError as again:
                delta = 0.25 * min(delta, a)
                if delta < shortest:
                    raise again from error
                continue
            moved = self._discrete.norm(result.value - guess)
            guess, y = result.value, result.y
            iterations += result.iterations
            newton, most = newton + result.newton_iterations, max(most, result.newton_most)
            _LOG.info("pseudo-time step %.3g: w moved by %.2e", delta, moved)
            if np.isinf(delta):
                return replace(
                    result,
                    iterations=iterations,
                    newton_iterations=newton,
                    newton_most=most,
                )
            delta = 2.0 * delta if delta < _LONGEST * a else np.inf

    def _solve_directly(
        self, start: Array, guess: Array, y: Array, a: float, shift: float
    ) -> HJBResult:
        operator, mean_field = self.operator, self.mean_field
        newton: list[int] = []
        w, density, moments = guess, None, y

        def evaluate(y: Array, previous: float) -> Array:
            nonlocal w, density, moments
            potential = mean_field.potential(y) - self._base
            w, steps = operator.solve(start, w, potential, a, shift)
            newton.append(steps)
            try:
                u = w + operator.drift.x.array[: self._discrete.num_owned]
                density = LogDensity(operator.problem, u)
            except ValueError as error:
                raise ConvergenceError(f"time step failed: {error}; reduce dt") from None
            moments = mean_field.evaluate(density)
            return moments

        record = self._fixed_point.solve(evaluate, y, mean_field)
        assert density is not None
        return HJBResult(
            value=w,
            rate=(w - start) / a,
            density=density,
            y=moments,
            iterations=record.iterations,
            contraction=record.contraction,
            newton_iterations=sum(newton),
            newton_most=max(newton),
        )
