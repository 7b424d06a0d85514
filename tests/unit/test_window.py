"""The well-posedness map over a time window: contraction, and the flow as its fixed point."""

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.flows.decomposition import Quadratic
from fem_mf.flows.window import WindowMap
from fem_mf.observables import Regularity

COMM = MPI.COMM_WORLD
SIGMA, KAPPA = 0.6, 0.6
Z = np.linspace(-2.0, 2.0, 9)
_MADE = {}


def trap(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2)


TERMS = {
    "network": lambda: mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1])),
    "mean": lambda: mf.MeanInteraction(0.8, 0.5),
    "contact": lambda: mf.Contact(2.0),
    "linear": lambda: mf.Potential(lambda x: 0.1 * np.sin(x[0])),
}


def made(name, dim=1):
    """A problem and an off-centre Gaussian start, made once."""
    if (name, dim) not in _MADE:
        mesh = mf.interval(COMM, 5.0, 0.5) if dim == 1 else mf.disk(COMM, 4.5, 0.9)
        problem = mf.Problem(mesh, mf.Potential(trap) + TERMS[name](), SIGMA, 2)
        mean = [0.8, -0.5][:dim]
        start = mf.LogDensity.from_function(
            problem, lambda x: sum((x[i] - mean[i]) ** 2 for i in range(dim))
        )
        _MADE[name, dim] = problem, start
    return _MADE[name, dim]


def sweeps(name, length, steps, count, dim=1, **options):
    problem, start = made(name, dim)
    return list(WindowMap(problem, start, length, steps, **options).iterate(count))


def fixed_point(name, length, steps, dim=1, **options):
    """Sweeps up to the first that changes nothing to speak of."""
    problem, start = made(name, dim)
    found = []
    for sweep in WindowMap(problem, start, length, steps, **options).iterate(40):
        found.append(sweep)
        if sweep.distance < 1e-9:
            return found
    raise AssertionError(found[-1].distance)


@pytest.mark.parametrize(("name", "dim"), [("network", 1), ("network", 2), ("mean", 1)])
def test_the_map_contracts_on_short_windows(name, dim):
    factors = [sweeps(name, length, 4, 2, dim)[-1].factor for length in (0.02, 0.08, 0.32)]
    assert factors[-1] < 1.0
    assert np.all(np.diff(factors) > 0)


@pytest.mark.parametrize("name", ["network", "mean"])
def test_the_factor_is_proportional_to_the_window(name):
    lengths = [0.01, 0.02, 0.04]
    factors = [sweeps(name, length, 4, 2)[-1].factor for length in lengths]
    ratios = np.array(factors) / lengths
    assert ratios.max() / ratios.min() < 1.1, factors
    assert factors[0] < 0.02


def test_the_factor_of_a_mean_interaction_in_closed_form():
    # One step of length T: w̄ = w₀ + p̄·x with (1 + (σ²/2)Tθ_T) p̄ = Tλ_c(μ − a) and, since the
    # mean of e^{−v−px} is μ_v − p/θ_T, the map p ↦ p̄ has slope −Tλ_c/(θ_T (1 + (σ²/2)Tθ_T)).
    problem, start = made("mean")
    limit = np.sqrt(2 * KAPPA) / SIGMA
    v_start = Quadratic(limit * np.eye(1), np.zeros(1), 0.0)
    for length in (0.1, 1.0, 5.0):
        window = WindowMap(problem, start, length, 1, v_start=v_start)
        theta = 1.0 / next(iter(window.iterate(1))).densities[0].covariance()[0, 0]
        found = list(window.iterate(3))[-1].factor
        # w₀ is a quadratic here, whose curvature also follows Riccati's recursion: θ of e^{−v−w}
        exact = length * 0.8 / theta / (1 + 0.5 * SIGMA**2 * length * theta)
        assert found == pytest.approx(exact, rel=1e-6)


def test_long_windows_need_not_contract():
    factors = [sweeps("contact", length, 8, 3)[-1].factor for length in (0.25, 4.0, 16.0)]
    assert factors[0] < 0.15 < factors[1] < 1.0 < factors[2]


@pytest.mark.parametrize(
    ("name", "dim"), [("network", 1), ("network", 2), ("mean", 1), ("contact", 1)]
)
def test_the_fixed_point_is_the_flow(name, dim):
    problem, start = made(name, dim)
    found = fixed_point(name, 0.2, 4, dim)
    flow = mf.HJBFlow(problem, 0.2 / 4, decomposed=True, fixed_point_tolerance=1e-12)
    states = list(flow.run(start, 0.2))[1:]
    assert len(found[-1].densities) == len(states) == 4
    for m, state in zip(found[-1].densities, states, strict=True):
        np.testing.assert_allclose(m.log_values(), state.density.log_values(), rtol=0, atol=1e-8)
    # and the first sweep is not yet there
    first = found[0].densities[-1].log_values() - states[-1].density.log_values()
    assert np.abs(first).max() > 1e-4


def test_the_fixed_point_does_not_depend_on_the_decomposition():
    # v that stays and v that begins at u₀: as close as backward Euler is to itself
    problem, _ = made("network")
    v_start = Quadratic(np.sqrt(2 * KAPPA) / SIGMA * np.eye(1), np.zeros(1), 0.0)
    ends = []
    for steps in (4, 8):
        pair = [
            fixed_point("network", 0.2, steps, **options)[-1].densities[-1].log_values()
            for options in ({}, {"v_start": v_start})
        ]
        inside = np.abs(problem.nodes[0, : problem.num_owned]) < 2.0
        ends.append(np.abs(pair[0] - pair[1])[inside].max())
    assert ends[1] < 0.65 * ends[0]
    assert ends[1] < 2e-2


def test_without_mean_field_one_sweep_is_enough():
    v_start = Quadratic(np.eye(1), np.zeros(1), 0.0)  # for a w that moves
    found = fixed_point("linear", 0.5, 4, v_start=v_start)
    assert len(found) == 2
    assert found[0].distance > 1e-2


def test_sweeping_on_at_the_fixed_point():
    assert sweeps("linear", 0.5, 4, 4)[-1].distance < 1e-9


def test_distance_is_that_of_the_gradients():
    problem, _ = made("network")
    first, second = sweeps("network", 0.2, 3, 2)
    bounds = Regularity(problem)
    pairs = zip(second.densities, first.densities, strict=True)
    exact = max(bounds.gradient(a.log_values() - b.log_values()) for a, b in pairs)
    assert second.distance == pytest.approx(exact, rel=1e-8)
    assert second.factor == pytest.approx(second.distance / first.distance, rel=1e-14)
    assert np.isnan(first.factor)
    assert [s.number for s in (first, second)] == [1, 2]
    assert all(m.mass() == pytest.approx(1.0, abs=1e-12) for m in second.densities)


def test_iterating_again_begins_anew():
    problem, start = made("network")
    window = WindowMap(problem, start, 0.2, 3)
    a, b = (list(window.iterate(2)) for _ in range(2))
    assert a[-1].distance == pytest.approx(b[-1].distance, rel=1e-10)
    assert list(window.iterate(0)) == []


@pytest.mark.parametrize(
    ("length", "steps", "text"),
    [
        (0.0, 4, "length must be a positive number, not 0.0"),
        (-1.0, 4, "length must be a positive number"),
        (np.nan, 4, "length must be a positive number"),
        (1.0, 0, "steps is at least 1, not 0"),
    ],
)
def test_bad_arguments(length, steps, text):
    problem, start = made("network")
    with pytest.raises(ValueError, match=text):
        WindowMap(problem, start, length, steps)


def test_a_start_of_another_problem():
    with pytest.raises(ValueError, match="the start belongs to another problem"):
        WindowMap(made("network")[0], made("mean")[1], 1.0, 4)
