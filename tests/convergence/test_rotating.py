"""The rotating Gaussian (X4) with mean interaction: Θ and Q do not commute, and the axes turn."""

from mpi4py import MPI

import numpy as np
from scipy.integrate import solve_ivp

import fem_mf as mf
from tests.exact import rate

SIGMA, STRENGTH, TARGET, T = 0.8, 0.5, np.array([1.5, 0.5]), 1.0
Q = np.array([[1.75, -1.3], [-1.3, 3.25]])
MEAN, PRECISION = np.array([-1.2, 0.9]), np.diag([3.0, 1.5])


def test_order_and_turn():
    def slope(_, state):
        mean, theta = state[:2], state[2:].reshape(2, 2)
        force = Q @ mean + STRENGTH * (mean - TARGET)
        return np.append(-np.linalg.solve(theta, force), Q - 0.5 * SIGMA**2 * theta @ theta)

    start = np.append(MEAN, PRECISION)
    final = solve_ivp(slope, (0.0, T), start, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    mean, theta = final[:2], final[2:].reshape(2, 2)
    assert theta[0, 1] < -0.4  # it has turned
    trap = mf.Potential(lambda x: 0.5 * np.sum(x[:2] * (Q @ x[:2]), axis=0))
    mesh = mf.box(MPI.COMM_WORLD, 6.0, 1.0, cell="quadrilateral")
    problem = mf.Problem(
        mesh, trap + mf.MeanInteraction(STRENGTH, TARGET), SIGMA, degree=6, mass="lumped"
    )

    def gaussian(x):
        y = x[:2] - MEAN[:, None]
        return np.exp(-0.5 * np.sum(y * (PRECISION @ y), axis=0))

    steps, errors = [0.1, 0.05], []
    for dt in steps:
        flow = mf.SchrodingerFlow(problem, dt, "sdirk2")
        *_, last = flow.run(mf.Density.from_function(problem, gaussian), T)
        computed = np.linalg.inv(last.density.covariance())
        errors.append([np.linalg.norm(last.density.mean() - mean), np.abs(computed - theta).max()])
    for column in np.array(errors).T:
        assert abs(rate(steps, column) - 2) < 0.15, column
    assert np.max(errors[-1]) < 5e-3
