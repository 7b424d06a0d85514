"""Densities known by u = −log m: a quadratic u is a Gaussian, of any width."""

from mpi4py import MPI

import numpy as np
import pytest
from scipy.stats import kstest

import fem_mf as mf
from fem_mf.density import log_density
from fem_mf.flows.classical_part import Quadratic
from tests.rows import rows

COMM = MPI.COMM_WORLD
TRAP = mf.Potential(lambda x: x[0] ** 2)
PRECISION = {
    1: np.array([[1.6]]),
    2: np.array([[1.6, 0.5], [0.5, 1.2]]),
}
MEAN = np.array([0.4, -0.3])
# Wide enough for the tails, fine enough for quadrature of e^{−u}; the last number is its accuracy.
CASES = {
    "interval": (lambda: mf.interval(COMM, 7.5, 0.25), 2, "consistent", 1e-9),
    "lumped interval": (lambda: mf.interval(COMM, 7.5, 0.5), 8, "lumped", 1e-9),
    "triangles": (lambda: mf.box(COMM, 7.5, 0.75), 2, "consistent", 1e-8),
    "lumped quadrilaterals": (
        lambda: mf.box(COMM, 7.5, 1.0, cell="quadrilateral"),
        8,
        "lumped",
        1e-7,
    ),
}
_MADE = {}


def problem_of(name):
    if name not in _MADE:
        make, degree, mass, accuracy = CASES[name]
        _MADE[name] = mf.Problem(make(), TRAP, 0.5, degree, mass=mass), accuracy
    return _MADE[name]


def quadratic(precision, mean, constant=3.0):
    """u of N(mean, precision⁻¹), with a constant that is not the right one."""
    return Quadratic(precision, -precision @ mean, constant).evaluate


def gaussian(name, factor=1.0):
    problem, accuracy = problem_of(name)
    d = problem.dim
    precision, mean = factor * PRECISION[d], MEAN[:d]
    density = mf.LogDensity.from_function(problem, quadratic(precision, mean))
    return problem, density, precision, mean, accuracy


@rows("name", CASES)
def test_moments_of_a_gaussian(name):
    _, density, precision, mean, accuracy = gaussian(name)
    close = {"rtol": 0, "atol": accuracy}
    assert density.mass() == pytest.approx(1.0, abs=1e-13)
    assert density.measure().sum() == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(density.mean(), mean, **close)
    covariance = np.linalg.inv(precision)
    # moments use V's space: for degree 2 its interpolation of x² is exact
    np.testing.assert_allclose(density.covariance(), covariance, **close)
    second = np.trace(covariance) + mean @ mean
    assert density.moment(2.0) == pytest.approx(second, abs=10 * accuracy)


@rows("name", CASES)
def test_information_and_entropy_of_a_gaussian(name):
    _, density, precision, _, accuracy = gaussian(name)
    d = len(precision)
    entropy = 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * d * (1 + np.log(2 * np.pi))
    assert density.fisher_information() == pytest.approx(np.trace(precision), abs=10 * accuracy)
    assert density.entropy() == pytest.approx(entropy, abs=10 * accuracy)


@rows("name", CASES)
def test_relative_entropy_of_gaussians(name):
    problem, density, precision, mean, accuracy = gaussian(name)
    d = len(mean)
    other_precision, other_mean = 0.7 * np.eye(d) + 0.1, mean + 0.5
    other = mf.LogDensity.from_function(problem, quadratic(other_precision, other_mean))
    ratio = other_precision @ np.linalg.inv(precision)
    shift = other_mean - mean
    exact = 0.5 * (np.trace(ratio) - d - np.linalg.slogdet(ratio)[1])
    exact += 0.5 * shift @ other_precision @ shift
    assert exact > 0.1
    assert density.relative_entropy(other) == pytest.approx(exact, abs=10 * accuracy)
    assert density.relative_entropy(density.copy()) == pytest.approx(0.0, abs=1e-13)


@rows("name", CASES)
def test_u_is_normalised_and_keeps_its_shape(name):
    problem, density, precision, mean, accuracy = gaussian(name)
    d, own = len(mean), slice(problem.discretisation.num_owned)
    x = problem.discretisation.nodes[:d, own] - mean[:, None]
    u = 0.5 * np.einsum("in,ij,jn->n", x, precision, x)
    u += 0.5 * d * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    np.testing.assert_allclose(density.log_values(), u, rtol=1e-12, atol=accuracy)
    np.testing.assert_allclose(density.u().x.array[own], density.log_values(), rtol=0, atol=0)
    np.testing.assert_allclose(density.m().x.array[own], np.exp(-u), rtol=1e-10, atol=accuracy)
    np.testing.assert_allclose(
        density.psi.x.array[own], np.exp(-0.5 * density.log_values()), rtol=1e-12
    )


@rows("name", CASES)
def test_evaluate(name):
    _, density, precision, mean, accuracy = gaussian(name)
    d = len(mean)
    points = np.random.default_rng(1).uniform(-4.0, 4.0, size=(30, d))
    x = points - mean
    exact = np.exp(-0.5 * np.einsum("ni,ij,nj->n", x, precision, x))
    exact *= np.sqrt(np.linalg.det(precision)) / (2 * np.pi) ** (d / 2)
    np.testing.assert_allclose(density.evaluate(points), exact, rtol=10 * accuracy)
    assert np.isnan(density.evaluate(np.full((1, d), 9.0))).all()


@rows("name", CASES)
def test_expectation_and_variance(name):
    problem, density, precision, mean, accuracy = gaussian(name)
    x = problem.discretisation.nodes[0, : problem.discretisation.num_owned]
    assert density.expectation(x) == pytest.approx(mean[0], abs=accuracy)
    variance = np.linalg.inv(precision)[0, 0]
    assert density.variance(x) == pytest.approx(variance, abs=10 * accuracy)
    assert density.variance(np.ones_like(x)) == pytest.approx(0.0, abs=1e-14)
    assert density.variance(x + 7.0) == pytest.approx(density.variance(x), abs=1e-10)


@pytest.mark.parametrize("name", ["interval", "triangles"])
def test_a_density_far_too_small_for_its_amplitude(name):
    # e^{−u/2} is below the smallest number of the machine at the boundary
    problem, _ = problem_of(name)
    d = problem.dim
    theta = {1: 30.0, 2: 12.0}[d]
    density = mf.LogDensity.from_function(problem, quadratic(theta * np.eye(d), 0 * MEAN[:d], 0.0))
    u = density.log_values()
    assert u.max() > 600.0
    assert density.mass() == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(density.covariance(), np.eye(d) / theta, rtol=0, atol=1e-3 / theta)
    assert density.fisher_information() == pytest.approx(d * theta, rel=1e-3)
    fitted = Quadratic.fit(problem, u, problem.discretisation.owned_nodes)
    assert fitted is not None
    np.testing.assert_allclose(fitted.hessian, theta * np.eye(d), rtol=0, atol=1e-9)
    assert log_density(density) is density


def test_u_beyond_what_an_exponential_can_be():
    # m underflows to zero, in silence
    problem, _ = problem_of("interval")
    density = mf.LogDensity.from_function(problem, lambda x: 50.0 * x[0] ** 2 + 1e4)
    assert density.log_values().max() > 2000.0
    assert density.mass() == pytest.approx(1.0, abs=1e-13)
    assert density.evaluate([[7.4]])[0] == 0.0


def test_any_constant_gives_the_same_density():
    problem, _ = problem_of("interval")
    a, b = (
        mf.LogDensity.from_function(problem, lambda x, c=c: x[0] ** 2 + c) for c in (0.0, -900.0)
    )
    np.testing.assert_allclose(a.log_values(), b.log_values(), rtol=0, atol=1e-11)


def test_copies_are_independent():
    _, density, *_ = gaussian("interval")
    before, copy = density.log_values(), density.copy()
    copy.u().x.array[:] = 0.0
    density.log_values()[:] = 0.0
    np.testing.assert_array_equal(density.log_values(), before)
    np.testing.assert_allclose(copy.log_values(), before, rtol=0, atol=1e-12)


# Integrals of one density do not disturb those of another, though they share their forms.
def test_two_densities_of_one_problem():
    _, a, *_ = gaussian("interval")
    _, b, *_ = gaussian("interval", factor=2.0)
    assert b.fisher_information() == pytest.approx(2 * a.fisher_information(), rel=1e-8)
    assert a.fisher_information() == pytest.approx(PRECISION[1][0, 0], rel=1e-8)
    assert a.mass() == pytest.approx(1.0, abs=1e-13)


# -- densities known by their amplitude --------------------------------------------------------


def test_logarithm_of_an_amplitude():
    problem, exact, *_ = gaussian("interval", factor=0.5)
    psi = mf.Density(problem, exact.amplitude())
    known = log_density(psi)
    np.testing.assert_allclose(known.log_values(), exact.log_values(), rtol=0, atol=1e-9)
    assert exact.relative_entropy(psi) == pytest.approx(0.0, abs=1e-9)


def test_an_amplitude_too_small_for_a_logarithm():
    problem, density, *_ = gaussian("interval", factor=10.0)
    with pytest.raises(ValueError, match=r"falls by e\^\{−\d+\}.*LogDensity.from_function"):
        log_density(mf.Density(problem, density.amplitude()))


# -- errors ------------------------------------------------------------------------------------


@rows("bad", [np.nan, np.inf, -np.inf])
def test_u_must_be_finite(bad):
    problem, density, *_ = gaussian("interval")
    values = density.log_values()
    values[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        mf.LogDensity(problem, values)


@rows(
    ("u", "text"),
    [
        (lambda x: np.full(x.shape[1], np.nan), "u = −log m is not finite at x ="),
        (lambda x: np.zeros(3), r"u = −log m returned shape \(3,\)"),
        (lambda x: 1 / 0, "u = −log m failed: ZeroDivisionError"),
    ],
)
def test_bad_functions(u, text):
    problem, _ = problem_of("interval")
    with pytest.raises(ValueError, match=text):
        mf.LogDensity.from_function(problem, u)


def test_densities_of_two_problems():
    _, a, *_ = gaussian("interval")
    _, b, *_ = gaussian("lumped interval")
    with pytest.raises(ValueError, match="two densities of the same problem"):
        a.relative_entropy(b)


SAMPLED = {
    "interval": (lambda: mf.interval(COMM, 5.0, 1.0), [0.2], [0.15]),
    "triangles": (lambda: mf.box(COMM, 2.0, 0.8), [0.2, -0.1], [0.3, 0.5]),
    "quadrilaterals": (
        lambda: mf.box(COMM, 2.0, 0.8, cell="quadrilateral"),
        [0.2, -0.1],
        [0.2, 0.5],
    ),
    "tetrahedra": (lambda: mf.box(COMM, 2.0, 1.0, dim=3), [0.1, 0.2, -0.3], [0.4, 0.5, 0.6]),
}


@rows("name", SAMPLED)
def test_samples_are_those_of_the_exponential(name):
    """A Gaussian far narrower than ψ's interpolant can follow; moments, and a test of its shape."""
    make, mean, widths = SAMPLED[name]
    mean, widths = np.array(mean), np.array(widths)

    def u(x):
        return 0.5 * sum(((x[i] - mean[i]) / widths[i]) ** 2 for i in range(len(mean)))

    density = mf.LogDensity.from_function(
        mf.Problem(make(), mf.Potential(lambda x: 0.0 * x[0]), 0.5, 2), u
    )
    samples = density.sample(20_000, seed=3)
    standard = (samples - mean) / widths
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(standard.var(axis=0), 1.0, atol=4 * np.sqrt(2 / 20_000))
    for column in standard.T:
        assert kstest(column, "norm").pvalue > 1e-3


def test_samples_inside_one_cell():
    # u = 12x on one cell of [−1, 1]: e^{−u} falls by e^{−4} across each box that is drawn first
    problem = mf.Problem(mf.interval(COMM, 1.0, 2.0), mf.Potential(lambda x: 0.0 * x[0]), 0.5, 2)
    density = mf.LogDensity.from_function(problem, lambda x: 12.0 * x[0])
    (samples,) = density.sample(200_000, seed=3).T
    exact = kstest(samples, lambda x: -np.expm1(-12.0 * (1.0 + x)) / -np.expm1(-24.0))
    assert exact.pvalue > 1e-3
