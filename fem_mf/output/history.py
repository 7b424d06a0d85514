"""Scalars of a run, step by step: a CSV file and a progress bar.

A run appends its states, and the file can be read at any time:

    with History("run/history.csv", problem.comm) as history:
        for state in progress(flow.run(start, t_end), t_end, problem.comm):
            history.append(state)
    energies = History.read("run/history.csv")["energy"]
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.mpi import all_ranks_agree, on_root
from fem_mf.stationary.decay import limit_file
from fem_mf.typing import PathLike

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["History", "Instant", "RunFile", "progress", "replace_file"]


class HasScalars(Protocol):
    """What a flow yields."""

    def scalars(self) -> Mapping[str, float]:
        """The numbers of this step, in the order of the columns."""


class Instant(Protocol):
    """Where a run is: a state or a checkpoint."""

    @property
    def t(self) -> float:
        """Time."""

    @property
    def step(self) -> int:
        """Steps taken."""


class RunFile(ABC):
    """A file or folder of a run that rank 0 looks after, closed at the end of a ``with`` block."""

    def __init__(self, path: PathLike, comm: MPI.Comm, suffix: str | None = None) -> None:
        """Create the folder it is in. Collective.

        Args:
            path: where; missing folders are created.
            comm: the communicator of the run.
            suffix: how the path must end, if it matters.

        Raises:
            ValueError: the path ends otherwise.
            OSError: the folder cannot be created; on every rank.
        """
        self.path = Path(path)
        self._comm = comm
        if suffix is not None and self.path.suffix != suffix:
            raise ValueError(f"'{self.path}' must end in '{suffix}'")
        self._on_disk(lambda: self.path.parent.mkdir(parents=True, exist_ok=True))

    def _on_disk(self, work: Callable[[], object]) -> None:
        """Let rank 0 touch the disk; a failure is an ``OSError`` on every rank. Collective."""
        error: Exception | None = None
        if self._comm.rank == 0:
            try:
                work()
            except OSError as caught:
                error = OSError(f"cannot write '{self.path}': {caught}")
        all_ranks_agree(self._comm, error)

    def _write_parts(
        self, path: Path, parts: Iterable[tuple[int, Any]], durable: bool = False
    ) -> None:
        """Write arrays of every rank into a file, each at its first byte. Collective."""
        error: Exception | None = None
        try:
            file = MPI.File.Open(self._comm, path, MPI.MODE_WRONLY)  # type: ignore[arg-type]
            for first, values in parts:
                file.Write_at_all(first, values)
            if durable:
                file.Sync()
            file.Close()
        except MPI.Exception as caught:
            error = OSError(f"cannot write '{path}': {caught}")
        # Also the barrier after which the values of all ranks are in the file.
        all_ranks_agree(self._comm, error)

    @abstractmethod
    def close(self) -> None:
        """Finish the file. Calling it again does nothing."""

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; exceptions pass."""
        self.close()


def replace_file(path: Path, text: str, durable: bool = False) -> None:
    """Replace a file so that whoever reads it, or finds it after a kill, has a whole one.

    Args:
        path: the file.
        text: what is to be in it.
        durable: make it survive a power failure, too, which takes longer.
    """
    new = path.with_name(path.name + "-new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)  # atomic
    if durable:
        # The name itself reaches the disk with the folder, where the file system can be asked to.
        with contextlib.suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


class History(RunFile):
    """Scalars of a run as CSV: a header, then one line per step, on disk as soon as appended."""

    def __init__(self, path: PathLike, comm: MPI.Comm, resume: Instant | None = None) -> None:
        """Create the file, or go on with it. Collective.

        Args:
            path: the ``.csv`` file; missing folders are created, an existing file replaced, and the
                :class:`fem_mf.Limit` beside it, of another run, removed.
            comm: the communicator of the run; rank 0 writes.
            resume: the checkpoint or state from which the run goes on: lines before its time are
                kept, later ones will be written again.

        Raises:
            ValueError: the path has another suffix, or the file to go on with is none of a run.
            OSError: the file cannot be written; on every rank.
        """
        super().__init__(path, comm, ".csv")
        self._keys: list[str] | None = None
        self._file: TextIO | None = None
        self._closed = False
        kept: list[str] = []
        if resume is not None:
            kept = on_root(comm, lambda: _lines_before(self.path, resume.t))
        if kept:
            self._keys = kept[0].split(",")
        self._on_disk(lambda: self._open(kept, resume is None))

    def _open(self, kept: list[str], new: bool) -> None:
        if new:
            limit_file(self.path).unlink(missing_ok=True)
        replace_file(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8", newline="\n")

    def append(self, row: HasScalars | Mapping[str, float]) -> None:
        """Write one line. Collective.

        Args:
            row: a flow's state, or its numbers by column, the same on every rank. The first row
                names the columns. Floats keep all their digits.

        Raises:
            ValueError: the columns are not those of the first row, or the file is closed.
            OSError: the disk refuses.
        """
        numbers = row if isinstance(row, Mapping) else row.scalars()
        if self._closed:
            raise ValueError(f"'{self.path}' is closed")
        lines = [_line(_number(value) for value in numbers.values())]
        if self._keys is None:
            self._keys = list(numbers)
            lines.insert(0, _line(self._keys))
        if list(numbers) != self._keys:
            raise ValueError(f"'{self.path}' has columns {self._keys}, not {list(numbers)}")
        self._on_disk(lambda: self._put("".join(lines)))

    def _put(self, text: str) -> None:
        if self._file is not None:
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    @staticmethod
    def read(path: PathLike) -> dict[str, npt.NDArray[Any]]:
        """Read a history, also one whose run was killed. Each rank reads for itself.

        Returns:
            For each column an array ``(num_steps,)``, of integers where all entries are. Nothing
            if no step was written.

        Raises:
            ValueError: a line has another number of entries than the header.
        """
        # What follows the last line end was cut off in the middle.
        header, *lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1] or [""]
        rows = [line.split(",") for line in lines]
        if not rows:
            return {}
        columns = zip(*rows, strict=True)
        return dict(zip(header.split(","), map(_column, columns), strict=True))


def _lines_before(path: Path, t: float) -> list[str]:
    """The header of a history and its lines before a time; nothing where there is no file."""
    if not path.exists():
        return []
    # What follows the last line end was cut off in the middle.
    header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    names = header.split(",")
    if "t" not in names:
        raise ValueError(f"'{path}' has no column t: it is no history to go on with")
    column = names.index("t")
    return [header, *(line for line in lines if float(line.split(",")[column]) < t)]


def _line(entries: Iterable[str]) -> str:
    return ",".join(entries) + "\n"


def _number(value: float) -> str:
    # repr of a NumPy number names its type as well; bool counts as an integer.
    return str(int(value)) if isinstance(value, int | np.integer | np.bool) else repr(float(value))


def _column(entries: tuple[str, ...]) -> npt.NDArray[Any]:
    try:
        return np.array([int(entry) for entry in entries])
    except ValueError:
        return np.array([float(entry) for entry in entries])


def progress[S](
    states: Iterable[S], t_end: float, comm: MPI.Comm, description: str = ""
) -> Generator[S]:
    """Yield the states unchanged, with a progress bar on rank 0 if standard error is a terminal.

    Args:
        states: what a flow's ``run`` returns; it is closed when the loop over this one ends early.
        t_end: the time at which the bar is full.
        comm: the communicator of the run.
        description: shown before the bar.

    Yields:
        The states, one by one.
    """
    bar = _bar() if comm.rank == 0 and sys.stderr.isatty() else None
    try:
        if bar is None:
            yield from states
            return
        with bar:
            task = bar.add_task(description, total=t_end, text="")
            for step, state in enumerate(states):
                bar.update(task, completed=getattr(state, "t", 0.0), text=_summary(step, state))
                yield state
    finally:
        if isinstance(states, Generator):
            states.close()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _summary(step: int, state: object) -> str:
    parts = [f"t = {getattr(state, 't', math.nan):.4g}", f"step {getattr(state, 'step', step)}"]
    if (energy := getattr(state, "energy", None)) is not None:
        parts.append(f"energy {energy:.8g}")
    if (iterations := getattr(state, "fixed_point_iterations", None)) is not None:
        parts.append(f"{iterations} fixed-point iterations")
    return "  ".join(parts)
