"""The checks themselves: on functionals whose remainders and second differences are known."""

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.functionals.checks import _mixture, _random_density
from tests.rows import rows

COMM = MPI.COMM_WORLD


def bump(x):
    return np.exp(-0.6 * (x[0] - 0.3) ** 2 - 0.9 * (x[1] + 0.2) ** 2)


@pytest.fixture(scope="module", params=["consistent", "lumped"])
def density(request):
    mesh = mf.box(COMM, 4.0, 1.0, cell="quadrilateral")
    problem = mf.Problem(mesh, mf.MeanInteraction(1.0), 0.5, 3, mass=request.param)
    return mf.Density.from_function(problem, bump)


def test_remainder_of_a_quadratic_functional_is_that_of_its_second_difference(density):
    strength = 3.0
    check = mf.check_derivative(mf.MeanInteraction(strength, 0.5), density, seed=5, levels=8)
    other = _random_density(density, 5)
    np.testing.assert_allclose(check.steps, 0.25 * 0.5 ** np.arange(8))
    exact = []
    for step in check.steps:
        moved = _mixture(density, other, step)
        exact.append(0.5 * strength * np.sum((moved.mean() - density.mean()) ** 2))
    np.testing.assert_allclose(check.remainders, exact, rtol=1e-6, atol=1e-14)
    assert check.order == pytest.approx(2.0, abs=0.05)


def test_mixtures_lie_on_the_segment(density):
    other = _random_density(density, 1)
    for weight in (0.0, 0.3, 1.0):
        moved = _mixture(density, other, weight)
        expected = (1 - weight) * density.m().x.array + weight * other.m().x.array
        scale = moved.m().x.array.max()
        # up to the mass of the interpolated amplitude
        np.testing.assert_allclose(moved.m().x.array, expected, rtol=0, atol=2e-2 * scale)
        assert moved.mass() == pytest.approx(1.0, abs=1e-13)
    assert np.abs(other.mean() - density.mean()).max() > 1e-2


@rows("power", [1.0, 1.5, 2.0, 3.0])
def test_order_is_that_of_the_remainder(density, power):
    # F(m) = |∫x dm − a|^p with a the mean of m: V = 0 there, the remainder is F(m_ε) ~ ε^p
    mean = density.mean()[0]
    functional = mf.Cylindrical(
        [lambda x: x[0]], lambda y: abs(y[0] - mean) ** power, lambda y: 0 * y
    )
    check = mf.check_derivative(functional, density, levels=8)
    assert check.order == pytest.approx(power, abs=0.05)


@rows("seed", range(5))
def test_wrong_and_right_derivatives_are_told_apart_in_every_direction(density, seed):
    right = mf.Cylindrical(
        [lambda x: np.tanh(x[0]), lambda x: x[1]],
        lambda y: np.sin(y[0]) + y[1] ** 2,
        lambda y: np.array([np.cos(y[0]), 2 * y[1]]),
    )
    wrong = mf.Cylindrical(
        [lambda x: np.tanh(x[0]), lambda x: x[1]],
        lambda y: np.sin(y[0]) + y[1] ** 2,
        lambda y: np.array([-np.cos(y[0]), y[1]]),
    )
    assert mf.check_derivative(right, density, seed=seed, levels=8).order > 1.9
    assert mf.check_derivative(wrong, density, seed=seed, levels=8).order < 1.2


def test_a_constant_added_to_the_derivative_changes_nothing(density):
    class Shifted(mf.MeanInteraction):
        def derivative(self, density):
            v = super().derivative(density)
            v.x.array[:] += 7.0
            return v

    plain, shifted = mf.MeanInteraction(2.0, 0.4), Shifted(2.0, 0.4)
    remainders = [mf.check_derivative(f, density).remainders for f in (plain, shifted)]
    np.testing.assert_allclose(*remainders, rtol=1e-8, atol=1e-13)
    probes = [mf.functionals.probe_convexity(f, density) for f in (plain, shifted)]
    assert probes[0] > 0 and probes[1] > 0


def test_seeds_decide_the_direction(density):
    functional = mf.MeanInteraction(1.0)
    first, again, other = (mf.check_derivative(functional, density, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.remainders, again.remainders)
    assert np.abs(first.remainders / other.remainders - 1).max() > 0.01


def test_linear_functionals_have_infinite_order_and_no_convexity(density):
    functional = 5.0 * mf.Potential(lambda x: x[0] ** 2)
    check = mf.check_derivative(functional, density)
    assert check.order == np.inf
    assert check.remainders.max() < 1e-13
    assert mf.functionals.probe_convexity(functional, density) == 0.0


def test_second_differences_of_a_quadratic_functional(density):
    # ∫(V[m'] − V[m]) d(m' − m) = λ|Δ|², Δ the difference of the means: the sign is that of λ,
    # and the size that of the cosine between V[m'] − V[m] = λ Δ·x and m' − m
    for strength in (2.0, -2.0):
        smallest = mf.functionals.probe_convexity(
            mf.MeanInteraction(strength), density, samples=3, seed=4
        )
        ratios = []
        x = density.problem.discretisation.potential_nodes[
            :2, : density.problem.discretisation.num_potential_owned
        ]
        for i in range(3):
            a, b = (_random_density(density, 4 + 2 * i + j) for j in range(2))
            delta = b.mean() - a.mean()
            difference = np.abs(delta @ x)
            scale = difference @ (np.abs(a.measure()) + np.abs(b.measure()))
            ratios.append(np.sign(strength) * delta @ delta / scale)
        assert smallest == pytest.approx(min(ratios), rel=1e-8)
        assert abs(smallest) <= 1.0


def test_convexity_is_seen_in_some_directions_only(density):
    # convex in the first moment, concave in the second: some pair shows it
    functional = mf.Cylindrical(
        [lambda x: x[0], lambda x: x[1]],
        lambda y: y[0] ** 2 - y[1] ** 2,
        lambda y: np.array([2 * y[0], -2 * y[1]]),
    )
    assert mf.functionals.probe_convexity(functional, density, samples=12) < -1e-4
