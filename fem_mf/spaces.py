"""What the problem's discretisation is made of: quadrature, degrees, sparsity."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import mesh

from fem_mf.features import Array

__all__ = [
    "cell_family",
    "drop_zeros",
    "exact_measure",
    "lumped_measure",
    "owned_values",
]


def cell_family(domain: mesh.Mesh) -> str:
    """``"tensor"`` for cells with collocated Gauss–Lobatto nodes, else ``"simplex"``."""
    tensor = ("interval", "quadrilateral", "hexahedron")
    return "tensor" if domain.topology.cell_name() in tensor else "simplex"


def exact_measure(domain: mesh.Mesh, degree: int) -> ufl.Measure:
    """Quadrature exact for polynomials of the given degree on affine cells."""
    return ufl.Measure("dx", domain=domain, metadata={"quadrature_degree": degree})


def lumped_measure(domain: mesh.Mesh, degree: int) -> ufl.Measure:
    """Quadrature at the nodes of the Lagrange element of the given degree.

    Vertices on simplices (degree 1); Gauss–Lobatto points on intervals, quadrilaterals and
    hexahedra, where the rule with k + 1 points per direction is exact to degree 2k − 1.
    """
    if domain.topology.cell_name() in ("triangle", "tetrahedron"):
        metadata = {"quadrature_rule": "vertex", "quadrature_degree": 1}
    else:
        metadata = {"quadrature_rule": "GLL", "quadrature_degree": 2 * degree - 1}
    return ufl.Measure("dx", domain=domain, metadata=metadata)


def owned_values(vector: PETSc.Vec) -> Array:
    """This rank's values of a PETSc vector, not a copy."""
    return np.asarray(vector.array, dtype=np.float64)


def drop_zeros(matrix: PETSc.Mat, tolerance: float = 1e-14) -> PETSc.Mat:
    """The same matrix without entries below ``tolerance`` of its largest. Collective.

    Collocated stiffness matrices couple only along the lines of an axis-aligned grid; the general
    sparsity pattern stores (k + 1)^d entries a row where about (2k + 1) d are not zero.
    """
    comm = matrix.comm.tompi4py()
    indptr, indices, values = matrix.getValuesCSR()
    largest = comm.allreduce(float(np.abs(values).max(initial=0.0)), op=MPI.MAX)
    keep = np.abs(values) > tolerance * largest
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    first = matrix.getOwnershipRange()[0]
    keep |= indices == rows + first  # the diagonal is written later
    counts = np.concatenate(([0], np.cumsum(keep)))[indptr]
    sizes: Any = matrix.getSizes()
    csr: Any = (counts.astype(indptr.dtype), indices[keep], values[keep])
    smaller = PETSc.Mat().createAIJ(sizes, csr=csr, comm=matrix.comm)
    smaller.assemble()
    matrix.destroy()
    return smaller
