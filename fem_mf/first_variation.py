"""The first variation δF^σ/δm (E2), and the first-order condition in its three forms.

The three residuals measure ‖δF^σ/δm(m, ·) − λ‖ in L²(m) by three discretisations: tested against m
(F1), as ‖Hψ − λψ‖ (F2), and by the Hamilton–Jacobi–Bellman operator of u (F3):

    forms = first_order_forms(problem, density)
    forms.flat, forms.schrodinger, forms.hjb    # equal up to the discretisation error

They are defined for every density.
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
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.mpi import global_sum
from fem_mf.observables import first_order
from fem_mf.petsc import SpdSolver
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exponential_measure

__all__ = ["FirstOrderForms", "first_order_forms"]

_assemble_matrix: Any = fem_petsc.assemble_matrix


@dataclass(frozen=True, kw_only=True)
class FirstOrderForms:
    """‖δF^σ/δm − λ‖ in L²(m), and λ, each computed in three ways.

    Attributes:
        flat: (F1), δF^σ/δm represented in L²(m).
        schrodinger: (F2), ‖H[m]ψ − λψ‖.
        hjb: (F3), the standard deviation under m of V + (σ²/2)Δu − (σ²/4)|∇u|².
        eigenvalues: λ from the three forms, in this order.
    """

    flat: float
    schrodinger: float
    hjb: float
    eigenvalues: tuple[float, float, float]


def first_order_forms(problem: Problem, density: Density) -> FirstOrderForms:
    """Evaluate (F1), (F2) and (F3). Collective.

    Args:
        problem: the problem, with natural boundary and degree at least 2.
        density: m; if only ψ is known, u = −2 log ψ at the nodes is used.

    Raises:
        ValueError: if ψ is too small somewhere for its logarithm to be meaningful.
    """
    known = log_density(density)
    condition = first_order(problem, density)
    values = HJBOperator(problem).rate_of(known.log_values(), condition.potential)
    flat, eigenvalue = _flat(problem, known)
    return FirstOrderForms(
        flat=flat,
        schrodinger=condition.residual,
        hjb=float(np.sqrt(known.variance(values))),
        eigenvalues=(eigenvalue, condition.eigenvalue, known.expectation(values)),
    )


def _flat(problem: Problem, density: LogDensity) -> tuple[float, float]:
    """‖δF^σ/δm − λ‖ and λ, tested against m without second derivatives or boundary terms."""
    discrete = problem.discretisation
    u, v = density.u(), problem.new_potential()
    v.x.array[:] = problem.on_potential_space(problem.functional.derivative(density))
    dx = exponential_measure(problem.mesh, problem.degree, discrete.potential_degree)
    chi, delta = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
    value: Any = default_scalar_type(problem.sigma)
    sigma = fem.Constant(problem.mesh, value)  # so that the form is compiled once for all σ
    load = equations.first_variation(u, chi, v, sigma, dx)
    tested = assemble_owned(fem.form(load), discrete.new_amplitude()).copy()
    mass: PETSc.Mat = _assemble_matrix(fem.form(equations.mass(delta, chi, dx, u)))
    mass.assemble()
    eigenvalue = float(global_sum(problem.comm, tested.sum()))
    weight = np.ones(discrete.num_owned)
    tested -= eigenvalue * discrete.multiply(mass, weight)
    # e^{−u} spans many decades; after diagonal scaling the matrix is as well conditioned as M.
    solver = SpdSolver(mass, "fem_mf_weighted_mass_", {"ksp_type": "cg", "pc_type": "jacobi"})
    right, solution = mass.createVecLeft(), mass.createVecRight()
    right.array[:] = tested
    solver.solve(right, solution, 1e-10)
    deviation = discrete.dot(tested, np.array(solution.array_r, dtype=np.float64))
    for item in (solver, mass, right, solution):
        item.destroy()
    return float(np.sqrt(max(deviation, 0.0))), eigenvalue
