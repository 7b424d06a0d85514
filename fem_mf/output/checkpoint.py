"""Checkpoints: stop a run at any moment and go on later, on any number of ranks.

    with mf.Checkpoint("run/checkpoint", problem, every=10) as checkpoint:
        for state in flow.run(start, t_end):
            history.append(state)
            checkpoint.write(state)  # last: the other files then reach at least as far

Another job resumes the run:

    saved = mf.Checkpoint.read("run/checkpoint", comm)
    problem = mf.Problem(saved.mesh, functional, sigma=0.5, degree=2)
    flow = mf.SchrodingerFlow(problem, dt=0.05)
    for state in flow.run(saved.state(problem), t_end):
        print(state.t, state.energy)

A checkpoint is a folder: ``manifest.json`` names the files that belong to it, ``.npy`` tables of
the mesh and of each function. New files are written beside the old ones, and the manifest is
replaced atomically when they are on the disk: whenever a run is killed, the last complete
checkpoint is there. Functions are stored cell by cell at the nodes of the reference cell, which
depends neither on the partition of the mesh nor on the numbering of degrees of freedom.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from fem_mf.density import LogDensity
from fem_mf.flows.flow import State
from fem_mf.mpi import on_root, warn
from fem_mf.output.history import RunFile
from fem_mf.problem import Problem
from fem_mf.typing import PathLike

if TYPE_CHECKING:
    from signal import _HANDLER
import io
from dataclasses import dataclass, field

import numpy.typing as npt
from dolfinx import mesh

from fem_mf.density import Density
from fem_mf.flows.flow import HJBState
from fem_mf.flows.langevin import LangevinState
from fem_mf.flows.relative_entropy import DescentState
from fem_mf.mesh import share_out
from fem_mf.mpi import all_ranks_agree

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Blocks",
    "Checkpoint",
    "Saved",
    "describe",
    "read_rows",
    "write_rows",
]

_LOG = logging.getLogger(__name__)
# What schedulers send before the time is up, and Ctrl-C; MPICH's launcher hands them on.
_WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Checkpoint(RunFile):
    """Writes the state of a run every so many steps or minutes, and when told to stop. Collective.

    On SIGTERM, SIGUSR1 or Ctrl-C, at any rank, the next call of ``write`` writes a checkpoint and
    ends the program (``SystemExit`` on every rank, so that ``with`` blocks close their files) with
    exit code 0, or 130 after Ctrl-C, as shells expect; a second Ctrl-C does not wait. The handlers
    are in place until ``close``.

    Args:
        path: the folder, on a file system that all ranks share; created, with its parents, when it
            is not there. A checkpoint in it stays until the first new one is complete.
        problem: the problem of the run, on a mesh of geometry degree 1 or 2.
        every: write at each ``every``-th step of the flow; None: not by steps.
        minutes: write when so many minutes have passed since the last time; None: not by time.
        resume: the command that resumes the run, to be shown when it is stopped.

    Raises:
        ValueError: ``every`` or ``minutes`` is not positive, or the mesh has a higher degree.
        OSError: the folder cannot be created; on every rank.
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int | None = None,
        minutes: float | None = 10.0,
        resume: str | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, not {minutes}")
        degree = problem.mesh.geometry.cmaps[0].degree
        if degree > 2:
            raise ValueError(f"checkpoints are for meshes of degree 1 and 2, not {degree}")
        super().__init__(path, problem.comm)
        self._on_disk(lambda: self.path.mkdir(exist_ok=True))
        self._problem = problem
        self._every, self._seconds = every, None if minutes is None else 60.0 * minutes
        self._written_at = time.monotonic()
        self._signal, self._resume = 0, resume
        self._handlers: dict[signal.Signals, _HANDLER] = {}
        self._mesh: dict[str, Any] | None = None
        self._nodal: fem.Expression | None = None
        self._function: fem.Function = problem.new_amplitude()
        self._number = on_root(problem.comm, self._next_number)
        if threading.current_thread() is threading.main_thread():
            for number in _WARNINGS:
                self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _next_number(self) -> int:
        taken = [int(p.name.split("-")[0]) for p in self.path.glob("[0-9]*-*.npy")]
        return max(taken, default=0) + 1

    @staticmethod
    def read(path: PathLike, comm: MPI.Comm) -> Saved:
        """Read the last complete checkpoint of a folder, its mesh included. Collective.

        Args:
            path: the folder.
            comm: of the run that goes on, of any size.

        Raises:
            FileNotFoundError: there is no checkpoint; on every rank.
            ValueError: it is damaged, or of another program; on every rank.
        """
        return Saved.open(Path(path), comm)

    def write(
        self, state: State, force: bool = False, extra: Mapping[str, Any] | None = None
    ) -> bool:
        """Write a checkpoint if one is due; afterwards stop if the run was told to. Collective.

        Args:
            state: of the flow, to go on from.
            force: write whatever ``every`` and ``minutes`` say.
            extra: whatever else the program needs to go on, made of what JSON knows (numbers keep
                all digits); rank 0's is kept.

        Returns:
            Whether a checkpoint was written.

        Raises:
            SystemExit: a warning signal has come; the checkpoint is written.
            ValueError: the state is of another problem.
            OSError: the disk refuses; the checkpoint before this one is still good.
        """
        if state.density.problem is not self._problem:
            raise ValueError("the state belongs to another problem than the checkpoint")
        elapsed = time.monotonic() - self._written_at
        by_time = self._seconds is not None and elapsed >= self._seconds
        mine = np.array([self._signal, by_time and self._comm.rank == 0], dtype=np.int64)
        flags = np.empty_like(mine)
        self._comm.Allreduce(mine, flags, op=MPI.MAX)  # all ranks do the same, at the same step
        told, late = int(flags[0]), bool(flags[1])
        by_step = self._every is not None and state.step % self._every == 0
        due = force or told > 0 or late or by_step
        if due:
            self._write(state, dict(extra or {}))
            self._written_at = time.monotonic()
        if told:
            name = signal.Signals(told).name
            warn(
                *(self._comm, _LOG),
                "%s: stopped at t = %.6g, step %d; '%s' has all that is needed to resume the run%s",
                name,
                state.t,
                state.step,
                self.path,
                f": {self._resume}" if self._resume else "",
            )
            self.close()
            raise SystemExit(130 if told == signal.SIGINT else 0)
        return due

    def _write(self, state: State, extra: dict[str, Any]) -> None:
        if self._mesh is None:
            self._mesh = self._write_mesh()
        density = state.density
        stored = {"u": density.u()} if isinstance(density, LogDensity) else {"psi": density.psi}
        numbers: dict[str, float | int] = {}
        for name in (one.name for one in fields(state)):
            value = getattr(state, name)
            if isinstance(value, fem.Function):
                stored[name] = value
            elif isinstance(value, int | float | np.number):
                numbers[name] = value.item() if isinstance(value, np.number) else value
        content = {
            "kind": type(state).__name__,
            "problem": describe(self._problem),
            "functional": float(self._problem.functional.value(density)),
            "numbers": numbers,
            "mesh": self._mesh,
            "functions": {name: self._write_function(name, f) for name, f in stored.items()},
            "extra": extra,
        }
        body = json.dumps(content, sort_keys=True)
        whole = {"format": FORMAT, "crc32": zlib.crc32(body.encode()), "content": content}
        text = json.dumps(whole)
        self._on_disk(lambda: self._publish(text, content))
        self._number += 1

    def _write_mesh(self) -> dict[str, Any]:
        mesh = self._problem.mesh
        geometry, num_cells = mesh.geometry, mesh.topology.index_map(mesh.topology.dim).size_local
        nodes = geometry.index_map()
        cells = geometry.dofmaps[0][:num_cells]
        points = geometry.x[: nodes.size_local, : geometry.dim]
        numbers = nodes.local_to_global(cells.ravel()).reshape(cells.shape).astype(np.int64)
        return {
            "cell": mesh.topology.cell_name(),
            "degree": geometry.cmaps[0].degree,
            "points": self._write_table("points", points),
            "cells": self._write_table("cells", numbers),
        }

    def _write_function(self, name: str, function: fem.Function) -> dict[str, Any]:
        mesh, space = self._problem.mesh, self._problem.space
        if self._nodal is None:
            self._nodal = fem.Expression(self._function, space.element.interpolation_points)
        self._function.x.array[:] = function.x.array
        num_cells = mesh.topology.index_map(mesh.topology.dim).size_local
        values = self._nodal.eval(mesh, np.arange(num_cells, dtype=np.int32))
        return self._write_table(name, np.asarray(values).reshape(num_cells, -1))

    def _write_table(self, name: str, rows: Any) -> dict[str, Any]:
        file = f"{self._number:06d}-{name}.npy"
        return {"file": file, "blocks": write_rows(self._comm, self.path / file, rows)}

    def _publish(self, text: str, content: dict[str, Any]) -> None:
        draft = self.path / (MANIFEST + "-new")
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / MANIFEST)
        _sync_folder(self.path)
        kept = {t["file"] for t in content["functions"].values()}
        kept |= {content["mesh"][name]["file"] for name in ("points", "cells")}
        for path in self.path.glob("[0-9]*-*.npy"):
            if path.name not in kept:
                path.unlink()

    def close(self) -> None:
        """Give the signals back to whoever had them. Calling it again does nothing."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)


def _sync_folder(path: Path) -> None:
    """Let the names in a folder reach the disk, where the file system can be asked to."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


FORMAT = "fem_mf checkpoint 1"
MANIFEST = "manifest.json"
_KINDS = {kind.__name__: kind for kind in (State, HJBState, DescentState, LangevinState)}
_SAME = 1e-8  # relative, of the value of the functional then and now


def describe(problem: Problem) -> dict[str, Any]:
    """What two problems must have in common to share a checkpoint, besides mesh and functional."""
    return {
        "degree": problem.degree,
        "mass": "lumped" if problem.lumped else "consistent",
        "boundary": problem.boundary,
        "sigma": problem.sigma,
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
        path: its folder.
        mesh: of the problem, shared out among the ranks there are now.
        t: time of the state.
        step: number of its step.
        extra: what the program added.
    """

    path: Path
    mesh: mesh.Mesh
    t: float
    step: int
    extra: dict[str, Any]
    _content: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path, comm: MPI.Comm) -> Saved:
        """Read and check the manifest and the mesh. Collective; see ``Checkpoint.read``."""
        content: dict[str, Any] = {}
        error: Exception | None = None
        try:
            content = _manifest(path)
        except (OSError, ValueError) as caught:
            error = caught
        all_ranks_agree(comm, error)
        numbers = content["numbers"]
        domain = _read_mesh(path, comm, content["mesh"])
        return cls(path, domain, numbers["t"], numbers["step"], content["extra"], content)

    def state(self, problem: Problem) -> State:
        """The state, for a flow of the problem to go on from. Collective.

        Args:
            problem: on ``self.mesh``, as it was: functional, σ, degree, mass and boundary.

        Raises:
            ValueError: the problem is another one, or a file is damaged; on every rank.
        """
        self._check(problem)
        functions = {name: self._function(problem, name) for name in self._content["functions"]}
        kind = _KINDS[self._content["kind"]]
        if "u" in functions:
            values = functions["u"].x.array[: problem.num_owned].copy()
            density: Density = LogDensity(problem, values)
        else:
            values = functions["psi"].x.array[: problem.num_owned].copy()
            density = Density(problem, values, normalised=True)
        then, now = self._content["functional"], float(problem.functional.value(density))
        if abs(now - then) > _SAME * max(1.0, abs(then)):
            raise ValueError(
                f"the checkpoint '{self.path}' belongs to another functional: its density had "
                f"F = {then:.10g} there and has {now:.10g} here; go on with the same parameters "
                "and data"
            )
        known = {**self._content["numbers"], **functions, "density": density}
        return kind(**{f.name: known[f.name] for f in fields(kind) if f.name in known})

    def _check(self, problem: Problem) -> None:
        if problem.mesh is not self.mesh:
            raise ValueError("build the problem on the mesh of the checkpoint, Saved.mesh")
        here, there = describe(problem), self._content["problem"]
        different = [f"{k} = {there[k]!r}, not {here[k]!r}" for k in here if here[k] != there[k]]
        if different:
            raise ValueError(
                f"the checkpoint '{self.path}' belongs to a problem with {', '.join(different)}: "
                "go on with the same parameters; in a script, state.density.on(problem) takes the "
                "density of the old problem to another"
            )

    def _function(self, problem: Problem, name: str) -> fem.Function:
        entry = self._content["functions"][name]
        table = read_rows(problem.comm, self.path / entry["file"], entry["blocks"])
        function = problem.new_amplitude()
        function.name = name
        mine = table[problem.mesh.topology.original_cell_index]
        # DOLFINx asks for values at the nodes of each reference cell, and numbers them itself.
        function.interpolate(lambda x: mine.ravel())
        function.x.scatter_forward()
        return function


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no checkpoint in '{path}': it has no {MANIFEST}; start the run "
            "without it, or name the folder of the run that wrote one"
        ) from None
    except UnicodeDecodeError as caught:
        raise ValueError(f"the checkpoint '{file}' is damaged: {caught}") from None
    try:
        whole = json.loads(text)
    except ValueError as caught:
        raise ValueError(f"the checkpoint '{file}' is damaged: {caught}") from None
    found = whole.get("format") if isinstance(whole, dict) else None
    if found != FORMAT:
        raise ValueError(f"'{file}' is no {FORMAT!r} but {found!r}: of another program or version")
    content: dict[str, Any] = whole.get("content")
    if zlib.crc32(json.dumps(content, sort_keys=True).encode()) != whole.get("crc32"):
        raise ValueError(f"the checkpoint '{file}' is damaged: its checksum is wrong")
    return content


def _read_mesh(path: Path, comm: MPI.Comm, entry: dict[str, Any]) -> mesh.Mesh:
    points, cells = (
        read_rows(comm, path / entry[name]["file"], entry[name]["blocks"])
        for name in ("points", "cells")
    )
    mine = _share(comm, cells), _share(comm, points)
    domain = share_out(comm, entry["cell"], entry["degree"], *mine)
    # Functions are stored at the nodes of reference cells: their corners must be where they were.
    here = domain.geometry.x[domain.geometry.dofmaps[0]][..., : domain.geometry.dim]
    there = points[cells[domain.topology.original_cell_index]]
    same = np.array_equal(here, there)
    all_ranks_agree(comm, None if same else RuntimeError("DOLFINx has turned cells of the mesh"))
    return domain


def _share(comm: MPI.Comm, table: Any) -> Any:
    """This rank's part of a table, in memory."""
    first, last = (len(table) * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    return np.array(table[first:last])


type Blocks = list[list[int]]  # first row, row after the last, CRC-32 of the bytes between


def write_rows(comm: MPI.Comm, path: PathLike, rows: npt.NDArray[np.float64 | np.int64]) -> Blocks:
    """Write the rows of all ranks, in the order of the ranks, down to the disk. Collective.

    Args:
        comm: the communicator.
        path: the ``.npy`` file, replaced if there is one.
        rows: ``(n, ...)`` of this rank; the same type and row shape on every rank.

    Returns:
        The blocks, the same on every rank.

    Raises:
        OSError: the file cannot be written; on every rank.
    """
    rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    counts = comm.allgather(len(rows))
    first = sum(counts[: comm.rank])
    header = _header(rows, sum(counts))
    row_bytes = rows.itemsize * int(np.prod(rows.shape[1:]))
    error: Exception | None = None
    try:
        file = MPI.File.Open(comm, path, MPI.MODE_WRONLY | MPI.MODE_CREATE)  # type: ignore[arg-type]
        file.Set_size(0)
        if comm.rank == 0:
            file.Write_at(0, header)
        file.Write_at_all(len(header) + first * row_bytes, rows)
        file.Sync()
        file.Close()
    except MPI.Exception as caught:
        error = OSError(f"cannot write '{path}': {caught}")
    # Also the barrier after which the rows of all ranks are in the file.
    all_ranks_agree(comm, error)
    return comm.allgather([first, first + len(rows), zlib.crc32(rows)])


def _header(rows: npt.NDArray[np.float64 | np.int64], total: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream,
        {"descr": rows.dtype.str, "fortran_order": False, "shape": (total, *rows.shape[1:])},
    )
    return stream.getvalue()


def read_rows(comm: MPI.Comm, path: PathLike, blocks: Blocks) -> npt.NDArray[np.float64 | np.int64]:
    """Open a table after checking it; every rank may take any row of it. Collective.

    Args:
        comm: the communicator; the ranks share the checking.
        path: the ``.npy`` file.
        blocks: what ``write_rows`` returned.

    Returns:
        The whole table, mapped into memory: only rows that are used are read.

    Raises:
        ValueError: the file is missing, cut off or not what was written; on every rank.
    """
    table = np.empty((0, 0))
    problem = ""
    try:
        table = np.load(path, mmap_mode="r")
        if len(table) != blocks[-1][1]:
            problem = f"it has {len(table)} rows of {blocks[-1][1]}"
        for first, last, checksum in blocks[comm.rank :: comm.size]:
            if not problem and zlib.crc32(np.ascontiguousarray(table[first:last])) != checksum:
                problem = f"rows {first} to {last} are not those that were written"
    except (OSError, ValueError, EOFError) as caught:
        problem = str(caught)
    error = ValueError(f"'{path}' is damaged: {problem}") if problem else None
    all_ranks_agree(comm, error)
    return table
