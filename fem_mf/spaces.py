"""What the problem's discretisation is made of: cells, quadrature, owned values."""

from __future__ import annotations

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import mesh

from fem_mf.features import Array

__all__ = [
    "cell_family",
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
