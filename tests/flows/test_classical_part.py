"""Quadratic solutions of the classical equation, against an integrator that knows no formula."""

from mpi4py import MPI

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fem_mf as mf
from fem_mf.flows.classical_part import Quadratic, RiccatiFlow, convexity_bound
from tests.rows import rows

COMM = MPI.COMM_WORLD
SIGMA = 0.7
# Hessians of g and of v_0 that do not commute, slopes and constants.
G = {
    1: Quadratic(np.array([[1.3]]), np.array([0.4]), 0.7),
    2: Quadratic(np.array([[1.2, 0.3], [0.3, 0.5]]), np.array([-0.4, 0.3]), -0.2),
    3: Quadratic(
        np.array([[1.2, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 2.0]]),
        np.array([-0.4, 0.3, 0.9]),
        0.5,
    ),
}
START = {
    1: Quadratic(np.array([[2.5]]), np.array([-0.3]), -1.0),
    2: Quadratic(np.array([[0.6, -0.4], [-0.4, 3.0]]), np.array([0.5, 0.2]), 2.0),
    3: Quadratic(
        np.array([[2.0, -0.4, 0.3], [-0.4, 1.5, 0.2], [0.3, 0.2, 0.8]]),
        np.array([0.5, -0.2, 0.1]),
        0.0,
    ),
}
every_dim = pytest.mark.parametrize("d", [1, 2, 3])


def integrated(g, start, sigma, t):
    """(Θ, b, c) by Runge and Kutta."""
    d = g.slope.size
    half = 0.5 * sigma**2

    def slope(_, packed):
        theta, b = packed[: d * d].reshape(d, d), packed[d * d : -1]
        c = half * np.trace(theta) - 0.5 * half * b @ b + g.constant
        return np.concatenate(
            [(g.hessian - half * theta @ theta).ravel(), g.slope - half * theta @ b, [c]]
        )

    packed = np.concatenate([start.hessian.ravel(), start.slope, [start.constant]])
    end = solve_ivp(slope, (0, t), packed, rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1]
    return end[: d * d].reshape(d, d), end[d * d : -1], end[-1]


@rows("d", [1, 2, 3])
def test_flow_is_that_of_the_integrator(d):
    for t in (0.01, 0.5, 3.0, 40.0):
        theta, b, c = integrated(G[d], START[d], SIGMA, t)
        v = RiccatiFlow(G[d], START[d], SIGMA).at(t)
        np.testing.assert_allclose(v.hessian, theta, rtol=0, atol=1e-10)
        np.testing.assert_allclose(v.slope, b, rtol=0, atol=1e-10)
        assert v.constant == pytest.approx(c, abs=1e-9 * max(1.0, abs(c)))
        np.testing.assert_array_equal(v.hessian, v.hessian.T)


@rows("d", [1, 2, 3])
def test_flow_begins_where_it_should(d):
    v = RiccatiFlow(G[d], START[d], SIGMA).at(0.0)
    np.testing.assert_allclose(v.hessian, START[d].hessian, rtol=0, atol=1e-14)
    np.testing.assert_allclose(v.slope, START[d].slope, rtol=0, atol=1e-14)
    assert v.constant == START[d].constant


@rows("d", [1, 2, 3])
def test_flow_is_a_semigroup(d):
    flow = RiccatiFlow(G[d], START[d], SIGMA)
    rest = RiccatiFlow(G[d], flow.at(0.7), SIGMA).at(1.1)
    whole = flow.at(1.8)
    np.testing.assert_allclose(rest.hessian, whole.hessian, rtol=0, atol=1e-11)
    np.testing.assert_allclose(rest.slope, whole.slope, rtol=0, atol=1e-11)
    assert rest.constant == pytest.approx(whole.constant, abs=1e-10)


@every_dim
def test_long_times_end_at_the_stationary_solution(d, t=2e3):
    # (σ²/2)Θ² = Q and (σ²/2)Θb = q
    v = RiccatiFlow(G[d], START[d], SIGMA).at(t)
    half = 0.5 * SIGMA**2
    np.testing.assert_allclose(half * v.hessian @ v.hessian, G[d].hessian, rtol=0, atol=1e-9)
    np.testing.assert_allclose(half * v.hessian @ v.slope, G[d].slope, rtol=0, atol=1e-9)
    rate = half * np.trace(v.hessian) - 0.5 * half * v.slope @ v.slope + G[d].constant
    assert v.constant / t == pytest.approx(rate, abs=20.0 / t)


def test_flow_without_curvature_of_g():
    # Θ' = −(σ²/2)Θ²: Θ = (Θ₀⁻¹ + (σ²/2)t)⁻¹
    g = Quadratic(np.zeros((2, 2)), np.zeros(2), 0.0)
    v = RiccatiFlow(g, START[2], SIGMA).at(3.0)
    inverse = np.linalg.inv(START[2].hessian) + 1.5 * SIGMA**2 * np.eye(2)
    np.testing.assert_allclose(v.hessian, np.linalg.inv(inverse), rtol=0, atol=1e-12)


def test_isotropic_flow_attains_the_bound():
    g = Quadratic(1.3 * np.eye(2), np.zeros(2), 0.0)
    for start in (0.0, 0.4, 2.0, 50.0):
        flow = RiccatiFlow(g, Quadratic(start * np.eye(2), np.zeros(2), 0.0), SIGMA)
        for t in (0.1, 1.0, 10.0):
            bound = convexity_bound(t, start, 1.3, SIGMA)
            np.testing.assert_allclose(flow.at(t).hessian, bound * np.eye(2), rtol=0, atol=1e-10)


@rows("d", [1, 2, 3])
def test_anisotropic_flow_stays_above_the_bound(d):
    flow = RiccatiFlow(G[d], START[d], SIGMA)
    kappa = np.linalg.eigvalsh(G[d].hessian)[0]
    start = np.linalg.eigvalsh(START[d].hessian)[0]
    for t in (0.1, 0.5, 2.0, 20.0):
        bound = convexity_bound(t, start, kappa, SIGMA)
        assert np.linalg.eigvalsh(flow.at(t).hessian)[0] >= bound - 1e-10


# -- the bound ---------------------------------------------------------------------------------


def test_convexity_bound_solves_its_equation():
    kappa = 0.9

    def slope(_, theta):
        return kappa - 0.5 * SIGMA**2 * theta**2

    for start in (0.0, 0.3, 1.0, 30.0):
        for t in (0.1, 1.0, 5.0):
            exact = solve_ivp(slope, (0, t), [start], rtol=1e-12, atol=1e-13).y[0, -1]
            assert convexity_bound(t, start, kappa, SIGMA) == pytest.approx(exact, abs=1e-9)


def test_limits_of_the_convexity_bound():
    limit = np.sqrt(2 * 0.9) / SIGMA
    for start in (0.0, 0.3, 30.0):
        assert convexity_bound(0.0, start, 0.9, SIGMA) == pytest.approx(start, abs=1e-14)
        assert convexity_bound(1e6, start, 0.9, SIGMA) == pytest.approx(limit, rel=1e-14)
    assert convexity_bound(0.8, limit, 0.9, SIGMA) == pytest.approx(limit, rel=1e-14)


# -- fits --------------------------------------------------------------------------------------

MESHES = {
    1: lambda: mf.interval(COMM, 4.0, 0.5),
    2: lambda: mf.box(COMM, 4.0, 1.0),
    3: lambda: mf.box(COMM, 4.0, 2.0, cell="tetrahedron"),
}
_MADE = {}


def problem_of(d):
    if d not in _MADE:
        _MADE[d] = mf.Problem(MESHES[d](), mf.Potential(lambda x: x[0] ** 2), 0.5, 2)
    return _MADE[d]


def fit(d, f, **options):
    problem = problem_of(d)
    points = problem.discretisation.owned_nodes
    return Quadratic.fit(problem, f(points), points, **options)


@rows("d", [1, 2, 3])
def test_fit_of_a_quadratic_is_exact_and_finds_none_where_there_is_none(d):
    for nearest in (False, True):
        found = fit(d, START[d].evaluate, nearest=nearest)
        np.testing.assert_allclose(found.hessian, START[d].hessian, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.slope, START[d].slope, rtol=0, atol=1e-11)
        assert found.constant == pytest.approx(START[d].constant, abs=1e-11)
    for size in (1e-6, 0.01, 1.0):
        assert fit(d, lambda x, size=size: START[d].evaluate(x) + size * np.cos(3 * x[0])) is None


def test_fit_forgives_rounding():
    noise = np.random.default_rng(2)
    assert fit(2, lambda x: START[2].evaluate(x) + 1e-12 * noise.standard_normal(x.shape[1]))


def test_fit_of_constants_and_zeros():
    for value in (0.0, 3.0):
        found = fit(2, lambda x, c=value: np.full(x.shape[1], c))
        np.testing.assert_allclose(found.hessian, 0.0, atol=1e-12)
        np.testing.assert_allclose(found.slope, 0.0, atol=1e-12)
        assert found.constant == pytest.approx(value, abs=1e-12)


def test_nearest_is_that_of_least_squares():
    def f(x):
        return START[2].evaluate(x) + 0.1 * x[0] ** 4 + np.sin(x[1])

    found, problem = fit(2, f, nearest=True), problem_of(2)
    x, y = problem.discretisation.nodes[:2, : problem.discretisation.num_owned]
    columns = np.column_stack([np.ones_like(x), x, y, 0.5 * x**2, x * y, 0.5 * y**2])
    best = np.linalg.lstsq(columns, f(problem.discretisation.owned_nodes))[0]
    own = [found.constant, *found.slope, *found.hessian[[0, 0, 1], [0, 1, 1]]]
    np.testing.assert_allclose(own, best, rtol=0, atol=1e-9)


@rows("d", [1, 2, 3])
def test_evaluate(d):
    q, points = START[d], np.random.default_rng(3).standard_normal((3, 7))
    x = points[:d]
    exact = [0.5 * p @ q.hessian @ p + q.slope @ p + q.constant for p in x.T]
    np.testing.assert_allclose(q.evaluate(points), exact, rtol=1e-13)
    np.testing.assert_allclose(q.evaluate(x), exact, rtol=1e-13)


@rows("start", ["stationary", "off"])
@rows("sigma", [0.02, 0.5])
def test_anisotropic_potentials_at_long_times(sigma, start):
    """Q = R diag(1, 0.01) Rᵀ: in the frame of Q each eigenvalue follows the scalar equation."""
    for t in (1.0, 300.0, 3_000.0, 1e5):
        check_anisotropic(sigma, start, t)


def check_anisotropic(sigma, start, t):
    c, s = np.cos(0.7), np.sin(0.7)
    frame = np.array([[c, -s], [s, c]])
    kappas = np.array([1.0, 0.01])
    limits = np.sqrt(2.0 * kappas) / sigma
    first = limits if start == "stationary" else limits * np.array([0.3, 2.0])
    g = Quadratic((frame * kappas) @ frame.T, frame @ [0.2, 0.01], 0.0)
    v = Quadratic((frame * first) @ frame.T, np.zeros(2), 0.0)
    at = RiccatiFlow(g, v, sigma).shape(t)
    exact = [
        convexity_bound(t, theta, kappa, sigma) for theta, kappa in zip(first, kappas, strict=True)
    ]
    theta = frame.T @ at.hessian @ frame
    np.testing.assert_allclose(np.diag(theta), exact, rtol=1e-9)
    assert abs(theta[0, 1]) < 1e-9 * limits.max()
    if t == 1e5:  # (σ²/2)Θb = q
        slope = np.linalg.solve(0.5 * sigma**2 * at.hessian, g.slope)
        np.testing.assert_allclose(at.slope, slope, rtol=1e-8)
