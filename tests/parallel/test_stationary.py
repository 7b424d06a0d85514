"""The minimiser and its certificate are the same at any number of ranks.

All ranks compute the reference on meshes of their own, as in ``test_rank_independence.py``.
"""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.stationary.coarse_start import coarse_problem, from_grid
from tests.exact import gaussian

COMM = MPI.COMM_WORLD
COMMS = (COMM, MPI.COMM_SELF)
TIGHT = {"rtol": 0, "atol": 1e-10}
RATES = {"rtol": 0, "atol": 1e-8}
Z = np.linspace(-1.5, 1.5, 10)
RESIDUAL = 1e-11


def trap(x):
    return 0.15 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) + 0.1 * np.sin(x[0]) + 0.05 * x[1]


def neuron(x, z):
    return np.tanh(x[0] * z + x[1] + 0.3)


def network():
    return mf.Potential(trap) + mf.NetworkLoss(Z, np.cos(2 * Z), neuron)


def contact():
    return mf.Potential(trap) + mf.MeanInteraction(0.5, 0.3) + mf.Contact(3.0)


class OwnContact:
    """A functional of which only value and derivative are known."""

    def value(self, density):
        return mf.Contact(3.0).value(density)

    def derivative(self, density):
        return mf.Contact(3.0).derivative(density)


def users():
    return mf.Potential(trap) + OwnContact()


CASES = {
    "triangles": (lambda c: mf.box(c, 5.0, 0.9), {"degree": 2}),
    "quadrilaterals": (
        lambda c: mf.box(c, 5.0, 1.25, cell="quadrilateral", grading=1.5),
        {"degree": 4, "mass": "lumped"},
    ),
    "disk": (lambda c: mf.disk(c, 5.0, 1.2, cell="quadrilateral"), {"degree": 4, "mass": "lumped"}),
    "hexahedra": (
        lambda c: mf.box(c, 4.0, 2.0, cell="hexahedron"),
        {"degree": 4, "mass": "lumped"},
    ),
    "walls": (lambda c: mf.box(c, 4.0, 0.8), {"degree": 2, "boundary": "dirichlet"}),
    "lumped walls": (
        lambda c: mf.box(c, 4.0, 1.0, cell="quadrilateral"),
        {"degree": 4, "mass": "lumped", "boundary": "dirichlet"},
    ),
    "interval": (lambda c: mf.interval(c, 6.0, 0.5), {"degree": 4, "mass": "lumped"}),
}
SOME = ("triangles", "quadrilaterals", "hexahedra", "walls")
_MADE = {}


def problem_of(name, functional, comm):
    make, options = CASES[name]
    return mf.Problem(make(comm), functional(), 0.6, **options)


def both(name, functional):
    """The minima of a case on all ranks, and on one, made once. Collective."""
    key = name, functional
    if key not in _MADE:
        problems = [problem_of(name, functional, comm) for comm in COMMS]
        _MADE[key] = [mf.minimise(p, tol=1e-8, residual_tol=RESIDUAL) for p in problems]
    return _MADE[key]


def compare(shared, alone):
    """Two minima. Collective."""
    for name in ("energy", "eigenvalue", "gap"):
        values = [getattr(best, name) for best in (shared, alone)]
        np.testing.assert_allclose(*values, **TIGHT, err_msg=name)
    assert shared.convexity is alone.convexity
    compare_densities(shared.density, alone.density)
    everywhere = COMM.allgather(
        (shared.energy, shared.eigenvalue, shared.gap, shared.residual, shared.history)
    )
    assert all(repr(numbers) == repr(everywhere[0]) for numbers in everywhere)  # to the last bit


def compare_densities(here, there):
    np.testing.assert_allclose(here.mean(), there.mean(), **TIGHT)
    np.testing.assert_allclose(here.covariance(), there.covariance(), **TIGHT)
    d = here.problem.dim
    points = np.random.default_rng(4).uniform(-3.0, 3.0, size=(40, d))
    values = here.evaluate(points)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values, there.evaluate(points), **TIGHT)


@pytest.mark.parametrize("functional", [network, contact])
@pytest.mark.parametrize("name", CASES)
def test_the_minimum(name, functional):
    shared, alone = both(name, functional)
    compare(shared, alone)
    assert shared.energy == pytest.approx(mf.energy(shared.density.problem, shared.density))
    assert shared.history[-1].residual <= RESIDUAL
    assert abs(shared.iterations - alone.iterations) <= 2
    assert shared.gap >= 0.0


def test_a_users_functional():
    shared, alone = both("quadrilaterals", users)
    compare(shared, alone)
    assert shared.convexity is mf.functionals.Convexity.PROBED


@pytest.mark.parametrize("functional", [network, contact])
@pytest.mark.parametrize("name", SOME)
def test_the_spectrum_at_the_minimum(name, functional):
    minima = both(name, functional)
    for quantity in (mf.spectral_gap, mf.decay_rate):
        values = [quantity(best.density.problem, best.density) for best in minima]
        assert values[0] > 1e-2
        np.testing.assert_allclose(*values, **RATES, err_msg=quantity.__name__)
        assert len(set(COMM.allgather(values[0]))) == 1


@pytest.mark.parametrize("name", SOME)
def test_the_gap_of_any_density(name):
    gaps = []
    for best in both(name, network):
        problem = best.density.problem
        mean = np.array([0.8, -0.5, 0.2])[: problem.dim]
        density = mf.Density.from_function(problem, gaussian(mean, 1.3))
        gaps.append(mf.gap(problem, density))
        assert gaps[-1] >= mf.energy(problem, density) - best.energy
    np.testing.assert_allclose(*gaps, **TIGHT)


@pytest.mark.parametrize(
    "name", ["triangles", pytest.param("quadrilaterals", marks=pytest.mark.chatty)]
)
def test_every_iterate_from_a_given_start(name):
    histories = []
    for best in both(name, network):
        problem = best.density.problem
        start = mf.Density.from_function(problem, gaussian([2.0, -1.0][: problem.dim], 3.0))
        again = mf.minimise(problem, start, track_gap=True)
        assert again.energy == pytest.approx(best.energy, abs=1e-12)
        histories.append(again.history)
    for shared, alone in zip(*histories, strict=False):
        np.testing.assert_allclose(shared.energy, alone.energy, rtol=0, atol=1e-9)
        np.testing.assert_allclose(shared.gap, alone.gap, rtol=1e-3, atol=1e-9)
    assert abs(len(histories[0]) - len(histories[1])) <= 1


@pytest.mark.parametrize("name", ["triangles", "quadrilaterals", "hexahedra", "interval"])
def test_an_excited_state_is_never_certified(name):
    best = both(name, network)[0]
    problem = best.density.problem
    distance = (
        problem.discretisation.nodes[0, : problem.discretisation.num_owned] - best.density.mean()[0]
    )
    # of an amplitude with a sign, a density keeps the absolute value
    start = mf.Density(problem, distance * best.density.amplitude())
    error = mf.energy(problem, start) - best.energy
    assert mf.gap(problem, start) >= error > 0.05
    again = mf.minimise(problem, start, tol=1e-8)
    assert again.energy == pytest.approx(best.energy, abs=1e-10)
    assert again.gap <= 1e-8
    np.testing.assert_allclose(again.density.mean(), best.density.mean(), rtol=0, atol=1e-5)


def test_nested_meshes():
    minima = []
    for comm in COMMS:
        problems = [
            mf.Problem(mf.box(comm, 5.0, 1.6), network(), 0.6, 2),
            mf.Problem(mf.disk(comm, 5.0, 1.0), network(), 0.6, 2),
            problem_of("quadrilaterals", network, comm),
        ]
        minima.append(mf.stationary.minimise_nested(problems, tol=1e-8, residual_tol=RESIDUAL))
    compare(*minima)
    assert minima[0].energy == pytest.approx(both("quadrilaterals", network)[0].energy, abs=1e-12)


def test_densities_between_meshes_of_different_partitions():
    densities = []
    for comm in COMMS:
        source, target = (problem_of(n, network, comm) for n in ("triangles", "quadrilaterals"))
        moved = mf.Density.from_function(source, gaussian([0.7, -0.2], 0.8)).on(target)
        assert moved.mass() == pytest.approx(1.0, abs=1e-13)
        densities.append(moved)
    compare_densities(*densities)


def test_continuation():
    minima = []
    for comm in COMMS:
        problem = problem_of("quadrilaterals", network, comm).with_sigma(0.3)
        minima.append(mf.minimise(problem, continuation=[1.0, 0.5], residual_tol=RESIDUAL))
    compare(*minima)


def test_the_coarse_box():
    starts, energies = [], []
    for comm in COMMS:
        mesh = mf.interval(comm, 6.0, 0.06)
        problem = mf.Problem(mesh, network(), 0.6, 4, mass="lumped")
        coarse = coarse_problem(problem)
        assert coarse.space.dofmap.index_map.size_global == 193
        start = mf.Density.from_function(coarse, gaussian(0.4, 1.5))
        starts.append(from_grid(start, problem))
        best = mf.minimise(problem, residual_tol=1e-6)
        assert best.iterations <= 4
        energies.append(best.energy)
    compare_densities(*starts)
    np.testing.assert_allclose(*energies, **TIGHT)


def test_a_functional_that_is_not_convex():
    minima = []
    for comm in COMMS:
        functional = mf.Potential(trap) + mf.MeanInteraction(-0.1, 0.2)
        problem = mf.Problem(mf.box(comm, 5.0, 0.9), functional, 0.6, 2)
        best = mf.minimise(problem, residual_tol=RESIDUAL)
        assert best.convexity is mf.functionals.Convexity.REFUTED and np.isnan(best.gap)
        minima.append(best)
    compare(*minima)


def test_failures_are_raised_on_every_rank():
    problem = problem_of("triangles", network, COMM)
    for options, error in (
        ({"tol": 0.0}, ValueError),
        ({"continuation": [-1.0]}, ValueError),
        ({"petsc_options": {"pc_type": "nonsense"}}, ValueError),
        ({"max_iterations": 1}, mf.ConvergenceError),
        ({"tol": 1e-20}, mf.ConvergenceError),
    ):
        with pytest.raises(error):
            mf.minimise(problem, **options)


def test_strong_coupling():
    """N2 x 30: MUMPS' Cholesky solves were infinite on three ranks."""
    z = np.linspace(-np.pi, np.pi, 40)
    functional = mf.Potential(lambda x: 0.05 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, np.sin(z), lambda x, z: 30.0 * np.tanh(x[0] * z + x[1])
    )
    energies = []
    for comm in COMMS:
        problem = mf.Problem(mf.disk(comm, 7.0, 0.5), functional, 0.5, 2)
        start = mf.Density.from_function(problem, gaussian([0.0, 0.0], 1.0))
        *_, state = mf.SchrodingerFlow(problem, 10.0).run(start, 10.0)
        best = mf.minimise(problem, start)
        assert best.gap <= 1e-10
        energies.append([state.energy, best.energy, best.eigenvalue])
    np.testing.assert_allclose(*energies, **TIGHT)
    assert energies[0][1] == pytest.approx(0.244396987, abs=1e-8)
