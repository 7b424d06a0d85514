"""Feature matrices: compression without loss, large data, checks of the user's functions."""

import tracemalloc

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.functionals.features import FeatureMatrix
from fem_mf.points import evaluate
from tests.rows import rows

COMM = MPI.COMM_WORLD
RNG = np.random.default_rng(7)


def neuron(x, z):
    return np.tanh(x[0] * z + x[1])


def tanh_features(points, lowest=0.0):
    """40 features as one uncompressed matrix."""
    return np.column_stack([neuron(points, z) for z in np.linspace(lowest, 1.0, 40)])


@pytest.fixture(scope="module")
def problem():
    mesh = mf.box(COMM, 3.0, 0.6, cell="quadrilateral")
    z = np.linspace(0.0, 1.0, 40)
    return mf.Problem(mesh, mf.NetworkLoss(z, np.sin(z), neuron), 0.5, 4, mass="lumped")


@rows(("block", "rank"), [(64, 30), (40, 30), (13, 30), (8, 36)])
def test_compression_loses_nothing(problem, block, rank):
    full = tanh_features(problem.discretisation.potential_nodes)
    columns = [full[:, i : i + block] for i in range(0, 40, block)]
    matrix = FeatureMatrix(COMM, len(full), columns)
    assert matrix.rank < rank
    assert matrix.basis.shape == (len(full), matrix.rank)
    assert matrix.coordinates.shape == (matrix.rank, 40)
    for _ in range(5):
        measure = RNG.random(len(full))
        measure /= measure.sum()
        np.testing.assert_allclose(matrix.moments(measure), full.T @ measure, rtol=0, atol=1e-12)
        weights = RNG.normal(size=40)
        np.testing.assert_allclose(matrix.combine(weights), full @ weights, rtol=0, atol=1e-12)


def test_functional_keeps_few_features_and_the_same_potential(problem):
    functional = problem.functional
    assert functional.matrix(problem).rank < 30
    assert functional.matrix(problem) is functional.matrix(problem)
    density = mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 1) ** 2) - x[1] ** 2))
    full = tanh_features(problem.discretisation.potential_nodes)
    outputs = full.T @ density.measure()
    np.testing.assert_allclose(functional.moments(density), outputs, rtol=0, atol=1e-12)
    residual = functional.y - outputs
    potential = functional.derivative(density).x.array
    np.testing.assert_allclose(potential, -2 / 40 * full @ residual, rtol=0, atol=1e-12)


def test_independent_features_keep_their_rank_and_are_put_in_order():
    full = RNG.normal(size=(50, 12))
    matrix = FeatureMatrix(COMM, 50, [full[:, :6], full[:, 6:]])
    assert matrix.rank == 12
    np.testing.assert_allclose(matrix.basis @ matrix.coordinates, full, rtol=0, atol=1e-13)
    gram = matrix.basis.T @ matrix.basis
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), rtol=0, atol=1e-12)
    assert np.all(np.diff(np.diag(gram)) < 0)


def test_more_features_than_nodes():
    full = RNG.normal(size=(9, 40))
    matrix = FeatureMatrix(COMM, 9, [full[:, :25], full[:, 25:]])
    assert matrix.rank <= 9
    measure, weights = RNG.random(9), RNG.normal(size=40)
    np.testing.assert_allclose(matrix.moments(measure), full.T @ measure, atol=1e-12)
    np.testing.assert_allclose(matrix.combine(weights), full @ weights, atol=1e-12)


def test_equal_and_zero_features():
    column = RNG.normal(size=(30, 1))
    same = FeatureMatrix(COMM, 30, [np.repeat(column, 20, axis=1)])
    assert same.rank == 1
    np.testing.assert_allclose(same.combine(np.ones(20)), 20 * column[:, 0], atol=1e-12)
    zero = FeatureMatrix(COMM, 30, [np.zeros((30, 20))])
    np.testing.assert_array_equal(zero.combine(np.ones(20)), np.zeros(30))
    with pytest.raises(ValueError, match="no features"):
        FeatureMatrix(COMM, 30, [])


def test_ghost_rows_follow_the_owned_ones():
    owned = RNG.uniform(-3.0, 3.0, size=(3, 150))
    full = tanh_features(np.hstack((owned, owned[:, 20:70])))  # a ghost is owned by another rank
    matrix = FeatureMatrix(COMM, 150, [full])
    assert matrix.rank < 30
    weights = RNG.normal(size=40)
    np.testing.assert_allclose(matrix.combine(weights), full @ weights, rtol=0, atol=1e-11)
    measure = RNG.random(150)
    np.testing.assert_allclose(matrix.moments(measure), full[:150].T @ measure, atol=1e-11)


@rows("lowest", [-0.5, -1.0, -4.0])
def test_data_of_full_rank_lose_nothing_either(problem, lowest):
    full = tanh_features(problem.discretisation.potential_nodes, lowest)
    matrix = FeatureMatrix(COMM, len(full), [full[:, :24], full[:, 24:]])
    weights = RNG.normal(size=40)
    np.testing.assert_allclose(matrix.combine(weights), full @ weights, rtol=0, atol=1e-12)
    measure = RNG.dirichlet(np.ones(len(full)))
    np.testing.assert_allclose(matrix.moments(measure), full.T @ measure, rtol=0, atol=1e-12)


def test_a_thousand_data_fit_in_little_memory():
    mesh = mf.box(COMM, 5.0, 0.75, cell="quadrilateral")
    used = {}
    for count in (1000, 2000):
        z = np.linspace(-1.0, 1.0, count)
        functional = mf.NetworkLoss(z, np.sin(3 * z), neuron)
        problem = mf.Problem(mesh, functional, 0.5, 5, mass="lumped")
        nodes = problem.discretisation.potential_nodes
        tracemalloc.start()
        rank = functional.matrix(problem).rank
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert rank < 90
        full = nodes.shape[1] * count * 8
        assert kept < 120 * full / count  # that many columns
        used[count] = peak
        assert peak < 0.65 * full
        m = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] ** 2) - (x[1] - 1) ** 2))
        some = [0, count // 3, count - 1]
        exact = [neuron(nodes, z[j]) @ m.measure() for j in some]
        np.testing.assert_allclose(functional.predict(m)[some], exact, rtol=0, atol=1e-12)
        assert abs(mf.check_derivative(functional, m).order - 2) < 0.1
    assert used[2000] < 1.2 * used[1000]  # the rank counts, not the number of data


def test_a_matrix_goes_with_its_problem():
    functional = mf.Potential(lambda x: x[0])
    for _ in range(3):
        problem = mf.Problem(mf.interval(COMM, 1.0, 0.5), functional, 0.5)
        functional.matrix(problem)
    del problem
    assert len(functional._matrices) <= 1


@rows(
    ("function", "text"),
    [
        (lambda x: 1.0, r"returned shape \(\)"),
        (lambda x: x, r"returned shape \(3, 4\)"),
        (lambda x: np.ones(3), r"one value per point, shape \(4,\)"),
        (lambda x: np.where(x[0] > 2, np.nan, 1.0), r"not finite at x = \[3.0, 0.0, 0.0\]"),
        (lambda x: np.where(x[0] > 1, np.inf, 1.0), r"not finite at x = \[2.0, 0.0, 0.0\]"),
        (lambda x: x[7], "failed: IndexError"),
        (lambda x: ["a"] * 4, "failed: ValueError"),
    ],
)
def test_functions_of_space_are_checked(function, text):
    points = np.vstack([np.arange(4.0), np.zeros((2, 4))])
    with pytest.raises(ValueError, match=f"phi .*{text}"):
        evaluate(COMM, function, points, "phi")


def test_the_feature_at_fault_is_named():
    functional = mf.Cylindrical(
        [lambda x: x[0], lambda x: np.log(np.maximum(x[0], 0) - 5)], np.sum, np.ones_like
    )
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="feature number 1 "):
        mf.SchrodingerFlow(mf.Problem(mf.interval(COMM, 1.0, 0.5), functional, 0.5), 0.1)
