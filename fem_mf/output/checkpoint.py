"""Checkpoints: a run can be stopped at any time and resumed later, on any number of ranks.

    with mf.Checkpoint("run/checkpoint", problem, every=10) as checkpoint:
        for state in flow.run(start, t_end):
            history.append(state)
            checkpoint.write(state)  # last, so that the other files are at least as recent

Another job resumes the run:

    saved = mf.Checkpoint.read("run/checkpoint", comm)
    problem = mf.Problem(saved.mesh, functional, sigma=0.5, degree=2)
    flow = mf.SchrodingerFlow(problem, dt=0.05)
    for state in flow.run(saved.state(problem), t_end):
        print(state.t, state.energy)

A checkpoint is a folder of ``.npy`` tables, to which every rank writes its rows, and a file
``manifest.json`` with their checksums and all other data. New tables have new names, and the
manifest is replaced atomically once they are on the disk, so the last complete checkpoint survives
if the run is killed. Functions are stored cell by cell at the nodes of the reference cell,
independently of the partition of the mesh and of the numbering of degrees of freedom.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx.mesh import Mesh

from fem_mf.density import Density, LogDensity
from fem_mf.flows.flow import HJBState, State
from fem_mf.flows.langevin import LangevinState
from fem_mf.flows.relative_entropy_descent import DescentState
from fem_mf.mesh import part_of, share_out
from fem_mf.mpi import all_ranks_agree, on_root, warn
from fem_mf.output.history import Instant, RunFile, replace_file
from fem_mf.petsc import stage
from fem_mf.problem import Problem
from fem_mf.typing import PathLike

__all__ = ["MANIFEST", "Checkpoint", "Saved"]

_LOG = logging.getLogger(__name__)
_FORMAT = "fem_mf checkpoint 1"
MANIFEST = "manifest.json"
_TABLES = "[0-9]*-*.npy"
_KINDS = {kind.__name__: kind for kind in (State, HJBState, DescentState, LangevinState)}
_SAME = 1e-8  # relative difference allowed between the stored value of the functional and today's
# Signals that schedulers send before the time limit, and Ctrl-C; MPICH's launcher forwards them.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Checkpoint(RunFile):
    """Writes the state of a run at intervals of steps or minutes, and on signals. Collective.

    After SIGTERM, SIGUSR1 or Ctrl-C on any rank, the next call of ``write`` writes a checkpoint and
    ends the program (``SystemExit`` on every rank, so that ``with`` blocks close their files) with
    exit code 0, or 130 after Ctrl-C, as shells expect; a second Ctrl-C interrupts immediately. The
    signal handlers are installed until ``close``.

    Args:
        path: the folder, on a file system that all ranks share; it is created, with its parents,
            if it does not exist. An existing checkpoint stays until the first new one is complete.
        problem: the problem of the run, on a mesh of geometry degree 1 or 2.
        every: write at each ``every``-th step of the flow; None disables this.
        minutes: write when this many minutes have passed since the last time; None disables this.
        resume: the checkpoint or state from which the run resumes.
        overwrite: whether to replace the checkpoint of an earlier run.
        command: the command that resumes the run, shown when it is stopped.

    Attributes:
        path: the folder.
        stopped_by: the name of the signal after which ``write`` ended the program; empty before.

    Raises:
        ValueError: if ``every`` or ``minutes`` is not positive, or the mesh has a higher degree.
        FileExistsError: if there is a checkpoint, without ``resume`` or ``overwrite``.
        OSError: on every rank, if the folder cannot be created, or the disk is too small.
    """

    def __init__(
        self,
        path: PathLike,
        problem: Problem,
        every: int | None = None,
        minutes: float | None = 10.0,
        resume: Instant | None = None,
        *,
        overwrite: bool = False,
        command: str | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, not {minutes}")
        degree = problem.mesh.geometry.cmaps[0].degree
        if degree > 2:
            raise ValueError(f"checkpoints are for meshes of degree 1 and 2, not {degree}")
        super().__init__(path, problem.comm, None, may_exist=overwrite or resume is not None)
        self._problem = problem
        self._on_disk(self._make_room)
        self._every, self._seconds = every, None if minutes is None else 60.0 * minutes
        self._written_at = time.monotonic()
        self._command = command
        self._number: int = on_root(problem.comm, self._last_number)
        self._mesh: dict[str, Any] = {}  # written with the first checkpoint, shared by the others
        self.stopped_by = ""
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._note)

    def _exists(self) -> bool:
        return (self.path / MANIFEST).exists()

    def _make_room(self) -> None:
        """Create the folder and check that two checkpoints fit on its disk. Rank 0."""
        self.path.mkdir(exist_ok=True)
        mesh, space = self._problem.mesh, self._problem.space
        cells = mesh.topology.index_map(mesh.topology.dim).size_global
        corners, nodes = mesh.geometry.dofmaps[0].shape[1], space.dofmap.list.shape[1]
        points = mesh.geometry.dim * mesh.geometry.index_map().size_global
        # Up to four functions (m, u, v, w); the last checkpoint stays until the next is complete.
        needed = 8 * (cells * corners + points + 2 * 4 * cells * nodes)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"two checkpoints may take {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free",
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _last_number(self) -> int:
        return max((int(p.name.split("-")[0]) for p in self.path.glob(_TABLES)), default=0)

    @staticmethod
    def read(path: PathLike, comm: MPI.Comm) -> Saved:
        """Read the last complete checkpoint of a folder, its mesh included. Collective.

        Args:
            path: the folder.
            comm: the communicator of the resumed run, of any size.

        Raises:
            FileNotFoundError: on every rank, if there is no checkpoint.
            ValueError: on every rank, if it is damaged, or was written by another program.
        """
        # Only rank 0 reads it, because a running program may replace the file in between.
        content = on_root(comm, lambda: _read_manifest(Path(path) / MANIFEST))
        mesh, numbers = _read_mesh(comm, Path(path), content["mesh"]), content["numbers"]
        return Saved(Path(path), mesh, numbers["t"], numbers["step"], content["extra"], content)

    @staticmethod
    def time(path: PathLike) -> float:
        """The time of the last complete checkpoint of a folder. Not collective.

        Args:
            path: the folder.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if it is damaged, or was written by another program.
        """
        return float(_read_manifest(Path(path) / MANIFEST)["numbers"]["t"])

    def write(
        self, state: State, force: bool = False, extra: Mapping[str, Any] | None = None
    ) -> bool:
        """Write a checkpoint if one is due, then stop if a signal was received. Collective.

        Args:
            state: the state of the flow from which the run is to be resumed.
            force: whether to write regardless of ``every`` and ``minutes``.
            extra: other JSON-serialisable data that the program needs in order to resume (numbers
                keep all digits); those of rank 0 are stored.

        Returns:
            Whether a checkpoint was written.

        Raises:
            SystemExit: after a signal, once the checkpoint is written.
            ValueError: if the state belongs to another problem.
            OSError: if writing fails; the previous checkpoint is still valid.
        """
        if state.density.problem is not self._problem:
            raise ValueError("the state and the checkpoint belong to different problems")
        elapsed = time.monotonic() - self._written_at
        late = self._seconds is not None and elapsed >= self._seconds
        mine = np.array([self._signal, late and self._comm.rank == 0], dtype=np.int64)
        flags = np.empty_like(mine)
        self._comm.Allreduce(mine, flags, op=MPI.MAX)  # all ranks do the same, at the same step
        due = force or any(flags) or (self._every is not None and state.step % self._every == 0)
        if due:
            try:
                self._write(state, dict(extra or {}))
            except Exception:
                self._mesh = {}  # its tables may be among the incomplete ones, which are removed
                if self._comm.rank == 0:
                    with contextlib.suppress(OSError):
                        self._tidy()
                raise
            self._written_at = time.monotonic()
        if flags[0]:
            name = signal.Signals(flags[0]).name
            command = f": {self._command}" if self._command else ""
            message = f"{name}: stopped at t = {state.t:.6g}, step {state.step}; '{self.path}' has"
            warn(self._comm, _LOG, "%s all that is needed to resume the run%s", message, command)
            self.stopped_by = name
            self.close()
            raise SystemExit(130 if name == "SIGINT" else 0)
        return due

    @stage("output")
    def _write(self, state: State, extra: dict[str, Any]) -> None:
        self._number += 1
        self._mesh = self._mesh or self._write_mesh()
        problem, density = self._problem, state.density
        functions = {"u": density.u()} if isinstance(density, LogDensity) else {"psi": density.psi}
        numbers: dict[str, float | int] = {}
        for name in (attribute.name for attribute in fields(state)):
            value = getattr(state, name)
            if isinstance(value, fem.Function):
                functions[name] = value
            elif isinstance(value, int | float | np.number):
                numbers[name] = np.asarray(value).item()
        # A row of the dofmap follows the nodes of the reference cell for every edge orientation.
        nodes = problem.space.dofmap.list[: _num_cells(problem.mesh)]
        content = {
            "kind": type(state).__name__,
            "problem": parameters_of(problem),
            "functional": float(problem.functional.value(density)),
            "numbers": numbers,
            "mesh": self._mesh,
            "functions": {n: self._write_table(n, f.x.array[nodes]) for n, f in functions.items()},
            "extra": extra,
        }
        # On rank 0 only, since JSON may reject ``extra`` on one rank.
        text = on_root(self._comm, lambda: _manifest(content))

        def publish() -> None:
            replace_file(self.path / MANIFEST, text, sync=True)
            self._tidy()

        self._on_disk(publish)

    def _tidy(self) -> None:
        """Remove the tables of older and of incomplete checkpoints. Rank 0."""
        text = (self.path / MANIFEST).read_text(encoding="utf-8") if self._exists() else ""
        for path in self.path.glob(_TABLES):
            if path.name not in text:
                path.unlink()

    def _write_mesh(self) -> dict[str, Any]:
        mesh = self._problem.mesh
        geometry, nodes = mesh.geometry, mesh.geometry.index_map()
        cells = geometry.dofmaps[0][: _num_cells(mesh)]
        numbers = nodes.local_to_global(cells.ravel()).reshape(cells.shape).astype(np.int64)
        return {
            "cell": mesh.topology.cell_name(),
            "degree": geometry.cmaps[0].degree,
            "points": self._write_table("points", geometry.x[: nodes.size_local, : geometry.dim]),
            "cells": self._write_table("cells", numbers),
        }

    def _write_table(self, name: str, rows: npt.NDArray[Any]) -> dict[str, Any]:
        """Write the rows of all ranks, in rank order, and flush them to disk. Collective."""
        path = self.path / f"{self._number:06d}-{name}.npy"
        rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
        counts = self._comm.allgather(len(rows))
        first = sum(counts[: self._comm.rank])
        header, shape = io.BytesIO(), (sum(counts), *rows.shape[1:])
        layout = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, layout)
        self._on_disk(lambda: path.write_bytes(header.getvalue()))
        part = header.tell() + first * rows[:1].nbytes, rows
        self._write_parts(path, [part], sync=True)
        blocks = self._comm.allgather([first, first + len(rows), zlib.crc32(rows)])
        return {"file": path.name, "blocks": blocks}

    def close(self) -> None:
        """Restore the previous signal handlers. Further calls do nothing."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def _num_cells(mesh: Mesh) -> int:
    return int(mesh.topology.index_map(mesh.topology.dim).size_local)


def _manifest(content: dict[str, Any]) -> str:
    """The text of a manifest."""
    return json.dumps({"format": _FORMAT, "crc32": _checksum(content), "content": content})


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def parameters_of(problem: Problem) -> dict[str, Any]:
    """Parameters, besides mesh and functional, that must agree with those of a checkpoint."""
    return {
        "degree": problem.degree,
        "mass": problem.mass,
        "boundary": problem.boundary,
        "sigma": problem.sigma,
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: the folder of the checkpoint.
        mesh: the mesh of the problem, distributed over the ranks of this run.
        t: time of the state.
        step: number of steps up to the state.
        extra: the data that the program added.
    """

    path: Path
    mesh: Mesh
    t: float
    step: int
    extra: dict[str, Any]
    _content: dict[str, Any] = field(repr=False)

    def state(self, problem: Problem) -> State:
        """The state from which a flow of the problem resumes. Collective.

        Args:
            problem: a problem on ``self.mesh`` with equal functional, σ, degree, mass and boundary.

        Raises:
            ValueError: on every rank, if the problem differs, or a file is damaged.
        """
        if problem.mesh is not self.mesh:
            raise ValueError("build the problem on the mesh of the checkpoint, Saved.mesh")
        here, there = parameters_of(problem), self._content["problem"]
        self._refuse([f"{k} = {there[k]!r}, not {here[k]!r}" for k in here if here[k] != there[k]])
        density = self.density(problem)
        then, now = self._content["functional"], float(problem.functional.value(density))
        if abs(now - then) > _SAME * max(1.0, abs(then)):
            self._refuse([f"another functional: F = {then:.10g}, not {now:.10g}, at its density"])
        kind = _KINDS[self._content["kind"]]
        functions = {
            f.name: self._function(problem, f.name)
            for f in fields(kind)
            if f.name in self._content["functions"]
        }
        known = {**self._content["numbers"], **functions, "density": density}
        return kind(**{f.name: known[f.name] for f in fields(kind) if f.name in known})

    def density(self, problem: Problem) -> Density:
        """Only the density, for any functional and σ of the problem. Collective.

        Args:
            problem: a problem on ``self.mesh`` with the same degree.

        Raises:
            ValueError: on every rank, if a file is damaged.
        """
        name = "u" if "u" in self._content["functions"] else "psi"
        values = self._function(problem, name).x.array[: problem.discretisation.num_owned].copy()
        if name == "u":
            return LogDensity(problem, values)
        return Density(problem, values, normalised=True)

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise ValueError(
                f"the checkpoint '{self.path}' belongs to a problem with {', '.join(differences)}: "
                "resume with the same parameters and data; in a script, state.density.on(problem) "
                "takes the density of the old problem to another"
            )

    def _function(self, problem: Problem, name: str) -> fem.Function:
        table = _read_table(problem.comm, self.path, self._content["functions"][name])
        function = problem.discretisation.new_amplitude()
        function.name = name
        mine = table[problem.mesh.topology.original_cell_index]
        function.x.array[problem.space.dofmap.list] = mine
        return function


def _read_manifest(file: Path) -> dict[str, Any]:
    """The content of a manifest."""
    try:
        whole = json.loads(file.read_bytes())
        found = whole.get("format") if isinstance(whole, dict) else None
        if found != _FORMAT:
            raise ValueError(f"its format is {found!r}, not {_FORMAT!r}")
        if whole.get("crc32") != _checksum(whole.get("content")):
            raise ValueError("its checksum is wrong")
        content: dict[str, Any] = whole["content"]
    except (FileNotFoundError, NotADirectoryError):
        advice = "start the run without it, or name the folder of the run that wrote one"
        message = f"no checkpoint in '{file.parent}': it has no {MANIFEST}; {advice}"
        raise FileNotFoundError(message) from None
    except (OSError, ValueError) as caught:
        what = "is damaged, or another program or version wrote it"
        raise ValueError(f"the checkpoint '{file}' {what}: {caught}") from None
    return content


def _read_mesh(comm: MPI.Comm, folder: Path, entry: dict[str, Any]) -> Mesh:
    cells, points = (_read_table(comm, folder, entry[name]) for name in ("cells", "points"))
    mine = []
    for table in (cells, points):
        mine.append(np.array(part_of(comm, table)))
    mesh = share_out(comm, entry["cell"], entry["degree"], *mine)
    # Functions are stored at nodes of reference cells, so the corners must have kept their order.
    here = mesh.geometry.x[mesh.geometry.dofmaps[0]][..., : mesh.geometry.dim]
    same = np.array_equal(here, points[cells[mesh.topology.original_cell_index]])
    message = "DOLFINx reordered the vertices of some cells; the stored values cannot be mapped"
    all_ranks_agree(comm, None if same else RuntimeError(message))
    return mesh


def _read_table(comm: MPI.Comm, folder: Path, entry: dict[str, Any]) -> Any:
    """Map a table into memory after all ranks together verify its checksums. Collective."""
    path, blocks, error = folder / entry["file"], entry["blocks"], None
    table = np.empty(0)
    try:
        table = np.load(path, mmap_mode="r")
        if len(table) != blocks[-1][1]:
            raise ValueError(f"it has {len(table)} rows instead of {blocks[-1][1]}")
        for first, last, checksum in blocks[comm.rank :: comm.size]:
            if zlib.crc32(np.ascontiguousarray(table[first:last])) != checksum:
                raise ValueError(f"rows {first} to {last} do not match their checksum")
    except (OSError, ValueError, EOFError) as caught:
        error = ValueError(f"'{path}' is damaged: {caught}")
    all_ranks_agree(comm, error)
    return table
