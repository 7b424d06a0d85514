"""A small problem on a box around the mesh, to compute initial guesses.

Its minimiser is a good initial guess for the same problem on a fine mesh:

    coarse = coarse_problem(problem)    # None if it would not help
    if coarse is not None:
        start = from_grid(minimise(coarse).density, problem)
"""

from __future__ import annotations

import logging

import numpy as np
from dolfinx import mesh as dmesh
from scipy.interpolate import RegularGridInterpolator

from fem_mf.density import Density
from fem_mf.functionals.terms import Contact, Cylindrical, flatten
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = ["coarse_problem", "from_grid"]

_LOG = logging.getLogger(__name__)
_CELLS = {1: 48, 2: 16, 3: 6}  # cells per axis, of degree 4: 193, 65² and 25³ nodes
_DEGREE = 4
_WORTH = 4  # least reduction factor of the number of degrees of freedom


def coarse_problem(problem: Problem) -> Problem | None:
    """The same functional and σ on the bounding box, with collocated elements. Collective.

    Returns:
        The coarse problem, or None if the given one is already small, if a term of its functional
        is a user-defined object, which may be tied to one mesh, or if a term is not defined on the
        whole box.
    """
    dim = problem.dim
    nodes = (_CELLS[dim] * _DEGREE + 1) ** dim
    if problem.space.dofmap.index_map.size_global < _WORTH * nodes:
        return None
    if not all(isinstance(f, (Cylindrical, Contact)) for _, f in flatten(problem.functional)):
        return None
    coarse = Problem(
        _bounding_box(problem),
        problem.functional,
        problem.sigma,
        _DEGREE,
        problem.boundary if problem.boundary == "dirichlet" else "natural",
        "lumped",
    )
    try:
        problem.functional.derivative(Density(coarse, np.ones(coarse.discretisation.num_owned)))
    except ValueError as error:
        _LOG.debug("no coarse box: %s", error)
        return None
    return coarse


def from_grid(density: Density, problem: Problem) -> Density:
    """A density on the coarse box, interpolated by cubic splines of its grid. Collective.

    The nodes of a collocated grid lie on lines, so this takes milliseconds, whereas interpolation
    between general meshes has to search for cells.

    Args:
        density: a density on a problem made by :func:`coarse_problem`.
        problem: the problem for which that one was made.
    """
    coarse, dim = density.problem, problem.dim
    owned = coarse.discretisation.owned_nodes[:dim].T
    points = np.concatenate(coarse.comm.allgather(owned))
    values = np.concatenate(coarse.comm.allgather(density.amplitude()))
    width = np.ptp(points, axis=0).max()
    columns = [np.unique(x, return_inverse=True) for x in np.round(points.T / width, 9)]
    axes, grid = zip(*columns, strict=True)
    table = np.zeros([axis.size for axis in axes])
    table[grid] = values
    interpolant = RegularGridInterpolator(
        axes, table, method="cubic", bounds_error=False, fill_value=None
    )
    psi = interpolant(problem.discretisation.owned_nodes[:dim].T / width)
    return Density(problem, np.maximum(psi, 0.0))


def _bounding_box(problem: Problem) -> dmesh.Mesh:
    comm, dim = problem.comm, problem.dim
    x: Array = problem.mesh.geometry.x[:, :dim]
    low = np.min(comm.allgather(x.min(axis=0, initial=np.inf)), axis=0)
    high = np.max(comm.allgather(x.max(axis=0, initial=-np.inf)), axis=0)
    cells = [_CELLS[dim]] * dim
    if dim == 1:
        return dmesh.create_interval(comm, cells[0], [low[0], high[0]])
    if dim == 2:
        return dmesh.create_rectangle(comm, [low, high], cells, dmesh.CellType.quadrilateral)
    return dmesh.create_box(comm, [low, high], cells, dmesh.CellType.hexahedron)
