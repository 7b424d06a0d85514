"""Descent in relative entropy: the recursion on Gaussians, the descent inequality for every step,
and the flow as its limit."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem

import fem_mf as mf
from fem_mf.flows.classical_part import Quadratic
from fem_mf.flows.hjb import HJBFlow
from tests.exact import rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
EXACT = {"fixed_point_tolerance": 1e-11}
SIGMA, KAPPA = 0.6, 0.6
Z = np.linspace(-2.0, 2.0, 9)
STEPS = [0.1, 1.0, 100.0, 1e4]


def trap(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def network():
    return mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))


TERMS = {"network": network, "contact": lambda: mf.Contact(5.0)}
_MADE = {}


def made(name, dim, h):
    """A problem and an off-centre Gaussian start, made once."""
    key = name, dim, h
    if key not in _MADE:
        mesh = mf.interval(COMM, 4.5, h) if dim == 1 else mf.disk(COMM, 4.5, h)
        problem = mf.Problem(mesh, mf.Potential(trap) + TERMS[name](), SIGMA, 2)
        mean = [0.8, -0.5][:dim]
        start = mf.LogDensity.from_function(
            problem, lambda x: sum((x[i] - mean[i]) ** 2 for i in range(dim))
        )
        _MADE[key] = problem, start
    return _MADE[key]


def descend(problem, start, step, count, **options):
    descent = mf.RelativeEntropyDescent(problem, step, **EXACT | options)
    return list(descent.run(start, count * step))


# -- Gaussians ---------------------------------------------------------------------------------


def entropy_of_precisions(new, old, d):
    """H(N(0, new⁻¹ Id) | N(0, old⁻¹ Id))."""
    return 0.5 * d * (old / new - 1 - np.log(old / new))


def gaussian_energy(theta, d):
    return 0.5 * d * (KAPPA / theta + 0.5 * SIGMA**2 * theta)


@rows("h", STEPS)
@rows("dim", [1, 2])
def test_recursion_on_gaussians(dim, h):
    # wide and fine enough for the integrals of e^{−u}; u itself would be exact on two cells
    mesh = mf.interval(COMM, 8.0, 0.25) if dim == 1 else mf.box(COMM, 7.0, 0.875)
    problem = mf.Problem(mesh, mf.Potential(trap), SIGMA, 2)
    theta = 1.2
    start = mf.LogDensity.from_function(problem, lambda x: 0.5 * theta * (x[0] ** 2 + x[1] ** 2))
    points = problem.discretisation.owned_nodes
    for state in descend(problem, start, h, 4)[1:]:
        old, energy = theta, gaussian_energy(theta, dim)
        # θ⁺ = θ + h (κ − (σ²/2)θ⁺²), the positive root
        theta = (np.sqrt(1 + 2 * h * SIGMA**2 * (theta + h * KAPPA)) - 1) / (h * SIGMA**2)
        found = Quadratic.fit(problem, state.density.log_values(), points, nearest=True)
        np.testing.assert_allclose(found.hessian, theta * np.eye(dim), rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.slope, 0.0, rtol=0, atol=1e-10)
        entropy = entropy_of_precisions(theta, old, dim)
        assert state.relative_entropy == pytest.approx(entropy, abs=1e-8)
        assert state.energy == pytest.approx(gaussian_energy(theta, dim), abs=1e-8)
        slack = energy - gaussian_energy(theta, dim) - entropy / h
        assert state.slack == pytest.approx(slack, abs=2e-8 / min(h, 1.0))
        assert slack >= -1e-15


# -- the descent inequality --------------------------------------------------------------------


CASES = [("network", 1, 0.225), ("contact", 1, 0.225), ("network", 2, 0.9)]


@pytest.mark.parametrize(
    ("case", "h"),
    [(CASES[0], h) for h in (1e-2, 0.1, 1.0, 10.0, 100.0, 1e4)]
    + [(case, h) for case in CASES[1:] for h in (1e-2, 1.0, 1e4)],
)
def test_descent_inequality_for_every_step(case, h):
    problem, start = made(*case)
    states = descend(problem, start, h, 6)
    assert states[0].slack == states[0].relative_entropy == 0.0
    for before, after in pairwise(states):
        assert after.slack >= -1e-12
        assert after.relative_entropy >= -1e-12
        assert after.energy <= before.energy + 1e-12
        difference = before.energy - after.energy - after.relative_entropy / h
        assert after.slack == pytest.approx(difference, abs=1e-14)
        entropy = after.density.relative_entropy(before.density)
        assert after.relative_entropy == pytest.approx(entropy, abs=1e-13)
    # the inequality is strict on the way down
    assert states[1].slack > 1e-4
    assert states[1].energy < states[0].energy - 1e-3


@rows("h", STEPS)
def test_descent_inequality_of_contact_up_to_the_mesh(h):
    # The minimiser of the discrete energy and the fixed point of the discrete equation differ at
    # the order of the mesh: so close to them the inequality says nothing any more.
    problem, start = made("contact", 2, 0.9)
    states = descend(problem, start, h, 5)
    assert min(s.slack for s in states) >= -1e-9
    assert states[-1].energy < states[0].energy - 1e-2


def test_slack_is_the_entropy_of_the_way_back():
    # F^σ convex: the slack is at least h⁻¹ times the relative entropy H(m_k|m_{k+1}), since
    # m_k − m_{k+1} tested with (J2) is h⁻¹ (H(m_{k+1}|m_k) + H(m_k|m_{k+1}))
    problem, start = made("network", 1, 0.225)
    for before, after in pairwise(descend(problem, start, 0.5, 6)):
        back = before.density.relative_entropy(after.density)
        assert back > 1e-6
        assert after.slack >= back / 0.5 - 1e-8


def test_long_steps_end_at_the_minimiser():
    problem, start = made("network", 1, 0.225)
    *_, last = descend(problem, start, 1e4, 5)
    minimum = mf.minimise(problem, mf.Density(problem, start.amplitude()))
    assert last.energy == pytest.approx(minimum.energy, abs=1e-4)
    assert last.residual < 1e-8


# -- the flow as limit -------------------------------------------------------------------------


STRONG = {"data": np.linspace(-np.pi, np.pi, 40), "kappa": 0.1, "sigma": 0.5, "radius": 8.0}


def strong_step_by_differences(h, n):
    """Energy and second moment of one step of (J2), an independent code.

    Ten times the network loss of tanh(xz + 1): central differences, outflow at the ends, Newton's
    method with a dense matrix that knows the mean field, in pseudo-time.
    """
    z, kappa, sigma, radius = STRONG.values()
    x, dx = np.linspace(-radius, radius, n, retstep=True)
    features = np.tanh(np.outer(z, x) + 1.0)
    first = (np.eye(n, k=1) - np.eye(n, k=-1)) / (2 * dx)
    second = (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1)) / dx**2
    first[[0, -1]] = second[[0, -1]] = 0.0
    first[0, :3], first[-1, -3:] = np.array([[-3, 4, -1], [1, -4, 3]]) / (2 * dx)
    second[0, :4] = second[-1, :-5:-1] = np.array([2, -5, 4, -1]) / dx**2

    def measure(u):
        m = np.exp(u.min() - u)
        return m / m.sum()

    def rate_of(u):
        loss = np.sin(z) - features @ measure(u)
        V = 0.5 * kappa * x**2 - 20.0 / z.size * loss @ features
        return V + sigma**2 / 2 * second @ u - sigma**2 / 4 * (first @ u) ** 2

    def derivative(u):
        m = measure(u)
        coupling = features.T @ ((features - (features @ m)[:, None]) * m) / z.size
        drift = sigma**2 / 2 * (first @ u)[:, None] * first
        return sigma**2 / 2 * second - drift - 20.0 * coupling

    start = u = 0.5 * x**2
    delta, moved = 0.1, np.inf
    while moved > 1e-9 * delta:
        a = 1.0 / (1.0 / delta + 1.0 / h)
        between, new, residual = a * (u / delta + start / h), u, np.array(np.inf)
        while np.abs(residual).max() > 1e-9:
            residual = new - between - a * rate_of(new)
            new = new - np.linalg.solve(np.eye(n) - a * derivative(new), residual)
        moved, u, delta = np.ptp(new - u), new, min(1.3 * delta, 3.0)
    m = measure(u)
    loss = 10.0 * np.mean((np.sin(z) - features @ m) ** 2)
    return np.array([loss + 0.5 * kappa * x**2 @ m + sigma**2 / 4 * (first @ u) ** 2 @ m, x**2 @ m])


def test_a_long_step_of_a_strong_mean_field_succeeds_on_every_mesh():
    z, kappa, sigma, radius = STRONG.values()
    coarse, fine = (strong_step_by_differences(100.0, n) for n in (161, 321))
    exact = fine + (fine - coarse) / 3.0  # Richardson's extrapolation
    for h in (0.8, 0.4, 0.2):
        functional = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2) + 10.0 * mf.NetworkLoss(
            z, np.sin(z), lambda x, z: np.tanh(x[0] * z + 1.0)
        )
        problem = mf.Problem(mf.interval(COMM, radius, h), functional, sigma, 4)
        start = mf.LogDensity.from_function(problem, lambda x: 0.5 * x[0] ** 2)
        _, state = mf.RelativeEntropyDescent(problem, 100.0).run(start, 100.0)
        assert [state.energy, state.density.moment(2.0)] == pytest.approx(exact, rel=5e-6)
        assert state.slack > 0.0


def l1(here, there):
    dx = ufl.dx(metadata={"quadrature_degree": 8})
    form = fem.form(abs(ufl.exp(-here.u()) - ufl.exp(-there.u())) * dx)
    return fem.assemble_scalar(form)


@pytest.mark.parametrize("case", [("network", 1, 0.45), ("contact", 1, 0.45)])
def test_flow_is_the_limit_at_order_one(case):
    problem, start = made(*case)
    *_, limit = HJBFlow(problem, 1 / 32, "sdirk2").run(start, 1.0)
    steps = [1 / 8, 1 / 16, 1 / 32]
    errors = [
        l1(descend(problem, start, h, round(1 / h))[-1].density, limit.density) for h in steps
    ]
    assert abs(rate(steps, errors) - 1.0) < 0.15, errors
    assert errors[-1] < 2e-2


def test_a_step_is_one_of_backward_euler():
    problem, start = made("network", 1, 0.45)
    flow = HJBFlow(problem, 0.3, **EXACT)
    for a, b in zip(descend(problem, start, 0.3, 3), flow.run(start, 3 * 0.3), strict=True):
        np.testing.assert_allclose(
            a.density.log_values(), b.density.log_values(), rtol=0, atol=1e-12
        )
        assert (a.t, a.dt, a.step) == (b.t, b.dt, b.step)
        shared = b.scalars()
        assert list(a.scalars()) == [*shared, "relative_entropy", "slack"]
        assert all(isinstance(value, int | float) for value in a.scalars().values())


@rows("options", [{"scheme": "sdirk2"}, {"decomposed": True}, {"form": "v+w"}, {"weighted": True}])
def test_a_step_of_the_descent_has_one_scheme(options):
    with pytest.raises(ValueError, match="backward Euler step of u as a whole"):
        mf.RelativeEntropyDescent(made("network", 1, 0.45)[0], 0.1, **options)
