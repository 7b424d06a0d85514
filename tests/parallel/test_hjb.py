"""The Hamilton–Jacobi–Bellman side at any number of ranks: every number is that of one rank."""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.density import log_density
from fem_mf.first_variation import bregman, first_order_forms
from fem_mf.flows.decomposition import Quadratic
from fem_mf.observables import Regularity
from tests.ranks import COMM, LOOSE, TIGHT, compare_scalars, once

# Derivatives cell by cell: where they are largest, differences of u over a cell cancel.
SUP_NORMS = ("hessian_u", "growth_u", "theta_v", "growth_v", "lipschitz_w")
# What tells of the way to the solution, not of the solution.
COUNTERS = ("fixed_point_iterations", "newton_iterations", "newton_most", "contraction")
Z = np.linspace(-1.5, 1.5, 7)
SIGMA = 0.6
OPTIONS = {"fixed_point_tolerance": 1e-12, "petsc_options": {"snes_atol": 1e-12}}


def trap(x):
    return 0.3 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def bent(x):
    return trap(x) + 0.05 * x[0] ** 4


def network():
    loss = mf.NetworkLoss(Z, np.cos(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))
    return mf.Potential(trap) + loss


FUNCTIONALS = {
    "network": network,
    "contact": lambda: mf.Potential(trap) + mf.MeanInteraction(0.5, 0.3) + mf.Contact(3.0),
    "bent": lambda: mf.Potential(bent) + mf.MeanInteraction(0.5, 0.3),
}
MESHES = {
    "interval": (lambda c: mf.interval(c, 4.0, 0.4), {"degree": 2}),
    "disk": (lambda c: mf.disk(c, 4.0, 1.0), {"degree": 2}),
    "lumped": (
        lambda c: mf.box(c, 4.0, 1.0, cell="quadrilateral"),
        {"degree": 3, "mass": "lumped"},
    ),
}
FORMS = {
    "whole": {},
    "decomposed": {"decomposed": True},
    "weighted": {"decomposed": True, "weighted": True},
}
every_mesh = pytest.mark.parametrize("name", MESHES)
_MADE = {}


def tilted(x):
    return x[0] ** 2 + 0.9 * x[1] ** 2 + 0.3 * x[0] * x[1] - 0.8 * x[0] + 0.4 * x[1]


def both(name, functional="network"):
    """The start of a case on all ranks, and on one, made once. Collective."""
    make, options = MESHES[name]

    def start(comm):
        problem = mf.Problem(make(comm), FUNCTIONALS[functional](), SIGMA, **options)
        return mf.LogDensity.from_function(problem, tilted)

    return once(_MADE, (name, functional), start)


def agree(shared, alone):
    """Two runs, state by state. Collective."""
    compare_scalars(shared, alone, COUNTERS, loose=SUP_NORMS)
    for here, there in zip(shared, alone, strict=True):
        assert abs(here.newton_most - there.newton_most) <= 1


def agree_at_points(here, there):
    """Two densities, anywhere. Collective."""
    d = here.problem.dim
    points = np.random.default_rng(4).uniform(-5.0, 5.0, size=(40, d))  # some of them outside
    values = here.evaluate(points)
    assert np.isnan(values).any() and np.isfinite(values).any()
    np.testing.assert_allclose(values, there.evaluate(points), **TIGHT)
    assert len(set(COMM.allgather(values.tobytes()))) == 1


def runs(name, functional, dt, steps, scheme="backward-euler", v_start=None, **options):
    return [
        list(
            mf.HJBFlow(m.problem, dt, scheme, **OPTIONS | options).run(
                m, steps * dt, v_start=v_start
            )
        )
        for m in both(name, functional)
    ]


@pytest.mark.parametrize("form", FORMS)
@every_mesh
def test_every_scalar_of_every_state(name, form):
    shared, alone = runs(name, "network", 0.1, 2, **FORMS[form])
    agree(shared, alone)
    agree_at_points(shared[-1].density, alone[-1].density)


@pytest.mark.parametrize("form", FORMS)
def test_second_order(form):
    agree(*runs("disk", "network", 0.1, 2, "sdirk2", **FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
def test_long_steps(form):
    agree(*runs("disk", "network", 10.0, 2, **FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["interval", "disk"])
def test_contact(name, form):
    agree(*runs(name, "contact", 0.1, 2, **FORMS[form]))


@pytest.mark.parametrize("form", ["decomposed", "weighted"])
def test_a_classical_part_by_implicit_stages(form):
    # g is no quadratic: v has a Newton solve of its own
    v_start = Quadratic(np.diag([2.0, 1.8]), np.zeros(2), 0.0)
    agree(*runs("disk", "bent", 0.1, 2, "sdirk2", v_start=v_start, **FORMS[form]))


@pytest.mark.parametrize("form", ["decomposed", "weighted"])
def test_a_start_that_is_no_quadratic(form):
    # v_0 is then that of the nearest quadratic to g, by sums over all ranks
    ends = []
    for m in both("disk", "bent"):
        x = m.problem.discretisation.nodes[0, : m.problem.discretisation.num_owned]
        start = mf.LogDensity(m.problem, m.log_values() + 0.3 * np.cos(x))
        flow = mf.HJBFlow(m.problem, 0.1, **OPTIONS | FORMS[form])
        ends.append(list(flow.run(start, 0.2)))
    agree(*ends)


def test_stops_at_the_same_steady_state():
    ends = []
    for m in both("interval"):
        flow = mf.HJBFlow(m.problem, 5.0, **OPTIONS)
        ends.append(list(flow.run(m, 1e3, steady_residual=1e-4)))
    assert 3 < len(ends[0]) < 50
    agree(*ends)


@pytest.mark.parametrize("h", [0.1, 100.0])
@pytest.mark.parametrize("functional", ["network", "contact"])
def test_descent_in_relative_entropy(functional, h):
    agree(
        *(
            list(mf.RelativeEntropyDescent(m.problem, h, **OPTIONS).run(m, 2 * h))
            for m in both("disk", functional)
        )
    )


@every_mesh
def test_operator(name):
    here, there = both(name)
    ends, rates = [], []
    for m in (here, there):
        operator, V = mf.HJBOperator(m.problem), m.problem.functional.derivative(m)
        later = operator.step(operator.step(m.u(), V, 0.1), V, 0.1)
        ends.append(mf.Density.from_log(m.problem, later))
        rates.append(
            m.problem.discretisation.norm(
                operator.rate(m.u(), V).x.array[: m.problem.discretisation.num_owned]
            )
        )
    agree_at_points(*ends)
    np.testing.assert_allclose(*rates, **TIGHT)


@pytest.mark.parametrize("functional", FUNCTIONALS)
@every_mesh
def test_conditions(name, functional):
    here, there = both(name, functional)
    forms = [first_order_forms(m.problem, m) for m in (here, there)]
    for attribute in ("flat", "schrodinger", "hjb", "eigenvalues"):
        values = [getattr(f, attribute) for f in forms]
        np.testing.assert_allclose(*values, **TIGHT, err_msg=attribute)
    assert len(set(COMM.allgather(repr(forms[0])))) == 1
    others = [mf.LogDensity.from_function(m.problem, bent) for m in (here, there)]
    gaps = [bregman(m.problem, o, m) for m, o in zip((here, there), others, strict=True)]
    np.testing.assert_allclose(gaps[0].functional, gaps[1].functional, **TIGHT)
    np.testing.assert_allclose(gaps[0].fisher, gaps[1].fisher, **TIGHT)
    assert gaps[0].total == gaps[0].functional + gaps[0].fisher
    assert len(set(COMM.allgather(repr(gaps[0])))) == 1


@every_mesh
def test_log_density(name):
    here, there = both(name)
    assert here.mass() == pytest.approx(1.0, abs=1e-13)
    for method in ("mean", "covariance", "entropy", "fisher_information"):
        values = [getattr(m, method)() for m in (here, there)]
        np.testing.assert_allclose(*values, **TIGHT, err_msg=method)
    flat = [
        mf.LogDensity(m.problem, np.zeros(m.problem.discretisation.num_owned))
        for m in (here, there)
    ]
    entropies = [m.relative_entropy(f) for m, f in zip((here, there), flat, strict=True)]
    np.testing.assert_allclose(*entropies, **TIGHT)
    variances = [
        m.variance(m.problem.discretisation.nodes[0, : m.problem.discretisation.num_owned])
        for m in (here, there)
    ]
    np.testing.assert_allclose(*variances, **TIGHT)
    samples = [m.sample(100, seed=6) for m in (here, there)]
    np.testing.assert_allclose(*samples, rtol=0, atol=1e-7)
    bounds = [Regularity(m.problem) for m in (here, there)]
    for method in ("gradient", "growth", "hessian"):
        values = [
            getattr(b, method)(m.log_values()) for b, m in zip(bounds, (here, there), strict=True)
        ]
        np.testing.assert_allclose(*values, **LOOSE, err_msg=method)
    agree_at_points(here, there)


def test_bad_values_are_errors_on_every_rank():
    here, _ = both("disk")
    problem = here.problem
    values = here.log_values()
    if COMM.rank == COMM.size - 1:
        values[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        mf.LogDensity(problem, values)
    x = problem.discretisation.nodes[0, : problem.discretisation.num_owned]
    with pytest.raises(ValueError, match="further than ψ is known"):
        log_density(mf.Density(problem, np.exp(-10.0 * x**2)))


def test_a_rank_may_have_no_nodes():
    # two cells: from three ranks on, one has none of its own
    states = []
    for comm in (COMM, MPI.COMM_SELF):
        problem = mf.Problem(mf.interval(comm, 3.0, 3.0), mf.Potential(trap), SIGMA, 2)
        start = mf.LogDensity.from_function(problem, lambda x: x[0] ** 2)
        states.append(list(mf.HJBFlow(problem, 0.5, decomposed=True).run(start, 1.0)))
    agree(*states)
