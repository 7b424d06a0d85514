"""Time series of fields in XDMF format, for ParaView and pyvista.

    with XDMFSeries("run/series.xdmf", problem, every=10) as series:
        for state in flow.run(start, t_end):
            series.write(state.t, state.density)

All files remain readable if the run is killed.
"""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import basix
import basix.ufl
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx.mesh import Mesh

from fem_mf.density import Density
from fem_mf.mpi import on_root
from fem_mf.output.history import Instant, RunFile, replace_file
from fem_mf.petsc import stage
from fem_mf.problem import Problem
from fem_mf.typing import Array, PathLike

__all__ = ["XDMFSeries", "cut", "cyclic", "steps_of"]

_HEAD = '<?xml version="1.0"?>\n<Xdmf Version="3.0">\n<Domain>\n'
_TAIL = "</Domain>\n</Xdmf>\n"
_SHAPES = {"interval": "Polyline"}  # XDMF's names, if they differ from those of basix
_SIMPLICES = (basix.CellType.interval, basix.CellType.triangle, basix.CellType.tetrahedron)
_CYCLIC = [0, 1, 3, 2, 4, 5, 7, 6]  # XDMF numbers quadrilaterals and hexahedra cyclically


class XDMFSeries(RunFile):
    """m, ψ, u = −log m and V[m] over time, as ``m``, ``psi``, ``u`` and ``V``.

    XDMF supports only cells of low degree. Each edge of the mesh is therefore cut into
    ``subdivide`` pieces, and each cell into straight cells; the values at their vertices are exact.

    Two files belong together: ``.bin`` holds the mesh and the values, and ``.xdmf``, the file to
    open, is the list of steps. A resumed run adds a file ``-2.bin`` and so on. A run may be watched
    or killed at any time: data are only appended, and the list is replaced atomically once a step
    is complete. (DOLFINx's HDF5 file can lose older steps if the run is killed while it is written,
    and its XML crashes pyvista.)

    Args:
        path: the ``.xdmf`` file; missing folders are created.
        problem: the problem whose densities are written.
        every: write at the first call of ``write`` and at each ``every``-th call after it.
        resume: the checkpoint or state from which the run resumes, with one call of ``write`` for
            each of its steps: earlier steps in the file are kept, the others are written again.
        overwrite: whether to replace an existing series.
        subdivide: number of pieces of each edge; the default is the degree of ψ, or that of the
            mesh if it is higher. 1 writes only the values at the vertices of the mesh.
        information: texts by name, for the ``Information`` elements of the file.

    Raises:
        ValueError: for another suffix, ``every < 1``, ``subdivide < 1``, or if the series to resume
            has other nodes.
        FileExistsError: if there is a series, without ``resume`` or ``overwrite``.
        OSError: on every rank, if the folder cannot be created or written to.
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int = 1,
        resume: Instant | None = None,
        subdivide: int | None = None,
        *,
        overwrite: bool = False,
        information: Mapping[str, str] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if subdivide is not None and subdivide < 1:
            raise ValueError(f"subdivide must be at least 1, not {subdivide}")
        super().__init__(path, problem.comm, ".xdmf", may_exist=overwrite or resume is not None)
        self._information = "".join(
            f"<Information Name={quoteattr(name)} Value={quoteattr(text)}/>\n"
            for name, text in (information or {}).items()
        )
        self._problem = problem
        self._every = every
        self._calls = 0 if resume is None else resume.step
        self._last = -math.inf
        self._closed = False
        pieces = subdivide or max(problem.degree, problem.mesh.geometry.cmaps[0].degree)
        space, points, cells = cut(problem.mesh, pieces)
        self._psi: fem.Function = fem.Function(space)
        self._potential: fem.Function = fem.Function(space)
        nodes = space.dofmap.index_map
        self._owned = nodes.size_local
        self._where = nodes.local_range[0], nodes.size_global
        self._mesh = ""
        self._steps: list[str] = on_root(self._comm, lambda: self._kept(resume))
        # Another run orders its nodes differently, and VTK reads a second mesh only from a file
        # with another name.
        self._binary: Path = on_root(self._comm, lambda: self._free_file(resume))
        self._end = 0  # end of the complete data in the binary file

        def begin() -> None:
            if not self._steps:
                self.path.unlink(missing_ok=True)  # it refers to data that are overwritten
            self._binary.write_bytes(b"")

        self._on_disk(begin)
        self._append_mesh(points, cells)
        self._on_disk(self._publish)

    def _kept(self, resume: Instant | None) -> list[str]:
        """The steps of an earlier run before the time at which this one resumes."""
        if resume is None or not self.path.exists():
            return []
        steps = []
        for t, grid in steps_of(self.path):
            (values,) = {item.get("Dimensions") for item in grid.iterfind("Attribute/DataItem")}
            if values != f"{self._where[1]} 1":
                what = "belongs to another mesh or subdivision"
                raise ValueError(f"'{self.path}' {what}; choose another path")
            if t < resume.t:
                steps.append(ET.tostring(grid, encoding="unicode"))
        return steps

    def _free_file(self, resume: Instant | None) -> Path:
        """The file of the values, numbered if the run is resumed and the name is in use."""
        names = itertools.chain([".bin"], (f"-{number}.bin" for number in itertools.count(2)))
        files = (self.path.with_name(self.path.stem + name) for name in names)
        return next(file for file in files if resume is None or not file.exists())

    def _append_mesh(self, points: Array, cells: npt.NDArray[np.int64]) -> None:
        """Append the mesh and note its description. Collective."""
        cell = self._problem.mesh.topology.cell_name()
        cells = cyclic(cell, cells)
        counts = self._comm.allgather(len(cells))
        first, count = sum(counts[: self._comm.rank]), sum(counts)
        points = np.pad(points, [(0, 0), (0, max(0, 2 - points.shape[1]))])  # XDMF has no line
        items = self._append([(points, *self._where), (cells, first, count)])
        kind = f'TopologyType="{_SHAPES.get(cell, cell.capitalize())}"'
        size = f'NumberOfElements="{count}" NodesPerElement="{cells.shape[1]}"'
        self._mesh = (
            f"<Topology {kind} {size}>\n{items[1]}</Topology>\n"
            f'<Geometry GeometryType="{"XYZ"[: points.shape[1]]}">\n{items[0]}</Geometry>\n'
        )

    def _append(self, tables: list[tuple[npt.NDArray[np.generic], int, int]]) -> list[str]:
        """Append tables (rows of this rank, index of the first, total number). Collective."""
        parts, items = [], []
        for rows, first, count in tables:
            columns = rows.shape[1]
            data = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
            parts.append((self._end + 8 * columns * first, data))
            number = "Int" if rows.dtype.kind == "i" else "Float"
            items.append(
                f'<DataItem Format="Binary" NumberType="{number}" Precision="8" Endian="Little" '
                f'Dimensions="{count} {columns}" Seek="{self._end}">'
                f"{escape(self._binary.name)}</DataItem>\n"
            )
            self._end += 8 * columns * count
        self._write_parts(self._binary, parts, sync=False)
        return items

    def write(self, t: float, density: Density, force: bool = False) -> bool:
        """Write the fields of one density at each ``every``-th call. Collective.

        The first call always writes.

        Args:
            t: the time, later than all times written before.
            density: the density, on the problem's mesh.
            force: whether to write regardless of ``every`` (for the last step of a run).

        Returns:
            Whether fields were written.

        Raises:
            ValueError: if ``t`` is not later than the last written time, or the series is closed.
            OSError: if writing fails.
        """
        if self._closed:
            raise ValueError(f"'{self.path}' is closed")
        due = force or self._calls % self._every == 0
        if due and not self._last < t < math.inf:
            raise ValueError(f"'{self.path}': time {t} must be later than {self._last}")
        self._calls += 1
        if due:
            self._write(float(t), density)
            self._last = float(t)
        return due

    def write_last(self, t: float, density: Density) -> None:
        """Write the last step of a run, unless :meth:`write` just did. Collective."""
        if t > self._last:
            self.write(t, density, force=True)

    @stage("output")
    def _write(self, t: float, density: Density) -> None:
        self._psi.interpolate(density.psi)
        self._potential.interpolate(self._problem.functional.derivative(density))
        psi, potential = (f.x.array[: self._owned] for f in (self._psi, self._potential))
        u = -2.0 * np.log(np.maximum(np.abs(psi), np.finfo(float).tiny))  # finite where ψ = 0
        fields = {"m": psi**2, "psi": psi, "u": u, "V": potential}
        items = self._append([(values[:, None], *self._where) for values in fields.values()])
        attributes = "".join(
            f'<Attribute Name="{name}" AttributeType="Scalar" Center="Node">\n{item}</Attribute>\n'
            for name, item in zip(fields, items, strict=True)
        )
        self._steps.append(self._grid(f'<Time Value="{t!r}"/>\n{attributes}'))
        self._on_disk(self._publish)

    def _publish(self) -> None:
        series = '<Grid Name="series" GridType="Collection" CollectionType="Temporal">\n'
        # Without steps only the mesh is written, since VTK crashes on an empty collection.
        grids = [series, *self._steps, "</Grid>\n"] if self._steps else [self._grid("")]
        replace_file(self.path, "".join([_HEAD, self._information, *grids, _TAIL]))

    def _grid(self, content: str) -> str:
        return f'<Grid Name="mesh" GridType="Uniform">\n{self._mesh}{content}</Grid>\n'

    def close(self) -> None:
        """Close the series. Further calls do nothing."""
        self._closed = True


def cyclic(cell: str, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Corners of cells from the order of DOLFINx to that of XDMF and VTK, or back."""
    if basix.CellType[cell] in _SIMPLICES:
        return cells
    return cells[:, _CYCLIC[: cells.shape[1]]]


def steps_of(path: Path) -> list[tuple[float, ET.Element]]:
    """The time and the description of every step of a series.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        grids = list(ET.parse(path).iterfind(".//Grid/Grid"))
        return [(float(grid.find("Time").attrib["Value"]), grid) for grid in grids]  # type: ignore[union-attr]
    except (ET.ParseError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"'{path}' is damaged: {error}") from None


def cut(
    mesh: Mesh, pieces: int, simplices: bool = False
) -> tuple[fem.FunctionSpace, Array, npt.NDArray[np.int64]]:
    """Cut every edge of a mesh into equal pieces, and every cell into straight cells. Collective.

    The vertices are the nodes of a Lagrange space with equally spaced nodes, so that interpolation
    into this space gives the values at the vertices; each rank has the values that it owns.

    Args:
        mesh: the mesh.
        pieces: number of pieces of each edge.
        simplices: whether to cut quadrilaterals and hexahedra into simplices.

    Returns:
        The space, the ``(n, d)`` vertices owned by this rank, and its ``(c, corners)`` cells with
        the global numbers of their vertices, numbered rank by rank.
    """
    equispaced = basix.LagrangeVariant.equispaced
    element = basix.ufl.element("Lagrange", mesh.basix_cell(), pieces, equispaced)
    space = fem.functionspace(mesh, element)
    nodes, dofs = space.dofmap.index_map, space.dofmap.list
    table = _pieces(mesh.basix_cell(), pieces, element.basix_element.points, simplices)
    num_cells = mesh.topology.index_map(mesh.topology.dim).size_local
    local = dofs[:num_cells][:, table].reshape(-1, table.shape[1])
    cells = nodes.local_to_global(local.ravel()).reshape(local.shape).astype(np.int64)
    points = space.tabulate_dof_coordinates()[: nodes.size_local, : mesh.geometry.dim]
    return space, points, cells


def _pieces(
    cell: basix.CellType, pieces: int, nodes: Array, simplices: bool
) -> npt.NDArray[np.int64]:
    """Cut a reference cell; the result holds node numbers, ``(pieces, corners)``."""
    # Kuhn: from each node of the lattice walk one step along each axis, in every order. A simplex
    # consists of the walks that stay in y₁ ≥ ... ≥ y_d, with y_i = x_i + ... + x_d.
    d = nodes.shape[1]
    lattice = np.rint(nodes * pieces).astype(int)
    shapes = [basix.geometry(cell).astype(int)]
    if cell in _SIMPLICES:
        lattice = np.cumsum(lattice[:, ::-1], axis=1)[:, ::-1]
    if simplices or cell in _SIMPLICES:
        steps = [np.eye(d, dtype=int)[list(order)] for order in itertools.permutations(range(d))]
        shapes = [np.vstack([np.zeros(d, dtype=int), np.cumsum(s, axis=0)]) for s in steps]
        for shape, step in zip(shapes, steps, strict=True):
            if np.linalg.det(step) < 0.0:  # keep the orientation of the cell
                shape[[-2, -1]] = shape[[-1, -2]]
    number = {tuple(position): i for i, position in enumerate(lattice.tolist())}
    corners = (low + shape for low in lattice for shape in shapes)
    found = [[number.get(tuple(c), -1) for c in shape.tolist()] for shape in corners]
    return np.array([vertices for vertices in found if min(vertices) >= 0])
