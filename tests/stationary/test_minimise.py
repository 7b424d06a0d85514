"""The certified minimiser: exact minima, bad starts, certificates, and what it refuses."""

import logging
from itertools import pairwise

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.functionals.checks import convexity
from fem_mf.functionals.terms import convexity_of
from fem_mf.stationary.coarse_start import coarse_problem, from_grid
from fem_mf.stationary.decay import lowest_curvature
from tests.exact import gaussian
from tests.rows import rows

COMM = MPI.COMM_WORLD
Z = np.linspace(-2.0, 2.0, 9)
SIGMA, KAPPA, STRENGTH = 0.8, 1.0, 0.4
TARGET = np.array([0.5, -0.3, 0.2])
SPREAD = np.sqrt(2.0 * KAPPA) / SIGMA  # precision of the minimiser of (X1)
ZERO = mf.Potential(lambda x: 0.0 * x[0])


def trap(x):
    return 0.1 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def half_square(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def neuron(x, z):
    return np.tanh(x[0] * z + x[1])


def network():
    return mf.Potential(trap) + mf.NetworkLoss(Z, np.sin(2 * Z), neuron)


def classifier():
    labels = np.where(np.cos(3 * Z) > 0, 1.0, -1.0)
    return mf.Potential(trap) + mf.NetworkLoss(
        Z, labels, lambda x, z: 9.0 * neuron(x, z), loss="logistic"
    )


def one_dimensional():
    return mf.Potential(trap) + mf.NetworkLoss(
        Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + 0.5)
    )


def contact(beta=20.0):
    return mf.Potential(trap) + mf.Contact(beta)


def quadrilaterals(
    functional, sigma=0.5, radius=7.0, cells=10, degree=5, mass="lumped", boundary="natural"
):
    mesh = mf.box(COMM, radius, 2.0 * radius / cells, cell="quadrilateral")
    return mf.Problem(mesh, functional, sigma, degree, boundary, mass)


def triangles(functional, degree=2, mass="consistent", h=0.9, **options):
    return mf.Problem(mf.box(COMM, 6.5, h), functional, 0.5, degree, mass=mass, **options)


def uniform(problem):
    return mf.Density(problem, np.ones(problem.discretisation.num_owned))


_MADE = {}


def made(name):
    """A problem, and its minimiser from the default start, made once."""
    if name not in _MADE:
        problem = PROBLEMS[name]()
        _MADE[name] = problem, mf.minimise(problem)
    return _MADE[name]


PROBLEMS = {
    "network on quadrilaterals": lambda: quadrilaterals(network()),
    "network on triangles": lambda: triangles(network()),
    "contact on quadrilaterals": lambda: quadrilaterals(contact()),
    "contact on triangles": lambda: triangles(contact()),
    "network with walls": lambda: quadrilaterals(network(), boundary="dirichlet"),
    "network on triangles, lumped": lambda: triangles(network(), 1, "lumped"),
}
# -- exact minima ------------------------------------------------------------------------------


def moving_gaussian(mesh, degree, mass):
    """The functional of (X1)."""
    target = TARGET[: mesh.geometry.dim]
    functional = mf.Potential(half_square) + mf.MeanInteraction(STRENGTH, target)
    return mf.Problem(mesh, functional, SIGMA, degree, mass=mass)


def check_gaussian(problem, best, tolerance):
    d, target = problem.dim, TARGET[: problem.dim]
    pull = KAPPA * STRENGTH / (KAPPA + STRENGTH)
    ground = d * SIGMA * np.sqrt(KAPPA / 2)
    mean = STRENGTH * target / (KAPPA + STRENGTH)
    # λ = F^σ + ½λ_c|∫x dm|² − ½λ_c|a|², the package's V of the interaction being λ_c(∫x dm − a)·x
    shift = 0.5 * STRENGTH * (mean @ mean - target @ target)
    energy = ground + 0.5 * pull * target @ target
    assert best.energy == pytest.approx(energy, abs=tolerance)
    assert best.eigenvalue == pytest.approx(energy + shift, abs=tolerance)
    np.testing.assert_allclose(best.density.mean(), mean, rtol=0, atol=tolerance)
    covariance = best.density.covariance()
    np.testing.assert_allclose(covariance, np.eye(d) / SPREAD, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mass", ["lumped", "consistent"])
def test_moving_gaussian_to_ten_digits(mass):
    mesh = mf.box(COMM, 6.0, 0.75, cell="quadrilateral")
    problem = moving_gaussian(mesh, 6, mass)
    best = mf.minimise(problem, residual_tol=1e-11)
    check_gaussian(problem, best, 1e-10)
    assert best.gap <= 1e-13
    assert best.residual <= 2e-11
    assert best.iterations <= 12


@pytest.mark.parametrize(
    ("mesh", "degree", "mass", "tolerance"),
    [
        (lambda: mf.interval(COMM, 6.0, 1.0), 8, "lumped", 1e-9),
        (lambda: mf.interval(COMM, 6.0, 0.2), 2, "consistent", 2e-5),
        (lambda: mf.box(COMM, 5.0, 0.2), 1, "lumped", 8e-3),
        (lambda: mf.box(COMM, 5.0, 0.4), 2, "consistent", 3e-4),
        (lambda: mf.disk(COMM, 5.0, 1.0, cell="quadrilateral"), 5, "lumped", 1e-6),
        (lambda: mf.box(COMM, 4.0, 1.0, dim=3), 2, "consistent", 2e-2),
        (lambda: mf.box(COMM, 4.0, 0.8, dim=3), 1, "lumped", 2e-1),
        (lambda: mf.box(COMM, 4.5, 1.5, cell="hexahedron"), 4, "lumped", 5e-4),
    ],
    ids=["1d", "1d P2", "P1 lumped", "P2", "disk", "3d P2", "3d P1 lumped", "hexahedra"],
)
def test_moving_gaussian_on_every_cell(mesh, degree, mass, tolerance):
    problem = moving_gaussian(mesh(), degree, mass)
    # the lowest state on tetrahedra of degree 1, whose stiffness is no M-matrix, is not positive
    tol = 1e-6 if problem.dim == 3 and degree == 1 else 1e-10
    best = mf.minimise(problem, tol=tol)
    check_gaussian(problem, best, tolerance)
    assert best.gap <= tol


@rows(
    ("mesh", "degree", "mass", "tolerance"),
    [
        (lambda: mf.interval(COMM, 1.5, 0.1), 2, "consistent", 1e-6),
        (lambda: mf.box(COMM, 1.5, 0.5), 3, "consistent", 1e-6),
        (lambda: mf.box(COMM, 1.5, 0.25), 1, "lumped", 2e-2),
        (lambda: mf.box(COMM, 1.5, 1.0, cell="quadrilateral"), 6, "consistent", 1e-11),
        (lambda: mf.box(COMM, 1.5, 1.5, cell="hexahedron"), 5, "lumped", 1e-7),
        (lambda: mf.box(COMM, 1.5, 0.75, dim=3), 2, "consistent", 1e-2),
    ],
)
def test_particle_in_a_box(mesh, degree, mass, tolerance):
    sigma = 0.7
    problem = mf.Problem(mesh(), ZERO, sigma, degree, "dirichlet", mass)
    best = mf.minimise(problem)
    exact = sigma**2 * np.pi**2 * problem.dim / (4 * 1.5**2)
    assert best.energy == pytest.approx(exact, rel=tolerance)
    assert best.eigenvalue == pytest.approx(best.energy, rel=1e-12)
    assert best.gap <= 1e-10
    psi = best.density.psi.x.array
    edge = (np.abs(np.abs(problem.discretisation.nodes[: problem.dim]) - 1.5) < 1e-10).any(axis=0)
    assert np.abs(psi[edge]).max() == 0.0 and psi[~edge].min() > 0.0


def test_a_flat_landscape_has_a_uniform_minimiser():
    problem = mf.Problem(mf.box(COMM, 1.5, 1.0, cell="quadrilateral"), mf.Contact(2.0), 0.7, 4)
    best = mf.minimise(problem)
    np.testing.assert_allclose(best.density.m().x.array, 1 / 9, rtol=1e-9)
    assert best.energy == pytest.approx(1 / 9, rel=1e-12)
    assert best.gap <= 1e-10


# -- starts ------------------------------------------------------------------------------------


NARROW = 300.0  # precision of a start, in units of 1/R²
LANDSCAPES = {
    "network, σ = 1": (network, 1.0, 9.0, NARROW),
    "network, σ = 0.2": (network, 0.2, 5.0, NARROW),
    "network, σ = 0.05": (network, 0.05, 4.0, NARROW),
    "contact, β = 1": (lambda: contact(1.0), 0.5, 6.5, NARROW),
    "contact, β = 100": (lambda: contact(100.0), 0.5, 8.0, NARROW),
    "contact, β = 1e4": (lambda: contact(1e4), 0.5, 20.0, 30.0),
}


def landscape(name):
    functional, sigma, radius, precision = LANDSCAPES[name]
    problem = quadrilaterals(functional(), sigma, radius, 12, 6)
    off_centre = gaussian([0.5 * radius, -0.4 * radius], precision / radius**2)
    return problem, mf.Density.from_function(problem, off_centre)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_start_does_not_matter(name):
    problem, narrow = landscape(name)
    minima = [mf.minimise(problem, start) for start in (narrow, uniform(problem), None)]
    for best in minima:
        assert best.energy == pytest.approx(minima[0].energy, abs=1e-9)
        assert best.gap <= 1e-10
        assert best.energy <= best.history[0].energy
        assert best.iterations <= 40
        assert best.convexity is mf.functionals.Convexity.PROVED


@pytest.mark.parametrize(
    ("mean", "precision"),
    [
        ((10.0, -8.0), 0.25),
        ((14.0, 14.0), 0.75),
        ((14.0, 14.0), 2.5),
    ],
)
def test_a_strong_contact_term_from_a_start_outside_the_cloud(mean, precision):
    problem, _ = landscape("contact, β = 1e4")
    start = mf.Density.from_function(problem, gaussian(mean, precision))
    assert mf.minimise(problem, start).energy == pytest.approx(16.828235767564, abs=1e-9)


@pytest.mark.parametrize("residual", [None, 1e-9])
def test_a_fine_mesh(residual):
    # where the energy carries more rounding than the last steps gain
    coarse, fine = (long_interval(one_dimensional(), cells) for cells in (100, 1200))
    exact = mf.minimise(coarse)
    for start in (None, mf.Density.from_function(fine, gaussian(0.4, 1.5))):
        best = mf.minimise(fine, start, residual_tol=residual)
        assert best.energy == pytest.approx(exact.energy, abs=1e-9)
        assert best.history[-1].residual <= (residual or 1e-7)


def test_the_amplitude_of_an_excited_state_leads_to_the_minimum():
    problem, best = made("network on quadrilaterals")
    first = (
        problem.discretisation.nodes[0, : problem.discretisation.num_owned] - best.density.mean()[0]
    )
    start = mf.Density(problem, first * best.density.amplitude())
    assert mf.gap(problem, start) > 0.1
    again = mf.minimise(problem, start)
    assert again.energy == pytest.approx(best.energy, abs=1e-12)
    assert again.gap <= 1e-10


@rows("name", PROBLEMS)
def test_the_minimiser_is_a_start_that_needs_no_step(name):
    problem, best = made(name)
    again = mf.minimise(problem, best.density, residual_tol=2 * best.residual)
    assert again.iterations == 0 and again.linear_iterations == 0
    assert len(again.history) == 1
    assert again.energy == pytest.approx(best.energy, rel=1e-14)


def test_starts_are_left_alone():
    problem, _ = made("network on quadrilaterals")
    start = mf.Density.from_function(problem, gaussian([1.5, -1.0], 2.0))
    before = start.psi.x.array.copy()
    best = mf.minimise(problem, start)
    np.testing.assert_array_equal(start.psi.x.array, before)
    assert best.density is not start


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (lambda: triangles(network(), degree=3, h=0.7), "network on quadrilaterals"),
        (lambda: quadrilaterals(network(), cells=14, degree=3), "network on triangles"),
        (
            lambda: mf.Problem(mf.disk(COMM, 6.0, 0.8), network(), 0.5, 2),
            "network on quadrilaterals",
        ),
        (lambda: mf.Problem(mf.box(COMM, 2.0, 0.5), network(), 0.5, 1), "network on triangles"),
    ],
    ids=["triangles", "quadrilaterals", "disk", "small box"],
)
def test_a_start_from_another_mesh_and_degree(source, target):
    problem, best = made(target)
    other = source()
    start = mf.Density.from_function(other, gaussian([1.5, -1.0], 2.0))
    again = mf.minimise(problem, start)
    assert again.density.problem is problem
    assert again.energy == pytest.approx(best.energy, abs=1e-12)
    psi, reference = (m.density.psi.x.array for m in (again, best))
    np.testing.assert_allclose(psi, reference, rtol=0, atol=1e-6)


def test_a_minimiser_from_another_mesh_is_a_good_start():
    problem, best = made("network on quadrilaterals")
    fine = mf.minimise(triangles(network(), degree=3, h=0.5))
    again = mf.minimise(problem, fine.density)
    assert again.iterations <= 3 < best.iterations
    assert again.history[0].energy - again.energy < 1e-4


def test_densities_on_another_problem():
    source = quadrilaterals(ZERO, radius=2.0, cells=3, degree=2)
    target = quadrilaterals(ZERO, radius=2.0, cells=5, degree=4)

    def polynomial(x):
        return (5.0 + x[0] - 0.5 * x[1] + 0.2 * x[0] * x[1] - 0.1 * x[1] ** 2) ** 2

    m = mf.Density.from_function(source, polynomial)
    exact = mf.Density.from_function(target, polynomial)
    np.testing.assert_allclose(m.on(target).psi.x.array, exact.psi.x.array, rtol=1e-12)
    assert m.on(source) is m
    other = source.with_sigma(0.1)
    shared = m.on(other)
    assert shared.problem is other
    np.testing.assert_allclose(shared.psi.x.array, m.psi.x.array, rtol=1e-14)


def test_densities_on_a_larger_mesh_are_zero_where_they_were_not_known():
    small = quadrilaterals(ZERO, radius=2.0, cells=4, degree=4)
    large = quadrilaterals(ZERO, radius=6.0, cells=12, degree=4)
    m = mf.Density.from_function(small, gaussian([0.2, 0.1], 10.0)).on(large)
    outside = np.abs(large.discretisation.nodes[:2]).max(axis=0) > 3.0
    assert outside.any() and m.psi.x.array[outside].max() < 1e-15
    np.testing.assert_allclose(m.mean(), [0.2, 0.1], rtol=0, atol=1e-3)
    assert m.mass() == pytest.approx(1.0, abs=1e-13)


# -- the coarse box ----------------------------------------------------------------------------


def long_interval(functional, cells=400):
    return mf.Problem(mf.interval(COMM, 8.0, 16.0 / cells), functional, 0.5, 4, mass="lumped")


def test_large_problems_start_from_a_coarse_box():
    functional = one_dimensional()
    problem = long_interval(functional)
    coarse = coarse_problem(problem)
    assert coarse.discretisation.num_owned == 193
    assert coarse.sigma == problem.sigma and coarse.functional is functional
    default, plain = mf.minimise(problem), mf.minimise(problem, uniform(problem))
    assert default.energy == pytest.approx(plain.energy, abs=1e-12)
    assert default.iterations <= 3 < plain.iterations


def test_no_coarse_box_where_it_does_not_help():
    assert coarse_problem(long_interval(network(), cells=100)) is None
    assert coarse_problem(long_interval(mf.Potential(trap) + Interaction())) is None
    assert coarse_problem(long_interval(contact())) is not None


def test_no_coarse_box_where_the_functional_is_not_defined_on_it():
    def inside(x):
        return np.where(np.hypot(x[0], x[1]) < 5.01, 0.1 * x[0] ** 2, np.nan)

    mesh = mf.disk(COMM, 5.0, 0.5, cell="quadrilateral")
    problem = mf.Problem(mesh, mf.Potential(inside), 0.5, 8, mass="lumped")
    assert problem.discretisation.num_owned > 4 * 65**2
    assert coarse_problem(problem) is None
    harmless = mf.Problem(mesh, mf.Potential(trap), 0.5, 8, mass="lumped")
    assert coarse_problem(harmless) is not None


@pytest.mark.parametrize(
    ("problem", "tolerance"),
    [
        (lambda: quadrilaterals(network(), radius=5.0, cells=24, degree=6), 2e-3),
        (lambda: long_interval(contact()), 1e-4),
    ],
)
def test_densities_of_the_coarse_box_by_splines(problem, tolerance):
    fine = problem()
    mean = np.array([0.6, -0.4])[: fine.dim]
    coarse = mf.Density.from_function(coarse_problem(fine), gaussian(mean, 1.0))
    exact = mf.Density.from_function(fine, gaussian(mean, 1.0))
    np.testing.assert_allclose(
        from_grid(coarse, fine).psi.x.array, exact.psi.x.array, rtol=0, atol=tolerance
    )


# -- nested meshes, continuation ---------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda h: mf.Problem(
            mf.box(COMM, 7.0, h, cell="quadrilateral"), network(), 0.3, 4, mass="lumped"
        ),
        lambda h: mf.Problem(mf.box(COMM, 7.0, h), contact(), 0.5, 2),
    ],
    ids=["network", "contact"],
)
def test_nested_iteration_gives_the_same_with_few_steps(make):
    problems = [make(h) for h in (2.8, 1.4, 0.7)]
    direct, nested = mf.minimise(problems[-1]), mf.stationary.minimise_nested(problems)
    assert nested.density.problem is problems[-1]
    assert nested.energy == pytest.approx(direct.energy, abs=1e-12)
    np.testing.assert_allclose(
        nested.density.psi.x.array, direct.density.psi.x.array, rtol=0, atol=1e-6
    )
    assert nested.gap <= 1e-10
    assert nested.iterations <= 4 < direct.iterations
    assert nested.history[0].energy < direct.history[0].energy


def test_nested_iteration_over_different_cells_and_one_problem():
    last, best = made("network on quadrilaterals")
    mixed = [triangles(network(), 1, "lumped"), triangles(network(), 2, h=1.3), last]
    nested = mf.stationary.minimise_nested(mixed, tol=1e-12, track_gap=True)
    assert nested.energy == pytest.approx(best.energy, abs=1e-12)
    assert nested.gap <= 1e-12
    assert np.isfinite([line.gap for line in nested.history]).all()
    alone = mf.stationary.minimise_nested([last])
    assert alone.energy == best.energy and alone.iterations == best.iterations
    with pytest.raises(ValueError, match="at least one problem"):
        mf.stationary.minimise_nested([])


@pytest.mark.parametrize(("larger", "given"), [((1.0,), True), ((0.1, 1.0, 0.3), False)])
def test_continuation_in_sigma(larger, given):
    problem, narrow = landscape("network, σ = 0.05")
    direct = mf.minimise(problem)
    best = mf.minimise(problem, narrow if given else None, continuation=larger)
    assert best.energy == pytest.approx(direct.energy, abs=1e-10)
    assert best.density.problem is problem and problem.sigma == 0.05
    if len(larger) > 1:
        assert best.history[0].energy < direct.history[0].energy


def test_other_values_of_sigma_share_everything_else():
    problem = quadrilaterals(mf.Potential(trap), 0.5)
    other = problem.with_sigma(0.25)
    assert problem.with_sigma(0.5) is problem
    assert (problem.sigma, other.sigma) == (0.5, 0.25)
    assert other.space is problem.space and other.stiffness.handle == problem.stiffness.handle
    # κ = 0.2, d = 2: the minimum is 2σ√(κ/2)
    for p in (problem, other):
        assert mf.minimise(p).energy == pytest.approx(2 * p.sigma * np.sqrt(0.1), rel=1e-3)
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="sigma must be a positive number"):
            problem.with_sigma(sigma)


# -- certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("network, σ = 1", 10.0),
        ("network, σ = 0.2", 10.0),
        ("network, σ = 0.05", 100.0),  # (C1) is worse the smaller the spectral gap
        ("contact, β = 1", 10.0),
        ("contact, β = 100", 30.0),
    ],
)
def test_the_certificate_holds_at_every_iterate(name, factor):
    problem, _ = landscape(name)
    radius = LANDSCAPES[name][2]
    start = gaussian([0.3 * radius, -0.3 * radius], 30.0 / radius**2)
    best = mf.minimise(problem, mf.Density.from_function(problem, start), track_gap=True)
    errors = np.array([line.energy for line in best.history]) - best.energy
    gaps = np.array([line.gap for line in best.history])
    assert (gaps >= errors - 1e-13).all()
    near = (errors > 1e-10) & (errors < 1e-3)
    assert near.any()
    assert (gaps[near] <= factor * errors[near]).all()
    assert (np.diff(errors) <= 1e-13).all()
    assert errors[0] > 0.1


@rows("name", PROBLEMS)
def test_the_numbers_of_a_minimum_are_those_of_its_density(name):
    problem, best = made(name)
    assert best.energy == pytest.approx(mf.energy(problem, best.density), rel=1e-14)
    assert best.eigenvalue == pytest.approx(mf.eigenvalue(problem, best.density), rel=1e-14)
    assert best.residual == pytest.approx(mf.residual(problem, best.density), rel=1e-6)
    assert best.gap == pytest.approx(mf.gap(problem, best.density), abs=1e-11)
    assert 0.0 <= best.gap <= 1e-10 and best.residual <= 2e-7
    assert best.density.mass() == pytest.approx(1.0, abs=1e-13)
    assert best.density.psi.x.array.min() >= 0.0
    assert best.convexity is mf.functionals.Convexity.PROVED


@rows("name", PROBLEMS)
def test_histories(name):
    problem, best = made(name)
    assert len(best.history) == best.iterations + 1 > 3
    assert best.linear_iterations == sum(line.linear_iterations for line in best.history)
    first, *steps = best.history
    assert first.angle == 0.0 and first.linear_iterations == 0
    assert first.energy == pytest.approx(mf.energy(problem, uniform(problem)), rel=1e-12)
    for before, after in pairwise(best.history):
        assert after.energy <= before.energy + 1e-13
        assert 0.0 < after.angle <= 0.7
        assert after.linear_iterations >= 1
    assert all(np.isnan(line.gap) for line in best.history)
    assert steps[-1].residual <= 1e-7 < steps[-2].residual
    assert steps[-1].energy == pytest.approx(best.energy, abs=1e-13)


def test_a_callback_sees_every_step_and_may_stop():
    problem, _ = made("network on quadrilaterals")
    seen = []
    best = mf.minimise(problem, uniform(problem), callback=seen.append)
    assert tuple(seen) == best.history
    stopped = mf.minimise(problem, uniform(problem), callback=lambda line: line.residual < 1e-1)
    assert stopped.history == best.history[: len(stopped.history)]
    assert 1 < len(stopped.history) < len(best.history)
    assert stopped.gap >= stopped.energy - best.energy > 0.0


def test_every_step_is_a_line_of_the_log(caplog):
    problem, _ = made("network on quadrilaterals")
    with caplog.at_level(logging.INFO, logger="fem_mf"):
        best = mf.minimise(problem, uniform(problem))
    lines = [record.getMessage() for record in caplog.records]
    steps = [line.split() for line in lines if line[:4].strip().isdigit()]
    assert [int(step[0]) for step in steps] == list(range(best.iterations + 1))
    for step, iteration in zip(steps, best.history, strict=True):
        assert float(step[1]) == pytest.approx(iteration.energy, rel=1e-11)
        assert float(step[2]) == pytest.approx(iteration.residual, rel=0.1)
        assert int(step[4]) == iteration.linear_iterations
    assert any("unknowns" in line for line in lines) and str(best) == lines[-1]


@rows("tol", [1e-2, 1e-6, 1e-13])
def test_the_gap_is_as_small_as_asked_for(tol):
    problem, best = made("network on quadrilaterals")
    other = mf.minimise(problem, tol=tol)
    assert other.gap <= tol
    assert -1e-14 <= other.energy - best.energy <= other.gap + best.gap
    assert other.residual <= np.sqrt(tol) / 100


def test_a_loose_residual_is_tightened_until_the_gap_is_proved():
    problem, _ = made("network on quadrilaterals")
    best = mf.minimise(problem, tol=1e-13, residual_tol=0.1)
    assert best.gap <= 1e-13
    assert best.residual < 1e-3
    assert len(best.history) == best.iterations + 1


def test_a_gap_just_above_the_tolerance_is_not_enough():
    problem, _ = made("network on quadrilaterals")
    rough = mf.minimise(problem, tol=1.0, residual_tol=0.1)
    tol = 0.8 * mf.gap(problem, rough.density)
    assert tol > 1e-6
    best = mf.minimise(problem, tol=tol, residual_tol=0.1)
    assert mf.gap(problem, best.density) <= best.gap <= tol


@pytest.mark.parametrize(
    "name", ["network on triangles", "network on triangles, lumped", "contact on quadrilaterals"]
)
def test_the_flow_ends_at_the_minimum(name):
    problem, best = made(name)
    start = mf.Density.from_function(problem, gaussian([1.5, -1.0], 2.0))
    *_, last = mf.SchrodingerFlow(problem, 20.0).run(start, 1e5, steady_residual=3e-6)
    assert last.energy == pytest.approx(best.energy, abs=1e-9)
    assert last.energy >= best.energy - best.gap
    assert last.eigenvalue == pytest.approx(best.eigenvalue, abs=1e-5)
    np.testing.assert_allclose(
        last.density.psi.x.array, best.density.psi.x.array, rtol=0, atol=1e-4
    )


# -- convexity ---------------------------------------------------------------------------------


def variance(factor, convex=None):
    """factor · Var(x₀), which is concave for a positive factor."""
    return mf.Cylindrical(
        [lambda x: x[0], lambda x: x[0] ** 2],
        lambda y: factor * (y[1] - y[0] ** 2),
        lambda y: factor * np.array([-2.0 * y[0], 1.0]),
        convex=convex,
    )


def squared_mean():
    return mf.Cylindrical(
        [lambda x: x[0], lambda x: x[1]], lambda y: 0.3 * (y @ y), lambda y: 0.6 * y
    )


# F without the trap, the κ of each axis that the mean-zero Gaussian minimiser feels
NOT_CONVEX = {
    "declared": (mf.MeanInteraction(-0.3), 1.0, 1.0),
    "pair attraction": (variance(0.15), 1.3, 1.0),
    "mixed": (0.5 * mf.MeanInteraction(0.3) + (-1) * mf.MeanInteraction(1.1), 1.0, 1.0),
    "mixed with a user's": (0.5 * squared_mean() + (-1) * squared_mean(), 1.0, 1.0),
}


@pytest.mark.parametrize("name", NOT_CONVEX)
def test_no_certificate_without_convexity(name):
    term, *kappas = NOT_CONVEX[name]
    problem = quadrilaterals(mf.Potential(half_square) + term)
    best = mf.minimise(problem)
    assert best.convexity is mf.functionals.Convexity.REFUTED
    assert np.isnan(best.gap)
    assert "no certificate: F is not convex" in str(best)
    assert best.residual <= 2e-7
    assert best.energy == pytest.approx(0.5 * np.sum(np.sqrt(np.array(kappas) / 2)), abs=1e-5)


def test_no_certificate_with_attractive_contact():
    problem = quadrilaterals(mf.Potential(half_square) + mf.Contact(-0.3), degree=4)
    best = mf.minimise(problem)
    assert best.convexity is mf.functionals.Convexity.REFUTED and np.isnan(best.gap)
    assert best.energy < mf.minimise(quadrilaterals(mf.Potential(half_square))).energy


@pytest.mark.parametrize(
    ("term", "kappas"),
    [(squared_mean(), (1.0, 1.0)), (variance(-0.15), (0.7, 1.0))],
    ids=["squared mean", "pair repulsion"],
)
def test_convexity_that_was_not_declared_is_probed(term, kappas):
    best = mf.minimise(quadrilaterals(mf.Potential(half_square) + term))
    assert best.convexity is mf.functionals.Convexity.PROBED
    assert best.gap <= 1e-10
    assert re_proof(str(best)).endswith("if F is convex, which no probe contradicts")
    assert best.energy == pytest.approx(0.5 * np.sum(np.sqrt(np.array(kappas) / 2)), abs=1e-5)


@rows(
    ("functional", "known"),
    [
        (mf.Potential(trap), True),
        (-2.0 * mf.Potential(trap), True),
        (network(), True),
        (mf.Potential(trap) + 3 * mf.Contact(2.0) + mf.MeanInteraction(1.0), True),
        (mf.Contact(0.0), True),
        (mf.Contact(-1.0), False),
        (-1.0 * mf.Contact(1.0), False),
        (-1.0 * mf.Contact(-1.0), None),
        (mf.MeanInteraction(-0.1), False),
        (mf.Potential(trap) + (-1.0) * network(), False),
        (0.0 * mf.Contact(-1.0) + mf.MeanInteraction(1.0), True),
        (mf.Contact(1.0) + mf.MeanInteraction(-1.0), None),
        (variance(1.0), None),
        (variance(-1.0, convex=True), True),
        (variance(1.0, convex=False), False),
        (mf.Contact(1.0) + variance(-1.0), None),
    ],
)
def test_what_the_terms_say_of_convexity(functional, known):
    assert convexity_of(functional) is known


def test_what_the_probes_say_of_convexity():
    problem = quadrilaterals(mf.Potential(half_square), cells=6)
    m = mf.Density.from_function(problem, gaussian([0.3, -0.2], 1.0))
    assert convexity(network(), m) is mf.functionals.Convexity.PROVED
    assert convexity(Interaction(), m) is mf.functionals.Convexity.PROBED
    assert convexity(variance(-1.0), m) is mf.functionals.Convexity.PROBED
    assert convexity(variance(1.0), m) is mf.functionals.Convexity.REFUTED
    assert convexity(variance(-1.0, convex=False), m) is mf.functionals.Convexity.REFUTED


# -- users' functionals ------------------------------------------------------------------------


class OwnContact:
    """(β/2)∫m² dx as a user would write it."""

    beta = 20.0

    def value(self, density):
        problem = density.problem
        m = problem.discretisation.square_on_potential_space(density.psi)[
            : problem.discretisation.num_potential_owned
        ]
        return 0.5 * self.beta * problem.discretisation.dot(m, density.measure())

    def derivative(self, density):
        v = density.problem.new_potential()
        v.x.array[:] = self.beta * density.problem.discretisation.square_on_potential_space(
            density.psi
        )
        return v


class Interaction:
    """(λ/2)|∫x dm − a|² as a user would write it."""

    strength, target = 0.8, 0.5

    def value(self, density):
        return 0.5 * self.strength * float(np.sum((density.mean() - self.target) ** 2))

    def derivative(self, density):
        force = self.strength * (density.mean() - self.target)
        v = density.problem.new_potential()
        v.interpolate(lambda x: force @ x[: len(force)])
        return v


@pytest.mark.parametrize(
    ("own", "user"),
    [
        (lambda: mf.Contact(OwnContact.beta), OwnContact),
        (lambda: mf.MeanInteraction(Interaction.strength, Interaction.target), Interaction),
    ],
    ids=["contact", "interaction"],
)
@pytest.mark.parametrize(
    "problem_of",
    [
        lambda f: quadrilaterals(f, cells=8),
        lambda f: triangles(f, h=1.3, potential_degree=4),
    ],
    ids=["quad", "tri"],
)
def test_a_users_functional_gives_the_same_as_the_packages_own(own, user, problem_of):
    minima = [mf.minimise(problem_of(mf.Potential(trap) + f())) for f in (own, user)]
    built_in, written = minima
    assert written.energy == pytest.approx(built_in.energy, abs=1e-12)
    assert written.eigenvalue == pytest.approx(built_in.eigenvalue, abs=1e-7)
    assert abs(written.iterations - built_in.iterations) <= 1
    assert built_in.convexity is mf.functionals.Convexity.PROVED
    assert written.convexity is mf.functionals.Convexity.PROBED
    assert written.gap <= 1e-10
    np.testing.assert_allclose(*(best.density.psi.x.array for best in minima), rtol=0, atol=1e-6)


def test_a_users_functional_alone():
    class Trap:
        def value(self, density):
            return density.integrate(half_square)

        def derivative(self, density):
            v = density.problem.new_potential()
            v.interpolate(half_square)
            return v

    best = mf.minimise(quadrilaterals(Trap()))
    assert best.energy == pytest.approx(2 * 0.5 * np.sqrt(KAPPA / 2), abs=1e-5)
    assert best.convexity is mf.functionals.Convexity.PROBED


# -- arguments, errors, messages ---------------------------------------------------------------


@rows(
    ("options", "text"),
    [
        ({"tol": 0.0}, "tol must be a positive number, not 0.0"),
        ({"tol": np.inf}, "tol must be a positive number"),
        ({"tol": -1.0}, "tol must be a positive number, not -1.0"),
        ({"tol": -1.0, "residual_tol": 1e-8}, "tol must be a positive number, not -1.0"),
        ({"residual_tol": 0.0}, "residual_tol must be a positive number, not 0.0"),
        ({"residual_tol": np.nan}, "residual_tol must be a positive number, not nan"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, not 0"),
        ({"continuation": [1.0, -1.0]}, "each sigma of the continuation must be .* not -1.0"),
        ({"continuation": [np.nan]}, "each sigma of the continuation must be"),
        ({"petsc_options": {"pc_tipe": "lu"}}, r"does not know the options \['pc_tipe'\]"),
        ({"petsc_options": {"pc_type": "hypre"}}, "PETSc rejected the solver options .*hypre"),
    ],
)
def test_bad_arguments(options, text):
    before = PETSc.Options().getAll()
    with pytest.raises(ValueError, match=text):
        mf.minimise(made("network on quadrilaterals")[0], **options)
    assert PETSc.Options().getAll() == before


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_iterations(count):
    problem, best = made("network on quadrilaterals")
    text = rf"residual .* after {count} iterations .*max_iterations.* continuation"
    with pytest.raises(mf.ConvergenceError, match=text):
        mf.minimise(problem, max_iterations=count)
    assert mf.minimise(problem, max_iterations=best.iterations).energy == best.energy


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("network on quadrilaterals", {"tol": 1e-16}),
        ("network on triangles", {"tol": 1e-20}),
        ("network on quadrilaterals", {"residual_tol": 1e-17}),
    ],
)
def test_tolerances_below_rounding(name, options):
    with pytest.raises(mf.ConvergenceError, match="choose a larger tol"):
        mf.minimise(made(name)[0], **options)


def test_a_wrong_derivative_is_named():
    wrong = mf.Cylindrical([lambda x: np.tanh(x[0] + 1)], lambda y: y[0] ** 2, lambda y: -2 * y)
    with pytest.raises(mf.ConvergenceError, match=r"derivative .* may be wrong"):
        mf.minimise(quadrilaterals(mf.Potential(trap) + wrong))


def test_a_mesh_too_coarse_for_the_minimiser():
    mesh = mf.interval(COMM, 5.0, 1.5)
    problem = mf.Problem(mesh, mf.Potential(lambda x: 0.5 * (x[0] - 0.4) ** 2), 0.03, 2)
    with pytest.raises(mf.ConvergenceError, match="refine"):
        mf.minimise(problem)


def re_proof(line):
    """What stands between energy and residual in the line of a minimum."""
    energy, proof, residual = line.split("  ")
    assert energy.startswith("F = ") and len(energy.split(".")[1]) == 12
    assert residual.startswith("residual ") and float(residual.split()[1]) < 1e-6
    return proof


def test_one_line_says_it_all():
    _, best = made("network on quadrilaterals")
    line = str(best)
    assert "\n" not in line
    assert line == f"F = {best.energy:.12f}  gap ≤ {best.gap:.1e}  residual {best.residual:.1e}"
    assert re_proof(line) == f"gap ≤ {best.gap:.1e}"


def test_a_mesh_too_small_is_reported(caplog):
    with caplog.at_level(logging.INFO, logger="fem_mf"):
        best = mf.minimise(quadrilaterals(mf.Potential(trap), radius=3.0))
    assert "the mesh is too small: boundary mass" in caplog.text
    assert str(best) in caplog.text


@rows(
    ("name", "chosen"),
    [
        ("network on quadrilaterals", {"pc_type": "jacobi"}),
        ("contact on triangles", {"pc_type": "gamg"}),
        ("contact on triangles", {"pc_type": "none"}),
        ("network on quadrilaterals", {"pc_type": "lu"}),
    ],
)
def test_any_preconditioner_gives_the_same(name, chosen):
    problem, best = made(name)
    before = PETSc.Options().getAll()
    other = mf.minimise(problem, petsc_options=chosen)
    assert other.energy == pytest.approx(best.energy, abs=1e-12)
    assert other.gap <= 1e-10
    assert PETSc.Options().getAll() == before


def test_the_command_line_chooses_the_preconditioner():
    problem, best = made("network on quadrilaterals")
    options = PETSc.Options()
    options["fem_mf_stationary_pc_type"] = "none"
    try:
        slow = mf.minimise(problem, petsc_options={"pc_type": "lu"})
        assert options.getAll()["fem_mf_stationary_pc_type"] == "none"
    finally:
        options.delValue("fem_mf_stationary_pc_type")
    assert slow.linear_iterations > 2 * best.linear_iterations
    assert slow.energy == pytest.approx(best.energy, abs=1e-12)


def test_the_flow_of_a_classifier_leads_to_its_minimiser():
    problem = quadrilaterals(classifier())
    best = mf.minimise(problem)
    assert best.convexity is mf.functionals.Convexity.PROVED
    assert best.gap <= 1e-10
    start = mf.Density.from_function(problem, gaussian([0.3, -0.2], 1.0))
    ends = []
    for accelerator in (mf.mean_field.Newton(), mf.mean_field.Anderson(depth=10)):
        flow = mf.SchrodingerFlow(problem, 0.5, "sdirk2", accelerator=accelerator)
        states = list(flow.run(start, 20.0))
        assert np.all(np.diff([state.energy for state in states]) < 0)
        ends.append(states[-1].energy)
    assert ends[0] == pytest.approx(ends[1], abs=1e-10)
    assert 0 < ends[0] - best.energy < 1e-3


# -- functionals that are not convex -----------------------------------------------------------


def two_wells(h=0.1):
    """Attraction to the mean in a double well: both wells, and the saddle between them."""
    functional = mf.Potential(lambda x: 0.25 * (x[0] ** 2 - 1.0) ** 2) + mf.MeanInteraction(
        -0.8, [0.0]
    )
    return mf.Problem(mf.interval(COMM, 4.0, h), functional, 0.3, 2)


def test_a_saddle_is_left():
    """By symmetry Newton's method from a constant ends at mean zero, F = 0.195274: a saddle."""
    problem = two_wells()
    best = mf.minimise(problem)
    assert best.energy == pytest.approx(-0.136597, abs=2e-6)
    assert best.kind == "local minimum" and best.curvature > 0.1
    assert "no certificate: F is not convex (a local minimum)" in str(best)
    assert best.curvature == pytest.approx(mf.decay_rate(problem, best.density), rel=1e-6)
    # Half the second derivative along the eigenfunction, by differences of the energy.
    value, direction = lowest_curvature(problem, best.density, 1e-8)
    psi = best.density.amplitude()

    def energy(angle):
        moved = np.cos(angle) * psi + np.sin(angle) * direction
        return mf.energy(problem, mf.Density(problem, moved, normalised=True))

    second = (energy(1e-3) - 2.0 * energy(0.0) + energy(-1e-3)) / 1e-6
    assert 0.5 * second == pytest.approx(value, rel=1e-4)


def test_several_starts_give_the_distinct_critical_points():
    problem = two_wells()
    starts = [
        mf.Density.from_function(problem, lambda x, a=a: np.exp(-4.0 * (x[0] - a) ** 2))
        for a in (-1.0, 0.9, 1.1)
    ]
    points = mf.minimise(problem, starts=starts)
    assert [p.kind for p in points] == ["local minimum"] * 2
    assert points[0].energy == pytest.approx(points[1].energy, abs=1e-9)
    means = sorted(float(p.density.mean()[0]) for p in points)
    assert means[0] == pytest.approx(-means[1], abs=1e-6) and means[1] > 0.5
    with pytest.raises(ValueError, match="start or starts, not both"):
        mf.minimise(problem, starts[0], starts=starts)


def test_a_convex_functional_has_no_curvature_to_check():
    problem = mf.Problem(mf.interval(COMM, 4.0, 0.2), mf.Potential(lambda x: x[0] ** 2), 0.5, 2)
    best = mf.minimise(problem)
    assert best.kind == "global minimum" and np.isnan(best.curvature)


@pytest.mark.parametrize("beta", [-10.0, -50.0])
def test_a_point_that_is_not_stationary_is_an_error(beta):
    """Attraction without bound on a coarse mesh: residuals of 3 and 69 were returned."""
    functional = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2)) + mf.Contact(beta)
    problem = mf.Problem(mf.disk(COMM, 5.0, 0.8), functional, 0.5, 2)
    try:
        best = mf.minimise(problem)
    except mf.ConvergenceError as error:
        assert "residual" in str(error)
    else:
        assert mf.residual(problem, best.density) <= 2e-7
