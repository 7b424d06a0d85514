"""Densities against closed forms of Gaussians; point values; statistics of samples."""

from mpi4py import MPI

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erf, gamma
from scipy.stats import chi2, kstest, norm

import fem_mf as mf
from tests.exact import gaussian
from tests.rows import rows

COMM = MPI.COMM_WORLD
FLAT = mf.Potential(lambda x: 0.0 * x[0])
THETA = 1.6
MEAN = np.array([0.3, -0.2, 0.1])


def problem_of(mesh, degree, mass="consistent", **options):
    return mf.Problem(mesh, FLAT, 1.0, degree, mass=mass, **options)


MAKERS = {
    "interval": lambda: problem_of(mf.interval(COMM, 7.0, 0.7), 8, "lumped"),
    "triangles": lambda: problem_of(mf.box(COMM, 6.0, 1.0), 4),
    "quadrilaterals": lambda: problem_of(
        mf.box(COMM, 6.0, 1.0, cell="quadrilateral", grading=1.5), 8, "lumped"
    ),
    "disk": lambda: problem_of(mf.disk(COMM, 6.0, 0.6, cell="quadrilateral"), 6),
    "tetrahedra": lambda: problem_of(mf.box(COMM, 4.0, 1.0, dim=3), 2),
    "hexahedra": lambda: problem_of(mf.box(COMM, 5.0, 1.0, cell="hexahedron"), 3, "lumped"),
}
# Relative accuracy that the discretisation has for this Gaussian.
ACCURACY = {
    "interval": 1e-9,
    "triangles": 3e-5,
    "quadrilaterals": 1e-8,
    "disk": 1e-5,
    "tetrahedra": 3e-2,
    "hexahedra": 1e-2,
}
_DENSITIES = {}


def normal(name):
    """N(MEAN, THETA⁻¹ Id) on one of the meshes, made once."""
    if name not in _DENSITIES:
        problem = MAKERS[name]()
        exact = gaussian(MEAN[: problem.dim], THETA)
        _DENSITIES[name] = mf.Density.from_function(problem, lambda x: 17.0 * exact(x))
    return _DENSITIES[name]


# -- closed forms ------------------------------------------------------------------------------


@rows("name", MAKERS)
def test_moments_of_a_gaussian(name):
    density, rel = normal(name), ACCURACY[name]
    d = density.problem.dim
    assert density.mass() == pytest.approx(1.0, abs=1e-13)
    assert density.measure().sum() == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(density.mean(), MEAN[:d], rtol=0, atol=rel)
    np.testing.assert_allclose(density.covariance(), np.eye(d) / THETA, rtol=0, atol=rel)
    assert density.moment(0) == pytest.approx(1.0, abs=1e-13)
    assert density.moment(2) == pytest.approx(d / THETA + MEAN[:d] @ MEAN[:d], rel=rel)
    assert density.integrate(lambda x: np.ones_like(x[0])) == pytest.approx(1.0, abs=1e-13)
    second = density.integrate(lambda x: x[0] ** 2)
    assert second == pytest.approx(1 / THETA + MEAN[0] ** 2, rel=rel)


@rows(
    ("name", "p", "rel"),
    [("interval", 4, 1e-8), ("quadrilaterals", 6, 1e-7), ("triangles", 3, 1e-3)],
)
def test_radial_moments_of_a_centred_gaussian(name, p, rel):
    problem = normal(name).problem
    density = mf.Density.from_function(problem, gaussian(np.zeros(problem.dim), THETA))
    d = problem.dim
    exact = (2 / THETA) ** (p / 2) * gamma((d + p) / 2) / gamma(d / 2)
    assert density.moment(p) == pytest.approx(exact, rel=rel)
    with pytest.raises(ValueError, match="order of a moment must be non-negative"):
        density.moment(-1)


@rows("name", MAKERS)
def test_information_and_entropy_of_a_gaussian(name):
    density, rel = normal(name), 20 * ACCURACY[name]
    d = density.problem.dim
    assert density.fisher_information() == pytest.approx(d * THETA, rel=rel)
    assert density.entropy() == pytest.approx(0.5 * d * np.log(THETA / (2 * np.pi * np.e)), rel=rel)


@rows("name", MAKERS)
def test_relative_entropy_of_two_gaussians(name):
    first = normal(name)
    d, other_theta = first.problem.dim, 1.1
    other = mf.Density.from_function(first.problem, gaussian(np.zeros(d), other_theta))
    ratio = other_theta / THETA
    exact = 0.5 * (d * (ratio - 1 - np.log(ratio)) + other_theta * MEAN[:d] @ MEAN[:d])
    assert first.relative_entropy(other) == pytest.approx(exact, rel=30 * ACCURACY[name])
    assert first.relative_entropy(first) == pytest.approx(0.0, abs=1e-14)
    with pytest.raises(ValueError, match="two densities of the same problem"):
        first.relative_entropy(mf.Density.from_function(MAKERS["interval"](), gaussian(0.0, 1.0)))


def test_fisher_information_and_entropy_of_a_cosine():
    # m = cos²(πx/2R)/R on [−R, R], exactly zero at the ends
    radius = 2.0
    problem = problem_of(mf.interval(COMM, radius, 0.25), 8, "lumped", boundary="dirichlet")
    density = mf.Density.from_function(problem, lambda x: np.cos(np.pi * x[0] / 4) ** 2 + 1e-18)
    assert density.fisher_information() == pytest.approx((np.pi / radius) ** 2, rel=1e-10)
    # ∫m log m = −log R + mean of 2cos²·log cos² over a period = −log R + 1 − 2 log 2
    assert density.entropy() == pytest.approx(1 - 2 * np.log(2) - np.log(radius), rel=1e-4)
    assert np.isfinite(density.u().x.array).all()
    np.testing.assert_array_equal(density.psi.x.array[problem.discretisation.constrained], 0.0)


@rows(
    ("degree", "h", "mass", "accuracy"),
    [(2, 0.2, "consistent", 1e-3), (2, 0.05, "consistent", 2e-5), (4, 0.1, "lumped", 1e-3)],
)
def test_entropy_where_the_density_vanishes(degree, h, mass, accuracy):
    """m = cos²(πx/2) on [−1, 1]: ∫m log m = 1 − 2 log 2, which u at the nodes made +0.5."""
    problem = problem_of(mf.interval(COMM, 1.0, h), degree, mass, boundary="dirichlet")
    density = mf.Density.from_function(problem, lambda x: np.cos(np.pi * x[0] / 2) ** 2)
    exact, _ = quad(
        lambda x: np.cos(np.pi * x / 2) ** 2 * np.log(np.cos(np.pi * x / 2) ** 2), -1.0, 1.0
    )
    assert exact == pytest.approx(1 - 2 * np.log(2), abs=1e-9)
    assert density.entropy() == pytest.approx(exact, abs=accuracy)
    flat = mf.Density.from_function(problem, lambda x: 1.0 - x[0] ** 2)
    ratio, _ = quad(
        lambda x: (
            np.cos(np.pi * x / 2) ** 2 * np.log(np.cos(np.pi * x / 2) ** 2 / (0.75 * (1.0 - x**2)))
        ),
        -1.0,
        1.0,
    )
    assert density.relative_entropy(flat) == pytest.approx(ratio, abs=5 * accuracy)


def test_three_views_of_one_density():
    density = normal("quadrilaterals")
    psi = density.psi.x.array
    assert psi.min() > 0
    np.testing.assert_array_equal(density.m().x.array, psi**2)
    np.testing.assert_allclose(np.exp(-density.u().x.array), psi**2, rtol=1e-12, atol=1e-300)
    exact = gaussian(MEAN[:2], THETA)(density.problem.discretisation.nodes)
    np.testing.assert_allclose(density.m().x.array, exact, rtol=1e-7, atol=1e-12)
    assert (density.psi.name, density.m().name, density.u().name) == ("psi", "m", "u")


def test_u_is_finite_where_the_density_vanishes():
    problem = normal("triangles").problem
    density = mf.Density.from_function(problem, lambda x: np.where(x[0] > 0, 1.0, 0.0))
    assert np.isfinite(density.u().x.array).all() and density.psi.x.array.min() > 0
    assert density.mass() == pytest.approx(1.0, abs=1e-13)
    narrow = mf.Density.from_function(problem, lambda x: np.exp(-20 * (x[0] ** 2 + x[1] ** 2)))
    assert np.isfinite(narrow.u().x.array).all()
    assert np.isfinite([narrow.entropy(), narrow.fisher_information()]).all()


def test_sign_and_scale_do_not_matter_and_a_copy_is_independent():
    density = normal("triangles")
    same = mf.Density(density.problem, -3.0 * density.amplitude())
    np.testing.assert_allclose(same.psi.x.array, density.psi.x.array, rtol=1e-14)
    copy = density.copy()
    copy.psi.x.array[:] = 1.0
    assert density.psi.x.array.max() < 1.0
    density.amplitude()[:] = 0.0
    assert density.mass() == pytest.approx(1.0, abs=1e-13)


@rows(
    ("m", "text"),
    [
        (lambda x: 0.0 * x[0], "zero everywhere"),
        (lambda x: x[0], "negative: its minimum is -6"),
        (lambda x: np.where(x[0] > 0, np.nan, 1.0), "the density m is not finite"),
        (lambda x: np.where(x[0] > 0, np.inf, 1.0), "the density m is not finite"),
        (lambda x: 1.0, r"the density m returned shape \(\)"),
        (lambda x: x[:2], r"the density m returned shape \(2,"),
    ],
)
def test_bad_densities(m, text):
    with pytest.raises(ValueError, match=text):
        mf.Density.from_function(normal("triangles").problem, m)


def test_bad_amplitudes():
    problem = normal("triangles").problem
    for bad, text in ((0.0, "zero everywhere"), (np.nan, "not finite"), (np.inf, "not finite")):
        with pytest.raises(ValueError, match=text):
            mf.Density(problem, np.full(problem.discretisation.num_owned, bad))


# -- point values ------------------------------------------------------------------------------


@rows("name", MAKERS)
def test_evaluate(name):
    density = normal(name)
    d = density.problem.dim
    rng = np.random.default_rng(5)
    points = rng.uniform(-2.0, 2.0, size=(40, d))
    exact = gaussian(MEAN[:d], THETA)(points.T)
    tolerance = {"tetrahedra": 0.1, "hexahedra": 2e-2}.get(name, 1e-4) * exact.max()
    np.testing.assert_allclose(density.evaluate(points), exact, rtol=0, atol=tolerance)
    nodes = density.problem.discretisation.nodes[:d, :7].T
    np.testing.assert_allclose(density.evaluate(nodes), density.m().x.array[:7], atol=1e-12)


def test_evaluate_outside_is_nan_and_the_boundary_is_inside():
    density = normal("quadrilaterals")
    values = density.evaluate([[6.0, 0.0], [6.0, 6.0], [6.1, 0.0], [0.0, -7.0], [0.0, 0.0]])
    assert np.isfinite(values[[0, 1, 4]]).all() and np.isnan(values[[2, 3]]).all()
    assert np.isnan(density.evaluate(np.array([[9.0, 9.0]]))).all()
    assert density.evaluate(np.empty((0, 2))).shape == (0,)
    for wrong in (np.zeros(2), np.zeros((1, 3))):
        with pytest.raises(ValueError, match=r"points must have shape \(n, 2\)"):
            density.evaluate(wrong)


# -- samples -----------------------------------------------------------------------------------


def check_moments_of_samples(density, samples):
    """Mean and covariance within 4 standard errors of the density's own."""
    n, d = samples.shape
    mean, covariance = density.mean(), density.covariance()
    assert d == density.problem.dim
    error = (samples.mean(axis=0) - mean) / np.sqrt(np.diag(covariance) / n)
    assert np.abs(error).max() < 4, error
    centred = samples - mean
    for i in range(d):
        for j in range(i + 1):
            products = centred[:, i] * centred[:, j]
            z = (products.mean() - covariance[i, j]) / (products.std() / np.sqrt(n))
            assert abs(z) < 4, (i, j, z)


@rows("name", MAKERS)
def test_samples_have_the_moments_of_the_density(name):
    density = normal(name)
    samples = density.sample(2000, seed=11)
    assert samples.shape == (2000, density.problem.dim)
    check_moments_of_samples(density, samples)
    assert np.isfinite(density.evaluate(samples)).all()
    assert len(np.unique(samples[:, 0])) == 2000


def test_samples_are_those_of_their_seed():
    density = normal("triangles")
    first = density.sample(100, seed=3)
    np.testing.assert_array_equal(first, density.sample(100, seed=3))
    assert np.abs(first - density.sample(100, seed=4)).max() > 0.1
    with pytest.raises(ValueError, match="at least 1, not 0"):
        density.sample(0, seed=1)


def test_samples_of_an_asymmetric_density():
    problem = problem_of(mf.disk(COMM, 3.0, 0.5, grading=2.0), 2)

    def m(x):
        return np.exp(-2 * (x[0] - 1) ** 2 - x[1] ** 2) + 0.3 * np.exp(-3 * (x[0] + x[1] + 2) ** 2)

    density = mf.Density.from_function(problem, m)
    check_moments_of_samples(density, density.sample(6000, seed=2))


def test_uniform_samples_on_deformed_cells():
    # cells of very different sizes, not parallelograms: the Jacobian varies inside each
    radius = 2.0
    mesh = mf.disk(COMM, radius, 0.5, cell="quadrilateral", grading=3.0)
    density = mf.Density.from_function(problem_of(mesh, 2), lambda x: np.ones_like(x[0]))
    samples = density.sample(8000, seed=5)
    check_moments_of_samples(density, samples)
    rings = np.histogram(np.sum(samples**2, axis=1), bins=np.linspace(0, 3.6, 10))[0]
    area = density.problem.discretisation.dot(
        np.ones(density.problem.discretisation.num_owned),
        density.problem.discretisation.apply_mass(
            np.ones(density.problem.discretisation.num_owned)
        ),
    )
    expected = 8000 * 0.4 * np.pi / area
    assert np.sum((rings - expected) ** 2 / expected) < chi2.ppf(0.9999, 9)


@rows(("name", "box"), [("quadrilaterals", 2), ("triangles", 2), ("hexahedra", 3), ("interval", 1)])
def test_samples_fill_boxes_by_their_masses(name, box):
    density = normal(name)
    n = 8_000
    samples = density.sample(n, seed=21)
    edges = np.array([-8.0, -0.7, -0.1, 0.4, 1.0, 8.0])
    counts = np.histogramdd(samples, bins=[edges] * box)[0]
    masses = np.ones(1)
    for i in range(box):
        cdf = 0.5 * (1 + erf(np.sqrt(THETA / 2) * (edges - MEAN[i])))
        masses = np.multiply.outer(masses, np.diff(cdf))
    expected = n * masses[0]
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < chi2.ppf(0.9999, counts.size - 1)
    assert statistic > chi2.ppf(0.0001, counts.size - 1)  # independent, not stratified


def test_many_samples_have_the_distribution_function_of_the_density():
    problem = problem_of(mf.interval(COMM, 6.0, 0.2), 2)
    density = mf.Density.from_function(problem, gaussian(MEAN[:1], THETA))
    (samples,) = density.sample(200_000, seed=2).T
    assert kstest(samples, norm(MEAN[0], 1 / np.sqrt(THETA)).cdf).pvalue > 1e-3


def test_samples_inside_one_cell():
    # m = (1 + x)² ⅜ on one cell of [−1, 1], whose distribution function is ((1 + x)/2)³
    problem = problem_of(mf.interval(COMM, 1.0, 2.0), 1)
    density = mf.Density.from_function(problem, lambda x: (1.0 + x[0]) ** 2)
    (samples,) = density.sample(200_000, seed=3).T
    assert kstest(samples, lambda x: (0.5 * (1.0 + x)) ** 3).pvalue > 1e-3
