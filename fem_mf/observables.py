"""Energy, eigenvalue, residual and dissipation of a density.

energy(problem, density)      # F^σ(m), E1
eigenvalue(problem, density)  # λ = ⟨ψ, H[m]ψ⟩, F2
residual(problem, density)    # ‖H[m]ψ − λψ‖
"""

from __future__ import annotations

import logging

import numpy as np

from fem_mf.density import Density
from fem_mf.features import Array
from fem_mf.problem import Problem

__all__ = [
    "boundary_mass",
    "dissipation",
    "eigenvalue",
    "energy",
    "hamiltonian",
    "residual",
]

_LOG = logging.getLogger(__name__)
BOUNDARY_MASS_WARNING = 1e-6


def energy(problem: Problem, density: Density) -> float:
    """F^σ(m) = F(m) + σ²∫|∇ψ|² (E1). Collective."""
    kinetic = 0.25 * problem.sigma**2 * density.fisher_information()
    return float(problem.functional.value(density)) + kinetic


def hamiltonian(problem: Problem, density: Density) -> Array:
    """The load vector of H[m]ψ, σ²∫∇ψ·∇χ + ∫V[m]ψχ for every χ, owned values. Collective."""
    psi = density.amplitude()
    potential = problem.on_potential_space(problem.functional.derivative(density))
    kinetic = problem.sigma**2 * problem.multiply(problem.stiffness, psi)
    return kinetic + problem.apply_potential(potential, psi)


def eigenvalue(problem: Problem, density: Density) -> float:
    """λ = ⟨ψ, H[m]ψ⟩ = ∫δF^σ/δm dm (F2); V normalised as the functional gives it. Collective."""
    return problem.dot(density.amplitude(), hamiltonian(problem, density))


def residual(problem: Problem, density: Density) -> float:
    """‖H[m]ψ − λψ‖ in L², H[m]ψ represented in ψ's space (F2). Collective."""
    load = hamiltonian(problem, density)
    psi = density.amplitude()
    load -= problem.dot(psi, load) * problem.apply_mass(psi)
    load[problem.constrained] = 0.0
    return float(np.sqrt(max(problem.dot(load, problem.solve_mass(load)), 0.0)))


def dissipation(problem: Problem, density: Density) -> float:
    """−dF^σ/dt = ‖H[m]ψ − λψ‖² along the flow through this density (D4). Collective."""
    return residual(problem, density) ** 2


def boundary_mass(problem: Problem, density: Density) -> float:
    """Mass of the cells that touch the boundary. Collective.

    What the truncation of R^d to the mesh neglects is of this size or smaller; the boundary of a
    hole counts too.
    """
    return problem.boundary_mass(density.amplitude())


def warn_if_truncated(problem: Problem, density: Density) -> float:
    """Log a warning with the radius to use when the mesh is too small for m. Collective.

    Returns:
        The boundary mass.
    """
    mass = boundary_mass(problem, density)
    if mass > BOUNDARY_MASS_WARNING:
        radius = problem.max(float(np.abs(problem.mesh.geometry.x).max(initial=0.0)))
        # Gaussian tails, mass ~ exp(−θR²/2): solve for the radius that reaches the threshold.
        tail = min(mass, 0.5)
        wanted = radius * np.sqrt(np.log(BOUNDARY_MASS_WARNING * 1e-2) / np.log(tail))
        _LOG.warning(
            "the mesh is too small: boundary mass %.1e at radius %.3g; use a radius of about %.3g",
            mass,
            radius,
            wanted,
        )
    return mass
