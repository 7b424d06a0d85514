"""How fast the flow approaches its limit: the decay rate (D5), and the spectral gap.

    best = minimise(problem).density
    decay_rate(problem, best)      # r of F^σ(m_t) − min F^σ ~ e^{−rt}
    spectral_gap(problem, best)    # λ₁ − λ₀ of the frozen H[m]

Both warn where the lowest states cannot be separated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from petsc4py import PETSc

import numpy as np

from fem_mf.density import Density
from fem_mf.mpi import ConvergenceError, warn
from fem_mf.observables import FirstOrder, dual_norm, energy_scale
from fem_mf.petsc import (
    LEAST_UNKNOWNS,
    States,
    lowest_states,
    shell_matrix,
)
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.stationary.certificate import LowestPairs, aij_mass, prepare, smooth_guess
from fem_mf.stationary.hessian import Hessian
from fem_mf.typing import Array

__all__ = ["decay_rate", "lowest_curvature", "spectral_gap"]

_LOG = logging.getLogger(__name__)
_ROUNDING = 1e-14  # relative error of a Rayleigh quotient
_TIGHTER = 5
_SEARCHES = 3  # for a state that the ones before missed


def spectral_gap(problem: Problem, density: Density, *, tolerance: float = 1e-10) -> float:
    """λ₁ − λ₀ of the frozen H[m]. Collective.

    Half of it is the local exponential rate of ψ_t for a linear F; see :func:`decay_rate` for the
    others.

    Args:
        problem: the problem.
        density: m.
        tolerance: relative, of the eigenvalues.
    """
    condition, metric = prepare(problem, density, tolerance)
    spread = energy_scale(problem, condition)
    pairs = LowestPairs(problem, density, condition, metric)
    pairs.grow()  # the state above tells how well the second is separated

    def measure(residual: float) -> tuple[float, float]:
        values, residuals = pairs.to(residual)
        first, second = (_error(values, residuals, k) for k in (0, 1))
        return values[1] - values[0], first + second + rounding

    rounding = _rounding(problem, density, condition)
    return _sharpened(problem, measure, tolerance, spread, "spectral gap")


def decay_rate(problem: Problem, minimiser: Density, *, tolerance: float = 1e-8) -> float:
    """The rate r of F^σ(m_t) − min F^σ ~ e^{−rt} along the flow (D5). Collective.

    The flow linearised at the minimiser is ∂_tδ = −½Jδ on δ ⊥ ψ, J the second derivative of F^σ/2
    on the sphere: r is the smallest eigenvalue of J there, at least the spectral gap of the frozen
    H[m] when F is convex. Starts without a component along its eigenfunction decay faster.

    Args:
        problem: the problem.
        minimiser: of F^σ on this problem, residual small.
        tolerance: relative, of the rate.

    Raises:
        ConvergenceError: the eigensolver failed.
    """
    return lowest_curvature(problem, minimiser, tolerance, "decay rate")[0]


def lowest_curvature(
    problem: Problem, density: Density, tolerance: float, name: str = "curvature"
) -> tuple[float, Array]:
    """The smallest eigenvalue of J, half the second derivative of F^σ on the sphere. Collective.

    Args:
        problem: the problem.
        density: a critical point of F^σ.
        tolerance: relative, of the eigenvalue.
        name: what to call it in a warning.

    Returns:
        The eigenvalue, negative at a saddle, and owned values of its eigenfunction, of norm one.

    Raises:
        ConvergenceError: the eigensolver failed.
    """
    condition, metric = prepare(problem, density, tolerance)
    discrete = problem.discretisation
    hessian = Hessian(problem)
    hessian.update(density, condition)
    psi, mass_psi = density.amplitude(), density.mass_amplitude()

    def apply(x: PETSc.Vec, y: PETSc.Vec) -> None:
        v = np.array(x.array_r, dtype=np.float64)
        v -= psi * discrete.dot(mass_psi, v)
        load = hessian.apply(v)
        y.array[:] = load - mass_psi * discrete.dot(psi, load)

    shell, mass = shell_matrix(hessian.sparse.matrix, apply), aij_mass(problem)
    spread = energy_scale(problem, condition)
    rounding = _rounding(problem, density, condition)
    few = problem.space.dofmap.index_map.size_global < 2 * LEAST_UNKNOWNS
    states = [smooth_guess(problem, metric, k) for k in range(1, 2 if few else 3)]

    def residual_of(value: float, state: Array) -> float:
        v = state - psi * discrete.dot(mass_psi, state)
        load = hessian.apply(v) - value * discrete.apply_mass(v)
        load -= mass_psi * discrete.dot(psi, load)
        load[discrete.constrained] = 0.0
        return dual_norm(problem, load)

    def lowest(start: list[Array], residual: float, above: list[Array]) -> States:
        euclidean = residual * float(np.sqrt(discrete.mean_mass))
        return lowest_states(
            shell, mass, metric.apply, start, tolerance=euclidean, deflate=[psi, *above]
        )

    def measure(residual: float) -> tuple[float, float]:
        nonlocal states
        for attempt in range(_SEARCHES):
            found = lowest(states, residual, [])
            states = found.vectors
            # A block that starts elsewhere finds what the first one may have missed.
            other = lowest([smooth_guess(problem, metric, 5 + attempt)], 0.1 * spread, states)
            if other.values[0] > found.values[0] - residual:
                break
            states = [*other.vectors, *states][: len(states)]
        residuals = [residual_of(*pair) for pair in zip(found.values, states, strict=True)]
        return found.values[0], _error(found.values, residuals, 0) + rounding

    value = _sharpened(problem, measure, tolerance, spread, name)
    slowest = states[0] - psi * discrete.dot(mass_psi, states[0])
    return value, slowest / discrete.norm(slowest)


def _rounding(problem: Problem, density: Density, condition: FirstOrder) -> float:
    """Rounding of two Rayleigh quotients: of their values, and of the sums Aψ on fine meshes."""
    psi, diagonal = density.amplitude(), owned_values(problem.stiffness.getDiagonal())
    sums = problem.sigma**2 * problem.discretisation.dot(diagonal * psi, psi) + abs(
        condition.eigenvalue
    )
    return 4.0 * np.finfo(float).eps * float(sums)


def _error(values: list[float], residuals: list[float], k: int) -> float:
    """A bound of the error of the k-th Ritz value (Weinstein, or Kato and Temple)."""
    error = residuals[k]
    if k + 1 < len(values):
        separation = values[k + 1] - residuals[k + 1] - values[k]
        if separation > 0.0:
            error = min(error, residuals[k] ** 2 / separation)
    return error


def _sharpened(
    problem: Problem,
    measure: Callable[[float], tuple[float, float]],
    tolerance: float,
    spread: float,
    name: str,
) -> float:
    """A number whose error is below tolerance times itself, from residuals that are tightened."""
    value, error = measure(0.02 * spread)
    residual = float(np.sqrt(tolerance)) * min(spread, max(abs(value), _ROUNDING * spread))
    for _ in range(_TIGHTER):
        if error <= tolerance * abs(value):
            return value
        try:
            value, error = measure(max(residual, 10.0 * _ROUNDING * spread))
        except ConvergenceError:
            break
        residual *= 0.1
    if error > tolerance * abs(value):
        warn(
            problem.comm,
            _LOG,
            "the %s is %.6g with an error of up to %.1e: the lowest states cannot be separated "
            "further",
            *(name, value, error),
        )
    return value
