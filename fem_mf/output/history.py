"""Scalars of each step of a run, as a CSV file and as progress output.

A run appends its states, and the file can be read at any time:

    with History("run/history.csv", problem.comm) as history:
        for state in progress(flow.run(start, t_end), t_end, problem.comm):
            history.append(state)
    energies = History.read("run/history.csv")["energy"]
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.flows.flow import State
from fem_mf.mpi import LOG_SECONDS, all_ranks_agree, on_root
from fem_mf.stationary.limit import limit_file
from fem_mf.typing import PathLike

__all__ = ["History", "Instant", "RunFile", "on_disk", "progress", "replace_file"]

_LOG = logging.getLogger(__name__)


class Instant(Protocol):
    """A point in a run: a state or a checkpoint."""

    @property
    def t(self) -> float:
        """Time."""

    @property
    def step(self) -> int:
        """Number of steps taken."""


class RunFile(ABC):
    """A file or folder of a run, closed at the end of a ``with`` block.

    Args:
        path: the file or folder; missing folders are created.
        comm: the communicator of the run.
        suffix: suffix that the path must have.
        may_exist: whether an existing file may be changed.

    Raises:
        ValueError: on every rank, if the path has another suffix.
        FileExistsError: on every rank, if there is a file that may not be changed.
        OSError: on every rank, if the folder cannot be created.
    """

    def __init__(
        self, path: PathLike, comm: MPI.Comm, suffix: str | None, *, may_exist: bool
    ) -> None:
        self.path = Path(path)
        self._comm = comm
        if suffix is not None and self.path.suffix != suffix:
            raise ValueError(f"'{self.path}' must end in '{suffix}'")

        def begin() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._exists() and not may_exist:
                raise FileExistsError(
                    f"'{self.path}' already exists: choose another path, or set overwrite=True "
                    "(--overwrite) to replace it, resume=... (--restart) to continue it"
                )

        self._on_disk(begin)

    def _exists(self) -> bool:
        return self.path.exists()

    def _on_disk(self, work: Callable[[], object]) -> None:
        """Run disk operations on rank 0; failures raise ``OSError`` on every rank. Collective."""
        on_disk(self._comm, self.path, work)

    def _write_parts(self, path: Path, parts: Iterable[tuple[int, Any]], sync: bool) -> None:
        """Write arrays of every rank into a file, each at its own offset. Collective."""
        errors: list[MPI.Exception] = []

        def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
            # The calls are collective, so a rank that fails must still make the others.
            try:
                return call(*arguments)
            except MPI.Exception as caught:
                errors.append(caught)

        file = attempt(MPI.File.Open, self._comm, path, MPI.MODE_WRONLY)
        if file is not None:
            for first, values in parts:
                attempt(file.Write_at_all, first, values)
            if sync:
                attempt(file.Sync)
            attempt(file.Close)
        error = None
        if errors:
            full = "disk full: " if errors[0].Get_error_class() == MPI.ERR_NO_SPACE else ""
            error = OSError(f"{full}cannot write '{path}': {errors[0]}")
        # This is also the barrier after which the values of all ranks are in the file.
        all_ranks_agree(self._comm, error)

    @abstractmethod
    def close(self) -> None:
        """Finish the file. Further calls do nothing."""

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file; exceptions propagate."""
        self.close()


def on_disk(comm: MPI.Comm, path: Path, work: Callable[[], object]) -> None:
    """Run disk operations on rank 0; failures raise ``OSError`` on every rank. Collective."""
    error: Exception | None = None
    if comm.rank == 0:
        try:
            work()
        except OSError as caught:
            full = "disk full: " if caught.errno == errno.ENOSPC else ""
            error = OSError(f"{full}cannot write '{path}': {caught}")
            if caught.errno is None:  # raised by this package, with its own advice
                error = caught
    all_ranks_agree(comm, error)


def replace_file(path: Path, text: str, sync: bool = False, draft: str = "-new") -> None:
    """Replace a file atomically; with ``sync`` it also survives a power failure."""
    new = path.with_name(path.name + draft)
    try:
        # Command lines may contain bytes that are not UTF-8.
        with new.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)  # so readers, also after a kill, always find a complete file
    except OSError:
        new.unlink(missing_ok=True)  # a half-written draft would occupy a full disk
        raise
    if sync:
        with contextlib.suppress(OSError):  # some file systems do not support this
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


class History(RunFile):
    """Scalars of a run as CSV: a header, then one line per step, written immediately.

    Args:
        path: the ``.csv`` file; missing folders are created.
        comm: the communicator of the run; rank 0 writes.
        resume: the checkpoint or state from which the run resumes: lines before its time are kept,
            later ones are written again.
        overwrite: whether to replace an existing file and remove its :class:`fem_mf.Limit`.
        comments: lines at the head of the file, after ``# ``. pandas skips them with
            ``comment="#"``; ``np.genfromtxt`` with ``names=True`` needs ``skip_header`` as well.

    Raises:
        ValueError: on every rank, for another suffix, or if ``resume`` is not a run history.
        FileExistsError: on every rank, if the file exists without ``resume`` or ``overwrite``.
        OSError: on every rank, if the file cannot be written.
    """

    def __init__(
        self,
        path: PathLike,
        comm: MPI.Comm,
        resume: Instant | None = None,
        *,
        overwrite: bool = False,
        comments: Iterable[str] = (),
    ) -> None:
        super().__init__(path, comm, ".csv", may_exist=overwrite or resume is not None)
        self._file: TextIO | None = None
        self._closed = False
        kept = [] if resume is None else on_root(comm, lambda: _before(self.path, resume.t))
        self._keys: list[str] | None = kept[0] if kept else None
        head = [f"# {' '.join(line.split())}\n" for line in comments]

        def create() -> None:
            if resume is None:
                limit_file(self.path).unlink(missing_ok=True)
            replace_file(self.path, "".join([*head, *map(_line, kept)]))
            self._file = self.path.open("a", encoding="utf-8", newline="\n")

        self._on_disk(create)

    def append(self, row: State | Mapping[str, float]) -> None:
        """Write one line. Collective.

        Args:
            row: a state of a flow, or its numbers by column, the same on every rank. The first row
                names the columns. Floats keep all their digits.

        Raises:
            ValueError: if the columns differ from those of the first row, or the file is closed.
            OSError: if the line cannot be written.
        """
        numbers = row if isinstance(row, Mapping) else row.scalars()
        if self._closed:
            raise ValueError(f"'{self.path}' is closed")
        header = "" if self._keys else _line(numbers)
        self._keys = self._keys or list(numbers)
        if list(numbers) != self._keys:
            raise ValueError(f"'{self.path}' has columns {self._keys}, not {list(numbers)}")
        line = _line(map(_number, numbers.values()))

        def put() -> None:
            if self._file is not None:
                self._file.write(header + line)
                self._file.flush()

        self._on_disk(put)

    def close(self) -> None:
        """Close the file. Further calls do nothing."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    @staticmethod
    def read(path: PathLike) -> dict[str, npt.NDArray[Any]]:
        """Read a history, also of a run that was killed. Every rank reads the file.

        Returns:
            For each column an array ``(num_steps,)``, of integers if all its entries are integers;
            empty if no step was written.

        Raises:
            ValueError: if the file is damaged: a line does not have as many entries as the header,
                or an entry is not a number.
        """
        header, *rows = _entries(Path(path)) or [[]]
        return dict(zip(header, map(_column, zip(*rows, strict=True)), strict=True)) if rows else {}


def _entries(path: Path) -> list[list[str]]:
    """The entries of each complete line; a last line without line end was cut off by a kill."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    numbered = [(i, line.split(",")) for i, line in enumerate(lines, 1) if line[:1] != "#"]
    for number, entries in numbered[1:]:
        if len(entries) != len(numbered[0][1]) or not all(map(_is_number, entries)):
            raise ValueError(
                f"'{path}' is damaged: line {number} does not have a number for each of its "
                f"{len(numbered[0][1])} columns"
            )
    return [entries for _, entries in numbered]


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


def _before(path: Path, t: float) -> list[list[str]]:
    """The header of a history and its lines before a time; empty if there is no file."""
    lines = _entries(path) if path.exists() else []
    if lines and "t" not in lines[0]:
        raise ValueError(f"'{path}' has no column t: the file to resume is not a run history")
    return lines[:1] + [line for line in lines[1:] if float(line[lines[0].index("t")]) < t]


def _line(entries: Iterable[str]) -> str:
    return ",".join(entries) + "\n"


def _number(value: float) -> str:
    # repr of a NumPy number includes its type; bool counts as an integer.
    return str(int(value)) if isinstance(value, int | np.integer | np.bool) else repr(float(value))


def _column(entries: tuple[str, ...]) -> npt.NDArray[Any]:
    try:
        return np.array([int(entry) for entry in entries])
    except ValueError:
        return np.array([float(entry) for entry in entries])


def progress[S](
    states: Iterable[S], t_end: float, comm: MPI.Comm, description: str = ""
) -> Generator[S]:
    """Yield the states unchanged and report their progress.

    Rank 0 shows a progress bar if standard error is a terminal; otherwise (under ``mpirun``, in a
    batch job) it logs a line every five seconds with the time, the energy, the step, and the
    estimated time left.

    Args:
        states: the iterator returned by ``run`` of a flow; it is closed if the loop ends early.
        t_end: the final time.
        comm: the communicator of the run.
        description: text shown first.

    Yields:
        The states, one by one.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    columns = text[0], BarColumn(bar_width=24), text[1], TimeRemainingColumn()
    terminal = sys.stderr.isatty()
    begun = before = time.monotonic()
    said, first = -math.inf, math.nan
    try:
        hidden = comm.rank > 0 or not terminal
        with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
            task = bar.add_task(description, total=t_end, text="")
            for step, state in enumerate(states):
                t, now = getattr(state, "t", 0.0), time.monotonic()
                first = t if step == 0 else first
                bar.update(task, completed=t, text=_summary(step, state))
                # The next line has to wait for another step, perhaps as long as this one.
                soon, before = now + (now - before), now
                if comm.rank == 0 and not terminal and soon - said >= LOG_SECONDS:
                    left = (now - begun) * (t_end - t) / (t - first) if t > first else math.nan
                    name = f"{description}: " if description else ""
                    _LOG.info("%s%s%s", name, _summary(step, state), _left(left))
                    said = now
                yield state
    finally:
        if isinstance(states, Generator):
            states.close()


def _summary(step: int, state: object) -> str:
    parts = [f"t = {getattr(state, 't', math.nan):.4g}", f"step {getattr(state, 'step', step)}"]
    if (energy := getattr(state, "energy", None)) is not None:
        parts.append(f"energy {energy:.8g}")
    if (dt := getattr(state, "dt", None)) is not None:
        parts.append(f"dt {dt:.3g}")
    if (iterations := getattr(state, "fixed_point_iterations", None)) is not None:
        parts.append(f"{iterations} fixed-point iterations")
    return "  ".join(parts)


def _left(seconds: float) -> str:
    """The estimated time left, empty at the start of a run."""
    if math.isnan(seconds):
        return ""
    return f"  {seconds:.0f} s left" if seconds < 120 else f"  {seconds / 60:.0f} min left"
