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

from fem_mf.history import RunFile
from fem_mf.log_density import LogDensity
from fem_mf.parallel import on_root, warn
from fem_mf.problem import Problem
from fem_mf.rows import write_rows
from fem_mf.saved import FORMAT, MANIFEST, Saved, describe
from fem_mf.state import State

if TYPE_CHECKING:
    from signal import _HANDLER

__all__ = ["Checkpoint"]

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
        path: str | os.PathLike[str],
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
    def read(path: str | os.PathLike[str], comm: MPI.Comm) -> Saved:
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
        for name in (field.name for field in fields(state)):
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
