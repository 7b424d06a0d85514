"""Meshes: intervals, boxes, disks, balls and files; truncation radius; refinement.

    mesh = disk(comm, radius=truncation_radius(kappa=0.2, sigma=0.5), h=0.15, grading=3.0)
    mesh = read_mesh("meshes/perforated_disk.msh", comm)

Unstructured meshes are generated or read on rank 0 and distributed with a ghost layer of neighbours
across facets; the geometry does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix
import basix.ufl
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import graph
from dolfinx.mesh import CellType, GhostMode, Mesh, MeshTags, create_cell_partitioner
from scipy.spatial import cKDTree
from scipy.special import gammainccinv

from fem_mf.mpi import global_sum, number, on_root
from fem_mf.multiblock import (
    RawMesh,
    ball_blocks,
    read_msh,
    read_physical_facets,
    read_xdmf,
    simplices,
)

__all__ = [
    "ball",
    "box",
    "disk",
    "interval",
    "read_facet_tags",
    "read_mesh",
    "refine",
    "truncation_radius",
]

type Floats = npt.NDArray[np.float64]

_CELL_DIM = {"interval": 1, "triangle": 2, "quadrilateral": 2, "tetrahedron": 3, "hexahedron": 3}
_SIMPLEX = {1: "interval", 2: "triangle", 3: "tetrahedron"}


def interval(comm: MPI.Comm, radius: float, h: float, grading: float = 1.0) -> Mesh:
    """Mesh [-radius, radius]. Collective.

    Args:
        comm: the communicator.
        radius: half-length, positive.
        h: target cell size, at the centre if the mesh is graded.
        grading: ratio of the cell size at the ends to that at the centre.

    Raises:
        ValueError: if a number is out of range.
    """
    return box(comm, radius, h, dim=1, grading=grading)


def box(
    comm: MPI.Comm,
    radius: float | Sequence[float],
    h: float,
    dim: int | None = None,
    cell: str | None = None,
    grading: float = 1.0,
) -> Mesh:
    """Mesh the product of [-radius, radius], one factor per axis. Collective.

    Triangles and tetrahedra are unstructured (Delaunay); quadrilaterals and hexahedra are aligned
    with the axes.

    Args:
        comm: the communicator.
        radius: positive half-length, one number or one per axis.
        h: target edge length, at the centre if the mesh is graded.
        dim: 1, 2 or 3; by default that of the cell, or of a sequence of radii, else 2.
        cell: "interval", "triangle", "quadrilateral", "tetrahedron" or "hexahedron"; by default
            the simplex.
        grading: ratio of the cell size at the boundary to that at the centre, along each axis.

    Raises:
        ValueError: if a number is out of range, or dim, cell and radius contradict each other.
        RuntimeError: if triangles or tetrahedra are requested and gmsh cannot be loaded.
    """
    if dim is None:
        dim = _cell_dim(cell) if cell is not None else (np.size(radius) if np.ndim(radius) else 2)
    if dim not in _SIMPLEX:
        raise ValueError(f"dim must be 1, 2 or 3, not {dim}")
    cell = _SIMPLEX[dim] if cell is None else cell
    if _cell_dim(cell) != dim:
        raise ValueError(f"a {cell} does not fill dim={dim}: leave one of cell and dim out")
    radii, size = _checked(radius, h, grading, dim)
    counts = [math.ceil(2.0 * r / size - 1e-9) for r in radii]
    if cell == "interval":
        mesh = dolfinx.mesh.create_interval(comm, counts[0], [-radii[0], radii[0]])
    elif cell == "quadrilateral":
        mesh = dolfinx.mesh.create_rectangle(comm, [-radii, radii], counts, CellType.quadrilateral)
    elif cell == "hexahedron":
        mesh = dolfinx.mesh.create_box(comm, [-radii, radii], counts, CellType.hexahedron)
    else:
        mesh = _distribute(comm, lambda: simplices("box", radii, size))
    return _graded(mesh, radii, grading, radial=False)


def disk(
    comm: MPI.Comm, radius: float, h: float, cell: str = "triangle", grading: float = 1.0
) -> Mesh:
    """Mesh the disk around 0, with boundary vertices on the circle. Collective.

    Args:
        comm: the communicator.
        radius: radius of the disk, positive.
        h: target edge length, at the centre if the mesh is graded.
        cell: "triangle" (unstructured) or "quadrilateral" (five structured blocks).
        grading: ratio of the cell size at the boundary to that at the centre.

    Raises:
        ValueError: if a number is out of range or the cell is not two-dimensional.
        RuntimeError: if simplices are requested and gmsh cannot be loaded.
    """
    return _round(comm, radius, h, cell, grading, dim=2)


def ball(
    comm: MPI.Comm, radius: float, h: float, cell: str = "tetrahedron", grading: float = 1.0
) -> Mesh:
    """Mesh the ball around 0, with boundary vertices on the sphere. Collective.

    Args:
        comm: the communicator.
        radius: radius of the ball, positive.
        h: target edge length, at the centre if the mesh is graded.
        cell: "tetrahedron" (unstructured) or "hexahedron" (seven structured blocks).
        grading: ratio of the cell size at the boundary to that at the centre.

    Raises:
        ValueError: if a number is out of range or the cell is not three-dimensional.
        RuntimeError: if simplices are requested and gmsh cannot be loaded.
    """
    return _round(comm, radius, h, cell, grading, dim=3)


def read_mesh(path: str | Path, comm: MPI.Comm) -> Mesh:
    """Read a gmsh (.msh, any version) or DOLFINx (.xdmf) mesh. Collective.

    Rank 0 reads all cells of the highest dimension, whether in a physical group or not, so that a
    bad file fails before any collective call.

    Args:
        path: the file, visible from rank 0.
        comm: the communicator.

    Returns:
        The mesh, with geometric dimension equal to its topological dimension.

    Raises:
        ValueError: on every rank, if the file is missing, damaged, of another kind, or holds
            several kinds of cells or a curved surface.
        RuntimeError: if gmsh is needed but not installed.
    """
    file = Path(path)

    def build() -> RawMesh:
        readers = {".msh": read_msh, ".xdmf": read_xdmf}
        try:
            if file.suffix.lower() not in readers:
                raise ValueError("expected a .msh (gmsh) or .xdmf (DOLFINx) file")
            if not file.is_file():
                raise ValueError("no such file; check the path, relative to the working directory")
            return readers[file.suffix.lower()](file)
        except (ValueError, OSError) as caught:
            raise ValueError(f"cannot read the mesh {file}: {caught}") from caught

    return _distribute(comm, build)


def read_facet_tags(path: str | Path, mesh: Mesh) -> MeshTags:
    """Tags of the physical groups of facets in the gmsh file of a mesh. Collective.

    ``Problem(mesh, F, sigma, boundary=[2], facet_tags=tags)`` makes ψ vanish on group 2.

    Args:
        path: the .msh file, visible from rank 0.
        mesh: the mesh that :func:`read_mesh` read from the file.

    Raises:
        ValueError: on every rank, if the file has no such groups, or they belong to another mesh.
    """
    comm, dim = mesh.comm, mesh.topology.dim - 1
    midpoints, tags = on_root(comm, lambda: read_physical_facets(Path(path)))
    mesh.topology.create_connectivity(dim, dim + 1)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    if not len(tags):  # the same on every rank
        raise ValueError(f"{path} has no physical groups of facets; add them in the .geo file")
    here = dolfinx.mesh.compute_midpoints(mesh, dim, facets)
    distance, nearest = cKDTree(midpoints).query(here)
    found = distance < 1e-9 * np.ptp(midpoints, axis=0).max()
    if global_sum(comm, float(found.sum())) == 0.0:
        raise ValueError(f"the facets of {path} are not those of the mesh")
    order = np.argsort(facets[found])
    values = tags[nearest[found]].astype(np.int32)
    return dolfinx.mesh.meshtags(mesh, dim, facets[found][order], values[order])


def refine(mesh: Mesh) -> Mesh:
    """Cut every simplex at the midpoints of its edges. Collective.

    New vertices are midpoints of old edges, so the domain remains the same polyhedron. Cells stay
    on their rank and the ghost layer is kept.

    Args:
        mesh: mesh of intervals, triangles or tetrahedra with straight edges.

    Raises:
        ValueError: if the mesh has other cells or curved ones.
    """
    if mesh.topology.cell_name() not in _SIMPLEX.values():
        raise ValueError("only simplices can be refined: rebuild the mesh with h/2 instead")
    if mesh.geometry.cmaps[0].degree != 1:
        raise ValueError("curved cells cannot be refined: use a mesh of degree 1")
    mesh.topology.create_entities(1)
    return dolfinx.mesh.refine(mesh)[0]


def truncation_radius(
    kappa: float, sigma: float, tol: float = 1e-10, dim: int = 2, offset: float = 0.0
) -> float:
    """The radius outside which the stationary density has mass about ``tol``.

    If V grows at least as kappa |x|^2 / 2, the density decays as exp(-theta |x|^2 / 2) with
    theta = sqrt(2 kappa) / sigma; the radius is the quantile of N(0, Id / theta).

    Args:
        kappa: convexity of the confinement at infinity, positive.
        sigma: regularisation, positive.
        tol: mass outside the radius, in (0, 1).
        dim: dimension of space.
        offset: distance of the mean from 0, added to the radius.

    Raises:
        ValueError: if a number is out of range.
    """
    if not (0 < kappa < math.inf and 0 < sigma < math.inf):
        raise ValueError(f"kappa and sigma must be positive, not {kappa} and {sigma}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be a mass between 0 and 1, not {tol}")
    if dim < 1 or not 0 <= offset < math.inf:
        raise ValueError(f"dim must be positive and offset not negative, not {dim} and {offset}")
    theta = math.sqrt(2.0 * kappa) / sigma
    return math.sqrt(2.0 * float(gammainccinv(0.5 * dim, tol)) / theta) + offset


def _cell_dim(cell: str) -> int:
    if cell not in _CELL_DIM:
        raise ValueError(f"unknown cell {cell!r}: choose one of {', '.join(_CELL_DIM)}")
    return _CELL_DIM[cell]


def _checked(
    radius: float | Sequence[float], h: float, grading: float, dim: int
) -> tuple[Floats, float]:
    """Return one radius per axis and the uniform cell size that grading reduces to h."""
    number("h", h)
    number("grading", grading)
    try:
        given = np.asarray(radius, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"radius must be a number or one per axis, not {radius!r}") from None
    if given.ndim > 1 or (given.ndim == 1 and given.size != dim):
        raise ValueError(f"radius must be a number or one per axis ({dim}), not {radius}")
    radii = np.broadcast_to(given, (dim,)).copy()
    if not (np.all(np.isfinite(radii)) and np.all(radii > 0)):
        raise ValueError(f"radius must be positive and finite, not {radius}")
    if not 0 < h < math.inf or h > 2.0 * radii.min():
        raise ValueError(f"h must be positive and at most the diameter of the domain, not {h}")
    if not 0 < grading < math.inf:
        raise ValueError(f"grading must be positive and finite, not {grading}")
    size = h * 0.5 * (1.0 + grading)
    if size > 2.0 * radii.min():
        raise ValueError(f"grading {grading} is too strong for h = {h}: reduce one of them")
    return radii, size


def _graded(mesh: Mesh, radii: Floats, grading: float, radial: bool) -> Mesh:
    """Move the vertices by rho -> rho (1 + b rho) / (1 + b), which fixes 0 and the boundary."""
    b = 0.5 * (grading - 1.0)
    x = mesh.geometry.x[:, : radii.size]
    rho = np.linalg.norm(x, axis=1, keepdims=True) / radii[0] if radial else np.abs(x) / radii
    x *= (1.0 + b * rho) / (1.0 + b)
    return mesh


def _round(comm: MPI.Comm, radius: float, h: float, cell: str, grading: float, dim: int) -> Mesh:
    """Mesh the disk or the ball."""
    if _cell_dim(cell) != dim:
        raise ValueError(f"a {cell} does not fill dimension {dim}")
    radii, size = _checked(radius, h, grading, dim)

    def build() -> RawMesh:
        if cell == _SIMPLEX[dim]:
            return simplices("ball", radii, size)
        return ball_blocks(dim, radii[0], size)

    if np.ndim(radius):
        raise ValueError(f"radius must be a number, not {radius}")
    return _graded(_distribute(comm, build), radii, grading, radial=True)


def _distribute(comm: MPI.Comm, build: Callable[[], RawMesh]) -> Mesh:
    """Build on rank 0 and distribute the cells, with a ghost layer across facets. Collective."""
    held: list[RawMesh] = []

    def work() -> RawMesh:
        held.append(build())
        return replace(held[0], cells=held[0].cells[:0], points=held[0].points[:0])

    # An error on rank 0 has reached every rank before the collective call below begins.
    nothing = on_root(comm, work)
    raw = held[0] if held else nothing
    return share_out(comm, raw.cell, raw.degree, raw.cells, raw.points)


def part_of(comm: MPI.Comm, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """This rank's rows of a table that every rank can read, for :func:`share_out`."""
    first, last = (len(table) * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    return table[first:last]


def share_out(
    comm: MPI.Comm, cell: str, degree: int, cells: npt.NDArray[np.int64], points: Floats
) -> Mesh:
    """Make a mesh of the cells and points that the ranks hold, with a ghost layer. Collective.

    Args:
        comm: the communicator.
        cell: name of the cell.
        degree: polynomial degree of the geometry.
        cells: ``(c, k)`` point numbers of this rank's cells, in the order of DOLFINx.
        points: ``(n, d)`` points of this rank; points are numbered rank by rank.
    """
    element = basix.ufl.element(
        "Lagrange", cell, degree, basix.LagrangeVariant.equispaced, shape=(points.shape[1],)
    )
    partitioner = None
    if comm.size > 1:
        partitioner = create_cell_partitioner(graph.partitioner(), GhostMode.shared_facet, 2)
    return dolfinx.mesh.create_mesh(comm, cells, ufl.Mesh(element), points, partitioner)
