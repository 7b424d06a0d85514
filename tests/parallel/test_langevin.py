"""The Langevin flow is the same at any number of ranks: that of the same run on one rank.

All ranks compute the reference on meshes of their own, as in test_rank_independence.py.
"""

from __future__ import annotations

import logging

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.flows.edge_averaged import EdgeOperator
from tests.exact import gaussian
from tests.ranks import COMM, TIGHT, compare_scalars, contact, network, once

# What tells of the way to the solution, not of the solution.
COUNTERS = ("fixed_point_iterations", "linear_iterations", "contraction")


MESHES = {
    "interval": lambda c: mf.interval(c, 6.0, 0.25),
    "triangles": lambda c: mf.disk(c, 5.0, 0.8),
    "quadrilaterals": lambda c: mf.box(c, 5.0, 0.8, cell="quadrilateral", grading=2.0),
    "hexahedra": lambda c: mf.box(c, 5.0, 1.6, cell="hexahedron"),
    "tetrahedra": lambda c: mf.ball(c, 5.0, 1.5),
    "tetrahedra, iteratively": lambda c: mf.box(c, 5.0, 0.85, dim=3),
}
each_mesh = pytest.mark.parametrize("name", MESHES)
each_case = pytest.mark.parametrize(
    ("name", "functional"),
    [(name, network) for name in MESHES] + [("triangles", contact), ("hexahedra", contact)],
)
_MADE: dict = {}


def both(name, functional):
    """A start on all ranks, and on one, made once. Collective."""

    def start(comm):
        problem = mf.Problem(MESHES[name](comm), functional(), 0.6, 1, mass="lumped")
        mean = np.array([0.8, -0.5, 0.2])[: problem.dim]
        return mf.Density.from_function(problem, gaussian(mean, 1.3))

    return once(_MADE, (name, functional), start)


def compare(shared, alone):
    """Two runs, state by state. Collective."""
    compare_scalars(shared, alone, COUNTERS)
    for here in shared:
        assert COMM.allreduce(here.density.psi.x.array.min(initial=1.0), MPI.MIN) > 0
    here, there = shared[-1].density, alone[-1].density
    np.testing.assert_allclose(here.mean(), there.mean(), **TIGHT)
    np.testing.assert_allclose(here.covariance(), there.covariance(), **TIGHT)
    points = np.random.default_rng(4).uniform(-3.0, 3.0, size=(40, here.problem.dim))
    np.testing.assert_allclose(here.evaluate(points), there.evaluate(points), **TIGHT)


def runs(name, functional, dt, steps, **options):
    options = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}} | options
    return [
        list(mf.LangevinFlow(m.problem, dt, **options).run(m, steps * dt))
        for m in both(name, functional)
    ]


@each_case
@pytest.mark.parametrize("dt", [0.05, 5.0])
def test_every_scalar_of_every_state(name, functional, dt):
    compare(*runs(name, functional, dt, 2))


@each_case
def test_the_minimiser(name, functional):
    compare(*([mf.minimise_entropic(m.problem, m, tol=1e-12)] for m in both(name, functional)))


@pytest.mark.parametrize(
    "accelerator", [mf.mean_field.Picard, mf.mean_field.Anderson, mf.mean_field.Newton]
)
def test_every_accelerator(accelerator):
    compare(
        *(
            list(
                mf.LangevinFlow(
                    m.problem, 0.3, accelerator=accelerator(), fixed_point_tolerance=1e-12
                ).run(m, 0.9)
            )
            for m in both("triangles", network)
        )
    )


def test_large_problems_in_three_dimensions_are_solved_iteratively():
    state = runs("tetrahedra, iteratively", network, 0.05, 1)[0][-1]
    assert state.linear_iterations > 2 * state.fixed_point_iterations


@pytest.mark.parametrize("options", [{"pc_type": "jacobi"}, {"pc_type": "bjacobi"}])
def test_iterative_solvers(options):
    compare(*runs("triangles", network, 0.3, 3, petsc_options=options))


@each_mesh
def test_couplings(name):
    counts = []
    for density in both(name, network):
        edges = EdgeOperator(density.problem)
        counts.append((edges.negative, edges.edges))
    assert counts[0] == counts[1]
    assert (counts[0][0] > 0) == name.startswith("tetrahedra")


def test_values_at_the_far_ends_of_edges():
    problem = both("triangles", network)[0].problem
    edges = EdgeOperator(problem)
    x = problem.discretisation.nodes[:2, : problem.discretisation.num_owned]
    lengths = np.hypot(*(edges.rise(coordinate) for coordinate in x))
    assert COMM.allreduce(lengths.min(initial=1.0), MPI.MIN) > 0.1
    assert COMM.allreduce(lengths.max(initial=0.0), MPI.MAX) < 1.6  # cells have size 0.8


def test_a_rank_may_have_no_nodes():
    states = []
    for comm in (COMM, MPI.COMM_SELF):
        # two cells: from three ranks on, one has none of its own
        problem = mf.Problem(mf.interval(comm, 3.0, 3.0), network(), 0.6, 1, mass="lumped")
        start = mf.Density.from_function(problem, gaussian(0.3, 1.0))
        states.append(list(mf.LangevinFlow(problem, 0.5).run(start, 1.0)))
        assert mf.minimise_entropic(problem).gap < 1e-10
    for here, there in zip(*states, strict=True):
        assert here.energy == pytest.approx(there.energy, abs=1e-10)


def test_errors_come_on_every_rank_and_the_warning_on_one(caplog):
    problem = both("triangles", network)[0].problem
    start = both("triangles", network)[0]
    for action, text, kind in (
        (lambda: mf.LangevinFlow(problem, -1.0), "dt must be a positive number", ValueError),
        (
            lambda: list(
                mf.LangevinFlow(problem, 5.0, petsc_options={"pc_type": "hypre"}).run(start, 5.0)
            ),
            "PETSc refused the solver options",
            ValueError,
        ),
        (
            lambda: list(mf.LangevinFlow(problem, 5.0, max_iterations=1).run(start, 5.0)),
            "did not converge",
            mf.ConvergenceError,
        ),
    ):
        with pytest.raises(kind, match=text):
            action()
        assert COMM.allreduce(1) == COMM.size
    logger = logging.getLogger("fem_mf")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.WARNING, logger="fem_mf"):
            density = both("tetrahedra", network)[0]
            mf.LangevinFlow(density.problem, 0.1).run(density, 0.1)
    finally:
        logger.propagate = propagate
    messages = {r.getMessage() for r in caplog.records if "coupling" in r.getMessage()}
    assert len(messages) == (1 if COMM.rank == 0 else 0)
