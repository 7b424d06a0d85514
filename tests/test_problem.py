"""Spaces, quadrature, operators and boundary conditions of a problem, against exact integrals."""

from pathlib import Path

from mpi4py import MPI

import basix.ufl
import dolfinx.mesh
import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy.linalg import eigh

import fem_mf as mf
from tests.rows import rows

COMM = MPI.COMM_WORLD
R = 1.5
ZERO = mf.Potential(lambda x: 0.0 * x[0])
MAKERS = {
    "interval": lambda: mf.interval(COMM, R, 1.0),
    "triangle": lambda: mf.box(COMM, R, 1.5),
    "quadrilateral": lambda: mf.box(COMM, R, 1.0, cell="quadrilateral", grading=1.4),
    "tetrahedron": lambda: mf.box(COMM, R, 3.0, dim=3),
    "hexahedron": lambda: mf.box(COMM, R, 1.5, cell="hexahedron"),
}
CONSISTENT = (
    [("interval", k) for k in (1, 4)]
    + [("triangle", k) for k in range(1, 7)]
    + [("quadrilateral", k) for k in (1, 2, 3, 8)]
    + [("tetrahedron", k) for k in range(1, 4)]
    + [("hexahedron", k) for k in (1, 2)]
)
LUMPED = (
    [("interval", k) for k in (1, 2, 8)]
    + [("triangle", 1), ("tetrahedron", 1)]
    + [("quadrilateral", k) for k in range(1, 9)]
    + [("hexahedron", k) for k in range(1, 4)]
)


def make(cell, degree, mass="consistent", functional=ZERO, **options):
    return mf.Problem(MAKERS[cell](), functional, 1.0, degree, mass=mass, **options)


def power(p, dim):
    """∫x₀^p over the box, p even."""
    return 2 * R ** (p + 1) / (p + 1) * (2 * R) ** (dim - 1)


def integral(problem, values, matrix):
    """vᵀMv for nodal values v."""
    return problem.discretisation.dot(values, problem.discretisation.multiply(matrix, values))


@rows(("cell", "degree"), CONSISTENT)
def test_consistent_operators_integrate_polynomials(cell, degree):
    problem = make(cell, degree)
    x, dim = problem.discretisation.nodes[0, : problem.discretisation.num_owned], problem.dim
    one = np.ones_like(x)
    mass, stiffness = problem.mass_matrix, problem.stiffness
    assert integral(problem, one, mass) == pytest.approx((2 * R) ** dim, rel=1e-12)
    assert integral(problem, x**degree, mass) == pytest.approx(power(2 * degree, dim), rel=1e-12)
    exact = degree**2 * power(2 * degree - 2, dim)
    assert integral(problem, x**degree, stiffness) == pytest.approx(exact, rel=1e-11)
    assert np.abs(problem.discretisation.multiply(stiffness, one)).max() < 1e-10
    assert mass.isSymmetric(1e-13) and stiffness.isSymmetric(1e-10)
    np.testing.assert_allclose(
        problem.discretisation.apply_mass(x), problem.discretisation.multiply(mass, x), atol=1e-14
    )


@rows(("cell", "degree"), LUMPED)
def test_lumped_operators_integrate_polynomials(cell, degree):
    problem = make(cell, degree, "lumped")
    x, dim = problem.discretisation.nodes[0, : problem.discretisation.num_owned], problem.dim
    one = np.ones_like(x)
    assert problem.potential_space is problem.space
    diagonal = problem.discretisation.mass_diagonal
    assert (diagonal > 0).all()
    assert diagonal.sum() == pytest.approx((2 * R) ** dim, rel=1e-12)
    # the diagonal is the row sum of the consistent matrix: both integrate the shape functions
    chi = ufl.TestFunction(problem.space)
    rows = fem.assemble_vector(fem.form(chi * ufl.dx))
    np.testing.assert_allclose(diagonal, rows.array, rtol=1e-11, atol=1e-15)
    # Gauss–Lobatto is exact to degree 2k − 1, hence for x^(k−1) squared, and ∇x^k squared
    p = max(degree - 1, 0)
    assert integral(problem, x**p, problem.mass_matrix) == pytest.approx(power(2 * p, dim))
    exact = degree**2 * power(2 * degree - 2, dim)
    assert integral(problem, x**degree, problem.stiffness) == pytest.approx(exact, rel=1e-11)
    assert np.abs(problem.discretisation.multiply(problem.stiffness, one)).max() < 1e-10
    columns = problem.mass_matrix.getDiagonal().array
    np.testing.assert_array_equal(columns, diagonal)
    v = np.cos(3 * problem.discretisation.potential_nodes[0])
    np.testing.assert_allclose(
        problem.discretisation.apply_potential(v, x),
        diagonal * v[: problem.discretisation.num_owned] * x,
        atol=1e-15,
    )


@rows(("cell", "degree"), [("triangle", 2), ("quadrilateral", 3), ("tetrahedron", 1)])
def test_potential_matrix_and_action_agree_with_exact_integrals(cell, degree):
    problem = make(cell, degree)
    p = problem.discretisation.potential_degree
    x = problem.discretisation.nodes[0, : problem.discretisation.num_owned]
    v = problem.discretisation.potential_nodes[0] ** p
    matrix = problem.discretisation.assemble_potential(None, v)
    # ∫ x^p · x^k · x^l, with p + k + l even
    other = x ** (degree - (p % 2))
    exact = power(p + 2 * degree - (p % 2), problem.dim)
    action = problem.discretisation.apply_potential(v, x**degree)
    assert problem.discretisation.dot(other, action) == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(
        problem.discretisation.multiply(matrix, x**degree), action, atol=1e-12
    )
    again = problem.discretisation.assemble_potential(matrix, 2.0 * v)
    assert again.handle == matrix.handle
    np.testing.assert_allclose(
        problem.discretisation.multiply(again, x**degree), 2 * action, atol=1e-12
    )


@pytest.mark.parametrize(
    ("cell", "degree", "mass"), [("triangle", 2, "consistent"), ("quadrilateral", 3, "lumped")]
)
def test_nodal_measure_integrates_the_potential_space(cell, degree, mass):
    problem = make(cell, degree, mass)
    psi = 1.0 + 0.1 * problem.discretisation.nodes[0, : problem.discretisation.num_owned]
    measure = problem.discretisation.measure(psi)
    assert measure.shape == (problem.discretisation.num_potential_owned,)
    x = problem.discretisation.potential_nodes[0, : problem.discretisation.num_potential_owned]
    # (1 + x/10)² = 1 + x/5 + x²/100
    assert measure.sum() == pytest.approx((2 * R) ** 2 + 0.01 * power(2, 2), rel=1e-12)
    assert measure @ x == pytest.approx(0.2 * power(2, 2), rel=1e-12)
    exact = power(2, 2) + 0.01 * power(4, 2)
    assert measure @ x**2 == pytest.approx(exact, rel=1e-12)


def test_degrees_of_the_potential_and_defaults():
    assert [make("triangle", k).discretisation.potential_degree for k in (1, 2, 3, 4)] == [
        1,
        3,
        5,
        6,
    ]
    assert make("triangle", 2, functional=mf.Contact(1.0)).discretisation.potential_degree == 4
    assert make("triangle", 2, potential_degree=2).discretisation.potential_degree == 2
    assert make("quadrilateral", 3, "lumped").discretisation.potential_degree == 3
    default = {"interval": 2, "triangle": 2, "tetrahedron": 2, "quadrilateral": 6, "hexahedron": 6}
    for cell, degree in default.items():
        if cell != "hexahedron":  # 2,000 entries a row: slow to assemble
            assert mf.Problem(MAKERS[cell](), ZERO, 1.0).degree == degree
    assert mf.Problem(MAKERS["hexahedron"](), ZERO, 1.0, mass="lumped").degree == 6


@rows(
    ("cell", "degree", "mass", "tolerance"),
    [
        ("interval", 8, "lumped", 1e-9),
        ("triangle", 3, "consistent", 3e-4),
        ("quadrilateral", 6, "lumped", 1e-7),
        ("quadrilateral", 6, "consistent", 1e-7),
        ("hexahedron", 5, "lumped", 1e-4),
    ],
)
def test_dirichlet_ground_state_of_a_box(cell, degree, mass, tolerance):
    sigma = 0.7
    problem = mf.Problem(MAKERS[cell](), ZERO, sigma, degree, boundary="dirichlet", mass=mass)
    start = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] ** 2)))
    *_, last = mf.SchrodingerFlow(problem, dt=50.0).run(start, 1e4, steady_residual=1e-9)
    exact = sigma**2 * problem.dim * (np.pi / (2 * R)) ** 2
    assert last.energy == pytest.approx(exact, rel=tolerance)
    assert last.eigenvalue == pytest.approx(last.energy, rel=1e-11)  # F is linear
    assert last.residual < 1e-9
    psi = last.density.psi.x.array
    # only the ends of the box, and all of them: |x_i| = R for some i
    edge = (np.abs(np.abs(problem.discretisation.nodes[: problem.dim]) - R) < 1e-10).any(axis=0)
    assert edge.any()
    assert np.abs(psi[edge]).max() == 0.0 and psi[~edge].min() > 0.0
    cosine = np.prod(np.cos(np.pi * problem.discretisation.nodes[: problem.dim] / (2 * R)), axis=0)
    error = np.abs(psi - cosine * R ** (-problem.dim / 2)).max()
    assert error < 30 * np.sqrt(tolerance)


@pytest.mark.parametrize("mass", ["consistent", "lumped"])
def test_natural_ground_state_is_constant(mass):
    problem = make("quadrilateral", 3, mass)
    start = mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 0.5) ** 2)))
    *_, last = mf.SchrodingerFlow(problem, dt=100.0).run(start, 1000.0)
    np.testing.assert_allclose(last.density.m().x.array, 1 / (2 * R) ** 2, rtol=1e-9)
    assert abs(last.energy) < 1e-12


def test_bad_arguments():
    triangles, quads = MAKERS["triangle"](), MAKERS["quadrilateral"]()
    for arguments, text in (
        ((triangles, ZERO, 0.0), "sigma must be a positive number, not 0.0"),
        ((triangles, ZERO, -1.0), "sigma must be a positive number"),
        ((triangles, ZERO, np.nan), "sigma must be a positive number"),
        ((triangles, ZERO, 1.0, 7), "degree on a triangle mesh is 1 to 6, not 7"),
        ((triangles, ZERO, 1.0, 0), "degree on a triangle mesh is 1 to 6, not 0"),
        ((quads, ZERO, 1.0, 9), "degree on a quadrilateral mesh is 1 to 8"),
        (
            (triangles, ZERO, 1.0, 1, "robin"),
            "or a list of facet tags, not 'robin'",
        ),
        ((triangles, ZERO, 1.0, 1, "natural", "full"), "mass must be 'consistent' or 'lumped'"),
        ((triangles, ZERO, 1.0, 2, "natural", "lumped"), "on a triangle mesh needs degree=1"),
        ((quads, ZERO, 1.0, 2, "natural", "lumped", 3), "the potential has the degree of ψ"),
        ((None, ZERO, 1.0), "mesh must be a dolfinx.mesh.Mesh, not NoneType"),
    ):
        with pytest.raises(ValueError, match=text):
            mf.Problem(*arguments)


def test_a_surface_is_refused():
    x = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 1.0]])
    element = basix.ufl.element("Lagrange", "triangle", 1, shape=(3,))
    surface = dolfinx.mesh.create_mesh(COMM, np.array([[0, 1, 2]]), ufl.Mesh(element), x)
    with pytest.raises(ValueError, match="surface; densities are defined on R"):
        mf.Problem(surface, ZERO, 1.0)


@rows("boundary", ["natural", "dirichlet"])
@rows("mass", ["consistent", "lumped"])
def test_the_hamiltonian_as_a_matrix_has_the_spectrum_of_the_oscillator(mass, boundary):
    sigma, kappa = 0.5, 1.0
    trap = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2)
    mesh = mf.interval(COMM, 5.0, 0.25)
    problem = mf.Problem(mesh, trap, sigma, 6, mass=mass, boundary=boundary)
    start = mf.Density.from_function(problem, lambda x: (25.0 - x[0] ** 2) ** 2)
    matrix = problem.hamiltonian(start)
    inside = np.setdiff1d(
        np.arange(problem.discretisation.num_owned), problem.discretisation.constrained
    )
    dense = [m.convert("dense").getDenseArray() for m in (matrix, problem.mass_matrix)]
    found = eigh(*(d[np.ix_(inside, inside)] for d in dense), eigvals_only=True)[:3]
    exact = sigma * np.sqrt(2 * kappa) * (np.arange(3) + 0.5)
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    psi = start.amplitude()
    assert psi @ problem.discretisation.multiply(matrix, psi) == pytest.approx(
        mf.eigenvalue(problem, start), rel=1e-12
    )


def annulus_with_walls(comm):
    """A perforated disk whose holes have walls, and where the walls are."""
    file = Path(__file__).resolve().parents[1] / "meshes" / "perforated_disk.msh"
    mesh = mf.read_mesh(file, comm)
    tags = mf.read_facet_tags(file, mesh)
    trap = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
    return mf.Problem(mesh, trap, 0.5, 2, boundary=[2], facet_tags=tags)


def test_walls_by_facet_tags():
    problem = annulus_with_walls(COMM)
    angles = 2 * np.pi * np.arange(5) / 5
    centres = 2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    x = problem.discretisation.nodes[:2, : problem.discretisation.num_owned].T
    to_hole = np.linalg.norm(x[:, None] - centres, axis=2).min(axis=1) - 0.6
    walls = np.zeros(problem.discretisation.num_owned, dtype=bool)
    walls[problem.discretisation.constrained] = True
    assert walls.sum() > 100
    assert np.all(to_hole[walls] < 0.01)  # chords of the circles
    assert np.all(np.linalg.norm(x[walls], axis=1) < 3.0)
    vertices = np.abs(to_hole) < 1e-9
    assert vertices.any() and np.all(walls[vertices])
    best = mf.minimise(problem)
    assert np.all(best.density.amplitude()[problem.discretisation.constrained] == 0.0)
    # more constraints, more energy; the outer boundary is not one of them
    free = mf.Problem(problem.mesh, problem.functional, 0.5, 2)
    shut = mf.Problem(problem.mesh, problem.functional, 0.5, 2, boundary="dirichlet")
    energies = [mf.minimise(p).energy for p in (free, shut)]
    assert energies[0] + 0.05 < best.energy < energies[1]
    assert energies[1] - best.energy < 1e-4


def test_bad_walls():
    problem = annulus_with_walls(COMM)
    with pytest.raises(ValueError, match="give facet_tags=read_facet_tags"):
        mf.Problem(problem.mesh, problem.functional, 0.5, 2, boundary=[2])
    with pytest.raises(ValueError, match="a list of facet tags, not 'wall'"):
        mf.Problem(problem.mesh, problem.functional, 0.5, 2, boundary="wall")
    cells = dolfinx.mesh.meshtags(
        problem.mesh, 2, np.arange(3, dtype=np.int32), np.ones(3, dtype=np.int32)
    )
    with pytest.raises(ValueError, match="not of facets"):
        mf.Problem(problem.mesh, problem.functional, 0.5, 2, boundary=[1], facet_tags=cells)
    file = Path(__file__).resolve().parents[1] / "meshes" / "perforated_disk.msh"
    with pytest.raises(ValueError, match="are not those of the mesh"):
        mf.read_facet_tags(file, mf.disk(COMM, 3.0, 1.0))
