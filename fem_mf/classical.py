"""The part v of the decomposition u = v + w: the classical equation (W1), without mean field.

It advances with the stages of the time scheme; backward Euler has one:

    v = ClassicalPart(problem, g, density, None, tolerance=1e-11, options=None)
    stage_values = v.advance(t, dt, [(1.0, ())])    # v at the stages of the step
    v.values, v.rate                                # at its end
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fem_mf.closure import MomentClosure
from fem_mf.features import Array
from fem_mf.fixed_point import Picard, StopTest
from fem_mf.hjb_stage import HJBResult, HJBStage, stage_start
from fem_mf.log_density import LogDensity
from fem_mf.options import Options
from fem_mf.problem import Problem
from fem_mf.riccati import Quadratic, RiccatiFlow

__all__ = ["ClassicalPart", "stationary_quadratic"]

type Stages = Sequence[tuple[float, tuple[float, ...]]]


class ClassicalPart:
    """v_t with v_0 quadratic: in closed form where g is quadratic too, else by implicit stages.

    Args:
        problem: the problem.
        g: the part of V that does not depend on m, on the potential space, owned and ghosts.
        density: m_0 = e^{−u_0}.
        start: v_0, a quadratic or its owned values; None for u_0 where it is quadratic, else for
            the stationary v of a quadratic that fits g.
        tolerance: tolerance of Newton's method.
        options: PETSc options of Newton's method.

    Attributes:
        values: owned values of v now, up to a constant.
        rate: of ∂_t v at the end of the last step.
    """

    def __init__(
        self,
        problem: Problem,
        g: Array,
        density: LogDensity,
        start: Quadratic | Array | None,
        tolerance: float,
        options: Options | None,
    ) -> None:
        self.problem = problem
        points = problem.nodes[:, : problem.num_owned]
        self._points = points
        own = problem.num_potential_owned
        quadratic_g = Quadratic.fit(problem, g[:own], problem.potential_nodes[:, :own])
        if start is None:
            start = Quadratic.fit(problem, density.log_values(), points)
        if start is None:
            start = stationary_quadratic(problem, g)
        fitted = start if isinstance(start, Quadratic) else Quadratic.fit(problem, start, points)
        self.values: Array = start.evaluate(points) if isinstance(start, Quadratic) else start
        self.rate: Array = np.zeros_like(self.values)
        self._flow = None
        if quadratic_g is not None and fitted is not None:
            self._flow = RiccatiFlow(quadratic_g, fitted, problem.sigma)
            return
        closure = MomentClosure(problem, [])
        closure.base = g
        self._stage = HJBStage(
            problem,
            closure,
            accelerator=Picard(),
            stop=StopTest(tolerance=1.0),
            safeguard=False,
            tolerance=tolerance,
            prefix="fem_mf_hjb_",
            options=options,
        )

    def advance(self, t: float, dt: float, stages: Stages) -> list[Array]:
        """Take a step, t after the start; v at each of its stages, owned values. Collective."""
        if self._flow is None:
            return self._integrate(dt, stages)
        times = [t + (factor + sum(weights)) * dt for factor, weights in stages]
        shapes = [self._flow.shape(time) for time in times]
        values = [shape.evaluate(self._points) for shape in shapes]
        self.values, self.rate = values[-1], self._flow.rate(shapes[-1]).evaluate(self._points)
        return values

    def _integrate(self, dt: float, stages: Stages) -> list[Array]:
        results: list[HJBResult] = []
        for factor, weights in stages:
            start = stage_start(self.values, dt, weights, results)
            guess = results[-1].unknown if results else self.values
            results.append(self._stage.solve(start, guess, np.empty(0), factor * dt, 0.0))
        self.values, self.rate = results[-1].unknown, results[-1].rate
        self.values = self.values - self.problem.min(self.values)  # it would grow like λ_v t
        return [r.unknown for r in results]


def stationary_quadratic(problem: Problem, g: Array) -> Quadratic:
    """½xᵀΘx + b·x with (σ²/2)Θ² = Q and (σ²/2)Θb = q of a quadratic that fits g. Collective.

    Eigenvalues of Q that are not positive are replaced by the smallest that is.
    """
    own = problem.num_potential_owned
    fitted = Quadratic.fit(problem, g[:own], problem.potential_nodes[:, :own], nearest=True)
    assert fitted is not None
    eigenvalues, frame = np.linalg.eigh(fitted.hessian)
    positive = eigenvalues[eigenvalues > 0]
    floor = float(positive.min()) if positive.size else 1.0
    theta = (frame * np.sqrt(2.0 * np.maximum(eigenvalues, floor)) / problem.sigma) @ frame.T
    slope = np.linalg.solve(0.5 * problem.sigma**2 * theta, fitted.slope)
    return Quadratic(theta, slope, 0.0)
