"""Checks of a functional: its derivative and its convexity.

Both are tested near a density, along random directions:

    check_derivative(F, density).order    # 2 if the derivative is right
    probe_convexity(F, density)           # the smallest second difference found
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from fem_mf.density import Density
from fem_mf.functionals.terms import convexity_of
from fem_mf.problem import FunctionalLike
from fem_mf.typing import Array

__all__ = ["Convexity", "DerivativeCheck", "check_derivative", "convexity", "probe_convexity"]

_NOT_CONVEX = -1e-9  # relative result of a probe below which it is more than rounding


@dataclass(frozen=True, kw_only=True)
class DerivativeCheck:
    """Taylor remainders |F(m_ε) − F(m) − ∫V[m] d(m_ε − m)| for halving ε.

    Attributes:
        steps: values of ε, ``(n,)``.
        remainders: Taylor remainders, ``(n,)``.
        order: fitted slope of log remainder against log ε: 2 for a right derivative, 1 for a wrong
            one, inf if F is linear along the segment (remainders at rounding level).
    """

    steps: Array
    remainders: Array
    order: float


def _mixture(first: Density, second: Density, weight: float) -> Density:
    a, b = first.amplitude(), second.amplitude()
    return Density(first.problem, np.sqrt((1.0 - weight) * a**2 + weight * b**2))


def _potential(functional: FunctionalLike, density: Density) -> Array:
    """V[m] at the points of the density. Collective."""
    problem = density.problem
    values = problem.on_potential_space(functional.derivative(density))
    return values[: problem.discretisation.num_potential_owned]


def _random_density(density: Density, seed: int) -> Density:
    """m times a smooth positive random factor, independent of the number of ranks."""
    rng = np.random.default_rng(seed)
    problem = density.problem
    x = problem.discretisation.owned_nodes[: problem.dim]
    width = np.sqrt(np.trace(density.covariance()))
    exponent = np.zeros(x.shape[1])
    for _ in range(3):
        direction = rng.normal(size=problem.dim) / width
        exponent += rng.normal() * np.sin(direction @ x + rng.uniform(0, 2 * np.pi))
    return Density(problem, density.amplitude() * np.exp(0.5 * exponent))


def check_derivative(
    functional: FunctionalLike, density: Density, *, seed: int = 0, levels: int = 6
) -> DerivativeCheck:
    """Taylor test of the flat derivative along a random direction. Collective.

    Args:
        functional: any object with ``value`` and ``derivative``.
        density: the density at which to test.
        seed: seed of the random direction.
        levels: number of values of ε, halved from 1/4.

    Returns:
        The remainders and their order; see :class:`DerivativeCheck`.
    """
    dot = density.problem.discretisation.dot
    other = _random_density(density, seed)
    value, potential = float(functional.value(density)), _potential(functional, density)
    steps = 0.25 * 0.5 ** np.arange(levels, dtype=np.float64)
    remainders = np.empty(levels)
    largest = abs(value)
    for i, step in enumerate(steps):
        moved = _mixture(density, other, float(step))
        change = dot(potential, moved.measure() - density.measure())
        moved_value = float(functional.value(moved))
        largest = max(largest, abs(moved_value), abs(change))
        remainders[i] = abs(moved_value - value - change)
    usable = remainders > 1e-13 * largest
    order = np.inf
    if usable.sum() >= 2:
        order = float(np.polyfit(np.log(steps[usable]), np.log(remainders[usable]), 1)[0])
    return DerivativeCheck(steps=steps, remainders=remainders, order=order)


class Convexity(Enum):
    """What is known about the convexity of a functional."""

    PROVED = "convex by its terms"
    PROBED = "no probe contradicts convexity"
    REFUTED = "not convex"


def convexity(functional: FunctionalLike, density: Density) -> Convexity:
    """Whether F is convex: by its terms if known, else by probes near a density. Collective.

    Args:
        functional: any object with ``value`` and ``derivative``.
        density: the centre of the probes.
    """
    known = convexity_of(functional)
    if known:
        return Convexity.PROVED
    if known is False or probe_convexity(functional, density) < _NOT_CONVEX:
        return Convexity.REFUTED
    return Convexity.PROBED


def probe_convexity(
    functional: FunctionalLike, density: Density, *, samples: int = 8, seed: int = 0
) -> float:
    """Smallest ∫(V[m'] − V[m]) d(m' − m) over random pairs near a density. Collective.

    If F is convex, every pair gives a non-negative value (E3 both ways). A negative result proves
    that F is not convex; a non-negative one does not establish convexity.

    Args:
        functional: any object with ``value`` and ``derivative``.
        density: the centre of the random densities.
        samples: number of pairs.
        seed: seed of the first pair.

    Returns:
        The minimum over the pairs, divided by ∫|V[m'] − V[m]| d(m' + m); 0 for a linear F.
    """
    dot = density.problem.discretisation.dot
    smallest = np.inf
    for i in range(samples):
        a, b = (_random_density(density, seed + 2 * i + j) for j in range(2))
        difference = _potential(functional, b) - _potential(functional, a)
        change = dot(difference, b.measure() - a.measure())
        scale = dot(np.abs(difference), np.abs(b.measure()) + np.abs(a.measure()))
        smallest = min(smallest, change / scale if scale > 0 else 0.0)
    return smallest
