"""Series of fields for ParaView and pyvista, as XDMF.

    with XDMFSeries("run/series.xdmf", problem, every=10) as series:
        for state in flow.run(start, t_end):
            series.write(state.t, state.density)

Whatever was written stays readable when the run is killed.
"""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from typing import Any
from xml.sax.saxutils import escape

from mpi4py import MPI

import basix
import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, io
from dolfinx.graph import adjacencylist
from dolfinx.mesh import Mesh, create_mesh

from fem_mf.density import Density
from fem_mf.mpi import on_root
from fem_mf.output.history import Instant, RunFile, replace_file
from fem_mf.problem import Problem
from fem_mf.typing import Array, PathLike

__all__ = ["XDMFSeries"]

_HEAD = '<?xml version="1.0"?>\n<Xdmf Version="3.0">\n<Domain>\n'
_TAIL = "</Grid>\n</Domain>\n</Xdmf>\n"
_FIELDS = ("m", "psi", "u", "V")


class XDMFSeries(RunFile):
    """m, ψ, u = −log m and V[m] over time, as ``m``, ``psi``, ``u`` and ``V``.

    XDMF knows only cells of low degree. Each edge of the mesh is therefore cut into ``subdivide``
    pieces, and each cell into straight cells of its kind; the values at their vertices are exact.

    Three files of one name belong together: ``.h5`` is the mesh, ``.bin`` the values, and ``.xdmf``
    the list of steps, the one to open. A run may be watched or killed at any moment: the mesh is
    closed before the first step, values are only ever appended, and the list is replaced atomically
    once a step is complete. (A kill while DOLFINx appends to its HDF5 file can lose older steps,
    and its XML crashes pyvista.) ``dolfinx.io.XDMFFile(comm, path, "r").read_mesh()`` reads the cut
    mesh (d = 1: in the plane).

    Args:
        path: the ``.xdmf`` file; missing folders are created, old files replaced.
        problem: the problem whose densities are written.
        every: write the first call of ``write`` and each ``every``-th after it.
        resume: the checkpoint or state from which the run resumes, with one call of ``write`` for
            each of its steps: earlier steps in the file are kept, the others are written again.
        subdivide: pieces of each edge; the degree of ψ, or that of the mesh if it is higher, if
            not given. 1 writes values at the vertices of the mesh alone.

    Raises:
        ValueError: another suffix, ``every < 1``, ``subdivide < 1``, or a series to resume that has
            other nodes.
        OSError: the folder cannot be created or written to; on every rank.
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int = 1,
        resume: Instant | None = None,
        subdivide: int | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if subdivide is not None and subdivide < 1:
            raise ValueError(f"subdivide must be at least 1, not {subdivide}")
        pieces = subdivide or max(problem.degree, problem.mesh.geometry.cmaps[0].degree)
        super().__init__(path, problem.comm, ".xdmf")
        self._problem = problem
        self._every = every
        self._until = None if resume is None else resume.t  # earlier steps are kept
        self._calls = 0 if resume is None else resume.step
        self._last = -math.inf
        self._closed = False
        self._values = self.path.with_suffix(".bin")
        # The vertices of the pieces are equally spaced, whatever the nodes of ψ are.
        cell, spacing = problem.mesh.basix_cell(), basix.LagrangeVariant.equispaced
        element = basix.ufl.element("Lagrange", cell, pieces, spacing)
        space = fem.functionspace(problem.mesh, element)
        self._psi: fem.Function = fem.Function(space)
        self._potential: fem.Function = fem.Function(space)
        self._num_nodes = int(space.dofmap.index_map.size_global)
        self._steps: list[str] = on_root(self._comm, self._kept)
        self._num_steps = len(self._steps)
        self._mesh_xml = ""
        self._write_mesh(pieces)

    def _kept(self) -> list[str]:
        """The steps of an older run from before the time at which this one resumes."""
        if self._until is None or not self.path.exists():
            return []
        steps = []
        for grid in ET.parse(self.path).iterfind(".//Grid/Grid"):
            (values,) = {item.get("Dimensions") for item in grid.iterfind("Attribute/DataItem")}
            if values != f"{self._num_nodes} 1":
                what = "is a series on another mesh or of another subdivision"
                raise ValueError(f"'{self.path}' {what}; choose another path")
            if float(grid.find("Time").attrib["Value"]) < self._until:  # type: ignore[union-attr]
                steps.append(ET.tostring(grid, encoding="unicode"))
        return steps

    def _write_mesh(self, pieces: int) -> None:
        """Write the cut mesh, and note which node of ψ is at each of its vertices. Collective."""
        mesh = _cut(self._psi.function_space, pieces)
        vertices = mesh.geometry.index_map()
        numbers = mesh.geometry.input_global_indices[: vertices.size_local]
        nodes = self._psi.function_space.dofmap.index_map
        self._nodes = nodes.global_to_local(numbers)
        self._first = vertices.local_range[0]
        # Another run has its nodes in another order, and steps that are kept need theirs. DOLFINx
        # replaces the suffix by .h5, too, and leaves our .xdmf alone.
        stem = on_root(self._comm, self._free_stem)
        draft = self.path.with_name(f"{stem}.xdmf-mesh")

        def clear() -> None:
            if not self._steps:
                # First the list: an older series must not point into new files.
                self.path.unlink(missing_ok=True)
                self._values.write_bytes(b"")
            draft.write_bytes(b"")

        def publish() -> None:
            grid = next(ET.fromstring(draft.read_bytes()).iter("Grid"))
            for item in grid.iterfind("Geometry/DataItem"):
                # Without it readers round the coordinates to single precision.
                item.attrib |= {"NumberType": "Float", "Precision": "8"}
            self._mesh_xml = "".join(ET.tostring(part, encoding="unicode") for part in grid)
            draft.unlink()
            self._publish()

        self._on_disk(clear)
        with io.XDMFFile(self._comm, draft, "w") as file:
            file.write_mesh(mesh)
        self._on_disk(publish)

    def _free_stem(self) -> str:
        """The name of the series, numbered if an earlier run, which is resumed, has used it."""
        stem, number = self.path.stem, 1
        while self._until is not None and self.path.with_name(f"{stem}.h5").exists():
            number += 1
            stem = f"{self.path.stem}-{number}"
        return stem

    def write(self, t: float, density: Density, force: bool = False) -> bool:
        """Write the fields of one density, if this call is one of each ``every``. Collective.

        The first call always writes.

        Args:
            t: the time, later than all times written before.
            density: the density, on the problem's mesh.
            force: write whatever ``every`` says (the last step of a run).

        Returns:
            Whether something was written.

        Raises:
            ValueError: ``t`` is not later than the last time written, or the series is closed.
            OSError: the disk refuses.
        """
        if self._closed:
            raise ValueError(f"'{self.path}' is closed")
        due = force or self._calls % self._every == 0
        if due and not self._last < t < math.inf:
            raise ValueError(f"'{self.path}': time {t} must be later than {self._last}")
        self._calls += 1
        if due:
            self._write_values(density)
            self._on_disk(lambda: self._append(float(t)))
            self._num_steps += 1
            self._last = float(t)
        return due

    def _write_values(self, density: Density) -> None:
        """Append each field, in the order of the vertices in the mesh file. Collective."""
        self._psi.interpolate(density.psi)
        self._potential.interpolate(self._problem.functional.derivative(density))
        psi, potential = (f.x.array[self._nodes] for f in (self._psi, self._potential))
        u = -2.0 * np.log(np.maximum(np.abs(psi), np.finfo(float).tiny))  # finite where ψ = 0
        parts = [
            (self._offset(i) + 8 * self._first, values.astype("<f8"))
            for i, values in enumerate((psi**2, psi, u, potential))
        ]
        self._write_parts(self._values, parts, sync=False)

    def _offset(self, field: int) -> int:
        """First byte of a field of the step about to be written."""
        return 8 * self._num_nodes * (len(_FIELDS) * self._num_steps + field)

    def _append(self, t: float) -> None:
        fields = "".join(
            f'<Attribute Name="{name}" AttributeType="Scalar" Center="Node">\n'
            f'<DataItem Format="Binary" NumberType="Float" Precision="8" Endian="Little" '
            f'Dimensions="{self._num_nodes} 1" Seek="{self._offset(i)}">'
            f"{escape(self._values.name)}</DataItem>\n</Attribute>\n"
            for i, name in enumerate(_FIELDS)
        )
        self._steps.append(
            f'<Grid Name="mesh" GridType="Uniform">\n<Time Value="{t!r}"/>\n'
            f"{self._mesh_xml}{fields}</Grid>\n"
        )
        self._publish()

    def _publish(self) -> None:
        series = 'GridType="Collection" CollectionType="Temporal"'
        kind = series if self._steps else 'GridType="Uniform"'
        # Viewers take the mesh from each step; the copy outside them is for DOLFINx's read_mesh.
        head = f'{_HEAD}<Grid Name="mesh" {kind}>\n{self._mesh_xml}'
        replace_file(self.path, "".join([head, *self._steps, _TAIL]))

    def close(self) -> None:
        """Write no more. Calling it again does nothing."""
        self._closed = True


def _cut(space: fem.FunctionSpace, pieces: int) -> Mesh:
    """The mesh of straight cells between the equally spaced nodes of a space. Collective."""
    mesh, index_map = space.mesh, space.dofmap.index_map
    table = _pieces(mesh.basix_cell(), pieces, space.element.interpolation_points)
    local = space.dofmap.list[: mesh.topology.index_map(mesh.topology.dim).size_local]
    cells = local[:, table].reshape(-1, table.shape[1])
    numbers = index_map.local_to_global(cells.ravel()).reshape(cells.shape).astype(np.int64)
    points = space.tabulate_dof_coordinates()[: index_map.size_local, : mesh.geometry.dim]
    element = basix.ufl.element("Lagrange", mesh.basix_cell(), 1, shape=(mesh.geometry.dim,))

    def stay(comm: MPI.Comm, parts: int, types: Any, cells: Any) -> Any:
        """A partitioner that leaves every cell where it is: this rank has the values there."""
        return adjacencylist(np.full((len(numbers), 1), comm.rank, dtype=np.int32))._cpp_object

    return create_mesh(mesh.comm, numbers, ufl.Mesh(element), points, stay)


def _pieces(cell: basix.CellType, pieces: int, nodes: Array) -> npt.NDArray[np.int64]:
    """Vertices ``(cells, corners)``, as numbers of nodes, of the pieces of a reference cell.

    Simplices are cut as Kuhn does: in the coordinates y_i = x_i + ... + x_d, where they are
    y_1 ≥ ... ≥ y_d, walk one step along each axis, in every order.
    """
    d = nodes.shape[1]
    lattice = np.rint(nodes * pieces).astype(int)
    shapes = [basix.geometry(cell).astype(int)]
    if cell in (basix.CellType.triangle, basix.CellType.tetrahedron):
        lattice = np.cumsum(lattice[:, ::-1], axis=1)[:, ::-1]
        steps = [np.eye(d, dtype=int)[list(order)] for order in itertools.permutations(range(d))]
        shapes = [np.vstack([np.zeros(d, dtype=int), np.cumsum(s, axis=0)]) for s in steps]
        for shape, step in zip(shapes, steps, strict=True):
            if np.linalg.det(step) < 0.0:  # keep the orientation of the cell
                shape[[-2, -1]] = shape[[-1, -2]]
    number = {tuple(position): i for i, position in enumerate(lattice.tolist())}
    corners = (low + shape for low in lattice for shape in shapes)
    found = [[number.get(tuple(c), -1) for c in shape.tolist()] for shape in corners]
    return np.array([vertices for vertices in found if min(vertices) >= 0])
