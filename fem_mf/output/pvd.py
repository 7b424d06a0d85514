"""Series of fields at the degree of ψ, as PVD."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import basix
import basix.ufl
import numpy as np
from dolfinx import fem, io

from fem_mf.mpi import on_root
from fem_mf.output.history import Instant, replace_file
from fem_mf.output.xdmf import Series, amplitude_to_fields
from fem_mf.typing import PathLike

if TYPE_CHECKING:
    from fem_mf.density import Density
    from fem_mf.problem import Problem

__all__ = ["PVDSeries"]


class PVDSeries(Series):
    """ψ, m and u = −log m over time at the degree of ψ (up to 10), for ParaView and pyvista.

    Each written step is a ``.pvtu`` and one ``.vtu`` per rank; the ``.pvd`` lists the steps written
    so far at any moment. ψ is exact; m and u are interpolated in its space.
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int = 1,
        resume: Instant | None = None,
    ) -> None:
        """Create the list of steps, or go on with one. Collective.

        Args:
            path: the ``.pvd`` file; missing folders are created, old files replaced.
            problem: the problem whose densities are written.
            every: write the first call of ``write`` and each ``every``-th after it.
            resume: the checkpoint or state from which the run goes on, one call for each of its
                steps: what is there from before its time is kept, the rest written again.

        Raises:
            ValueError: another suffix, or ``every < 1``.
            OSError: the folder cannot be created or written to; on every rank.
        """
        super().__init__(path, problem, every, ".pvd", resume)
        self._fields: list[fem.Function[np.float64]] = []
        self._entries: list[str] = on_root(self._comm, self._kept)
        # DOLFINx names the files of the steps after this one, and counts them from 0.
        stem = on_root(self._comm, lambda: self._free_stem("000000.pvtu"))
        self._segment = self.path.with_name(f"{stem}.pvd")
        self._on_disk(self._publish)
        self._file = io.VTKFile(self._comm, self._segment, "w")

    def _kept(self) -> list[str]:
        """The steps of an older run from before the time at which this one goes on."""
        if self._until is None or not self.path.exists():
            return []
        steps = ET.parse(self.path).iterfind(".//DataSet")
        kept = (s for s in steps if float(s.attrib["timestep"]) < self._until)
        return [ET.tostring(step, encoding="unicode") for step in kept]

    def _write(self, t: float, density: Density) -> None:
        if not self._fields:
            self._fields = self._create_fields(density.psi)
        psi, m, u = self._fields
        psi.interpolate(density.psi)
        amplitude_to_fields(psi, m, u)
        self._file.write_function(self._fields, t)
        name = f"{self._segment.stem}{self._num_steps:06d}.pvtu"
        self._entries.append(f'<DataSet timestep="{t!r}" part="0" file="{name}"/>\n')
        self._on_disk(self._publish)

    def _create_fields(self, psi: fem.Function[np.float64]) -> list[fem.Function[np.float64]]:
        # VTK's cells of high degree have equally spaced nodes, those of DOLFINx do not.
        element = basix.ufl.element(
            "Lagrange",
            self._problem.mesh.basix_cell(),
            psi.function_space.element.basix_element.degree,
            lagrange_variant=basix.LagrangeVariant.equispaced,
        )
        space = fem.functionspace(self._problem.mesh, element)
        return [fem.Function(space, name=name) for name in ("psi", "m", "u")]

    def _publish(self) -> None:
        # DOLFINx writes the list of steps only when it closes the file.
        head = '<?xml version="1.0"?>\n<VTKFile type="Collection" version="1.0">\n<Collection>\n'
        replace_file(self.path, "".join([head, *self._entries, "</Collection>\n</VTKFile>\n"]))

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._file.close()  # writes a list of its own, and once more when it is let go
            del self._file
            self._on_disk(self._finish)

    def _finish(self) -> None:
        self._publish()
        if self._segment != self.path:
            self._segment.unlink(missing_ok=True)
