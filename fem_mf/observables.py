"""Observables of a density: energy, eigenvalue, residual, dissipation, norms of derivatives.

Each value is the same on every rank:

    energy(problem, density)         # F^σ(m), E1
    eigenvalue(problem, density)     # λ = ⟨ψ, H[m]ψ⟩, F2
    residual(problem, density)       # ‖H[m]ψ − λψ‖
    dissipation(problem, density)    # −dF^σ/dt along the flow, D4

The theory bounds derivatives along the flow (theory §4). Their sup norms are computed cell by cell
at the nodes of the element:

    bounds = Regularity(problem)
    bounds.gradient(w)          # ‖∇w‖∞
    bounds.growth(v)            # sup |∇v| / (1 + |x|)
    bounds.hessian(u)           # smallest eigenvalue and largest modulus of ∇²u
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ufl
from dolfinx import fem

from fem_mf.density import Density
from fem_mf.problem import Problem
from fem_mf.spaces import set_owned
from fem_mf.typing import Array

__all__ = [
    "FirstOrder",
    "Regularity",
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
    """Data of the first-order condition (F2) at a density; vectors are owned load vectors.

    Attributes:
        potential: V[m] on the potential space, owned and ghosts.
        eigenvalue: λ = ⟨ψ, H[m]ψ⟩.
        gradient: H[m]ψ − λψ, half the gradient of F^σ on the sphere ‖ψ‖ = 1.
        residual: L² norm of ``gradient``.
    """

    potential: Array
    eigenvalue: float
    gradient: Array
    residual: float


def first_order(problem: Problem, density: Density) -> FirstOrder:
    """Evaluate the first-order condition (F2). Collective."""
    potential, load = _hamiltonian(problem, density)
    eigenvalue = problem.discretisation.dot(density.amplitude(), load)
    gradient = load - eigenvalue * density.mass_amplitude()
    gradient[problem.discretisation.constrained] = 0.0
    return FirstOrder(
        potential=potential,
        eigenvalue=eigenvalue,
        gradient=gradient,
        residual=dual_norm(problem, gradient),
    )


def check_problem(problem: object) -> None:
    """Raise TypeError unless this is a Problem."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, not {type(problem).__name__}")


def check_density(problem: object, density: object) -> None:
    """Raise TypeError unless these are a Problem and a Density."""
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
    load = problem.sigma**2 * problem.discretisation.multiply(problem.stiffness, psi)
    return potential, load + problem.discretisation.apply_potential(potential, psi)


def dual_norm(problem: Problem, load: Array) -> float:
    """L² norm of the function of ψ's space that a load vector represents. Collective."""
    # With conjugate gradients the error of ⟨load, M⁻¹load⟩ is the square of the solution's error.
    function = problem.discretisation.solve_mass(load, rtol=1e-8)
    return float(np.sqrt(max(problem.discretisation.dot(load, function), 0.0)))


def energy_scale(problem: Problem, condition: FirstOrder) -> float:
    """λ − min V, or the kinetic energy scale of the mesh if V is flat. Collective."""
    spread = condition.eigenvalue - problem.discretisation.min(condition.potential)
    return max(spread, flat_scale(problem))


def flat_scale(problem: Problem) -> float:
    """σ² divided by the squared width of the mesh. Collective the first time."""
    volume = problem.discretisation.mean_mass * problem.space.dofmap.index_map.size_global
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
    """λ = ⟨ψ, H[m]ψ⟩ = ∫δF^σ/δm dm (F2), with V normalised as by the functional. Collective."""
    load = hamiltonian(problem, density)
    return problem.discretisation.dot(density.amplitude(), load)


def residual(problem: Problem, density: Density) -> float:
    """‖H[m]ψ − λψ‖ in L², with H[m]ψ represented in ψ's space (F2). Collective."""
    return first_order(problem, density).residual


def dissipation(problem: Problem, density: Density) -> float:
    """−dF^σ/dt = ‖H[m]ψ − λψ‖² along the flow through this density (D4). Collective."""
    return first_order(problem, density).residual ** 2


class Regularity:
    """Bounds on derivatives of functions of the problem's space; forms are compiled once.

    Args:
        problem: the problem, with degree at least 2.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        mesh = problem.mesh
        self._f: fem.Function = self._discrete.new_amplitude()
        points = problem.space.element.interpolation_points
        x = ufl.SpatialCoordinate(mesh)
        self._gradient = fem.Expression(ufl.grad(self._f), points)
        self._hessian = fem.Expression(ufl.grad(ufl.grad(self._f)), points)
        self._cells = np.arange(
            mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32
        )
        radius = fem.Expression(ufl.sqrt(ufl.inner(x, x)), points).eval(mesh, self._cells)
        self._radius = radius.reshape(-1)

    def _evaluate(self, expression: fem.Expression, values: Array) -> Array:
        problem = self.problem
        set_owned(self._f, values)
        return np.asarray(expression.eval(problem.mesh, self._cells))

    def _slopes(self, values: Array) -> Array:
        return np.linalg.norm(
            self._evaluate(self._gradient, values).reshape(-1, self.problem.dim), axis=1
        )

    def gradient(self, values: Array) -> float:
        """‖∇f‖∞ of a function given by its owned values. Collective."""
        return self._discrete.max(float(self._slopes(values).max(initial=0.0)))

    def growth(self, values: Array) -> float:
        """sup |∇f|/(1 + |x|) of a function given by its owned values. Collective."""
        ratio = self._slopes(values) / (1.0 + self._radius)
        return self._discrete.max(float(ratio.max(initial=0.0)))

    def hessian(self, values: Array) -> tuple[float, float]:
        """Smallest eigenvalue of ∇²f, and the largest modulus of an eigenvalue. Collective."""
        dim = self.problem.dim
        matrices = self._evaluate(self._hessian, values).reshape(-1, dim, dim)
        eigenvalues = np.linalg.eigvalsh(0.5 * (matrices + matrices.transpose(0, 2, 1)))
        largest = self._discrete.max(float(np.abs(eigenvalues).max(initial=0.0)))
        return self._discrete.min(eigenvalues), largest
