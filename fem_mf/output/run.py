"""One run: the folder of its results, the files in it, and their provenance.

    with mf.Run("results/trap", problem, parameters={"kappa": 0.5}) as run:
        for state in run.steps(flow, start, t_end=1.0):
            print(state.t, state.energy)

The folder has

* ``history.csv``, the scalars of every step (:class:`fem_mf.History`),
* ``series.xdmf`` with its ``.bin``, the fields (:class:`fem_mf.XDMFSeries`),
* ``checkpoint``, the state from which the run can be restarted (:class:`fem_mf.Checkpoint`),
* ``run.json``: versions, commit, command line, parameters, scheme, solvers, PETSc options, ranks,
  host, start and end, and the status: running, finished, stopped, or failed with the reason.

Results are overwritten only with ``overwrite=True``, and a folder belongs to one run at a time. A
run that was stopped or killed can be restarted on the mesh of its checkpoint, on any number of
ranks:

    problem = mf.Problem(mf.Run.mesh("results/trap", comm), F, sigma=0.5)
    flow = mf.SchrodingerFlow(problem, dt=0.05)
    with mf.Run("results/trap", problem, restart=True) as run:
        for state in run.steps(flow, None, t_end=2.0):
            print(state.t, state.energy)

:func:`fem_mf.open_results` reads the folder, also during the run.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TextIO
from weakref import WeakKeyDictionary

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
from dolfinx.mesh import Mesh

from fem_mf.density import Density
from fem_mf.flows.flow import State
from fem_mf.mpi import on_root, warn
from fem_mf.output.checkpoint import MANIFEST, Checkpoint, Saved, parameters_of
from fem_mf.output.history import History, on_disk, progress, replace_file
from fem_mf.output.xdmf import XDMFSeries
from fem_mf.petsc import solvers_in_force
from fem_mf.problem import Problem
from fem_mf.stationary.limit import limit_file
from fem_mf.stationary.minimise import Minimum
from fem_mf.typing import PathLike

__all__ = [
    "CHECKPOINT",
    "FORMAT",
    "HISTORY",
    "RUN_FILE",
    "SERIES",
    "Run",
    "is_running",
    "restart_command",
    "versions",
]

RUN_FILE, HISTORY, SERIES, CHECKPOINT = "run.json", "history.csv", "series.xdmf", "checkpoint"
FORMAT = "fem_mf run 1"
_LOCK = "run.lock"
# Contents of the checkpoints that were read, by mesh, for the runs that restart on them.
_READ: WeakKeyDictionary[Mesh, dict[str, Any]] = WeakKeyDictionary()
_LOG = logging.getLogger(__name__)


class Run:
    """The files of one run and its start. Collective, like all methods.

    Args:
        folder: folder of the results; it is created, with its parents.
        problem: the problem of the run; for a restart, on the mesh ``Run.mesh(folder, comm)``. A
            study of several problems has none, and its only file is ``run.json``.
        overwrite: whether to replace the results of an earlier run.
        restart: whether to resume from the checkpoint in the folder.
        parameters: other data that define the run, for ``run.json``, such as script arguments.
        every: write the fields of each ``every``-th step and of the last; 0 for no fields.
        minutes: time between checkpoints; None for no checkpoints.
        comm: communicator of a study; ignored if there is a problem.

    Attributes:
        folder: the folder.
        extra: JSON-serialisable data that a script needs in order to resume; they are stored with
            every checkpoint and restored after a restart.

    Raises:
        FileExistsError: if the folder has results, without ``overwrite`` or ``restart``.
        FileNotFoundError: if there is no checkpoint to restart from.
        RuntimeError: if another run writes to the folder.
        ValueError: if the problem is not that of the checkpoint, on its mesh; an argument is out of
            range; or a file to be continued is damaged.
        OSError: if the folder is not writable, or the disk is too small for a checkpoint.
    """

    def __init__(
        self,
        folder: PathLike,
        problem: Problem | None = None,
        *,
        overwrite: bool = False,
        restart: bool = False,
        parameters: Mapping[str, Any] | None = None,
        every: int = 1,
        minutes: float | None = 10.0,
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> None:
        if every < 0:
            raise ValueError(f"every is a number of steps, or 0 for no fields, not {every}")
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, or None for no checkpoints, not {minutes}")
        if overwrite and restart:
            raise ValueError("overwrite replaces the results that restart continues: choose one")
        if restart and problem is None:
            raise ValueError("a study has no checkpoint to restart from: give Run its problem")
        self.folder, self._comm = Path(folder), comm if problem is None else problem.comm
        self._problem = problem
        self._saved = _saved(self.folder, self.problem) if restart else None
        # Done first, because it rejects another problem before any file of the folder changes.
        self._start = self._saved.state(self.problem) if self._saved else None
        self.extra: dict[str, Any] = self._saved.extra if self._saved else {}
        self._lock: TextIO | None = None
        on_root(self._comm, lambda: self._claim(overwrite, restart))
        self._record = on_root(self._comm, lambda: _provenance(self._comm, parameters or {}))
        self._record["problem"] = None if problem is None else _describe_problem(problem)
        _LOG.info("results go to '%s'", self.folder)
        self._record["restarted_at"] = self._saved.t if self._saved else None
        self._series: XDMFSeries | None = None
        self._checkpoint: Checkpoint | None = None
        self._complete = True  # no steps have been started
        self._state: State | None = None
        self._files = ExitStack()
        self._files.callback(self._release)
        try:
            on_disk(self._comm, self.folder, lambda: self._status("running"))
            if problem is not None:
                self._open(self._files, problem, every, minutes)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def _open(self, files: ExitStack, problem: Problem, every: int, minutes: float | None) -> None:
        """Open the files of a run. Collective."""
        how: dict[str, Any] = {"overwrite": True, "resume": self._saved}  # the folder is ours
        about = self._essentials()
        comments = [f"{name}: {text}" for name, text in about.items()]
        history = History(self.folder / HISTORY, self._comm, comments=comments, **how)
        self._history = files.enter_context(history)
        if every:
            series = XDMFSeries(self.folder / SERIES, problem, every, information=about, **how)
            self._series = files.enter_context(series)
        if minutes is not None:
            command, folder = restart_command(), self.folder / CHECKPOINT
            checkpoint = Checkpoint(folder, problem, minutes=minutes, command=command, **how)
            self._checkpoint = files.enter_context(checkpoint)

    @property
    def problem(self) -> Problem:
        """The problem of the run.

        Raises:
            ValueError: if the run is a study, which has none.
        """
        if self._problem is None:
            raise ValueError("this run is a study: give Run its problem to write states")
        return self._problem

    @staticmethod
    def mesh(folder: PathLike, comm: MPI.Comm) -> Mesh:
        """The mesh of the checkpoint in a folder, for the problem of a restarted run. Collective.

        Raises:
            FileNotFoundError: on every rank, if there is no checkpoint.
            ValueError: on every rank, if the checkpoint is damaged.
        """
        saved = Checkpoint.read(Path(folder) / CHECKPOINT, comm)
        names = (field.name for field in fields(saved) if field.name != "mesh")
        _READ[saved.mesh] = {name: getattr(saved, name) for name in names}
        return saved.mesh

    def steps[S: State](
        self,
        flow: Any,
        start: Density | S | None,
        t_end: float,
        *,
        columns: Callable[[S], Mapping[str, float]] | None = None,
        description: str = "",
        **options: Any,
    ) -> Generator[S]:
        """Run the flow; every state is written before it is yielded. Collective.

        A checkpoint is written after the loop body, so that it is never ahead of what the body
        does with a state.

        Args:
            flow: any flow of the problem.
            start: the initial density or state; a restarted run starts at its checkpoint instead.
            t_end: final time.
            columns: more numbers for the history, as a function of the state.
            description: text at the start of the progress output.
            options: further arguments of ``flow.run``, such as ``steady_residual``.

        Yields:
            The states of the flow.

        Raises:
            ValueError: if the flow belongs to another problem, or the run is a study.
            Exception: as in ``flow.run``; files already written remain valid.
        """
        if flow.problem is not self.problem:
            raise ValueError("the flow and the run have different problems")
        self._record["flow"] = _describe(flow)
        first: Any = self._start or start
        self._start = None  # later calls for this run use their own start
        self._complete = False
        states = progress(flow.run(first, t_end, **options), t_end, self._comm, description)
        for number, state in enumerate(states):
            row = {**state.scalars(), **({} if columns is None else columns(state))}
            self._history.append(row)
            self._record["result"] = row
            if self._series is not None:
                self._series.write(state.t, state.density)
            self._state = state
            yield state
            if self._checkpoint is not None:
                self._checkpoint.write(state, extra=self.extra)
            if number == 1:  # the solvers exist once the first step is done
                on_disk(self._comm, self.folder, lambda: self._status("running"))
        if self._series is not None:
            self._series.write_last(state.t, state.density)
        self._save_last()
        self._complete = True

    def save(self, best: Minimum) -> None:
        """Write a minimiser, with its iterates as the history and fields at t = 0. Collective.

        Raises:
            ValueError: if it is on another mesh, or the run is a study.
        """
        if best.density.problem.mesh is not self.problem.mesh:
            raise ValueError("the minimiser and the run have different meshes")
        for number, iterate in enumerate(best.history):
            self._history.append({"iteration": number, **asdict(iterate)})
        if self._series is not None:
            self._series.write(0.0, best.density, force=True)
        names = ("energy", "eigenvalue", "residual", "gap", "iterations", "linear_iterations")
        self._record["result"] = {name: getattr(best, name) for name in names}
        self._record["kind"] = best.kind

    @property
    def result(self) -> dict[str, float]:
        """The numbers of the last state, or of the minimum."""
        return dict(self._record["result"] or {})

    def __enter__(self) -> Self:
        """Return the run."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Write a last checkpoint, record how the run ended, and close the files.

        Exceptions propagate. Collective unless there is one, since it may be on one rank only.
        """
        try:
            if kind is None and not self._complete:
                self._save_last()
            self._status(*self._end(kind, error))
        except OSError as refusal:
            if kind is None:
                raise
            _LOG.error("cannot write '%s': %s", self.folder / RUN_FILE, refusal)
        finally:
            self._files.close()

    def _save_last(self) -> None:
        """Write the state at which the loop ended or was interrupted. Collective."""
        if self._checkpoint is not None and self._state is not None:
            self._checkpoint.write(self._state, force=True, extra=self.extra)

    def _end(self, kind: type[BaseException] | None, error: object) -> tuple[str, str]:
        """Status and reason of a run that ends with or without an exception."""
        if kind is None:
            return ("finished", "") if self._complete else ("stopped", "the loop was left")
        if self._checkpoint is not None and self._checkpoint.stopped_by:
            return "stopped", self._checkpoint.stopped_by
        if issubclass(kind, KeyboardInterrupt | GeneratorExit):
            return "stopped", kind.__name__
        if isinstance(error, SystemExit) and not error.code:
            return "stopped", "the program ended itself"
        return "failed", f"rank {self._comm.rank}: {kind.__name__}: {error}"

    # -- the record -----------------------------------------------------------------------------

    def _claim(self, overwrite: bool, restart: bool) -> None:
        """Lock the folder; reject existing results, or remove them. Rank 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / _LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RuntimeError(
                f"another run writes to '{self.folder}'{_owner(self.folder)}: wait for its end, or "
                "choose another folder"
            ) from None
        except OSError as error:
            message = "'%s' cannot be locked (%s): do not start a second run in it"
            warn(self._comm, _LOG, message, self.folder, error)
        self._lock = lock  # the system releases it when the process ends, even if killed
        manifest = self.folder / CHECKPOINT / MANIFEST
        results = [self.folder / name for name in (RUN_FILE, HISTORY, SERIES)] + [manifest]
        if overwrite or (not restart and _came_to_nothing(self.folder)):
            # Remove all of them, since files that this run does not write would seem to be its own.
            values = self.folder.glob(f"{Path(SERIES).stem}*.bin")
            for path in (*results, *values, limit_file(self.folder / HISTORY)):
                path.unlink(missing_ok=True)
        elif not restart and any(path.exists() for path in results):
            self._release()
            raise FileExistsError(
                f"'{self.folder}' has the results of another run: choose another folder, or set "
                "overwrite=True (--overwrite) to replace them, restart=True (--restart) to resume"
            )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _status(self, status: str, reason: str = "") -> None:
        """Write ``run.json`` on rank 0 and on any rank that fails. Not collective."""
        self._record |= {"status": status, "reason": reason}
        if status != "running":
            self._record["ended"] = _now()
        self._record["solvers"] = solvers_in_force()
        if self._comm.rank == 0 or status == "failed":
            text = json.dumps(_plain(self._record), indent=1, ensure_ascii=False)
            replace_file(self.folder / RUN_FILE, text + "\n", draft=f"-{self._comm.rank}")

    def _essentials(self) -> dict[str, str]:
        """The information about the run that the history and the series contain."""
        record = self._record
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        return {
            "versions": versions,
            "commit": str(record["commit"]),
            "command": record["command"],
            "parameters": json.dumps(record["parameters"], ensure_ascii=False),
            "problem": json.dumps(record["problem"], ensure_ascii=False),
            "started": f"{record['started']}, ranks: {record['ranks']}, host: {record['host']}",
        }


def restart_command() -> str:
    """The command line of this program, with ``--restart`` instead of ``--overwrite``."""
    # orig_argv, because argv does not contain the -m of python -m.
    words = [word for word in sys.orig_argv[1:] if word not in ("--restart", "--overwrite")]
    return shlex.join(["python", *words, "--restart"])


def is_running(folder: Path) -> bool:
    """Whether a run holds the lock of a folder."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, or the file system does not support locks
        return False
    return False


def _saved(folder: Path, problem: Problem) -> Saved:
    """The checkpoint whose mesh the problem uses. Collective."""
    path, read = folder / CHECKPOINT, _READ.get(problem.mesh)
    if read is None or read["path"].resolve() != path.resolve():
        Checkpoint.read(path, problem.comm)  # raises an error if there is none
        raise ValueError(
            "a restarted run needs the mesh of its checkpoint: build the problem on "
            f"Run.mesh('{folder}', comm)"
        )
    return Saved(mesh=problem.mesh, **read)


def _came_to_nothing(folder: Path) -> bool:
    """Whether the run of a folder failed before any result, e.g. because of a wrong option."""
    record = _record_in(folder)
    if record.get("status") != "failed" or record.get("result", "unknown") is not None:
        return False
    files = {path.name for path in folder.iterdir()} - {RUN_FILE, _LOCK}
    begun = {HISTORY, SERIES, f"{Path(SERIES).stem}.bin", CHECKPOINT}
    known = begun if record.get("problem") else set()  # a study writes files of its own
    return files <= known and not (folder / CHECKPOINT / MANIFEST).exists()


def _owner(folder: Path) -> str:
    """The process that writes to a folder, according to its record."""
    record = _record_in(folder)
    if not record.keys() >= {"pid", "host", "started"}:
        return ""
    return f" (process {record['pid']} on {record['host']}, since {record['started']})"


def _record_in(folder: Path) -> dict[str, Any]:
    """The record in a folder; empty if there is none, or it is damaged."""
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _provenance(comm: MPI.Comm, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about a run that is known when it starts. Rank 0."""
    return {
        "format": FORMAT,
        "status": "running",
        "reason": "",
        "started": _now(),
        "ended": None,
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "parameters": _plain(parameters),
        "flow": None,
        "result": None,
        "solvers": {},
        "petsc_options": PETSc.Options().getAll(),
        "versions": versions(),
        "commit": _commit(),
        "ranks": comm.size,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _plain(value: Any) -> Any:
    """A JSON-serialisable value; non-finite numbers become text that ``float`` can read."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | None) else str(value)


def _describe_problem(problem: Problem) -> dict[str, Any]:
    mesh = problem.mesh
    return {
        "functional": repr(problem.functional),
        **parameters_of(problem),
        "dim": problem.dim,
        "cell": mesh.topology.cell_name(),
        "cells": mesh.topology.index_map(mesh.topology.dim).size_global,
        "dofs": problem.space.dofmap.index_map.size_global,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """The versions of the package and of its main dependencies."""
    try:
        own = version("fem_mf")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "unknown"
    petsc = ".".join(map(str, PETSc.Sys.getVersion()))
    mpi = " ".join(MPI.Get_library_version().split("\n")[0].strip("\x00").split())
    return {
        "fem_mf": own,
        "DOLFINx": dolfinx.__version__,
        "PETSc": petsc,
        "MPI": mpi,
        "Python": platform.python_version(),
    }


def _commit() -> str | None:
    """The git commit of the package's checkout, with a + if files have changed; else None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside an unrelated repository
        return None
    words = ["describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    git = ["git", "-C", str(root), *words]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _describe(flow: Any) -> dict[str, Any]:
    """The class of a flow and its settings."""
    simple = {
        name: value
        for name, value in vars(flow).items()
        if not name.startswith("_") and isinstance(value, int | float | str | bool | None)
    }
    return {"class": type(flow).__name__, **simple}
