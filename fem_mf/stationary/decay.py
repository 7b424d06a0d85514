"""The rate at which the flow approaches its limit: the decay rate (D5) and the spectral gap.

    best = minimise(problem).density
    decay_rate(problem, best)      # r in F^σ(m_t) − min F^σ ~ e^{−rt}
    spectral_gap(problem, best)    # λ₁ − λ₀ of the frozen H[m]

Both log a warning if the lowest states cannot be separated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from petsc4py import PETSc

import numpy as np

from fem_mf.density import Density
from fem_mf.hamiltonian import Hamiltonian
from fem_mf.mpi import ConvergenceError, warn
from fem_mf.observables import FirstOrder, energy_scale
from fem_mf.petsc import LEAST_UNKNOWNS, shell_matrix
from fem_mf.problem import Problem
from fem_mf.stationary.certificate import LowestPairs, kinetic_rounding, prepare, smooth_guess
from fem_mf.stationary.hessian import Hessian
from fem_mf.typing import Array

__all__ = ["decay_rate", "lowest_curvature", "spectral_gap"]

_LOG = logging.getLogger(__name__)
_ROUNDING = 1e-14  # relative error of a Rayleigh quotient
_TIGHTER = 5
_SEARCHES = 3  # number of searches for a state that earlier ones missed


def spectral_gap(problem: Problem, density: Density, *, tolerance: float = 1e-10) -> float:
    """λ₁ − λ₀ of the frozen H[m]. Collective.

    For a linear F, half of it is the local exponential rate of ψ_t; see :func:`decay_rate` for the
    general case.

    Args:
        problem: the problem.
        density: m.
        tolerance: relative tolerance of the eigenvalues.
    """
    condition, metric = prepare(problem, density, tolerance)
    operator = Hamiltonian(problem)
    operator.update(condition.potential)
    start = [density.amplitude(), smooth_guess(problem, metric, 1)]
    pairs = LowestPairs(metric, operator.matrix, start)
    pairs.grow()  # the third state shows how well the second is separated

    def measure(residual: float) -> tuple[float, float]:
        pairs.solve(residual)
        return pairs.values[1] - pairs.values[0], pairs.error(0) + pairs.error(1)

    return _sharpened(density, condition, measure, tolerance, "spectral gap")


def decay_rate(problem: Problem, minimiser: Density, *, tolerance: float = 1e-8) -> float:
    """The rate r of F^σ(m_t) − min F^σ ~ e^{−rt} along the flow (D5). Collective.

    The flow linearised at the minimiser is ∂_tδ = −½Jδ on δ ⊥ ψ, where J is the second derivative
    of F^σ/2 on the sphere. r is the smallest eigenvalue of J; for convex F it is at least the
    spectral gap of the frozen H[m]. Starts without a part along its eigenfunction decay faster.

    Args:
        problem: the problem.
        minimiser: the minimiser of F^σ on this problem, with a small residual.
        tolerance: relative tolerance of the rate.

    Raises:
        ConvergenceError: if the eigensolver fails.
    """
    return lowest_curvature(problem, minimiser, tolerance, "decay rate")[0]


def lowest_curvature(
    problem: Problem, density: Density, tolerance: float, name: str = "curvature"
) -> tuple[float, Array]:
    """The smallest eigenvalue of J, half the second derivative of F^σ on the sphere. Collective.

    Args:
        problem: the problem.
        density: a critical point of F^σ.
        tolerance: relative tolerance of the eigenvalue.
        name: name of the eigenvalue in a warning.

    Returns:
        The eigenvalue, negative at a saddle, and owned values of its eigenfunction, with norm one.

    Raises:
        ConvergenceError: if the eigensolver fails.
    """
    condition, metric = prepare(problem, density, tolerance)
    discrete = problem.discretisation
    _LOG.info("%s: the lowest eigenvalue of the Hessian of F^σ", name)
    hessian = Hessian(problem)
    hessian.update(density, condition)
    psi, mass_psi = density.amplitude(), density.mass_amplitude()

    def apply(x: PETSc.Vec, y: PETSc.Vec) -> None:
        v = np.array(x.array_r, dtype=np.float64)
        v -= psi * discrete.dot(mass_psi, v)
        load = hessian.apply(v)
        y.array[:] = load - mass_psi * discrete.dot(psi, load)

    few = problem.space.dofmap.index_map.size_global < 2 * LEAST_UNKNOWNS
    start = [smooth_guess(problem, metric, k) for k in range(1, 2 if few else 3)]
    shell = shell_matrix(hessian.sparse.matrix, apply)
    pairs = LowestPairs(metric, shell, start, deflate=[psi])
    rough = 0.1 * energy_scale(problem, condition)

    def measure(residual: float) -> tuple[float, float]:
        for attempt in range(_SEARCHES):
            pairs.solve(residual)
            # A block with another start finds states that the first one may have missed.
            other = pairs.another(rough, 5 + attempt)
            if other.values[0] > pairs.values[0] - residual:
                break
            pairs.states = [*other.vectors, *pairs.states][: len(start)]
        return pairs.values[0], pairs.error(0)

    value = _sharpened(density, condition, measure, tolerance, name)
    slowest = pairs.states[0] - psi * discrete.dot(mass_psi, pairs.states[0])
    return value, slowest / discrete.norm(slowest)


def _sharpened(
    density: Density,
    condition: FirstOrder,
    measure: Callable[[float], tuple[float, float]],
    tolerance: float,
    name: str,
) -> float:
    """Tighten residuals until the relative error of the measured number is below tolerance."""
    spread = energy_scale(density.problem, condition)
    # Rounding of two Rayleigh quotients, and of the sums Aψ on fine meshes.
    rounding = 4.0 * (kinetic_rounding(density) + np.finfo(float).eps * abs(condition.eigenvalue))
    value, error = measure(0.02 * spread)
    residual = float(np.sqrt(tolerance)) * min(spread, max(abs(value), _ROUNDING * spread))
    for _ in range(_TIGHTER):
        if error + rounding <= tolerance * abs(value):
            return value
        try:
            value, error = measure(max(residual, 10.0 * _ROUNDING * spread))
        except ConvergenceError:
            break
        residual *= 0.1
    if error + rounding > tolerance * abs(value):
        message = (
            "the %s is %.6g with an error of up to %.1e: the lowest states cannot be separated "
            "further"
        )
        warn(density.problem.comm, _LOG, message, *(name, value, error + rounding))
    return value
