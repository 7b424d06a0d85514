"""The steps of an XDMF series, read back for pictures.

    series = Recorded("run/series.xdmf")
    grid = series.read(series.nearest(1.0))   # a pyvista grid of linear cells
    series.times, series.fields, grid.point_data["m"]

The series may be of a run that goes on or was killed, at any number of ranks. Serial: one rank
reads; pyvista is optional (``pip install 'fem_mf[plot]'``).
"""

from __future__ import annotations

import functools
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi4py import MPI  # noqa: F401  # before DOLFINx, which needs its library

import basix
import dolfinx
import numpy as np
import numpy.typing as npt

from fem_mf.plotting.sampled import subdivision
from fem_mf.typing import PathLike

if TYPE_CHECKING:
    import pyvista

__all__ = ["Recorded"]

# The linear, quadratic and Lagrange cells of VTK; of intervals also what XDMF makes of them.
_CELLS = {
    "interval": (3, 4, 21, 68),
    "triangle": (5, 22, 69),
    "quadrilateral": (9, 28, 70),
    "tetrahedron": (10, 24, 71),
    "hexahedron": (12, 29, 72),
}
_LINEAR = {name: kinds[0] for name, kinds in _CELLS.items()}
# Corners of a square or cube in the order of VTK.
_CORNERS = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]
)


class Recorded:
    """One series on disk: its times and fields, and its steps as grids of linear cells.

    Attributes:
        path: the list of steps.
        times: of the steps on disk when the series was opened.
        fields: names of the fields.
        dim: dimension of the cells.
    """

    def __init__(self, path: PathLike) -> None:
        """Open a series.

        Args:
            path: the ``.xdmf`` of an ``XDMFSeries``.

        Raises:
            ValueError: no step was written yet, or the file is something else.
            OSError: a file is missing or cut short.
            ImportError: pyvista is missing.
        """
        self.path = Path(path)
        try:
            import pyvista
        except ImportError as error:
            raise ImportError(
                "reading a series needs pyvista: pip install 'fem_mf[plot]'"
            ) from error
        try:
            root = ET.fromstring(self.path.read_bytes())
        except ET.ParseError as error:
            raise ValueError(f"'{path}' is no list of steps: {error}") from error
        if root.tag != "Xdmf":
            raise ValueError(f"'{path}' is not of XDMFSeries")
        self.times = [float(time.attrib["Value"]) for time in root.iter("Time")]
        self._check_xdmf(root)
        if not self.times:
            raise ValueError(f"nothing written yet to '{path}'")
        self._reader: Any = pyvista.XdmfReader(str(self.path))
        first = self.read(0)
        self.dim = int(first.get_cell(0).dimension)
        self.fields = [name for name in first.point_data if not name.startswith("vtk")]

    def _check_xdmf(self, root: ET.Element) -> None:
        # VTK crashes on the first, and shows a neighbour's values in place of those not there.
        if any(element.tag.endswith("}include") for element in root.iter()):
            raise ValueError(f"'{self.path}' was written by DOLFINx itself, not by XDMFSeries")
        for item in root.iter("DataItem"):
            name, _, _ = (item.text or "").strip().partition(":")
            file = self.path.parent / name
            count = np.prod([int(n) for n in item.attrib["Dimensions"].split()])
            end = int(item.get("Seek", 0)) + 8 * count if item.get("Format") == "Binary" else 0
            if not file.exists() or file.stat().st_size < end:
                raise OSError(f"'{file}', which belongs to '{self.path}', is missing or cut short")

    def nearest(self, time: float) -> int:
        """Return the number of the step nearest to a time."""
        return int(np.argmin(np.abs(np.array(self.times) - time)))

    def read(self, step: int) -> pyvista.UnstructuredGrid:
        """Read a step; cells of high degree are cut into linear ones.

        Args:
            step: its number, from 0.

        Returns:
            The grid, with the fields of the series at its points.

        Raises:
            OSError: a file is missing or damaged.
        """
        import pyvista

        self._reader.set_active_time_point(step)
        grid = self._reader.read()
        if not isinstance(grid, pyvista.UnstructuredGrid) or grid.n_cells == 0:
            raise OSError(f"'{self.path}' cannot be read: a file is missing or damaged")
        return _linear(grid)


def _linear(grid: pyvista.UnstructuredGrid) -> pyvista.UnstructuredGrid:
    """Cut cells of higher degree into linear ones between their nodes, which keep their values."""
    import pyvista

    kind = int(grid.celltypes[0])
    name = next((name for name, kinds in _CELLS.items() if kind in kinds), None)
    if name is None or np.any(grid.celltypes != kind):
        raise ValueError("pictures need cells of one kind: intervals, triangles, ...")
    nodes = grid.cell_connectivity.reshape(grid.n_cells, -1)
    pieces = _pieces(name, nodes.shape[1])
    if len(pieces) == 1:
        return grid
    cells = nodes[:, pieces].reshape(-1, pieces.shape[1])
    linear = pyvista.UnstructuredGrid({_LINEAR[name]: cells}, grid.points)
    for field in grid.point_data:
        linear.point_data[field] = grid.point_data[field]
    return linear


@functools.cache
def _pieces(name: str, num_nodes: int) -> npt.NDArray[np.int64]:
    """Nodes of the linear cells, ``(pieces, corners)``, in one cell of VTK with so many nodes."""
    cell = basix.CellType[name]
    for degree in itertools.count(1):
        element = basix.create_element(
            basix.ElementFamily.P, cell, degree, basix.LagrangeVariant.equispaced
        )
        if element.dim >= num_nodes:
            break
    order = dolfinx.cpp.io.perm_vtk(dolfinx.cpp.mesh.CellType[name], num_nodes)
    nodes = np.asarray(element.points, dtype=float)[np.argsort(order)]
    d = nodes.shape[1]
    if name not in ("quadrilateral", "hexahedron"):
        pieces = subdivision(cell, degree, nodes)
        turned = np.linalg.det(nodes[pieces[:, 1:]] - nodes[pieces[:, :1]]) < 0.0
        pieces[turned, :2] = pieces[turned, 1::-1]  # VTK counts such volumes negative
        return pieces
    number = {tuple(node): i for i, node in enumerate(np.rint(nodes * degree).astype(int).tolist())}
    corners = _CORNERS[: 2**d, :d]
    lattice = itertools.product(range(degree), repeat=d)
    return np.array([[number[tuple(c)] for c in (corners + low).tolist()] for low in lattice])
