"""Orders in space on the minimiser of (X1), reached by backward Euler with one enormous step size.

The fixed point of that scheme is the discrete minimiser whatever the step, so that no error in time
is left.
"""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem

import fem_mf as mf
from tests.exact import gaussian, rate

SIGMA, KAPPA, STRENGTH, TARGET = 0.8, 1.0, 0.5, np.array([0.6, -0.3])
THETA = np.sqrt(2 * KAPPA) / SIGMA
MEAN = STRENGTH * TARGET / (KAPPA + STRENGTH)
MINIMUM = 2 * SIGMA * np.sqrt(KAPPA / 2) + 0.5 * KAPPA * STRENGTH * np.sum(TARGET**2) / (
    KAPPA + STRENGTH
)


def functional():
    return mf.Potential(lambda x: 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2)) + mf.MeanInteraction(
        STRENGTH, TARGET
    )


def solve(mesh, degree, mass="consistent"):
    """L² error of ψ, energy error and number of dofs of the discrete minimiser."""
    problem = mf.Problem(mesh, functional(), SIGMA, degree=degree, mass=mass)
    start = mf.Density.from_function(problem, gaussian(MEAN, THETA))
    flow = mf.SchrodingerFlow(problem, dt=1e4, fixed_point_tolerance=1e-11)
    *_, last = flow.run(start, 1e5, steady_residual=1e-9)
    x = ufl.SpatialCoordinate(mesh)
    squared = sum((x[i] - MEAN[i]) ** 2 for i in range(2))
    exact = np.sqrt(THETA / (2 * np.pi)) * ufl.exp(-0.25 * THETA * squared)
    form = fem.form((last.density.psi - exact) ** 2 * ufl.dx(degree=2 * degree + 8))
    error = np.sqrt(mesh.comm.allreduce(fem.assemble_scalar(form)))
    return error, abs(last.energy - MINIMUM), problem.space.dofmap.index_map.size_global


@pytest.mark.parametrize(
    ("degree", "mass", "cap_l2", "cap_energy"),
    [
        (1, "consistent", 3e-3, 8e-3),
        (1, "lumped", 3e-3, 3e-3),
        (2, "consistent", 2e-4, 2e-5),
        (3, "consistent", 1.4e-5, 1e-7),
    ],
)
def test_orders_on_simplices(degree, mass, cap_l2, cap_energy):
    radius, h = {1: (5.0, 0.8), 2: (5.0, 1.2), 3: (6.5, 1.5)}[degree]
    mesh = mf.box(MPI.COMM_WORLD, radius, h)
    results = []
    for level in range(3):
        if level:
            mesh = mf.refine(mesh)
        results.append(solve(mesh, degree, mass))
    errors = np.array(results)
    sizes = [1.0, 0.5, 0.25]
    assert abs(rate(sizes[1:], errors[1:, 0]) - (degree + 1)) < 0.15
    assert abs(rate(sizes[1:], errors[1:, 1]) - 2 * degree) < 0.15
    assert errors[-1, 0] < cap_l2
    assert errors[-1, 1] < cap_energy


@pytest.mark.parametrize(("degree", "cap"), [(4, 4e-5), (6, 2e-7)])
def test_orders_on_quadrilaterals(degree, cap):
    sizes = [1.6, 0.8]
    errors = [
        solve(mf.box(MPI.COMM_WORLD, 6.4, h, cell="quadrilateral"), degree, "lumped")[0]
        for h in sizes
    ]
    assert rate(sizes, errors) > degree + 0.5
    assert errors[-1] < cap


def test_degree_six_quadrilaterals_reach_1e_10():
    mesh = mf.box(MPI.COMM_WORLD, 6.0, 0.84, cell="quadrilateral", grading=1.6)
    _, error, dofs = solve(mesh, 6, "lumped")
    assert dofs <= 5000
    assert error < 1e-10
