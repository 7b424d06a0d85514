"""Every number of a run is the same at any number of ranks: that of the same run on one rank.

All ranks compute the reference on meshes of their own; what is compared came from another partition
of the same mesh, with other numberings, other sums and, in parallel, ghosts.
"""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.exact import gaussian
from tests.ranks import COMM, TIGHT, compare_scalars, contact, network, once, trap

# What tells of the way to the solution, not of the solution: decided by residuals near rounding.
COUNTERS = ("fixed_point_iterations", "linear_iterations", "contraction")


CASES = {
    "triangles": (lambda c: mf.box(c, 5.0, 1.0), {"degree": 2}),
    "triangles lumped": (lambda c: mf.disk(c, 5.0, 0.8), {"degree": 1, "mass": "lumped"}),
    "quadrilaterals": (
        lambda c: mf.box(c, 5.0, 1.25, cell="quadrilateral", grading=1.5),
        {"degree": 4, "mass": "lumped"},
    ),
    "disk": (lambda c: mf.disk(c, 5.0, 1.2, cell="quadrilateral"), {"degree": 3}),
    "tetrahedra": (lambda c: mf.ball(c, 4.0, 1.0), {"degree": 1}),
    "walls": (lambda c: mf.box(c, 4.0, 1.0), {"degree": 2, "boundary": "dirichlet"}),
    "lumped walls": (
        lambda c: mf.box(c, 4.0, 1.0, cell="quadrilateral"),
        {"degree": 3, "mass": "lumped", "boundary": "dirichlet"},
    ),
    "interval": (lambda c: mf.interval(c, 5.0, 0.5), {"degree": 4, "mass": "lumped"}),
    "hexahedra": (
        lambda c: mf.box(c, 4.0, 2.0, cell="hexahedron"),
        {"degree": 2, "mass": "lumped"},
    ),
}
_MADE = {}


def both(name, functional=network):
    """The start of a case on all ranks, and on one, made once. Collective."""
    make, options = CASES[name]

    def start(comm):
        problem = mf.Problem(make(comm), functional(), 0.6, **options)
        mean = np.array([0.8, -0.5, 0.2])[: problem.dim]
        return mf.Density.from_function(problem, gaussian(mean, 1.3))

    return once(_MADE, (name, functional), start)


def compare(shared, alone):
    """Two runs, state by state. Collective."""
    compare_scalars(shared, alone, COUNTERS)
    for here, there in zip(shared, alone, strict=True):
        assert abs(here.linear_iterations - there.linear_iterations) <= (
            8 + 0.2 * there.linear_iterations
        )


def runs(name, dt, steps, functional=network, scheme="backward-euler", **options):
    options = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}} | options
    return [
        list(mf.SchrodingerFlow(m.problem, dt, scheme, **options).run(m, steps * dt))
        for m in both(name, functional)
    ]


@pytest.mark.parametrize("name", CASES)
def test_every_scalar_of_every_state(name):
    shared, alone = runs(name, 0.05, 4)
    compare(shared, alone)
    check_density(shared[-1].density, alone[-1].density)


@pytest.mark.parametrize(
    "name",
    [
        "triangles",
        pytest.param("quadrilaterals", marks=pytest.mark.chatty),
        pytest.param("disk", marks=pytest.mark.chatty),
        "tetrahedra",
        "walls",
    ],
)
def test_every_scalar_after_long_steps(name):
    shared, alone = runs(name, 10.0, 3)
    compare(shared, alone)


@pytest.mark.parametrize("name", ["triangles", "quadrilaterals"])
@pytest.mark.parametrize("scheme", ["crank-nicolson", "sdirk2"])
def test_every_scheme(name, scheme):
    compare(*runs(name, 0.1, 5, scheme=scheme))


@pytest.mark.parametrize("name", ["triangles", "triangles lumped", "disk"])
def test_contact(name):
    shared, alone = runs(name, 0.2, 4, functional=contact)
    compare(shared, alone)
    check_density(shared[-1].density, alone[-1].density)


@pytest.mark.parametrize(
    "accelerator", [mf.mean_field.Picard, mf.mean_field.Anderson, mf.mean_field.Newton]
)
def test_every_accelerator(accelerator):
    states = [
        list(
            mf.SchrodingerFlow(
                m.problem, 0.5, accelerator=accelerator(), fixed_point_tolerance=1e-12
            ).run(m, 2.0)
        )
        for m in both("quadrilaterals")
    ]
    compare(*states)


@pytest.mark.parametrize("name", ["triangles", "quadrilaterals"])
def test_adaptive_steps(name):
    shared, alone = runs(name, 0.4, 5, scheme="sdirk2", tolerance=3e-3)
    assert sum(s.rejected for s in alone) > 0
    compare(shared, alone)


@pytest.mark.chatty
def test_adaptive_steps_from_a_step_that_is_far_too_long():
    compare(*runs("interval", 1.0, 2, scheme="crank-nicolson", tolerance=1e-3))


SOLVERS = [
    {"pc_type": "lu"},
    {"pc_type": "gamg"},
    {"ksp_type": "preonly", "pc_type": "lu"},
    {"ksp_type": "gmres", "pc_type": "jacobi"},
]


@pytest.mark.parametrize("options", SOLVERS, ids=lambda o: "-".join(o.values()))
def test_other_solvers(options):
    shared, alone = runs("triangles", 0.2, 4, petsc_options=options)
    compare(shared, alone)
    usual = runs("triangles", 0.2, 4)[0]
    for state, other in zip(shared, usual, strict=True):
        assert state.energy == pytest.approx(other.energy, rel=1e-10)
        assert state.residual == pytest.approx(other.residual, rel=1e-8)


def check_density(here, there):
    """Everything a density can be asked. Collective."""
    problem = here.problem
    np.testing.assert_allclose(here.mean(), there.mean(), **TIGHT)
    np.testing.assert_allclose(here.covariance(), there.covariance(), **TIGHT)
    for name in ("mass", "entropy", "fisher_information"):
        np.testing.assert_allclose(getattr(here, name)(), getattr(there, name)(), **TIGHT)
    for p in (1, 2, 4):
        np.testing.assert_allclose(here.moment(p), there.moment(p), **TIGHT)
    np.testing.assert_allclose(here.integrate(trap), there.integrate(trap), **TIGHT)
    d = problem.dim
    points = np.random.default_rng(4).uniform(-6.0, 6.0, size=(60, d))  # some of them outside
    values = here.evaluate(points)
    assert np.isnan(values).any() and np.isfinite(values).any()
    np.testing.assert_allclose(values, there.evaluate(points), **TIGHT)
    assert len(set(COMM.allgather(values.tobytes()))) == 1
    samples = here.sample(200, seed=6)
    np.testing.assert_allclose(samples, there.sample(200, seed=6), rtol=0, atol=1e-7)
    assert len(set(COMM.allgather(samples.tobytes()))) == 1


@pytest.mark.parametrize("name", CASES)
def test_density_and_observables(name):
    here, there = both(name)
    check_density(here, there)
    for observable in (mf.energy, mf.eigenvalue, mf.residual, mf.dissipation, mf.boundary_mass):
        value, reference = observable(here.problem, here), observable(there.problem, there)
        np.testing.assert_allclose(value, reference, **TIGHT, err_msg=observable.__name__)
    flat = [
        mf.Density(m.problem, np.ones(m.problem.discretisation.num_owned)) for m in (here, there)
    ]
    entropies = [m.relative_entropy(f) for m, f in zip((here, there), flat, strict=True)]
    np.testing.assert_allclose(*entropies, **TIGHT)


@pytest.mark.parametrize("functional", [network, contact])
@pytest.mark.parametrize("name", ["triangles", "quadrilaterals", "disk"])
def test_functionals_and_checks(name, functional):
    here, there = both(name, functional)
    values = [m.problem.functional.value(m) for m in (here, there)]
    np.testing.assert_allclose(*values, **TIGHT)
    # V as a number at the nodes: two functions of it
    for square in (1, 2):
        work = [
            m.problem.discretisation.dot(
                m.problem.functional.derivative(m).x.array[
                    : m.problem.discretisation.num_potential_owned
                ]
                ** square,
                m.measure(),
            )
            for m in (here, there)
        ]
        np.testing.assert_allclose(*work, **TIGHT)
    checks = [mf.check_derivative(m.problem.functional, m) for m in (here, there)]
    np.testing.assert_allclose(checks[0].remainders, checks[1].remainders, rtol=1e-6, atol=1e-13)
    probes = [
        mf.functionals.probe_convexity(m.problem.functional, m, samples=2) for m in (here, there)
    ]
    np.testing.assert_allclose(*probes, rtol=1e-8)


def test_network_predictions_and_compressed_features():
    z = np.linspace(0.0, 0.7, 80)
    outputs = []
    for comm in (COMM, MPI.COMM_SELF):
        loss = mf.NetworkLoss(z, z, lambda x, z: np.tanh(x[0] * z + x[1]))
        mesh = mf.box(comm, 3.0, 0.75, cell="quadrilateral")
        problem = mf.Problem(mesh, loss, 0.5, 3, mass="lumped")
        density = mf.Density.from_function(problem, gaussian([0.5, 0.0], 2.0))
        assert len(set(COMM.allgather(loss.matrix(problem).rank))) == 1
        assert loss.matrix(problem).rank < 40
        outputs.append(np.concatenate([loss.predict(density), loss.predict(density, [0.3, -2.0])]))
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-12)


def test_a_rank_may_have_no_nodes():
    # two cells: from three ranks on, one has none of its own
    states = []
    for comm in (COMM, MPI.COMM_SELF):
        mesh = mf.interval(comm, 3.0, 3.0)
        problem = mf.Problem(mesh, mf.Potential(trap), 0.6, 2)
        start = mf.Density.from_function(problem, gaussian(0.3, 1.0))
        states.append(list(mf.SchrodingerFlow(problem, 0.5).run(start, 1.0)))
        check = start.sample(20, seed=1)
        assert check.shape == (20, 1)
    compare(*states)


@pytest.mark.parametrize("name", ["triangles", "quadrilaterals"])
def test_functionals_of_your_own(name):
    make, options = CASES[name]
    numbers = []
    for comm in (COMM, MPI.COMM_SELF):
        form = mf.FormFunctional(lambda m, dx: m**3 / 3 * dx)
        own = mf.functional(
            value=lambda m: m.expect(np.sin(m.points()[0]) + m.values()),
            derivative=lambda m: np.sin(m.points()[0]) + 2.0 * m.values(),
        )
        problem = mf.Problem(make(comm), mf.Potential(trap) + form + 0.5 * own, 0.6, **options)
        density = mf.Density.from_function(problem, gaussian([0.8, -0.5], 1.3))
        v = problem.functional.derivative(density)
        squared = problem.discretisation.dot(
            v.x.array[: problem.discretisation.num_potential_owned] ** 2, density.measure()
        )
        *_, state = mf.SchrodingerFlow(problem, 0.5, fixed_point_tolerance=1e-12).run(density, 1.0)
        numbers.append([mf.energy(problem, density), squared, state.energy, state.eigenvalue])
    np.testing.assert_allclose(*numbers, **TIGHT)


def test_walls_by_facet_tags():
    file = Path(__file__).resolve().parents[2] / "meshes" / "perforated_disk.msh"
    trap = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
    energies = []
    for comm in (COMM, MPI.COMM_SELF):
        mesh = mf.read_mesh(file, comm)
        tags = mf.read_facet_tags(file, mesh)
        problem = mf.Problem(mesh, trap, 0.5, 2, boundary=[2], facet_tags=tags)
        counts = (
            comm.allreduce(problem.discretisation.constrained.size),
            comm.allreduce(tags.indices.size),
        )
        energies.append([mf.minimise(problem).energy, *counts])
    np.testing.assert_allclose(*energies, **TIGHT)
