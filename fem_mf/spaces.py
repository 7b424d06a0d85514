"""Building blocks of the discretisation: cell families, quadrature and owned values."""

from __future__ import annotations

from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, la, mesh

from fem_mf.typing import Array

__all__ = [
    "assemble_owned",
    "cell_family",
    "exact_measure",
    "exponential_measure",
    "lumped_measure",
    "owned_values",
    "set_owned",
]

_EXTRA_DEGREE = 6
# The annotations of assemble_vector cover only one of the signatures that it accepts.
_assemble_vector: Any = fem.assemble_vector


def cell_family(domain: mesh.Mesh) -> str:
    """``"tensor"`` for cells with collocated Gauss–Lobatto nodes, else ``"simplex"``."""
    tensor = ("interval", "quadrilateral", "hexahedron")
    return "tensor" if domain.topology.cell_name() in tensor else "simplex"


def exact_measure(domain: mesh.Mesh, degree: int) -> ufl.Measure:
    """Quadrature exact for polynomials of the given degree on affine cells."""
    return ufl.Measure("dx", domain=domain, metadata={"quadrature_degree": degree})


def exponential_measure(domain: mesh.Mesh, degree: int, potential_degree: int) -> ufl.Measure:
    """Quadrature (not exact) for e^{−u} times polynomials, for given degrees of u and V."""
    return exact_measure(domain, 2 * degree + potential_degree + _EXTRA_DEGREE)


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


def set_owned(function: fem.Function, values: Array) -> None:
    """Set a scalar function by this rank's values. Collective."""
    function.x.array[: function.function_space.dofmap.index_map.size_local] = values
    function.x.scatter_forward()


def assemble_owned(form: fem.Form, work: fem.Function) -> Array:
    """Assemble a linear form into a function and return this rank's values. Collective.

    Returns:
        ``(num_owned,)``, not a copy.
    """
    work.x.array[:] = 0.0
    _assemble_vector(work.x.array, form)
    work.x.scatter_reverse(la.InsertMode.add)
    return work.x.array[: work.function_space.dofmap.index_map.size_local]


def owned_values(vector: PETSc.Vec) -> Array:
    """This rank's values of a PETSc vector, not a copy."""
    return np.asarray(vector.array, dtype=np.float64)
