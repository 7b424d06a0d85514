"""Series of fields at the nodes of the mesh, as XDMF."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from mpi4py import MPI

import numpy as np
from dolfinx import fem, io

from fem_mf.mpi import all_ranks_agree, on_root
from fem_mf.output.history import Instant, replace_file
from fem_mf.typing import PathLike

if TYPE_CHECKING:
    from fem_mf.density import Density
    from fem_mf.problem import Problem

from fem_mf.output.history import RunFile

__all__ = [
    "Series",
    "XDMFSeries",
    "amplitude_to_fields",
]

_HEAD = '<?xml version="1.0"?>\n<Xdmf Version="3.0">\n<Domain>\n'
_TAIL = "</Grid>\n</Domain>\n</Xdmf>\n"


class Series(RunFile):
    """Fields over time: which calls are written, and at which times."""

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int,
        suffix: str,
        resume: Instant | None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        super().__init__(path, problem.comm, suffix)
        self._problem = problem
        self._every = every
        self._until = None if resume is None else resume.t  # times kept of a series gone on with
        self._calls = 0 if resume is None else resume.step
        self._last = -math.inf
        self._num_steps = 0  # written so far
        self._closed = False

    def write(self, t: float, density: Density, force: bool = False) -> bool:
        """Write the fields of one density, if this call is one of each ``every``. Collective.

        The first call is always written.

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
            self._write(float(t), density)
            self._last = float(t)
            self._num_steps += 1
        return due

    def _free_stem(self, ending: str) -> str:
        """The name of the series, numbered where runs before this one have files of that name."""
        stem, number = self.path.stem, 1
        while self._until is not None and self.path.with_name(stem + ending).exists():
            number += 1
            stem = f"{self.path.stem}-{number}"
        return stem

    @abstractmethod
    def _write(self, t: float, density: Density) -> None: ...

    def close(self) -> None:
        """Write no more. Calling it again does nothing."""
        self._closed = True


def amplitude_to_fields(
    psi: fem.Function[np.float64], m: fem.Function[np.float64], u: fem.Function[np.float64]
) -> None:
    """Set m = ψ² and u = −log m at the nodes the three share; u stays finite where ψ = 0."""
    m.x.array[:] = psi.x.array**2
    u.x.array[:] = -2.0 * np.log(np.maximum(np.abs(psi.x.array), np.finfo(float).tiny))


class XDMFSeries(Series):
    """m, ψ, u = −log m and V[m] over time, at the nodes of the mesh, for ParaView and pyvista.

    The fields are named ``m``, ``psi``, ``u`` and ``V``; those of higher degree are interpolated at
    the nodes of the mesh (``PVDSeries`` keeps the degree). Three files of one name belong together:
    ``.h5`` is the mesh, ``.bin`` the values, ``.xdmf`` the list of steps to open. A run may be
    watched or killed at any moment: the mesh is closed before the first step, values are only ever
    appended, and the list is replaced atomically once a step is complete.

    Appending to HDF5 as DOLFINx does is not safe in this sense (a kill can hit its index halfway
    and lose older steps), and the XML of DOLFINx crashes pyvista and ParaView's older reader.
    ``dolfinx.io.XDMFFile(comm, path, "r").read_mesh()`` reads the mesh back (d = 1: in the plane).
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int = 1,
        resume: Instant | None = None,
    ) -> None:
        """Create the files and write the mesh, or go on with a series. Collective.

        Args:
            path: the ``.xdmf`` file; missing folders are created, old files replaced.
            problem: the problem whose densities are written.
            every: write the first call of ``write`` and each ``every``-th after it.
            resume: the checkpoint or state from which the run goes on, one call for each of its
                steps: what is there from before its time is kept, the rest written again.

        Raises:
            ValueError: another suffix, ``every < 1``, a mesh of degree > 2, for which XDMF has no
                cells (``PVDSeries`` does), or a series to go on with that has another mesh.
            OSError: the folder cannot be created or written to; on every rank.
        """
        mesh = problem.mesh
        degree = mesh.geometry.cmaps[0].degree
        if degree > 2:
            raise ValueError(f"XDMF has no cells of degree {degree}: use PVDSeries")
        super().__init__(path, problem, every, ".xdmf", resume)
        space = fem.functionspace(mesh, ("Lagrange", degree))
        self._fields: dict[str, fem.Function[np.float64]] = {
            name: fem.Function(space, name=name) for name in ("m", "psi", "u", "V")
        }
        nodes = mesh.geometry.index_map()
        dof_of_node = np.empty(nodes.size_local + nodes.num_ghosts, dtype=np.int32)
        dof_of_node[mesh.geometry.dofmaps[0]] = space.dofmap.list
        self._dof_of_node = dof_of_node[: nodes.size_local]
        self._first_node = nodes.local_range[0]
        self._num_nodes = int(nodes.size_global)
        self._values = self.path.with_suffix(".bin")
        self._steps: list[str] = on_root(self._comm, self._kept)
        self._num_steps = len(self._steps)
        self._mesh_xml = ""
        self._write_mesh()

    def _kept(self) -> list[str]:
        """The steps of an older run from before the time at which this one goes on."""
        if self._until is None or not self.path.exists():
            return []
        steps = []
        for grid in ET.parse(self.path).iterfind(".//Grid/Grid"):
            (values,) = {item.get("Dimensions") for item in grid.iterfind("Attribute/DataItem")}
            if values != f"{self._num_nodes} 1":
                raise ValueError(f"'{self.path}' is a series on another mesh; choose another path")
            if float(grid.find("Time").attrib["Value"]) < self._until:  # type: ignore[union-attr]
                steps.append(ET.tostring(grid, encoding="unicode"))
        return steps

    def _write_mesh(self) -> None:
        # DOLFINx replaces this suffix by .h5, too, and leaves our .xdmf alone. Another run has its
        # nodes in another order, and steps that are kept need theirs.
        stem = on_root(self._comm, lambda: self._free_stem(".h5"))
        draft = self.path.with_name(f"{stem}.xdmf-mesh")
        self._on_disk(lambda: self._clear(draft))
        with io.XDMFFile(self._comm, draft, "w") as file:
            file.write_mesh(self._problem.mesh)

        def publish() -> None:
            grid = next(ET.fromstring(draft.read_bytes()).iter("Grid"))
            for item in grid.iterfind("Geometry/DataItem"):
                # Without it readers round the coordinates to single precision.
                item.attrib |= {"NumberType": "Float", "Precision": "8"}
            self._mesh_xml = "".join(ET.tostring(part, encoding="unicode") for part in grid)
            draft.unlink()
            self._publish()

        self._on_disk(publish)

    def _clear(self, draft: Path) -> None:
        if not self._steps:
            # First the list: an older series must not point into new files.
            self.path.unlink(missing_ok=True)
            self._values.write_bytes(b"")
        draft.write_bytes(b"")

    def _write(self, t: float, density: Density) -> None:
        psi, potential = self._fields["psi"], self._fields["V"]
        psi.interpolate(density.psi)
        amplitude_to_fields(psi, self._fields["m"], self._fields["u"])
        potential.interpolate(self._problem.functional.derivative(density))
        self._append_values()
        self._on_disk(lambda: self._append_step(t))

    def _offset(self, field: int) -> int:
        """First byte of a field of the step about to be written."""
        return 8 * self._num_nodes * (len(self._fields) * self._num_steps + field)

    def _append_values(self) -> None:
        """Write each field in the order of the nodes in the mesh file. Collective."""
        error: Exception | None = None
        try:
            file = MPI.File.Open(self._problem.mesh.comm, self._values, MPI.MODE_WRONLY)
            for i, field in enumerate(self._fields.values()):
                values = field.x.array[self._dof_of_node].astype("<f8")
                file.Write_at_all(self._offset(i) + 8 * self._first_node, values)
            file.Close()
        except MPI.Exception as caught:
            error = OSError(f"cannot write '{self._values}': {caught}")
        # Also the barrier after which the values of all ranks are in the file.
        all_ranks_agree(self._comm, error)

    def _append_step(self, t: float) -> None:
        fields = "".join(
            f'<Attribute Name="{name}" AttributeType="Scalar" Center="Node">\n'
            f'<DataItem Format="Binary" NumberType="Float" Precision="8" Endian="Little" '
            f'Dimensions="{self._num_nodes} 1" Seek="{self._offset(i)}">'
            f"{escape(self._values.name)}</DataItem>\n</Attribute>\n"
            for i, name in enumerate(self._fields)
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
