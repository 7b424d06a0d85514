"""Energy, eigenvalue, residual and boundary mass against closed forms and the strong equation."""

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from scipy.special import erf

import fem_mf as mf
from fem_mf.boundary import boundary_components, warn_if_truncated
from fem_mf.observables import energy_scale, first_order
from tests.exact import gaussian, gaussian_energy, rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
SIGMA, KAPPA = 0.8, 1.3
THETA_STAR = np.sqrt(2 * KAPPA) / SIGMA  # of the ground state


def trap(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


SPACES = {
    "interval": (lambda: mf.interval(COMM, 7.0, 0.7), 8, "lumped", 1e-7),
    "quadrilaterals": (lambda: mf.box(COMM, 6.0, 0.75, cell="quadrilateral"), 6, "lumped", 1e-6),
    "quads": (lambda: mf.box(COMM, 6.0, 1.0, cell="quadrilateral"), 5, "consistent", 1e-5),
    "triangles": (lambda: mf.box(COMM, 6.0, 0.6), 4, "consistent", 1e-4),
}
_PROBLEMS = {}


def problem_on(name):
    if name not in _PROBLEMS:
        make, degree, mass, rel = SPACES[name]
        functional = mf.Potential(trap) + mf.MeanInteraction(0.7, 0.5)
        _PROBLEMS[name] = mf.Problem(make(), functional, SIGMA, degree, mass=mass), rel
    return _PROBLEMS[name]


@rows("name", SPACES)
def test_energy_and_eigenvalue_of_a_gaussian(name):
    problem, rel = problem_on(name)
    d, theta = problem.dim, 1.1
    mean = np.array([0.4, -0.2])[:d]
    density = mf.Density.from_function(problem, gaussian(mean, theta))
    parameters = {"sigma": SIGMA, "kappa": KAPPA, "strength": 0.7, "target": 0.5}
    energy = gaussian_energy(mean, theta, **parameters)
    assert mf.energy(problem, density) == pytest.approx(energy, rel=rel)
    # ⟨ψ,Hψ⟩ = ∫V dm + σ²∫|∇ψ|², V = ½κ|x|² + 0.7 (mean − 0.5)·x
    kinetic = 0.25 * SIGMA**2 * d * theta
    potential = 0.5 * KAPPA * (d / theta + mean @ mean) + 0.7 * (mean - 0.5) @ mean
    assert mf.eigenvalue(problem, density) == pytest.approx(kinetic + potential, rel=rel)


@rows("name", SPACES)
def test_residual_of_a_gaussian(name):
    problem, rel = problem_on(name)
    d, theta = problem.dim, 1.1
    mean = np.array([0.4, -0.2])[:d]
    density = mf.Density.from_function(problem, gaussian(mean, theta))
    # Hψ/ψ = c|z|² + l·z + const, z = x − mean: its variance under m
    c = 0.5 * KAPPA - 0.25 * SIGMA**2 * theta**2
    slope = KAPPA * mean + 0.7 * (mean - 0.5)
    exact = c**2 * 2 * d / theta**2 + slope @ slope / theta
    residual = mf.residual(problem, density)
    assert residual == pytest.approx(np.sqrt(exact), rel=300 * rel)
    assert mf.dissipation(problem, density) == pytest.approx(residual**2, rel=1e-12)


def test_the_scale_of_energies_is_that_above_the_bottom_of_v():
    problem, rel = problem_on("quadrilaterals")
    theta, mean = 1.1, np.array([0.4, -0.2])
    density = mf.Density.from_function(problem, gaussian(mean, theta))
    # λ − min V, V = ½κ|x|² + 0.7 (mean − 0.5)·x at the nodes
    force = 0.7 * (mean - 0.5)
    lowest = (trap(problem.discretisation.nodes) + force @ problem.discretisation.nodes[:2]).min()
    eigenvalue = 0.5 * SIGMA**2 * theta + 0.5 * KAPPA * (2 / theta + mean @ mean) + force @ mean
    scale = energy_scale(problem, first_order(problem, density))
    assert scale == pytest.approx(eigenvalue - lowest, rel=10 * rel)
    # where V is flat, σ² over the squared width
    flat = mf.Problem(problem.mesh, mf.Potential(lambda x: 3.0 + 0.0 * x[0]), SIGMA, 2)
    uniform = mf.Density(flat, np.ones(flat.discretisation.num_owned))
    assert energy_scale(flat, first_order(flat, uniform)) == pytest.approx(SIGMA**2 / 12.0**2)


def strong_residual(problem, density):
    """‖−σ²Δψ + Vψ − λψ‖ cell by cell, V in closed form, by a rule of its own."""
    x = ufl.SpatialCoordinate(problem.mesh)
    psi = density.psi
    potential = 0.5 * KAPPA * ufl.dot(x, x) + ufl.sin(x[0])
    h_psi = -(SIGMA**2) * ufl.div(ufl.grad(psi)) + potential * psi
    dx = ufl.dx(degree=2 * problem.degree + 8)
    eigenvalue = SIGMA**2 * ufl.inner(ufl.grad(psi), ufl.grad(psi)) + potential * psi**2
    eigenvalue = COMM.allreduce(fem.assemble_scalar(fem.form(eigenvalue * dx)))
    square = fem.form((h_psi - eigenvalue * psi) ** 2 * dx)
    return np.sqrt(COMM.allreduce(fem.assemble_scalar(square)))


@rows(
    ("cell", "degree", "mass", "sizes"),
    [
        ("quadrilateral", 5, "lumped", (1.5, 0.75)),
        ("quadrilateral", 4, "consistent", (1.5, 0.75)),
        ("triangle", 4, "consistent", (1.4, 0.7)),
    ],
)
def test_residual_converges_to_that_of_the_strong_equation(cell, degree, mass, sizes):
    functional = mf.Potential(lambda x: 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2) + np.sin(x[0]))
    differences = []
    for h in sizes:
        mesh = mf.box(COMM, 5.0, h, cell=cell)
        problem = mf.Problem(mesh, functional, SIGMA, degree, mass=mass)
        density = mf.Density.from_function(
            problem, lambda x: np.exp(-((x[0] - 0.5) ** 2) - 0.7 * x[1] ** 2 - 0.1 * x[0] ** 4)
        )
        weak = mf.residual(problem, density)
        differences.append(abs(weak / strong_residual(problem, density) - 1))
    assert rate(sizes, differences) > 2.0
    assert differences[-1] < 5e-3


@rows("name", SPACES)
def test_ground_state_has_no_residual(name):
    problem, rel = problem_on(name)
    mean = np.full(problem.dim, 0.7 * 0.5 / (KAPPA + 0.7))
    density = mf.Density.from_function(problem, gaussian(mean, THETA_STAR))
    assert mf.residual(problem, density) < 2000 * rel
    energy = mf.energy(problem, density)
    d = problem.dim
    exact = d * SIGMA * np.sqrt(KAPPA / 2) + KAPPA * 0.7 * 0.25 * d / (2 * (KAPPA + 0.7))
    assert energy == pytest.approx(exact, rel=rel)
    # the discrete ground state, by contrast, has none at all
    *_, last = mf.SchrodingerFlow(problem, dt=1e3, fixed_point_tolerance=1e-12).run(
        density, 1e5, steady_residual=1e-10
    )
    assert mf.residual(problem, last.density) < 5e-10
    assert mf.energy(problem, last.density) <= energy + 1e-13


def test_residual_with_dirichlet_conditions():
    zero = mf.Potential(lambda x: 0.0 * x[0])
    residuals = {}
    for mass in ("consistent", "lumped"):
        mesh = mf.box(COMM, 1.0, 0.5, cell="quadrilateral")
        problem = mf.Problem(mesh, zero, SIGMA, 6, boundary="dirichlet", mass=mass)
        # ψ ∝ cos(πx/2) cos(πy/2) + ½ cos(3πx/2) cos(πy/2): two modes, energies 2 and 10 (π/2)²σ²
        unit = 0.5 * np.pi

        def m(x, unit=unit):
            first = np.cos(unit * x[0]) + 0.2 * np.cos(3 * unit * x[0])
            return (first * np.cos(unit * x[1])) ** 2

        density = mf.Density.from_function(problem, m)
        residuals[mass] = mf.residual(problem, density)
    # variance of the energy: weights 1 and 0.04, difference 8 (π/2)²σ²
    p = 0.04 / 1.04
    exact = SIGMA**2 * 8 * unit**2 * np.sqrt(p * (1 - p))
    assert residuals["consistent"] == pytest.approx(exact, rel=1e-3)
    assert residuals["lumped"] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("name", ["triangles", "quadrilaterals"])
def test_solve_mass_inverts_the_mass(name):
    problem, _ = problem_on(name)
    psi = np.cos(problem.discretisation.nodes[0, : problem.discretisation.num_owned])
    back = problem.discretisation.solve_mass(problem.discretisation.apply_mass(psi))
    np.testing.assert_allclose(back, psi, rtol=0, atol=1e-11)


# -- boundary mass -----------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "cell"), [(1, "interval"), (2, "quadrilateral")])
def test_boundary_mass_of_a_gaussian(dim, cell):
    radius, h, theta = 3.0, 0.5, 1.0
    mesh = mf.box(COMM, radius, h, dim=dim, cell=cell)
    problem = mf.Problem(mesh, mf.Potential(trap), SIGMA, 7, mass="lumped")
    density = mf.Density.from_function(problem, gaussian(np.zeros(dim), theta))
    inside, all_of_it = (erf(r * np.sqrt(theta / 2)) ** dim for r in (radius - h, radius))
    assert mf.boundary_mass(problem, density) == pytest.approx(1 - inside / all_of_it, rel=1e-7)


@pytest.mark.parametrize(("cell", "dim"), [("triangle", 2), ("tetrahedron", 3)])
def test_boundary_mass_of_a_uniform_density(cell, dim):
    mesh = mf.box(COMM, 1.0, 0.4, dim=dim, cell=cell)
    problem = mf.Problem(mesh, mf.Potential(trap), SIGMA, 1)
    density = mf.Density.from_function(problem, lambda x: np.ones_like(x[0]))
    # volumes of the cells that have all vertices of a facet on one side of the box
    x = mesh.geometry.x[mesh.geometry.dofmaps[0], :dim]
    sides = np.concatenate((np.abs(x - 1) < 1e-12, np.abs(x + 1) < 1e-12), axis=2)
    touches = (sides.sum(axis=1) == dim).any(axis=1)
    volumes = np.abs(np.linalg.det(x[:, 1:] - x[:, :1]))
    assert 0 < touches.sum() < len(touches)
    exact = volumes[touches].sum() / volumes.sum()
    assert mf.boundary_mass(problem, density) == pytest.approx(exact, rel=1e-12)


def test_a_mesh_too_small_is_reported_with_the_radius_to_use(log):
    def ground_state(radius):
        mesh = mf.interval(COMM, radius, 0.2)
        problem = mf.Problem(mesh, mf.Potential(trap), SIGMA, 6, mass="lumped")
        return problem, mf.Density.from_function(problem, gaussian(0.0, THETA_STAR))

    problem, density = ground_state(2.0)
    mass = warn_if_truncated(problem, density)
    assert mass == mf.boundary_mass(problem, density)
    assert mass > 1e-3
    (message,) = log.messages
    assert message.startswith(f"warning: the mesh is too small: boundary mass {mass:.1e}, at")
    assert "at distance 2 from the centre of mass (0);" in message
    advice = float(message.split("reaches about ")[1].split()[0])
    # where the tails exp(−θR²/2) of a Gaussian with this boundary mass are down to 1e-8
    assert advice == pytest.approx(2.0 * np.sqrt(np.log(1e-8) / np.log(mass)), rel=5e-3)
    log.clear()
    # following the advice ends the warnings, without being extravagant
    assert warn_if_truncated(*ground_state(advice)) < 1e-6
    assert not log.messages
    assert advice < 3 * mf.truncation_radius(KAPPA, SIGMA, 1e-6, dim=1)


def test_a_mesh_far_from_the_origin_is_judged_from_the_centre_of_mass(log):
    mesh = dmesh.create_interval(COMM, 40, [195.0, 205.0])
    far = mf.Potential(lambda x: trap(x - np.array([[200.0], [0.0], [0.0]])))
    problem = mf.Problem(mesh, far, SIGMA, 4)
    centred = gaussian(200.0, THETA_STAR)
    warn_if_truncated(problem, mf.Density.from_function(problem, centred))
    assert not log.messages
    warn_if_truncated(problem, mf.Density.from_function(problem, gaussian(200.0, 0.5)))
    (message,) = log.messages
    assert "at distance 5 from the centre of mass (200);" in message
    assert 5.0 < float(message.split("reaches about ")[1].split()[0]) < 8.0


@pytest.mark.parametrize(
    ("potential", "dim"),
    [(lambda x: -(x[0] ** 2) - x[1] ** 2, 2), (lambda x: 0.0 * x[0], 1), (lambda x: -x[0], 1)],
)
def test_a_potential_that_does_not_confine_m_is_named_instead_of_a_radius(potential, dim, log):
    problem = mf.Problem(mf.box(COMM, 3.0, 0.5, dim=dim), mf.Potential(potential), SIGMA, 2)
    best = mf.minimise(problem)
    (message,) = [m for m in log.messages if m.startswith("warning")]
    mass = mf.boundary_mass(problem, best.density)
    assert "V does not confine m: it does not grow towards the outer boundary" in message
    assert f"mass {mass:.1e}; the minimum on R^d may not exist" in message
    assert "reaches" not in message


def test_holes_are_told_from_the_outer_boundary(log):
    file = Path(__file__).resolve().parents[1] / "meshes" / "perforated_disk.msh"
    problem = mf.Problem(mf.read_mesh(file, COMM), mf.Potential(trap), 0.3, 2)
    best = mf.minimise(problem)
    components = boundary_components(problem, best.density)
    outer, *holes = components
    assert outer.outer
    assert len(holes) == 5
    assert not any(hole.outer for hole in holes)
    assert outer.mass < 1e-6 < max(hole.mass for hole in holes)
    assert sum(c.mass for c in components) == pytest.approx(
        mf.boundary_mass(problem, best.density), rel=1e-12
    )
    assert not any("too small" in message for message in log.messages)
    (named,) = [m for m in log.messages if "hole(s)" in m]
    assert f"around {sum(hole.mass > 1e-6 for hole in holes)} hole(s)" in named
    assert f"most of it ({holes[0].mass:.1e})" in named


def test_a_flow_warns_at_its_start_and_end(log):
    mesh = mf.interval(COMM, 3.0, 0.3)
    problem = mf.Problem(mesh, mf.Potential(lambda x: -5.0 * x[0]), SIGMA, 4, mass="lumped")
    start = mf.Density.from_function(problem, gaussian(0.0, 12.0))
    states = list(mf.SchrodingerFlow(problem, 1.0).run(start, 3.0))
    assert states[0].boundary_mass < 1e-6 < states[-1].boundary_mass
    (message,) = log.messages
    assert f"whose cells have mass {states[-1].boundary_mass:.1e}" in message
    log.clear()
    wide = mf.Density.from_function(problem, gaussian(0.0, 0.5))
    next(mf.SchrodingerFlow(problem, 1.0).run(wide, 3.0))
    assert "V does not confine m" in log.text
