"""The Schrödinger flow: what holds at every step, for every step size, scheme and functional."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.exact import gaussian
from tests.rows import rows

COMM = MPI.COMM_WORLD
SCHEMES = ["backward-euler", "crank-nicolson", "sdirk2"]
Z = np.linspace(-2.0, 2.0, 9)
PREFIX = "fem_mf_schrodinger_"
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def trap(x):
    return 0.1 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def network():
    return mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))


def plane(functional, degree=5, **options):
    mesh = mf.box(COMM, 7.0, 1.4, cell="quadrilateral")
    return mf.Problem(mesh, functional, 0.5, degree, mass="lumped", **options)


def triangles(functional, degree=2, mass="consistent", h=0.9, **options):
    return mf.Problem(mf.box(COMM, 6.5, h), functional, 0.5, degree, mass=mass, **options)


PROBLEMS = {
    "network on quadrilaterals": lambda: plane(mf.Potential(trap) + network()),
    "network on triangles": lambda: triangles(mf.Potential(trap) + network()),
    "network with M-matrices": lambda: triangles(mf.Potential(trap) + network(), 1, "lumped"),
    "linear": lambda: plane(mf.Potential(trap)),
    "contact": lambda: plane(mf.Potential(trap) + mf.Contact(20.0), 4),
    "contact on triangles": lambda: triangles(mf.Potential(trap) + mf.Contact(20.0)),
    "box with walls": lambda: plane(mf.Potential(trap) + network(), boundary="dirichlet"),
}
_MADE = {}


def made(name):
    """A problem and an off-centre start, made once."""
    if name not in _MADE:
        problem = PROBLEMS[name]()
        _MADE[name] = problem, mf.Density.from_function(problem, gaussian([1.5, -1.0], 2.0))
    return _MADE[name]


def final(problem, start, t_end, dt, **options):
    *_, last = mf.SchrodingerFlow(problem, dt, **options).run(start, t_end)
    return last


def psi_of(state):
    return state.density.psi.x.array


# -- every step size ---------------------------------------------------------------------------


# Every step size for M-matrices, where signs are proved; else one that is long, one that is short.
STEPS = {
    name: [1e-4, 1e-2, 1.0, 1e2, 1e4] if "M-matrices" in name else [(1e-4, 1e-2)[i % 2], 1e2]
    for i, name in enumerate(PROBLEMS)
}


@pytest.mark.parametrize(("name", "dt"), [(name, dt) for name in PROBLEMS for dt in STEPS[name]])
def test_backward_euler_decreases_the_energy_for_every_step(name, dt):
    problem, start = made(name)
    steps = 6
    states = list(mf.SchrodingerFlow(problem, dt).run(start, steps * dt))
    assert len(states) == steps + 1
    for before, after in pairwise(states):
        assert after.energy <= before.energy + 1e-12 * abs(before.energy)
        assert after.fixed_point_iterations >= 1
    assert states[-1].energy < states[0].energy
    for state in states:
        assert state.mass == pytest.approx(1.0, abs=1e-13)
        assert state.density.mass() == pytest.approx(1.0, abs=1e-13)
        free = np.ones(problem.discretisation.num_owned, dtype=bool)
        free[problem.discretisation.constrained] = False
        # Signs are kept where the mesh, or the linear solver, does not resolve ψ.
        psi = psi_of(state)[: problem.discretisation.num_owned][free]
        assert psi.min() > (0.0 if "M-matrices" in name else -1e-8 * psi.max())
        assert state.dissipation == pytest.approx(state.residual**2, rel=1e-12)


@rows("scheme", SCHEMES)
def test_scalars_of_a_state_after_a_long_step(scheme):
    problem, start = made("network on quadrilaterals")
    for state in mf.SchrodingerFlow(problem, 30.0, scheme).run(start, 120.0):
        assert state.mass == pytest.approx(1.0, abs=1e-13)
        assert state.energy == pytest.approx(mf.energy(problem, state.density), rel=1e-10)
        assert state.eigenvalue == pytest.approx(mf.eigenvalue(problem, state.density), rel=1e-9)
        assert state.residual == pytest.approx(mf.residual(problem, state.density), rel=1e-6)


@every_scheme
def test_schemes_meet_at_small_steps_and_at_the_minimiser(scheme):
    problem, start = made("network on quadrilaterals")
    reference = final(problem, start, 1.0, 1 / 64, scheme="sdirk2")
    near = final(problem, start, 1.0, 1 / 128, scheme=scheme)
    cap = 2e-2 if scheme == "backward-euler" else 1e-3
    np.testing.assert_allclose(psi_of(near), psi_of(reference), rtol=0, atol=cap)
    *_, steady = mf.SchrodingerFlow(problem, 2.0, scheme).run(start, 500.0, steady_residual=1e-8)
    minimiser = final(problem, start, 1e5, 1e3)
    assert steady.residual <= 1e-8
    assert steady.energy == pytest.approx(minimiser.energy, rel=1e-12)
    np.testing.assert_allclose(psi_of(steady), psi_of(minimiser), rtol=0, atol=1e-6)


def test_the_minimiser_does_not_depend_on_the_start():
    problem, start = made("network on quadrilaterals")
    other = mf.Density.from_function(problem, gaussian([-2.0, 2.0], 1.0))
    a, b = (final(problem, m, 1e5, 1e3, fixed_point_tolerance=1e-11) for m in (start, other))
    assert a.energy == pytest.approx(b.energy, rel=1e-12)
    np.testing.assert_allclose(psi_of(a), psi_of(b), rtol=0, atol=1e-8)


# -- time --------------------------------------------------------------------------------------


@every_scheme
def test_adaptive_steps(scheme):
    problem, start = made("network on quadrilaterals")
    reference = final(problem, start, 3.0, 1 / 128, scheme="sdirk2")
    errors = {}
    for tolerance in (1e-3, 1e-4):
        flow = mf.SchrodingerFlow(problem, 2.0, scheme, tolerance=tolerance)
        states = list(flow.run(start, 3.0))
        assert states[-1].t == 3.0
        assert states[1].rejected > 0  # the first step is far too long
        difference = (psi_of(states[-1]) - psi_of(reference))[: problem.discretisation.num_owned]
        errors[tolerance] = np.sqrt(
            problem.discretisation.dot(difference, problem.discretisation.apply_mass(difference))
        )
        assert len(states) < 400
    assert errors[1e-4] < 0.6 * errors[1e-3]
    assert errors[1e-4] < 2e-2
    assert all(s.mass == pytest.approx(1.0, abs=1e-13) for s in states)


def test_adaptive_steps_grow_as_the_flow_calms_down():
    problem, start = made("network on quadrilaterals")
    states = list(mf.SchrodingerFlow(problem, 0.1, "sdirk2", tolerance=1e-3).run(start, 60.0))
    steps = [s.dt for s in states[1:-1]]
    assert steps[-1] > 5 * steps[0]
    assert np.diff([s.energy for s in states]).max() < 1e-13


# -- functionals without moments ---------------------------------------------------------------


def contact(problem_of, **options):
    return problem_of(mf.Potential(trap) + mf.Contact(20.0), **options)


def test_contact_on_triangles_and_quadrilaterals_agree():
    flows = {
        "quadrilaterals": contact(plane, degree=6),
        "triangles": contact(triangles, degree=3, h=0.6),
    }
    states = {}
    for name, problem in flows.items():
        start = mf.Density.from_function(problem, gaussian([1.0, -0.5], 1.0))
        states[name] = list(mf.SchrodingerFlow(problem, 0.25).run(start, 2.0))
    for a, b in zip(*states.values(), strict=True):
        assert a.energy == pytest.approx(b.energy, rel=1e-4)
        assert a.eigenvalue == pytest.approx(b.eigenvalue, rel=1e-4)
        np.testing.assert_allclose(a.density.mean(), b.density.mean(), rtol=0, atol=1e-3)
        points = [[0.0, 0.0], [1.0, -1.0], [-0.5, 2.0]]
        values = [s.density.evaluate(points) for s in (a, b)]
        np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-3)


class Interaction:
    """(λ/2)|∫x dm − a|² as a user would write it."""

    strength, target = 0.8, np.array([0.5, 0.5])

    def value(self, density):
        return 0.5 * self.strength * float(np.sum((density.mean() - self.target) ** 2))

    def derivative(self, density):
        force = self.strength * (density.mean() - self.target)
        v = density.problem.new_potential()
        v.interpolate(lambda x: force[0] * x[0] + force[1] * x[1])
        return v


@rows("scheme", SCHEMES)
@rows("problem_of", [plane, triangles])
def test_a_users_functional_follows_the_built_in_one(scheme, problem_of):
    built_in = mf.MeanInteraction(Interaction.strength, Interaction.target)
    runs = []
    for term in (built_in, Interaction()):
        problem = problem_of(mf.Potential(trap) + term)
        start = mf.Density.from_function(problem, gaussian([1.5, -1.0], 2.0))
        flow = mf.SchrodingerFlow(problem, 0.2, scheme, fixed_point_tolerance=1e-12)
        runs.append(list(flow.run(start, 1.0)))
    for own, user in zip(*runs, strict=True):
        assert own.energy == pytest.approx(user.energy, abs=1e-8)
        assert own.eigenvalue == pytest.approx(user.eigenvalue, abs=1e-8)
        assert own.residual == pytest.approx(user.residual, abs=1e-7)
        np.testing.assert_allclose(psi_of(own), psi_of(user), rtol=0, atol=1e-8)


@rows(
    ("cell", "degree", "mass"),
    [("hexahedron", 3, "lumped"), ("tetrahedron", 2, "consistent"), ("tetrahedron", 1, "lumped")],
)
def test_three_dimensions(cell, degree, mass):
    functional = mf.Potential(trap) + mf.NetworkLoss(
        Z, np.sin(2 * Z), lambda x, z: x[2] * np.tanh(x[0] * z + x[1])
    )
    mesh = mf.box(COMM, 5.5, 2.2, cell=cell)
    problem = mf.Problem(mesh, functional, 1.0, degree, mass=mass)
    start = mf.Density.from_function(problem, gaussian([0.5, 0.5, 1.0], 0.7))
    states = list(mf.SchrodingerFlow(problem, 0.5).run(start, 2.0))
    energies = [s.energy for s in states]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.95 * energies[0]
    assert all(s.mass == pytest.approx(1.0, abs=1e-13) for s in states)
    assert states[-1].energy == pytest.approx(mf.energy(problem, states[-1].density), rel=1e-10)


@rows("tolerance", [0.0, 1.0, np.nan])
def test_bad_tolerances(tolerance):
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        mf.SchrodingerFlow(made("linear")[0], 0.1, tolerance=tolerance)


# -- PETSc options -----------------------------------------------------------------------------


@rows(
    ("name", "chosen"),
    [
        ("network on quadrilaterals", {"ksp_type": "cg", "pc_type": "lu"}),
        ("network on triangles", {"ksp_type": "cg", "pc_type": "gamg"}),
        ("network on quadrilaterals", {"ksp_type": "preonly", "pc_type": "cholesky"}),
        (
            "network on triangles",
            {"ksp_type": "gmres", "pc_type": "jacobi", "ksp_gmres_restart": 50},
        ),
        ("network on quadrilaterals", {"pc_type": "none"}),
    ],
)
def test_any_solver_gives_the_same_result(database, name, chosen):
    problem, start = made(name)
    before = database.getAll()
    default = final(problem, start, 0.4, 0.1, fixed_point_tolerance=1e-12)
    other = final(problem, start, 0.4, 0.1, fixed_point_tolerance=1e-12, petsc_options=chosen)
    np.testing.assert_allclose(psi_of(other), psi_of(default), rtol=0, atol=1e-9)
    assert other.energy == pytest.approx(default.energy, rel=1e-10)
    assert database.getAll() == before


def test_the_command_line_goes_before_the_argument(database):
    problem, start = made("linear")

    def iterations(**options):
        return final(problem, start, 0.1, 0.1, **options).linear_iterations

    jacobi = {"ksp_type": "cg", "pc_type": "jacobi"}
    assert iterations(petsc_options=jacobi) > 4
    database[PREFIX + "pc_type"] = "lu"
    assert iterations(petsc_options=jacobi) <= 4
    assert iterations() <= 4
    assert database.getAll()[PREFIX + "pc_type"] == "lu"  # the user's own stays
    database[PREFIX + "pc_type"] = "hypre"
    with pytest.raises(ValueError, match="rejected"):
        iterations()
    database.delValue(PREFIX + "pc_type")
    assert iterations(petsc_options=jacobi) > 4
