"""Energy, eigenvalue, residual and dissipation of a density.

Each is a number, the same on every rank:

    energy(problem, density)         # F^σ(m), E1
    eigenvalue(problem, density)     # λ = ⟨ψ, H[m]ψ⟩, F2
    residual(problem, density)       # ‖H[m]ψ − λψ‖
    dissipation(problem, density)    # −dF^σ/dt along the flow, D4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fem_mf.density import Density
from fem_mf.features import Array
from fem_mf.problem import Problem

__all__ = [
    "FirstOrder",
    "check_density",
    "check_problem",
    "dissipation",
    "dual_norm",
    "eigenvalue",
    "energy",
    "energy_scale",
    "first_order",
    "flat_scale",
    "hamiltonian",
    "residual",
]


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """What the first-order condition (F2) says of a density; vectors are owned load vectors.

    Attributes:
        potential: V[m] on the potential space, owned and ghosts.
        eigenvalue: λ = ⟨ψ, H[m]ψ⟩.
        gradient: H[m]ψ − λψ, half the gradient of F^σ on the sphere ‖ψ‖ = 1.
        residual: its L² norm.
    """

    potential: Array
    eigenvalue: float
    gradient: Array
    residual: float


def first_order(problem: Problem, density: Density) -> FirstOrder:
    """Evaluate the first-order condition (F2). Collective."""
    potential, load = _hamiltonian(problem, density)
    eigenvalue = problem.dot(density.amplitude(), load)
    gradient = load - eigenvalue * density.mass_amplitude()
    gradient[problem.constrained] = 0.0
    return FirstOrder(
        potential=potential,
        eigenvalue=eigenvalue,
        gradient=gradient,
        residual=dual_norm(problem, gradient),
    )


def check_problem(problem: object) -> None:
    """Refuse what is no problem."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, not {type(problem).__name__}")


def check_density(problem: object, density: object) -> None:
    """Refuse what is no problem or no density."""
    check_problem(problem)
    if not isinstance(density, Density):
        raise TypeError(
            "density must be a Density, such as Density.from_function(problem, m), not "
            f"{type(density).__name__}"
        )


def _hamiltonian(problem: Problem, density: Density) -> tuple[Array, Array]:
    """V[m] on the potential space, and the load vector of H[m]ψ. Collective."""
    check_density(problem, density)
    psi = density.amplitude()
    potential = problem.on_potential_space(problem.functional.derivative(density))
    load = problem.sigma**2 * problem.multiply(problem.stiffness, psi)
    return potential, load + problem.apply_potential(potential, psi)


def dual_norm(problem: Problem, load: Array) -> float:
    """L² norm of the function of ψ's space that a load vector represents. Collective."""
    # The error of ⟨load, M⁻¹load⟩ by conjugate gradients is the square of that of the solution.
    function = problem.solve_mass(load, rtol=1e-8)
    return float(np.sqrt(max(problem.dot(load, function), 0.0)))


def energy_scale(problem: Problem, condition: FirstOrder) -> float:
    """λ − min V, or the kinetic energy of the whole mesh where V is flat. Collective."""
    spread = condition.eigenvalue - problem.min(condition.potential)
    return max(spread, flat_scale(problem))


def flat_scale(problem: Problem) -> float:
    """σ² divided by the squared width of the mesh. Collective the first time."""
    volume = problem.mean_mass * problem.space.dofmap.index_map.size_global
    return float(problem.sigma**2 * volume ** (-2.0 / problem.dim))


def energy(problem: Problem, density: Density) -> float:
    """F^σ(m) = F(m) + σ²∫|∇ψ|² (E1). Collective."""
    check_density(problem, density)
    kinetic = 0.25 * problem.sigma**2 * density.fisher_information()
    return float(problem.functional.value(density)) + kinetic


def hamiltonian(problem: Problem, density: Density) -> Array:
    """The load vector of H[m]ψ, σ²∫∇ψ·∇χ + ∫V[m]ψχ for every χ, owned values. Collective."""
    return _hamiltonian(problem, density)[1]


def eigenvalue(problem: Problem, density: Density) -> float:
    """λ = ⟨ψ, H[m]ψ⟩ = ∫δF^σ/δm dm (F2); V normalised as the functional gives it. Collective."""
    load = hamiltonian(problem, density)
    return problem.dot(density.amplitude(), load)


def residual(problem: Problem, density: Density) -> float:
    """‖H[m]ψ − λψ‖ in L², H[m]ψ represented in ψ's space (F2). Collective."""
    return first_order(problem, density).residual


def dissipation(problem: Problem, density: Density) -> float:
    """−dF^σ/dt = ‖H[m]ψ − λψ‖² along the flow through this density (D4). Collective."""
    return first_order(problem, density).residual ** 2
