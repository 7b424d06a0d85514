"""Orders in time of the three schemes, and of the energy dissipation identity (D4)."""

from mpi4py import MPI

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fem_mf as mf
from tests.exact import breathing_precision, gaussian, gaussian_energy, moving_gaussian, rate

ORDERS = {"backward-euler": 1, "crank-nicolson": 2, "sdirk2": 2}
STEPS = {1: [1 / 32, 1 / 64, 1 / 128], 2: [1 / 16, 1 / 32, 1 / 64]}
EXACT = {"fixed_point_tolerance": 1e-11}
X1 = {"sigma": 0.7, "kappa": 1.0, "strength": 0.8, "target": 0.5}
X2 = {"sigma": 0.8, "kappa": 0.5, "strength": 0.6}
T = 1.0


def line(functional, sigma):
    """A one-dimensional problem whose error in space is below 1e-9."""
    mesh = mf.interval(MPI.COMM_WORLD, 9.0, 0.5)
    return mf.Problem(mesh, functional, sigma, degree=8, mass="lumped")


@pytest.fixture(scope="module")
def x1():
    functional = mf.Potential(lambda x: 0.5 * X1["kappa"] * x[0] ** 2) + mf.MeanInteraction(
        X1["strength"], X1["target"]
    )
    return line(functional, X1["sigma"])


@pytest.fixture(scope="module")
def x2():
    interaction = mf.Cylindrical(
        [lambda x: x[0] ** 2],
        lambda y: 0.5 * X2["strength"] * y[0] ** 2,
        lambda y: X2["strength"] * y,
    )
    return line(mf.Potential(lambda x: 0.5 * X2["kappa"] * x[0] ** 2) + interaction, X2["sigma"])


def distance(problem, density, mean, precision):
    """‖ψ_h − ψ‖ in L² against the exact Gaussian."""
    exact = np.sqrt(gaussian(mean, precision)(problem.discretisation.nodes))[
        : problem.discretisation.num_owned
    ]
    difference = density.amplitude() - exact
    return np.sqrt(
        problem.discretisation.dot(difference, problem.discretisation.apply_mass(difference))
    )


def final(problem, scheme, dt, mean, precision):
    start = mf.Density.from_function(problem, gaussian(mean, precision))
    *_, last = mf.SchrodingerFlow(problem, dt, scheme, **EXACT).run(start, T)
    assert last.t == T
    return last


@pytest.mark.parametrize("scheme", ORDERS)
def test_order_on_the_moving_gaussian(x1, scheme):
    order = ORDERS[scheme]
    mean, precision = moving_gaussian(T, -0.8, 1.2, **X1)
    exact_energy = gaussian_energy(mean, precision, **X1)
    errors = []
    for dt in STEPS[order]:
        last = final(x1, scheme, dt, -0.8, 1.2)
        errors.append(
            [
                distance(x1, last.density, mean, precision),
                abs(last.density.mean()[0] - mean[0]),
                abs(1 / last.density.covariance()[0, 0] - precision),
                abs(last.energy - exact_energy),
            ]
        )
    for column in np.array(errors).T:
        assert abs(rate(STEPS[order], column) - order) < 0.1, column
    assert errors[-1][0] < {1: 3e-3, 2: 2e-4}[order]


@pytest.mark.parametrize("scheme", ORDERS)
def test_order_on_the_breathing_gaussian(x2, scheme):
    order = ORDERS[scheme]
    precision = breathing_precision(T, 0.6, d=1, **X2)
    errors = []
    for dt in STEPS[order]:
        last = final(x2, scheme, dt, 0.0, 0.6)
        errors.append(
            [
                distance(x2, last.density, 0.0, precision),
                abs(1 / last.density.covariance()[0, 0] - precision),
            ]
        )
    for column in np.array(errors).T:
        assert abs(rate(STEPS[order], column) - order) < 0.1, column
    assert errors[-1][0] < {1: 4e-3, 2: 4e-4}[order]


@pytest.mark.parametrize("scheme", ORDERS)
def test_energy_dissipation_identity(x2, scheme):
    order = ORDERS[scheme]
    defects = []
    for dt in STEPS[order]:
        start = mf.Density.from_function(x2, gaussian(0.0, 0.6))
        states = list(mf.SchrodingerFlow(x2, dt, scheme, **EXACT).run(start, T))
        dissipated = np.trapezoid([s.dissipation for s in states], [s.t for s in states])
        defects.append(abs(states[-1].energy - states[0].energy + dissipated))
    assert abs(rate(STEPS[order], defects) - order) < 0.15
    assert defects[-1] < {1: 2e-2, 2: 1e-2}[order]


def test_adaptive_steps_meet_their_tolerance(x1):
    mean, precision = moving_gaussian(T, -0.8, 1.2, **X1)
    start = mf.Density.from_function(x1, gaussian(-0.8, 1.2))
    errors, counts = [], []
    for tolerance in (1e-3, 1e-5):
        flow = mf.SchrodingerFlow(x1, 0.5, "sdirk2", tolerance=tolerance)
        states = list(flow.run(start, T))
        assert states[-1].t == T
        assert sum(s.rejected for s in states) > 0  # the first step is far too long
        errors.append(distance(x1, states[-1].density, mean, precision))
        counts.append(states[-1].step)
    assert errors[0] < 1e-3 and errors[1] < 1e-5
    assert counts[1] > 3 * counts[0]


def test_dissipation_of_the_flow_is_that_of_the_density(x1):
    last = final(x1, "sdirk2", 1 / 8, -0.8, 1.2)
    assert last.dissipation == pytest.approx(mf.dissipation(x1, last.density), rel=1e-8)
    assert last.eigenvalue == pytest.approx(mf.eigenvalue(x1, last.density), rel=1e-12)
    assert last.energy == pytest.approx(mf.energy(x1, last.density), rel=1e-12)


@pytest.fixture(scope="module")
def n2():
    """N2 on collocated quadrilaterals, its start, and ψ at t = T by SciPy's Radau method."""
    z = np.linspace(-np.pi, np.pi, 40)
    functional = mf.Potential(lambda x: 0.05 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, np.sin(z), lambda x, z: np.tanh(x[0] * z + x[1])
    )
    mesh = mf.box(MPI.COMM_WORLD, 6.0, 2.0, cell="quadrilateral")
    problem = mf.Problem(mesh, functional, 0.5, 4, mass="lumped")
    start = mf.Density.from_function(problem, gaussian([0.8, -0.5], 1.5))
    x, mass = problem.discretisation.nodes, problem.discretisation.mass_diagonal
    kinetic = 0.25 * problem.stiffness.copy().convert("dense").getDenseArray() / mass[:, None]
    neurons = np.tanh(np.outer(z, x[0]) + x[1])
    trap = 0.05 * (x[0] ** 2 + x[1] ** 2)
    linear = -0.5 * kinetic - 0.5 * np.diag(trap)

    def slope(t, psi):
        m = psi**2 / (mass @ psi**2)
        v = -(2.0 / z.size) * (np.sin(z) - neurons @ (mass * m)) @ neurons
        change = linear @ psi - 0.5 * v * psi
        return change - psi * ((mass * psi) @ change) / ((mass * psi) @ psi)

    reference = solve_ivp(
        slope, (0, T), start.amplitude(), method="Radau", jac=linear, rtol=1e-9, atol=1e-11
    )
    return problem, start, reference.y[:, -1]


@pytest.mark.parametrize("scheme", ORDERS)
def test_order_on_a_network(n2, scheme):
    problem, start, reference = n2
    order = ORDERS[scheme]
    errors = []
    for dt in STEPS[order]:
        *_, last = mf.SchrodingerFlow(problem, dt, scheme, **EXACT).run(start, T)
        errors.append(problem.discretisation.norm(last.density.amplitude() - reference))
    assert abs(rate(STEPS[order], errors) - order) < 0.1, errors
    assert errors[-1] < {1: 3e-3, 2: 2e-4}[order]
