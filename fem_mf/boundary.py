"""Mass of m near the boundary, to check that the mesh is large enough to represent R^d.

    warn_if_truncated(problem, density)    # logs a warning and a suitable mesh size

The mass in the cells that touch the boundary bounds the truncation error. It is reported for
each connected component of the boundary, since only the outer one is a truncation, while a hole is
part of the problem.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fem_mf.density import Density
from fem_mf.mpi import global_sum, on_root, warn
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = ["BoundaryComponent", "boundary_components", "boundary_mass", "warn_if_truncated"]

_LOG = logging.getLogger(__name__)
_MOST_MASS = 1e-6


@dataclass(frozen=True)
class BoundaryComponent:
    """One connected component of the boundary, with the mass of m there.

    Attributes:
        outer: whether it is an outer boundary; otherwise it bounds a hole.
        centre: mean of its vertices, ``(d,)``.
        mass: mass in the cells that touch it.
        distance: distance from the centre of mass of m, averaged over its nodes with weight m.
        growth: slope of V[m] in that distance, fitted in its cells with weight m.
    """

    outer: bool
    centre: Array
    mass: float
    distance: float
    growth: float


def boundary_mass(problem: Problem, density: Density) -> float:
    """Mass in the cells that touch the boundary. Collective.

    The error of truncating R^d to the mesh is of this size or smaller; boundaries of holes are
    included.
    """
    return problem.discretisation.boundary_mass(density.amplitude())


def boundary_components(problem: Problem, density: Density) -> list[BoundaryComponent]:
    """The components of the boundary, the outer ones first, then by mass. Collective."""
    discrete = problem.discretisation
    owned, dim, topology = discrete.num_owned, problem.dim, problem.mesh.topology
    psi, x = density.amplitude(), discrete.nodes[:dim, :owned]
    m = psi**2
    potential = problem.on_potential_space(problem.functional.derivative(density))
    V, r = discrete.potential_at_nodes(potential), np.linalg.norm(x.T - density.mean(), axis=1)
    touched: fem.Function = discrete.new_amplitude()
    labels, extents, centres = _labels(problem)
    found = []
    for k, extent in enumerate(extents):
        facets = discrete.boundary_facets[labels == k]
        cells = dmesh.compute_incident_entities(topology, facets, dim - 1, dim)
        cells = np.sort(cells[cells < topology.index_map(dim).size_local])
        at = fem.locate_dofs_topological(problem.space, dim - 1, facets)
        touched.x.array[:] = 0.0
        touched.x.array[np.unique(problem.space.dofmap.list[cells])] = 1.0
        touched.x.scatter_reverse(la.InsertMode.add)  # cells have nodes owned by other ranks
        at, near = at[at < owned], touched.x.array[:owned] > 0.0
        weight, distance = global_sum(problem.comm, np.array([m[at].sum(), m[at] @ r[at]]))
        found.append(
            BoundaryComponent(
                outer=dim == 1 or extent == max(extents),
                centre=centres[k],
                mass=discrete.mass_of_cells(psi, cells),
                distance=float(distance / weight) if weight > 0.0 else float("nan"),
                growth=_slope(problem, m[near], r[near], V[near]),
            )
        )
    return sorted(found, key=lambda component: (not component.outer, -component.mass))


def _labels(problem: Problem) -> tuple[Array, list[float], list[Array]]:
    """The component of each local boundary facet, and extents and centres of components."""
    mesh, dim, comm = problem.mesh, problem.dim, problem.comm
    mesh.topology.create_connectivity(dim - 1, 0)
    mesh.topology.create_connectivity(0, dim)
    facets = problem.discretisation.boundary_facets
    connectivity = mesh.topology.connectivity(dim - 1, 0)
    local = [connectivity.links(facet) for facet in facets]
    vertices = np.unique(np.concatenate([*local, np.empty(0, np.int32)])).astype(np.int32)
    names = mesh.topology.index_map(0)
    edges = [names.local_to_global(links[[0, i]]) for links in local for i in range(len(links))]
    geometry = dmesh.entities_to_geometry(mesh, 0, vertices).reshape(-1)
    mine = np.array(edges, dtype=np.int64).reshape(-1, 2)
    gathered = comm.gather((mine, names.local_to_global(vertices), mesh.geometry.x[geometry, :dim]))

    def join() -> tuple[dict[int, int], list[float], list[Array]]:
        pairs, ids, points = (np.concatenate(part) for part in zip(*gathered, strict=True))
        ids, first = np.unique(ids, return_index=True)
        pairs, points = np.searchsorted(ids, pairs), points[first]
        graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(ids.size, ids.size))
        count, component = connected_components(graph, directed=False)
        parts = [points[component == k] for k in range(count)]
        return (
            dict(zip(ids.tolist(), component.tolist(), strict=True)),
            [float(np.linalg.norm(np.ptp(part, axis=0))) for part in parts],
            [part.mean(axis=0) for part in parts],
        )

    component_of, extents, centres = on_root(comm, join)
    heads = [names.local_to_global(links[:1])[0] for links in local]
    return np.array([component_of[int(v)] for v in heads], dtype=np.int32), extents, centres


def _slope(problem: Problem, m: Array, r: Array, V: Array) -> float:
    """Slope of V in r by weighted least squares. Collective."""
    total = global_sum(problem.comm, np.array([m.sum(), m @ r, m @ V]))
    if not total[0] > 0.0:
        return float("nan")
    r, V = r - total[1] / total[0], V - total[2] / total[0]
    product, square = global_sum(problem.comm, np.array([m @ (r * V), m @ r**2]))
    return float(product / square) if square > 0.0 else float("nan")


def warn_if_truncated(problem: Problem, density: Density, known: float = 0.0) -> float:
    """Log a warning if the mesh is too small for m, or V does not confine m. Collective.

    There is none with ``boundary="dirichlet"``, where walls are part of the problem.

    Args:
        problem: the problem.
        density: m.
        known: a boundary mass reported earlier; warn again only if it has grown tenfold.

    Returns:
        The boundary mass.
    """
    mass = boundary_mass(problem, density)
    if mass <= max(_MOST_MASS, 10.0 * known) or problem.boundary == "dirichlet":
        return mass
    components = boundary_components(problem, density)
    outer = [c for c in components if c.outer and c.mass > _MOST_MASS]
    escaping = sum(c.mass for c in outer if not c.growth > 0.0)
    total = sum(c.mass for c in outer)
    if escaping > 0.1 * total:
        warn(
            problem.comm,
            _LOG,
            "V does not confine m: it does not grow towards the outer boundary, whose cells have "
            "mass %.1e; the minimum on R^d may not exist, and results hold for this mesh only",
            total,
        )
    elif outer:
        # Gaussian tails, mass ~ exp(−θr²/2): solve for the distance that reaches the threshold.
        distance = outer[0].distance
        reach = distance * np.sqrt(np.log(1e-2 * _MOST_MASS) / np.log(min(total, 0.5)))
        warn(
            problem.comm,
            _LOG,
            "the mesh is too small: boundary mass %.1e, at distance %.3g from the centre of mass "
            "(%s); use a mesh that reaches about %.3g from there",
            *(total, distance, _point(density.mean()), reach),
        )
    holes = [c for c in components if not c.outer and c.mass > _MOST_MASS]
    if holes and problem.boundary == "natural":
        warn(
            problem.comm,
            _LOG,
            "the cells around %d hole(s) have mass %.1e, most of it (%.1e) at (%s): the natural "
            "condition makes them obstacles without flux; with boundary='dirichlet' m is 0 there",
            *(len(holes), sum(c.mass for c in holes), holes[0].mass, _point(holes[0].centre)),
        )
    return mass


def _point(x: Array) -> str:
    return ", ".join(f"{value:.3g}" for value in np.where(np.abs(x) < 1e-9, 0.0, x))
