"""The part v of u = v + w: the classical equation (W1), in closed form if v is quadratic.

    x = problem.discretisation.owned_nodes
    g = Quadratic.fit(problem, 0.5 * x[0] ** 2, x)    # None if g is not quadratic
    v = RiccatiFlow(g, start=g, sigma=problem.sigma)
    v.at(t).evaluate(x), v.at(t).hessian

With g = ½xᵀQx + q·x + q₀, equation (W1) is Θ' = Q − (σ²/2)Θ², b' = q − (σ²/2)Θb and
c' = (σ²/2) tr Θ − (σ²/4)|b|² + q₀. The first two are linear in homogeneous coordinates: with
X' = (σ²/2)Y and Y' = QX, Θ = YX⁻¹.

Otherwise v advances by the implicit stages of the time scheme:

    v = ClassicalPart(problem, mean_field.base, density, None, options=None)
    stage_values = v.advance(t, dt, SCHEMES["sdirk2"])    # v at the stages of the step
    v.values, v.rate                                # at the end of the step

The values are defined up to a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.linalg import expm

from fem_mf.density import LogDensity
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.flows.tableau import Tableau, solve_stages
from fem_mf.mpi import global_sum
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = [
    "ClassicalPart",
    "Quadratic",
    "RiccatiFlow",
    "convexity_bound",
    "stationary_quadratic",
]

_FIT = 1e-10  # relative deviation up to which values count as quadratic
_STATIONARY = 1e-15  # relative change of v over a time 1/c below which v has reached its limit


@dataclass(frozen=True)
class Quadratic:
    """½xᵀHx + b·x + c.

    Attributes:
        hessian: H, ``(d, d)``.
        slope: b, ``(d,)``.
        constant: c.
    """

    hessian: Array
    slope: Array
    constant: float

    def evaluate(self, x: Array) -> Array:
        """Values at points ``(3, n)`` or ``(d, n)``."""
        x = x[: self.slope.size]
        quadratic = 0.5 * np.einsum("in,ij,jn->n", x, self.hessian, x, optimize=True)
        return np.asarray(quadratic + self.slope @ x + self.constant)

    @classmethod
    def fit(
        cls, problem: Problem, values: Array, points: Array, *, nearest: bool = False
    ) -> Quadratic | None:
        """The quadratic with these values, or None if there is none. Collective.

        Args:
            problem: provides the dimension and the communicator.
            values: ``(n,)`` values at this rank's points.
            points: ``(3, n)`` points.
            nearest: whether to return the least-squares fit if no quadratic has these values.
        """
        discrete = problem.discretisation
        dim, comm = problem.dim, problem.comm
        upper = np.triu_indices(dim)
        scale = discrete.max(float(np.abs(points).max(initial=0.0)))
        x = points[:dim] / scale
        columns = [np.ones(values.size), *x, *(x[i] * x[j] for i, j in zip(*upper, strict=True))]
        matrix = np.column_stack(columns)
        gram = global_sum(comm, matrix.T @ matrix)
        right = global_sum(comm, matrix.T @ values)
        found = np.linalg.lstsq(gram, right, rcond=None)[0]
        deviation = discrete.max(float(np.abs(matrix @ found - values).max(initial=0.0)))
        if not nearest and deviation > _FIT * max(
            discrete.max(float(np.abs(values).max(initial=0.0))), 1e-300
        ):
            return None
        hessian = np.zeros((dim, dim))
        hessian[upper] = found[1 + dim :]
        hessian = (hessian + hessian.T) / scale**2
        return cls(hessian, found[1 : 1 + dim] / scale, float(found[0]))


class RiccatiFlow:
    """The solution v of (W1) for quadratic g and v_0.

    Args:
        g: the potential.
        start: v_0, with a Hessian for which the flow exists (positive definite suffices).
        sigma: σ.
    """

    def __init__(self, g: Quadratic, start: Quadratic, sigma: float) -> None:
        self._g, self._start, self._sigma = g, start, sigma
        d = g.slope.size
        half = 0.5 * sigma**2
        # (X, Y, x, y) with Θ = Y X⁻¹ and b = y − Θx: a shift of the origin solves the same system.
        self._generator = np.zeros((2 * d + 1, 2 * d + 1))
        self._generator[:d, d : 2 * d] = half * np.eye(d)
        self._generator[d : 2 * d, :d] = g.hessian
        self._generator[d : 2 * d, -1] = g.slope

    def shape(self, t: float) -> Quadratic:
        """v_t without its constant, which would require an integral over [0, t]."""
        return Quadratic(*self._coefficients(t), 0.0)

    def at(self, t: float) -> Quadratic:
        """v_t."""
        change = 0.0
        if t > 0:
            change, _ = quad(
                lambda s: self.rate(self.shape(s)).constant - self._g.constant,
                *(0.0, t),
                epsabs=1e-13,
                epsrel=1e-12,
                limit=200,
            )
        constant = self._start.constant + self._g.constant * t + change
        return replace(self.shape(t), constant=constant)

    def rate(self, v: Quadratic) -> Quadratic:
        """∂_t v = (σ²/2)Δv − (σ²/4)|∇v|² + g."""
        half, theta, b = 0.5 * self._sigma**2, v.hessian, v.slope
        return Quadratic(
            self._g.hessian - half * theta @ theta,
            self._g.slope - half * theta @ b,
            float(half * np.trace(theta) - 0.5 * half * b @ b + self._g.constant),
        )

    def _coefficients(self, t: float) -> tuple[Array, Array]:
        d = self._g.slope.size
        start = np.zeros((2 * d + 1, d + 1))
        start[:d, :d] = np.eye(d)
        start[d : 2 * d, :d] = self._start.hessian
        start[d : 2 * d, d] = self._start.slope
        start[-1, d] = 1.0
        flow = self._advance(start, t)
        theta = np.linalg.solve(flow[:d, :d].T, flow[d : 2 * d, :d].T).T
        slope = flow[d : 2 * d, d] - theta @ flow[:d, d]
        return 0.5 * (theta + theta.T), slope

    def _advance(self, start: Array, t: float) -> Array:
        # In pieces of length 1/c, with rescaling: X and Y grow as e^{ct}, c² = (σ²/2)‖Q‖, and
        # differ between directions by as much; their quotient stays bounded.
        d = self._g.slope.size
        growth = self._sigma * np.sqrt(0.5 * np.linalg.norm(self._g.hessian, 2))
        pieces = max(1, int(np.ceil(t * growth)))
        step, flow = expm(self._generator * (t / pieces)), start
        for _ in range(pieces):
            before, flow = flow, step @ flow
            inverse = np.linalg.inv(flow[:d, :d])
            shift = flow[:d, d].copy()
            flow[:, :d] = flow[:, :d] @ inverse
            flow[:, d] -= flow[:, :d] @ shift
            if np.abs(flow - before).max() <= _STATIONARY * np.abs(flow).max():
                break
        return flow


def convexity_bound(t: float, start: float, kappa: float, sigma: float) -> float:
    """θ_t with θ' = κ − (σ²/2)θ²: v_t is θ_t-convex if v_0 is θ₀- and g κ-convex (theory §4).

    Args:
        t: time.
        start: θ₀ ≥ 0.
        kappa: κ > 0.
        sigma: σ.
    """
    limit = np.sqrt(2.0 * kappa) / sigma
    tanh = np.tanh(0.5 * sigma**2 * limit * t)
    return float(limit * (start + limit * tanh) / (limit + start * tanh))


class _Stage(NamedTuple):
    value: Array
    rate: Array


class ClassicalPart:
    """v_t in closed form if v_0 and g are quadratic, else by implicit stages.

    Args:
        problem: the problem.
        g: the part of V that does not depend on m, on the potential space, owned and ghosts.
        density: m_0 = e^{−u_0}.
        start: v_0 as a quadratic or by owned values; None means u_0 if it is quadratic, else
            the stationary v of a quadratic fit to g.
        options: PETSc options of Newton's method.

    Attributes:
        values: owned values of the current v, up to a constant.
        rate: owned values of ∂_t v at the end of the last step.
    """

    def __init__(
        self,
        problem: Problem,
        g: Array,
        density: LogDensity,
        start: Quadratic | Array | None,
        options: Options | None,
    ) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        points = self._discrete.owned_nodes
        self._points = points
        own = self._discrete.num_potential_owned
        quadratic_g = Quadratic.fit(problem, g[:own], self._discrete.potential_nodes[:, :own])
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
        self._potential = g
        self._operator = HJBOperator(problem, petsc_options=options)

    def advance(self, t: float, dt: float, scheme: Tableau) -> list[Array]:
        """Step from time t; return owned values of v at the stages. Collective."""
        if self._flow is not None:
            shapes = [self._flow.shape(t + time * dt) for time in scheme.times]
            values = [shape.evaluate(self._points) for shape in shapes]
            self.values, self.rate = values[-1], self._flow.rate(shapes[-1]).evaluate(self._points)
            return values

        def solve(start: Array, a: float, before: list[_Stage]) -> _Stage:
            guess = before[-1].value if before else self.values
            v, _ = self._operator.solve(start, guess, self._potential, a, 0.0)
            return _Stage(v, (v - start) / a)

        stages = solve_stages(scheme, self.values, None, dt, solve)
        v, self.rate = stages[-1]
        self.values = v - self._discrete.min(v)  # otherwise v would grow as λ_v t
        return [stage.value for stage in stages]


def stationary_quadratic(problem: Problem, g: Array) -> Quadratic:
    """½xᵀΘx + b·x, (σ²/2)Θ² = Q, (σ²/2)Θb = q, with Q and q from a fit to g. Collective.

    Non-positive eigenvalues of Q are replaced by the smallest positive one.
    """
    own = problem.discretisation.num_potential_owned
    fitted = Quadratic.fit(
        problem, g[:own], problem.discretisation.potential_nodes[:, :own], nearest=True
    )
    assert fitted is not None
    eigenvalues, frame = np.linalg.eigh(fitted.hessian)
    positive = eigenvalues[eigenvalues > 0]
    floor = float(positive.min()) if positive.size else 1.0
    theta = (frame * np.sqrt(2.0 * np.maximum(eigenvalues, floor)) / problem.sigma) @ frame.T
    slope = np.linalg.solve(0.5 * problem.sigma**2 * theta, fitted.slope)
    return Quadratic(theta, slope, 0.0)
