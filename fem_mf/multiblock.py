"""Building blocks of mesh.py: points and cells, generated or read on rank 0 without MPI.

There are three sources: gmsh for simplices of simple shapes, files, and a block structure for disks
and balls of quadrilaterals or hexahedra. Nothing in this module is collective.

The block structure consists of one bulged cube in the middle, and of one block of layers between
each of its ``2 dim`` faces and the sphere. The lattice of the cube and its faces numbers the nodes,
so blocks share nodes by integer index and coordinates are never compared.
"""

from __future__ import annotations

import importlib
import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
from dolfinx.io import XDMFFile
from dolfinx.io.gmsh import cell_perm_array

__all__ = ["RawMesh", "ball_blocks", "read_msh", "read_xdmf", "simplices"]

type Floats = npt.NDArray[np.float64]
type Ints = npt.NDArray[np.int64]

# Half-size of the middle cube, bulge of its faces, lattice cells per radius and h, and mean depth
# of the outer blocks. The first two maximise the smallest scaled Jacobian (0.86 and 0.77) among
# shapes whose edges differ by less than a factor of two.
_SHAPE = {2: (0.52, 0.15, 1.25, 0.36), 3: (0.40, 0.225, 1.10, 0.44)}
# By dimension and number of vertices.
_CELLS = {
    (1, 2): "interval",
    (2, 3): "triangle",
    (2, 4): "quadrilateral",
    (3, 4): "tetrahedron",
    (3, 8): "hexahedron",
}
_GMSH_MISSING = (
    "cannot load gmsh ({}): pip install gmsh, and on a slim Linux image apt-get install "
    "libglu1-mesa libgl1 libxrender1 libxcursor1 libxft2 libxinerama1"
)


@dataclass(frozen=True)
class RawMesh:
    """A mesh on one rank.

    Attributes:
        cell: name of the cell.
        degree: polynomial degree of the cells' geometry.
        cells: node numbers in basix order, shape ``(num_cells, nodes_per_cell)``.
        points: shape ``(num_points, gdim)``.
    """

    cell: str
    degree: int
    cells: Ints
    points: Floats


def simplices(shape: str, radii: Floats, h: float) -> RawMesh:
    """Mesh a box or a ball by gmsh's Delaunay algorithms.

    Args:
        shape: "box" or "ball".
        radii: half-lengths, shape ``(dim,)``, ``dim`` 2 or 3; a ball uses the first.
        h: target edge length.
    """
    dim = len(radii)
    # Inside a volume gmsh's edges are on average 1.25 to 1.3 times as long as requested.
    size = 0.8 * h if dim == 3 else h
    options = {"Mesh.MeshSizeMin": size, "Mesh.MeshSizeMax": size, "Mesh.Algorithm": 6}
    with _gmsh_model(options) as gmsh:
        occ = gmsh.model.occ
        if shape == "ball":
            (occ.addDisk if dim == 2 else occ.addSphere)(0, 0, 0, *[radii[0]] * (4 - dim))
        else:
            (occ.addRectangle if dim == 2 else occ.addBox)(*-radii, *[0] * (3 - dim), *2 * radii)
        occ.synchronize()
        gmsh.model.mesh.generate(dim)
        raw = _gmsh_cells(gmsh)
    return replace(raw, points=raw.points[:, :dim])


def read_msh(file: Path) -> RawMesh:
    """Read all cells of the highest dimension of a gmsh file.

    Raises:
        ValueError: if gmsh rejects the file, or it holds no cells or several kinds of them.
    """
    # Without this mark gmsh would execute the file as a script.
    with file.open("rb") as stream:
        if not stream.read(64).lstrip().startswith(b"$"):
            raise ValueError(
                "it is not a gmsh mesh; write one with 'gmsh -3 -o mesh.msh model.geo'"
            )
    with _gmsh_model({}) as gmsh:
        try:
            gmsh.merge(str(file))
        except Exception as caught:  # gmsh raises nothing more precise
            raise ValueError(f"{caught}; the file is damaged, write it again with gmsh") from caught
        return _validated(_gmsh_cells(gmsh))


def read_physical_facets(file: Path) -> tuple[Floats, Ints]:
    """Midpoints of the facets of a gmsh file that are in physical groups, and their tags."""
    midpoints, tags = [np.empty((0, 3))], [np.empty(0, dtype=np.int64)]
    with _gmsh_model({}) as gmsh:
        gmsh.merge(str(file))
        names, coordinates, _ = gmsh.model.mesh.getNodes()
        points = np.zeros((int(names.max(initial=0)) + 1, 3))
        points[names.astype(np.int64)] = coordinates.reshape(-1, 3)
        dim = gmsh.model.getDimension() - 1
        for _, tag in gmsh.model.getPhysicalGroups(dim):
            for entity in gmsh.model.getEntitiesForPhysicalGroup(dim, tag):
                for kind, _, nodes in zip(*gmsh.model.mesh.getElements(dim, entity), strict=True):
                    *_, per_facet, _, vertices = gmsh.model.mesh.getElementProperties(kind)
                    facets = nodes.reshape(-1, per_facet)[:, :vertices].astype(np.int64)
                    midpoints.append(points[facets].mean(axis=1))
                    tags.append(np.full(len(facets), tag))
    return np.concatenate(midpoints), np.concatenate(tags)


def read_xdmf(file: Path) -> RawMesh:
    """Read the first grid of an XDMF file that has its own topology and geometry.

    Raises:
        ValueError: if the file or its HDF5 companion is missing, damaged or holds no mesh.
    """
    own_mesh = "Grid[Topology][Geometry]"
    try:
        grid = ET.parse(file).getroot().find(f".//{own_mesh}")
    except ET.ParseError as caught:
        raise ValueError(f"damaged XML ({caught}); write it again with XDMFFile") from caught
    if grid is None:
        raise ValueError("no grid with a topology and a geometry; add one with write_mesh")
    where = grid.get("Name", ""), f"(//{own_mesh})[1]/.."
    # On COMM_SELF a damaged file fails alone, not half-way through a collective read.
    try:
        with XDMFFile(MPI.COMM_SELF, file, "r") as xdmf:
            shape, degree = xdmf.read_cell_type(*where)
            cells = xdmf.read_topology_data(*where)
            points = xdmf.read_geometry_data(*where)
    except RuntimeError as caught:
        raise ValueError(f"{caught}; the .xdmf and its .h5 must be kept together") from caught
    return _validated(RawMesh(shape.name, degree, cells.astype(np.int64), points))


def _validated(raw: RawMesh) -> RawMesh:
    """Check an imported mesh; drop repeated cells and superfluous coordinates."""
    cells, points = raw.cells, raw.points
    ordered = np.sort(cells, axis=1)
    if cells.size == 0 or ordered[:, 0].min() < 0 or ordered[:, -1].max() >= len(points):
        raise ValueError("its cells refer to missing nodes; write it again")
    if np.any(ordered[:, 1:] == ordered[:, :-1]) or not np.all(np.isfinite(points)):
        raise ValueError("it has degenerate cells or coordinates that are not finite; remesh")
    # MSH 2 repeats a cell for each physical group that it belongs to.
    order = np.lexsort(ordered.T)
    repeated = np.all(ordered[order[1:]] == ordered[order[:-1]], axis=1)
    cells = np.delete(cells, order[1:][repeated], axis=0)
    topology = basix.topology(basix.CellType[raw.cell])
    tdim = len(topology) - 1
    # DOLFINx writes out of bounds, or aborts, if a facet has a third cell.
    sides = np.sort(np.concatenate([cells[:, facet] for facet in topology[tdim - 1]]), axis=1)
    sides = sides[np.lexsort(sides.T)]
    if np.any(np.all(sides[2:] == sides[:-2], axis=1)):
        raise ValueError("it has facets with more than two cells; remove overlapping cells")
    used = np.abs(points[np.unique(cells)])
    if np.any(used[:, tdim:] > 1e-10 * used.max()):
        raise ValueError(
            f"its cells ({raw.cell}) do not lie in the first {tdim} coordinates: mesh the inside "
            f"('gmsh -3'), or move a planar mesh to z = 0"
        )
    return replace(raw, cells=cells, points=points[:, :tdim])


@contextmanager
def _gmsh_model(options: dict[str, float]) -> Iterator[Any]:
    """Provide an empty gmsh model and restore the state of gmsh afterwards, also on errors."""
    try:
        gmsh = importlib.import_module("gmsh")
    except (ImportError, OSError) as caught:
        raise RuntimeError(_GMSH_MISSING.format(caught)) from caught
    ours = not gmsh.isInitialized()
    if ours:
        # The user's start-up files could change the mesh, and "interruptible" would replace the
        # Ctrl-C handler of Python by one that ends the process without cleaning up.
        gmsh.initialize([], readConfigFiles=False, interruptible=False)
    before = "" if ours else gmsh.model.getCurrent()
    options = {"General.Terminal": 0, "General.NumThreads": 1} | options
    saved = {name: gmsh.option.getNumber(name) for name in options}
    try:
        for name, value in options.items():
            gmsh.option.setNumber(name, value)
        gmsh.model.add("fem_mf")
        yield gmsh
    finally:
        if ours:
            gmsh.finalize()
        else:
            gmsh.model.remove()
            gmsh.model.setCurrent(before)
            for name, value in saved.items():
                gmsh.option.setNumber(name, value)


def _gmsh_cells(gmsh: Any) -> RawMesh:
    """Extract the cells of the highest dimension of the current gmsh model, all of one kind."""
    by_dim = (list(gmsh.model.mesh.getElementTypes(dim)) for dim in (3, 2, 1))
    kinds: list[int] = next(filter(None, by_dim), [])
    if len(kinds) != 1:
        raise ValueError(f"it needs one kind of cells and has {len(kinds)}; mesh it with one kind")
    label, dim, degree, num_nodes, _, num_vertices = gmsh.model.mesh.getElementProperties(kinds[0])
    cell = _CELLS.get((dim, num_vertices))
    complete = math.comb(degree + dim, dim) if num_vertices == dim + 1 else (degree + 1) ** dim
    if cell is None or num_nodes != complete:
        raise ValueError(f"cells of kind {label} are not supported; mesh with simplices")
    tags, points, _ = gmsh.model.mesh.getNodes()
    order = np.argsort(tags)
    used, cells = np.unique(gmsh.model.mesh.getElementsByType(kinds[0])[1], return_inverse=True)
    # Node tags may have gaps, and purely geometric nodes (centres of arcs) belong to no cell.
    points = points.reshape(-1, 3)[order[np.searchsorted(tags, used, sorter=order)]]
    to_basix = cell_perm_array(dolfinx.mesh.to_type(cell), num_nodes)
    return RawMesh(cell, degree, cells.reshape(-1, num_nodes)[:, to_basix].astype(np.int64), points)


def _cube(xi: Floats, half: float, bulge: float) -> Floats:
    """Map lattice points in [-1, 1]^dim, shape ``(n, dim)``, to the bulged cube."""
    squares = xi**2
    others = squares.sum(axis=1, keepdims=True) - squares
    return np.asarray(half * xi * (1.0 + bulge * (1.0 - others / (xi.shape[1] - 1))))


def _sphere(xi: Floats) -> Floats:
    """Map points on the surface of [-1, 1]^dim, shape ``(n, dim)``, to the unit sphere."""
    # With equal angles rather than equal projections the cells of a face differ less in size.
    rays = np.tan(0.25 * np.pi * xi)
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _lattice_cells(nodes: Ints, flip: bool) -> Ints:
    """The cells ``(n, 2**dim)`` of a block of node numbers; ``flip`` for left-handed axes."""
    if flip:
        nodes = nodes.swapaxes(0, 1)
    low, high = slice(None, -1), slice(1, None)
    # Vertices in basix order: the first axis is the fastest.
    vertices = itertools.product((low, high), repeat=nodes.ndim)
    return np.stack([nodes[ends[::-1]].ravel() for ends in vertices], axis=1)


def ball_blocks(dim: int, radius: float, h: float) -> RawMesh:
    """Mesh the disk or ball around 0 with quadrilaterals or hexahedra of size about ``h``.

    The cells are of degree 1 and have positive Jacobians.
    """
    half, bulge, per_radius, depth = _SHAPE[dim]
    n = max(1, math.ceil(per_radius * radius / h - 1e-9))
    layers = max(1, round(depth * radius / h))
    lattice = np.indices((n + 1,) * dim).reshape(dim, -1).T
    surface = lattice[np.any((lattice == 0) | (lattice == n), axis=1)]

    # nodes[0] numbers the cube, nodes[layer] its shifted surface; interiors of layers stay -1.
    nodes = np.full((layers + 1,) + (n + 1,) * dim, -1, dtype=np.int64)
    nodes[(0, *lattice.T)] = np.arange(len(lattice))
    inner = _cube(2.0 * surface / n - 1.0, half, bulge)
    outer = _sphere(2.0 * surface / n - 1.0)
    points = [_cube(2.0 * lattice / n - 1.0, half, bulge)]
    for layer in range(1, layers + 1):
        first = len(lattice) + (layer - 1) * len(surface)
        nodes[(layer, *surface.T)] = np.arange(first, first + len(surface))
        points.append(inner + (outer - inner) * (layer / layers))

    cells = [_lattice_cells(nodes[0], flip=False)]
    for axis, side in itertools.product(range(dim), (0, n)):
        block = np.take(nodes, side, axis=axis + 1)
        # Outward layers come first, then the other axes in order: this is right-handed for an
        # even axis on the far side, and each change of side or neighbouring axis reverses it.
        cells.append(_lattice_cells(block, flip=(axis + (side == 0)) % 2 == 1))
    return RawMesh(_CELLS[dim, 2**dim], 1, np.concatenate(cells), radius * np.concatenate(points))
