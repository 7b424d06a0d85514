"""Reading the results of a run: its record, its history, and its fields at any written time.

    results = mf.open_results("results/trap")
    print(results)                       # a summary of the run and its status
    results.history["energy"]            # a pandas DataFrame, or an array without pandas
    results.times                        # times of the fields
    results.density(1.0).mean()          # on the mesh of the series
    results.fields(1.0)["m"]             # for pyvista

A folder can be read during its run and also if the run was killed, independently of the number of
ranks that wrote it.
"""

from __future__ import annotations

import json
import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from fem_mf.density import Density
from fem_mf.functionals.terms import Potential
from fem_mf.mesh import part_of, share_out
from fem_mf.mpi import on_root, warn
from fem_mf.output.checkpoint import MANIFEST, Checkpoint
from fem_mf.output.history import History
from fem_mf.output.run import (
    CHECKPOINT,
    FORMAT,
    HISTORY,
    RUN_FILE,
    SERIES,
    is_running,
    versions,
)
from fem_mf.output.xdmf import cyclic, steps_of
from fem_mf.problem import Problem
from fem_mf.typing import Array, PathLike

__all__ = ["Results", "open_results"]

_LOG = logging.getLogger(__name__)
_NEEDED = (  # entries that a record must have
    *("status", "reason", "started", "ended", "command", "parameters", "flow", "result"),
    *("problem", "versions", "ranks", "host"),
)
_NEAR = 1e-9  # relative difference up to which times count as equal
_SHAPES = {"interval": "LINE", "quadrilateral": "QUAD", "tetrahedron": "TETRA"}  # VTK's names


def open_results(folder: PathLike, comm: MPI.Comm = MPI.COMM_WORLD) -> Results:
    """Open the folder of a run. Collective.

    Args:
        folder: folder of a :class:`fem_mf.Run`.
        comm: the ranks over which the meshes of ``density`` are distributed.

    Raises:
        FileNotFoundError: if the folder is not that of a run.
        ValueError: if its record is damaged.
    """
    path = Path(folder)
    return Results(path, comm, on_root(comm, lambda: _read_record(path, comm)))


@dataclass(frozen=True, repr=False)
class Results:
    """The results in the folder of a run.

    Attributes:
        folder: the folder.
        comm: the ranks over which meshes are distributed.
        run: the record of the run, ``run.json``; if the run ended without recording it, the
            ``status`` is ``"killed"``.
    """

    folder: Path
    comm: MPI.Comm
    run: dict[str, Any]

    @property
    def history(self) -> Any:
        """The scalars of every step so far: a DataFrame, or a structured array without pandas.

        Raises:
            ValueError: if there is no history, or it is damaged.
        """
        path = self.folder / HISTORY
        if not path.exists():
            raise ValueError(f"'{self.folder}' has no {HISTORY}")
        columns = History.read(path)
        try:
            from pandas import DataFrame  # type: ignore[import-untyped]
        except ImportError:
            kinds = [(name, values.dtype) for name, values in columns.items()]
            rows = np.empty(len(next(iter(columns.values()), ())), dtype=kinds)
            for name, values in columns.items():
                rows[name] = values
            return rows
        return DataFrame(columns)

    @property
    def times(self) -> Array:
        """The times at which fields were written so far.

        Raises:
            ValueError: if the list of steps of the series is damaged.
        """
        return np.array([t for t, _ in self._steps()])

    def fields(self, t: float | None = None) -> Any:
        """A pyvista grid with m, psi, u and V at a written time, by default the last.

        Raises:
            ValueError: if no fields were written at that time, or they are damaged.
        """
        import pyvista

        grid = self._step(t)
        points, cells, kind = self._mesh(grid)
        shape = pyvista.CellType[_SHAPES.get(kind, kind.upper())]
        space = np.zeros((len(points), 3))
        space[:, : points.shape[1]] = points
        found = pyvista.UnstructuredGrid({shape: cells}, space)
        for attribute in grid.iterfind("Attribute"):
            found.point_data[attribute.attrib["Name"]] = self._table(attribute)[:, 0]
        return found

    def density(self, t: float | None = None) -> Density:
        """The density at a written time, by default the last, on its own mesh. Collective.

        At the time of the checkpoint it is exactly that of the run. At other times it is taken from
        the series: ψ is interpolated linearly on the mesh subdivided by the degree. The functional
        of its problem is zero.

        Raises:
            ValueError: on every rank, if no fields were written then, or they are damaged.
        """
        problem = self.run["problem"]
        if problem is None:
            raise ValueError(f"'{self.folder}' is a study of several problems, without fields")
        if (saved := self._saved(t)) is not None:
            return saved
        # Only rank 0 reads the list, because a running program may replace it in between.
        text = on_root(self.comm, lambda: ET.tostring(self._step(t)))
        grid = ET.fromstring(text)
        points, cells, kind = self._mesh(grid)
        mine = (part_of(self.comm, table) for table in (cyclic(kind, cells), points))
        mesh = share_out(self.comm, kind, 1, *mine)
        # For degree 1 the vertices are the nodes, so the mass of the run applies to the density.
        mass = problem["mass"] if problem["degree"] == 1 else "consistent"
        on_mesh = Problem(mesh, _nothing(), problem["sigma"], degree=1, mass=mass)
        psi: fem.Function = fem.Function(on_mesh.space)
        (values,) = (self._table(a) for a in grid.iterfind("Attribute[@Name='psi']"))
        psi.x.array[on_mesh.space.dofmap.list] = values[
            mesh.geometry.input_global_indices[mesh.geometry.dofmaps[0]], 0
        ]
        return Density(on_mesh, psi.x.array[: on_mesh.discretisation.num_owned].copy())

    def _saved(self, t: float | None) -> Density | None:
        """The density of the checkpoint at its time, or if no field is later. Collective."""
        path = self.folder / CHECKPOINT

        def is_wanted() -> bool:
            if not (path / MANIFEST).exists():
                return False
            there = Checkpoint.time(path)
            if t is not None:
                return _same(there, t)
            return not len(self.times) or there > self.times[-1] or _same(there, self.times[-1])

        try:
            if on_root(self.comm, is_wanted):
                saved = Checkpoint.read(path, self.comm)
                kept = {name: self.run["problem"][name] for name in ("sigma", "degree", "mass")}
                return saved.density(Problem(saved.mesh, _nothing(), **kept))
        except (ValueError, FileNotFoundError) as error:
            warn(self.comm, _LOG, "%s; using the series instead", error)
        return None

    def __repr__(self) -> str:
        """One line with the folder and the status of the run."""
        return f"Results('{self.folder}', {self.run['status']})"

    def __str__(self) -> str:
        """A summary: the run, its times, its status, and its results."""
        run, problem = self.run, self.run["problem"]
        reason = f" ({run['reason']})" if run["reason"] else ""
        until = f" to {run['ended']}" if run["ended"] else ""
        ranks = "1 rank" if run["ranks"] == 1 else f"{run['ranks']} ranks"
        lines = [
            f"{self.folder}: {run['status']}{reason}",
            f"  {run['command']}",
            f"  {run['started']}{until}, {ranks} of {run['host']}",
        ]
        if problem is not None:
            flow = f"{run['flow']['class']}, " if run["flow"] else ""
            size = f"{problem['dofs']} dofs of degree {problem['degree']}"
            lines += [
                f"  F = {problem['functional']}",
                f"  {flow}d = {problem['dim']}, σ = {problem['sigma']:g}, {size}",
                f"  history: {_said(lambda: f'{len(self.history)} steps')}",
                f"  fields: {_said(self._extent)}",
            ]
        return "\n".join(lines)

    def _extent(self) -> str:
        times = self.times
        return f"{len(times)} times up to t = {times[-1]:g}" if len(times) else "none"

    # -- the series -------------------------------------------------------------------------------

    def _steps(self) -> list[tuple[float, ET.Element]]:
        """The time and the description of every step of the series."""
        path = self.folder / SERIES
        return steps_of(path) if path.exists() else []

    def _step(self, t: float | None) -> ET.Element:
        steps = self._steps()
        if not steps:
            raise ValueError(f"'{self.folder}' has no fields")
        known = np.array([time for time, _ in steps])
        at = len(steps) - 1 if t is None else int(np.argmin(np.abs(known - t)))
        if t is not None and not _same(known[at], t):
            raise ValueError(
                f"'{self.folder}' has no fields at t = {t:g}; the nearest time is "
                f"{float(known[at])!r}, and all of them are in .times"
            )
        return steps[at][1]

    def _table(self, element: ET.Element) -> Any:
        """The numbers of an element of the series, mapped into memory."""
        item = element.find("DataItem")
        assert item is not None and item.text is not None
        shape = tuple(map(int, item.attrib["Dimensions"].split()))
        kind = "<i8" if item.attrib["NumberType"] == "Int" else "<f8"
        path, seek = self.folder / item.text.strip(), int(item.attrib["Seek"])
        try:
            return np.memmap(path, kind, "r", seek, shape)
        except (OSError, ValueError) as error:
            raise ValueError(f"'{path}' is damaged: {error}") from None

    def _mesh(self, grid: ET.Element) -> tuple[Array, Any, str]:
        """Points, cells with corners in the order of XDMF and VTK, and the name of the cell."""
        topology, geometry = grid.find("Topology"), grid.find("Geometry")
        assert topology is not None and geometry is not None
        dim, kind = self.run["problem"]["dim"], self.run["problem"]["cell"]
        points = np.array(self._table(geometry)[:, :dim])
        return points, np.asarray(self._table(topology)), kind


def _nothing() -> Potential:
    """The functional F = 0."""
    return Potential(lambda x: 0.0 * x[0])


def _same(one: float, other: float) -> bool:
    return bool(abs(one - other) <= _NEAR * max(1.0, abs(other)))


def _said(what: Callable[[], str]) -> str:
    """A text about a file, or the error in reading the file."""
    try:
        return what()
    except ValueError as error:
        return str(error)


def _read_record(folder: Path, comm: MPI.Comm) -> dict[str, Any]:
    """Read ``run.json`` and update its status if the run was killed. Rank 0."""
    path = folder / RUN_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"'{folder}' is not the folder of a run: it has no {RUN_FILE}, which mf.Run writes"
        )
    # Checked before and after the record is read, since a run may start or end in between.
    alive = is_running(folder)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form = record["format"] if isinstance(record, dict) else None
    except (ValueError, KeyError) as error:
        raise ValueError(f"'{path}' is damaged: {error!r}") from None
    if form != FORMAT:
        what = "was written by another program or version"
        raise ValueError(f"'{path}' {what}: its format is {form!r}, not {FORMAT!r}")
    if missing := [name for name in _NEEDED if name not in record]:
        raise ValueError(f"'{path}' is damaged: it has no {', '.join(missing)}")
    if record["result"]:  # JSON cannot represent non-finite numbers; they are stored as text
        record["result"] = {
            name: float(value) if isinstance(value, str) else value
            for name, value in record["result"].items()
        }
    if record["status"] == "running" and not (alive or is_running(folder)):
        record["status"], record["reason"] = "killed", "it ended without recording its status"
    written, here = record["versions"].get("fem_mf"), versions()["fem_mf"]
    if written != here:
        warn(comm, _LOG, "'%s' was written by fem_mf %s; this is %s", folder, written, here)
    return record
