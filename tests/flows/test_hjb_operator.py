"""The HJB operator without a flow: exact values and steps, the explicit rule, the contraction."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from demos.well_posedness import contraction, explicit_descent
from fem_mf.flows.classical_part import Quadratic
from tests.exact import rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
SIGMA, KAPPA = 0.6, 0.6
LIMIT = np.sqrt(2 * KAPPA) / SIGMA
Z = np.linspace(-2.0, 2.0, 8)
TERMS = {
    "network": lambda: mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1])),
    "mean": lambda: mf.MeanInteraction(0.8, 0.5),
    "strong mean": lambda: mf.MeanInteraction(5.0, 0.5),
    "contact": lambda: mf.Contact(5.0),
    "linear": lambda: mf.Potential(lambda x: 0.1 * np.sin(x[0])),
}
_MADE = {}


def trap(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2)


def made(name, dim=1, h=0.45, radius=4.5):
    """Problem, its mean-field term, the stationary v and an off-centre Gaussian, made once."""
    key = name, dim, h, radius
    if key not in _MADE:
        mesh = mf.interval(COMM, radius, h) if dim == 1 else mf.disk(COMM, radius, h)
        G = TERMS[name]()
        problem = mf.Problem(mesh, mf.Potential(trap) + G, SIGMA, 2)
        mean = [0.8, -0.5][:dim]
        start = mf.Density.from_log(
            problem, lambda x: sum((x[i] - mean[i]) ** 2 for i in range(dim))
        )
        v = problem.discretisation.new_amplitude()
        v.interpolate(lambda x: 0.5 * LIMIT * (x[0] ** 2 + x[1] ** 2))
        _MADE[key] = problem, G, v, start
    return _MADE[key]


# -- the operator ------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", [False, True])
def test_rate_and_step_of_a_quadratic_in_closed_form(drift):
    """w = ½θx², v = ½ϑx²: the rate is (σ²/2)θ − (σ²/2)ϑθx² − (σ²/4)θ²x² + ½κx²; a step solves
    θ̄ = θ + h(κ − σ²ϑθ̄ − (σ²/2)θ̄²)."""
    problem, _, v, _ = made("linear", radius=6.0)
    operator = mf.HJBOperator(problem, v if drift else None)
    potential, w = problem.new_potential(), problem.discretisation.new_amplitude()
    potential.interpolate(lambda x: 0.5 * KAPPA * x[0] ** 2)
    theta, other, h = 1.3, LIMIT * drift, 0.7
    w.interpolate(lambda x: 0.5 * theta * x[0] ** 2)
    own = problem.discretisation.num_owned
    x = problem.discretisation.nodes[:, :own]
    found = Quadratic.fit(problem, operator.rate(w, potential).x.array[:own], x)
    half = 0.5 * SIGMA**2
    assert found.hessian[0, 0] == pytest.approx(
        KAPPA - 2 * half * other * theta - half * theta**2, abs=1e-9
    )
    assert found.constant == pytest.approx(half * theta, abs=1e-9)
    later = Quadratic.fit(problem, operator.step(w, potential, h).x.array[:own], x)
    exact = np.roots([half * h, 1 + 2 * half * h * other, -theta - h * KAPPA]).max()
    assert later.hessian[0, 0] == pytest.approx(exact, abs=1e-9)
    assert later.constant == pytest.approx(h * half * exact, abs=1e-8)


def test_bad_arguments():
    problem, _, v, start = made("mean")
    operator, V = mf.HJBOperator(problem), problem.functional.derivative(start)
    with pytest.raises(ValueError, match="dt must be a positive number"):
        operator.step(start.u(), V, 0.0)
    *_, w, _ = made("network")
    with pytest.raises(ValueError, match="another mesh"):
        operator.rate(w, V)
    linear = mf.Problem(problem.mesh, mf.Potential(trap), SIGMA, 1)
    with pytest.raises(ValueError, match="degree 2"):
        mf.HJBOperator(linear)
    walls = mf.Problem(problem.mesh, mf.Potential(trap), SIGMA, 2, boundary="dirichlet")
    with pytest.raises(ValueError, match="boundary='natural'"):
        mf.HJBOperator(walls)
    with pytest.raises(ValueError, match="problem's space"):
        mf.Density.from_log(linear, v)


def step_bound(problem, density):
    return mf.HJBOperator(problem).longest_explicit_step(density.u())


# -- the explicit rule -------------------------------------------------------------------------

EXPLICIT = [("network", 1, 0.45), ("network", 2, 0.9), ("contact", 1, 0.45)]


@rows("case", EXPLICIT)
def test_bound_of_the_explicit_rule_is_that_of_its_matrix(case):
    problem, *_, start = made(*case)
    apply = mf.HJBOperator(problem).linearised(start.log_values())
    matrix = np.column_stack([apply(column) for column in np.eye(problem.discretisation.num_owned)])
    largest = np.abs(np.linalg.eigvals(matrix)).max()
    assert step_bound(problem, start) == pytest.approx(2.0 / largest, rel=0.01)


def test_bound_shrinks_with_the_square_of_the_mesh_size():
    sizes = [0.45, 0.225, 0.1125]
    bounds = [step_bound(made("network", 1, h)[0], made("network", 1, h)[-1]) for h in sizes]
    assert abs(rate(sizes, bounds) - 2.0) < 0.2, bounds


@rows("case", EXPLICIT)
def test_explicit_rule_descends_within_its_bound_and_not_beyond(case):
    problem, *_, start = made(*case)
    bound = step_bound(problem, start)
    energies = [mf.energy(problem, m) for m in explicit_descent(problem, start, 0.8 * bound, 120)]
    assert len(energies) == 121
    assert np.diff(energies).max() < 1e-12
    assert energies[-1] < energies[0] - 1e-2
    for factor in (1.5, 100.0):
        densities = explicit_descent(problem, start, factor * bound, 120)
        with pytest.raises((AssertionError, ValueError)):
            for before, after in pairwise(mf.energy(problem, m) for m in densities):
                assert after <= before + 1e-12


def test_explicit_step_on_a_gaussian():
    # θ⁺ = θ + h (κ − (σ²/2)θ²), exactly
    problem = mf.Problem(mf.box(COMM, 6.0, 1.5), mf.Potential(trap), SIGMA, 2)
    theta, h = 1.2, 0.01
    start = mf.Density.from_log(problem, lambda x: 0.5 * theta * (x[0] ** 2 + x[1] ** 2))
    points = problem.discretisation.owned_nodes
    for density in list(explicit_descent(problem, start, h, 4))[1:]:
        theta += h * (KAPPA - 0.5 * SIGMA**2 * theta**2)
        found = Quadratic.fit(problem, density.log_values(), points, nearest=True)
        np.testing.assert_allclose(found.hessian, theta * np.eye(2), rtol=0, atol=1e-8)


# -- the contraction ---------------------------------------------------------------------------


def factor(name, length, steps=4, sweeps=2, dim=1):
    *_, before, last = contraction(*made(name, dim)[1:], length, steps, sweeps)
    return last[1] / before[1]


@pytest.mark.parametrize(("name", "dim"), [("network", 1), ("network", 2), ("mean", 1)])
def test_the_map_contracts_on_short_windows_in_proportion(name, dim):
    lengths = np.array([0.01, 0.02, 0.04, 0.32])
    factors = np.array([factor(name, length, dim=dim) for length in lengths])
    assert np.all(np.diff(factors) > 0) and factors[-1] < 1.0
    ratios = factors[:3] / lengths[:3]
    assert ratios.max() / ratios.min() < 1.1, factors


def test_the_factor_of_a_mean_interaction_in_closed_form():
    # One step of length T: w̄ = w₀ + p̄·x with (1 + (σ²/2)Tθ_T) p̄ = Tλ_c(μ − a) and, since the
    # mean of e^{−v−px} is μ_v − p/θ_T, the map p ↦ p̄ has slope −Tλ_c/(θ_T (1 + (σ²/2)Tθ_T)).
    for length in (0.1, 1.0, 5.0):
        found = contraction(*made("mean", radius=5.0)[1:], length, steps=1, sweeps=3)
        theta = 1.0 / found[0][0][0].covariance()[0, 0]
        exact = length * 0.8 / theta / (1 + 0.5 * SIGMA**2 * length * theta)
        assert found[-1][1] / found[-2][1] == pytest.approx(exact, rel=1e-6)


def test_long_windows_need_not_contract():
    factors = [factor("strong mean", length, 8, 3) for length in (0.25, 4.0)]
    assert factors[0] < 0.3 and factors[1] > 2.0


@pytest.mark.parametrize(
    ("name", "dim"), [("network", 1), ("network", 2), ("mean", 1), ("contact", 1)]
)
def test_the_fixed_point_of_the_map_is_the_flow(name, dim):
    problem, G, v, start = made(name, dim)
    found = contraction(G, v, start, 0.2, steps=4, sweeps=12)
    assert found[-1][1] < 1e-8
    flow = mf.HJBFlow(problem, 0.2 / 4, form="v+w", fixed_point_tolerance=1e-12)
    stationary = Quadratic(LIMIT * np.eye(dim), np.zeros(dim), 0.0)
    states = list(flow.run(start, 0.2, v_start=stationary))[1:]
    # V of a contact term takes m at the nodes as the flow normalises it, or as the density does
    tolerance = 3e-5 if name == "contact" else 1e-8
    for m, state in zip(found[-1][0], states, strict=True):
        there = state.density.log_values()
        np.testing.assert_allclose(m.log_values(), there, rtol=0, atol=tolerance)
    # and the first sweep is not yet there
    first = found[0][0][-1].log_values() - states[-1].density.log_values()
    assert np.abs(first).max() > 1e-4


def test_without_mean_field_one_sweep_is_enough():
    found = contraction(*made("linear")[1:], 0.5, steps=4, sweeps=2)
    assert found[0][1] > 1e-2 and found[1][1] < 1e-9
