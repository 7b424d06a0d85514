"""The collocated stiffness matrix against the assembly of the same quadrature by DOLFINx."""

from mpi4py import MPI

import dolfinx.mesh
import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

import fem_mf as mf
from fem_mf.collocation import collocated_stiffness
from fem_mf.spaces import lumped_measure
from tests.rows import rows

COMM = MPI.COMM_WORLD
NONE = np.empty(0, dtype=np.int32)


def skewed():
    """Four quadrilaterals that are no parallelograms."""
    mesh = mf.box(COMM, 1.0, 1.0, cell="quadrilateral")
    x = mesh.geometry.x
    x[:, 0] += 0.2 * x[:, 1] + 0.1 * np.sin(x[:, 0] * x[:, 1] + 1.0)
    return mesh


CASES = {
    "interval": (lambda: mf.interval(COMM, 1.5, 0.7), range(2, 9)),
    "graded interval": (lambda: mf.interval(COMM, 1.5, 0.3, grading=2.0), [3]),
    "squares": (lambda: mf.box(COMM, 1.5, 1.0, cell="quadrilateral"), range(2, 9)),
    "rectangles": (lambda: mf.box(COMM, (1.0, 2.0), 1.0, cell="quadrilateral", grading=1.7), [4]),
    "skewed": (skewed, [2, 5]),
    "disk": (lambda: mf.disk(COMM, 2.0, 1.0, cell="quadrilateral"), [2, 3, 6]),
    "cubes": (lambda: mf.box(COMM, 1.0, 1.0, cell="hexahedron"), [2, 3, 4]),
    "ball": (lambda: mf.ball(COMM, 2.0, 1.5, cell="hexahedron"), [2, 3]),
}


def space_of(name, degree):
    return fem.functionspace(CASES[name][0](), ("Lagrange", degree))


def assembled(space, degree, bcs=(), diagonal=1.0):
    psi, chi = ufl.TrialFunction(space), ufl.TestFunction(space)
    dx = lumped_measure(space.mesh, degree)
    form = fem.form(ufl.inner(ufl.grad(psi), ufl.grad(chi)) * dx)
    matrix = fem_petsc.assemble_matrix(form, bcs=list(bcs), diag=diagonal)
    matrix.assemble()
    return matrix


def dense(matrix):
    every = np.arange(matrix.getSize()[0], dtype=np.int32)
    return matrix.getValues(every, every)


def walls(space):
    mesh = space.mesh
    mesh.topology.create_connectivity(mesh.topology.dim - 1, mesh.topology.dim)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    return fem.locate_dofs_topological(space, mesh.topology.dim - 1, facets)


def row_lengths(matrix):
    return np.diff(matrix.getValuesCSR()[0])


@rows("name", CASES)
def test_same_matrix_as_dolfinx(name):
    for degree in CASES[name][1]:
        space = space_of(name, degree)
        matrix, reference = collocated_stiffness(space, NONE), assembled(space, degree)
        expected = dense(reference)
        scale, hint = np.abs(expected).max(), f"degree {degree}"
        np.testing.assert_allclose(
            dense(matrix), expected, rtol=0, atol=1e-12 * scale, err_msg=hint
        )
        assert matrix.isSymmetric(1e-12 * scale), hint
        assert row_lengths(matrix).sum() <= row_lengths(reference).sum(), hint


@rows(("name", "degree"), [("interval", 4), ("squares", 3), ("disk", 3), ("cubes", 2), ("ball", 2)])
def test_constrained_rows_and_columns(name, degree):
    space = space_of(name, degree)
    dofs = walls(space)
    bc = fem.dirichletbc(0.0, dofs, space)
    for diagonal in (1.0, 0.0, 7.5):
        matrix = dense(collocated_stiffness(space, dofs, diagonal))
        expected = dense(assembled(space, degree, [bc], diagonal))
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        np.testing.assert_array_equal(matrix[dofs], diagonal * np.eye(len(matrix))[dofs])
        np.testing.assert_array_equal(matrix[:, dofs], matrix[dofs].T)


@rows(("name", "degree"), [("interval", 5), ("squares", 4), ("squares", 7), ("cubes", 3)])
def test_rows_of_aligned_cells_follow_the_grid_lines(name, degree):
    space = space_of(name, degree)
    dim = space.mesh.geometry.dim
    lengths = row_lengths(collocated_stiffness(space, NONE))
    # per axis, the other nodes of one cell, or of both where the node lies between two
    inside, corner = 1 + dim * degree, 1 + 2 * dim * degree
    assert lengths.min() == inside
    assert lengths.max() == corner
    cells = space.mesh.topology.index_map(dim).size_global
    assert (lengths == inside).sum() >= cells * (degree - 1) ** dim


@rows("degree", [2, 3, 4])
def test_rows_of_other_cells_have_all_the_nodes_of_two_lines(degree):
    lengths = row_lengths(collocated_stiffness(space_of("disk", degree), NONE))
    assert 1 + 2 * degree < lengths.min() <= (degree + 1) ** 2
    full = row_lengths(assembled(space_of("disk", degree), degree))
    assert lengths.max() <= full.max()


@rows(("name", "degree"), [("squares", 5), ("disk", 4), ("ball", 2)])
def test_energy_of_polynomials(name, degree):
    space = space_of(name, degree)
    matrix = collocated_stiffness(space, NONE)
    x, one = space.tabulate_dof_coordinates()[:, 0], matrix.createVecRight()
    one.set(1.0)
    product = matrix.createVecLeft()
    matrix.mult(one, product)
    assert product.norm() < 1e-11
    linear = one.copy()
    linear.array[:] = x
    matrix.mult(linear, product)
    volume = COMM.allreduce(fem.assemble_scalar(fem.form(1.0 * ufl.dx(domain=space.mesh))))
    assert product.dot(linear) == pytest.approx(volume, rel=1e-11)


def test_the_package_uses_it_where_nodes_and_quadrature_points_coincide():
    zero = mf.Potential(lambda x: 0.0 * x[0])
    mesh = mf.box(COMM, 1.0, 1.0, cell="quadrilateral")
    lengths = {
        mass: row_lengths(mf.Problem(mesh, zero, 1.0, 4, mass=mass).stiffness).max()
        for mass in ("lumped", "consistent")
    }
    assert lengths == {"lumped": 17, "consistent": 81}
