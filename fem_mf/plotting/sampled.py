"""A finite-element function brought whole to rank 0, as a linear function on simplices.

Only rank 0 receives it; a higher degree subdivides the cells:

    sample = gather(density.psi, degree=2)    # None on the other ranks
    if sample is not None:
        sample.points, sample.cells, sample.values
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import basix
import basix.ufl
import numpy as np
import numpy.typing as npt
from dolfinx import fem

from fem_mf.typing import Array

__all__ = ["Array", "Sampled", "gather", "spread", "subdivision"]

type Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampled:
    """A continuous, piecewise linear function on simplices, whole on one rank.

    Attributes:
        points: ``(n, d)`` vertices, each once.
        cells: ``(c, d + 1)`` indices into ``points``.
        values: ``(n,)`` at the points.
    """

    points: Array
    cells: Indices
    values: Array

    def cell_masses(self) -> Array:
        """Integral over each cell, ``(c,)``."""
        corners = self.points[self.cells]
        edges = corners[:, 1:] - corners[:, :1]
        volumes = np.abs(np.linalg.det(edges)) / np.prod(range(1, edges.shape[1] + 1))
        return np.asarray(volumes * self.values[self.cells].mean(axis=1))


def gather(function: fem.Function[np.float64], degree: int = 1) -> Sampled | None:
    """Bring a scalar function to rank 0, interpolated on simplices. Collective.

    Args:
        function: a continuous scalar function.
        degree: each edge of the mesh is cut into so many pieces; 1 keeps the vertices of the mesh,
            the degree of the function keeps all it can show.

    Returns:
        The sampled function on rank 0, None elsewhere.
    """
    mesh = function.function_space.mesh
    element = basix.ufl.element(
        "Lagrange",
        mesh.basix_cell(),
        degree,
        lagrange_variant=basix.LagrangeVariant.equispaced,
    )
    space = fem.functionspace(mesh, element)
    nodal: fem.Function[np.float64] = fem.Function(space)
    nodal.interpolate(function)
    index_map = space.dofmap.index_map
    num_cells = mesh.topology.index_map(mesh.topology.dim).size_local
    pieces = subdivision(mesh.basix_cell(), degree, element.basix_element.points)
    local_cells = space.dofmap.list[:num_cells][:, pieces].reshape(-1, pieces.shape[1])
    num_owned = index_map.size_local
    local = (
        space.tabulate_dof_coordinates()[:num_owned, : mesh.geometry.dim],
        index_map.local_to_global(local_cells.ravel().astype(np.int32)).reshape(local_cells.shape),
        nodal.x.array[:num_owned],
    )
    # Global numbers follow the ranks, so owned points stacked by rank are in global order.
    parts = mesh.comm.gather(local, root=0)
    if parts is None:
        return None
    points, cells, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Sampled(points, cells, values)


def subdivision(cell: basix.CellType, degree: int, nodes: Array) -> Indices:
    """Cut a reference cell with equally spaced nodes into simplices of neighbouring nodes.

    Kuhn's subdivision: from each corner of the lattice walk one step along each axis, in every
    order. The walks that keep x₁ ≥ x₂ ≥ ... cut a simplex, after a change of coordinates.

    Returns:
        ``(pieces, d + 1)`` indices of nodes.
    """
    d = nodes.shape[1]
    lattice = np.rint(nodes * degree).astype(int)
    simplex = cell in (basix.CellType.triangle, basix.CellType.tetrahedron)
    if simplex:
        lattice = np.cumsum(lattice[:, ::-1], axis=1)[:, ::-1]
    number = {tuple(position): i for i, position in enumerate(lattice.tolist())}
    steps = np.eye(d, dtype=int)
    pieces = []
    for corner in itertools.product(range(degree), repeat=d):
        for order in itertools.permutations(range(d)):
            walk = np.cumsum([corner, *steps[list(order)]], axis=0).tolist()
            if all(tuple(position) in number for position in walk):
                pieces.append([number[tuple(position)] for position in walk])
    return np.array(pieces)


def spread(sample: Sampled, total: int) -> tuple[Array, Array]:
    """Share the mass of each cell among points in it, for histograms.

    Random points in each cell, the same in each call, weighted by the linear function: each cell
    keeps its mass, and bins smaller than a cell show no gaps.

    Args:
        sample: a non-negative function.
        total: about so many points in all, at least one per cell.

    Returns:
        ``(k, d)`` positions and ``(k,)`` masses.
    """
    num_cells, corners = sample.cells.shape
    count = int(np.clip(total // num_cells, 1, 4096))
    # Gaps between sorted uniform numbers are uniform barycentric coordinates.
    cuts = np.sort(np.random.default_rng(0).random((num_cells, count, corners - 1)), axis=2)
    weights = np.diff(cuts, axis=2, prepend=0.0, append=1.0)
    positions = np.einsum("ckv,cvd->ckd", weights, sample.points[sample.cells])
    heights = np.einsum("ckv,cv->ck", weights, sample.values[sample.cells])
    totals = np.maximum(heights.sum(axis=1), np.finfo(float).tiny)
    masses = heights * (sample.cell_masses() / totals)[:, None]
    return positions.reshape(-1, corners - 1), masses.ravel()
