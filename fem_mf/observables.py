"""Numbers of a density: energy, eigenvalue, residual, dissipation; conditions; derivatives.

Each is the same on every rank:

    energy(problem, density)         # F^σ(m), E1
    eigenvalue(problem, density)     # λ = ⟨ψ, H[m]ψ⟩, F2
    residual(problem, density)       # ‖H[m]ψ − λψ‖
    dissipation(problem, density)    # −dF^σ/dt along the flow, D4

The first-order condition has three forms, which measure ‖δF^σ/δm(m, ·) − λ‖ in L²(m) by three
discretisations: tested against m (F1), as ‖Hψ − λψ‖ (F2), and by the Hamilton–Jacobi–Bellman
operator of u (F3). The Bregman divergence of F^σ has the sign of the inequality (E3):

    forms = first_order_forms(problem, density)
    forms.flat, forms.schrodinger, forms.hjb    # the same number but for discretisation
    gap = bregman(problem, density, start)
    gap.functional, gap.fisher                  # both ≥ 0 for convex F

The theory bounds derivatives along the flow (theory §4), here sup norms taken cell by cell at the
nodes of the element:

    bounds = Regularity(problem)
    bounds.gradient(w)          # ‖∇w‖∞
    bounds.growth(v)            # sup |∇v| / (1 + |x|)
    bounds.hessian(u)           # smallest eigenvalue and largest modulus of ∇²u
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem
from dolfinx.fem import petsc as fem_petsc

from fem_mf import equations
from fem_mf.density import Density, LogDensity, log_density
from fem_mf.mpi import global_sum
from fem_mf.petsc import SpdSolver
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exact_measure, exponential_measure, set_owned
from fem_mf.typing import Array

__all__ = [
    "Bregman",
    "FirstOrder",
    "FirstOrderForms",
    "Regularity",
    "bregman",
    "check_density",
    "check_problem",
    "dissipation",
    "dual_norm",
    "eigenvalue",
    "energy",
    "energy_scale",
    "first_order",
    "first_order_forms",
    "flat_scale",
    "hamiltonian",
    "residual",
]


_assemble_matrix: Any = fem_petsc.assemble_matrix


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


@dataclass(frozen=True, kw_only=True)
class FirstOrderForms:
    """‖δF^σ/δm − λ‖ in L²(m), and λ, three times.

    Attributes:
        flat: (F1), δF^σ/δm represented in L²(m).
        schrodinger: (F2), ‖H[m]ψ − λψ‖.
        hjb: (F3), the standard deviation under m of V + (σ²/2)Δu − (σ²/4)|∇u|².
        eigenvalues: λ by the three forms, in this order.
    """

    flat: float
    schrodinger: float
    hjb: float
    eigenvalues: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Bregman:
    """F^σ(m') − F^σ(m) − ∫δF^σ/δm(m, ·) d(m' − m), which (E3) says is not negative.

    Attributes:
        functional: the part of F, F(m') − F(m) − ∫V[m] d(m' − m).
        fisher: the part of (σ²/4) I, (σ²/4)∫|∇log(m'/m)|² dm' (D6).
    """

    functional: float
    fisher: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.functional + self.fisher


def first_order_forms(problem: Problem, density: Density) -> FirstOrderForms:
    """Evaluate (F1), (F2) and (F3). Collective.

    Args:
        problem: the problem, natural boundary, degree 2 at least.
        density: m; where only ψ is known, u = −2 log ψ at the nodes.

    Raises:
        ValueError: ψ is too small somewhere for its logarithm to mean anything.
    """
    known = log_density(density)
    condition = first_order(problem, density)
    values = _hjb_rate(problem, known, condition.potential)
    flat, eigenvalue = _flat(problem, known)
    return FirstOrderForms(
        flat=flat,
        schrodinger=condition.residual,
        hjb=float(np.sqrt(known.variance(values))),
        eigenvalues=(eigenvalue, condition.eigenvalue, known.expectation(values)),
    )


def _hjb_rate(problem: Problem, density: LogDensity, potential: Array) -> Array:
    """(σ²/2)Δu − (σ²/4)|∇u|² + V represented in L², owned values (F3)."""
    V = problem.new_potential()
    V.x.array[:] = potential
    degree = max(3 * problem.degree - 2, problem.degree + problem.potential_degree)
    dx, ds = exact_measure(problem.mesh, degree), ufl.ds(domain=problem.mesh)
    chi = ufl.TestFunction(problem.space)
    form = fem.form(equations.hjb(density.u(), chi, V, _constant(problem), dx, ds))
    return -problem.solve_mass(assemble_owned(form, problem.new_amplitude()).copy())


def _constant(problem: Problem) -> fem.Constant:
    """σ for a form that is compiled once for every σ."""
    value: Any = default_scalar_type(problem.sigma)
    return fem.Constant(problem.mesh, value)


def _flat(problem: Problem, density: LogDensity) -> tuple[float, float]:
    """‖δF^σ/δm − λ‖ and λ, with δF^σ/δm tested against m: no second derivatives, no boundary."""
    u, v = density.u(), problem.new_potential()
    v.x.array[:] = problem.on_potential_space(problem.functional.derivative(density))
    dx = exponential_measure(problem.mesh, problem.degree, problem.potential_degree)
    chi, delta = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
    load = equations.first_variation(u, chi, v, _constant(problem), dx)
    tested = assemble_owned(fem.form(load), problem.new_amplitude()).copy()
    mass: PETSc.Mat = _assemble_matrix(fem.form(equations.mass(delta, chi, dx, u)))
    mass.assemble()
    eigenvalue = float(global_sum(problem.comm, tested.sum()))
    weight = np.ones(problem.num_owned)
    tested -= eigenvalue * problem.multiply(mass, weight)
    # e^{−u} spans many decades: scaled by its diagonal the matrix is as good as a mass matrix.
    solver = SpdSolver(mass, "fem_mf_weighted_mass_", {"ksp_type": "cg", "pc_type": "jacobi"})
    right, solution = mass.createVecLeft(), mass.createVecRight()
    right.array[:] = tested
    solver.solve(right, solution, 1e-10)
    deviation = problem.dot(tested, np.array(solution.array_r, dtype=np.float64))
    for item in (solver, mass, right, solution):
        item.destroy()
    return float(np.sqrt(max(deviation, 0.0))), eigenvalue


def bregman(problem: Problem, new: Density, old: Density) -> Bregman:
    """The Bregman divergence of F^σ, whose sign is the inequality (E3). Collective.

    Args:
        problem: the problem.
        new: m'.
        old: m, at which F^σ is linearised.

    Raises:
        ValueError: ψ is too small somewhere for its logarithm to mean anything.
    """
    first, second = log_density(old), log_density(new)
    functional = problem.functional
    potential = problem.on_potential_space(functional.derivative(first))
    change: Array = second.measure() - first.measure()
    linear = problem.dot(potential[: problem.num_potential_owned], change)
    part = float(functional.value(second)) - float(functional.value(first)) - linear
    dx = exponential_measure(problem.mesh, problem.degree, problem.potential_degree)
    form = fem.form(equations.relative_fisher(second.u(), first.u(), _constant(problem), dx))
    fisher = float(global_sum(problem.comm, fem.assemble_scalar(form)))
    return Bregman(functional=part, fisher=fisher)


class Regularity:
    """Bounds of functions of the problem's space; forms are compiled once.

    Args:
        problem: the problem, of degree 2 at least.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        mesh = problem.mesh
        self._f: fem.Function = problem.new_amplitude()
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
        """‖∇f‖∞ of a function by its owned values. Collective."""
        return self.problem.max(float(self._slopes(values).max(initial=0.0)))

    def growth(self, values: Array) -> float:
        """sup |∇f|/(1 + |x|) of a function by its owned values. Collective."""
        ratio = self._slopes(values) / (1.0 + self._radius)
        return self.problem.max(float(ratio.max(initial=0.0)))

    def hessian(self, values: Array) -> tuple[float, float]:
        """Smallest eigenvalue of ∇²f, and the largest modulus of any. Collective."""
        dim = self.problem.dim
        matrices = self._evaluate(self._hessian, values).reshape(-1, dim, dim)
        eigenvalues = np.linalg.eigvalsh(0.5 * (matrices + matrices.transpose(0, 2, 1)))
        largest = self.problem.max(float(np.abs(eigenvalues).max(initial=0.0)))
        return self.problem.min(eigenvalues), largest
