"""Exceptions, and operations over ranks: sums, agreement, work on one rank, logging, abort.

Every function takes its communicator; only the abort hook, which has to end the whole job, uses
``MPI.COMM_WORLD``.

    total = global_sum(comm, 1.0)    # the number of ranks
    text = on_root(comm, Path("run/history.csv").read_text)

Rank 0 reads the file; every rank receives the text, or every rank raises the error.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from numbers import Integral, Real
from types import TracebackType
from typing import Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

__all__ = [
    "ConvergenceError",
    "LinearSolverError",
    "StagnationError",
    "all_ranks_agree",
    "end_job",
    "global_sum",
    "install_abort_hook",
    "integer",
    "number",
    "on_root",
    "positive",
    "same_on_all_ranks",
    "setup_logging",
    "warn",
]

_HANDLER_NAME = "fem_mf rank 0"
LOG_SECONDS = 5.0  # time between two lines of the log about work that takes long
_RAISED_BY = "_fem_mf_raised_by"  # attribute of a passed-on exception: the rank that raised it
_TAG = 32_749  # tag of messages between failing ranks; MPI guarantees tags up to 32,767
_SENT: list[MPI.Request] = []  # keeps the buffers of sent messages alive
_PATIENCE = 1.0  # seconds that a failing rank waits for the reports of the others
_POLL = 2e-3  # seconds between two checks for reports
_FLUSH = 0.4  # seconds for all output to arrive, since the launcher drops unforwarded output


def global_sum(comm: MPI.Comm, local: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sum an array over all ranks. Collective.

    Args:
        comm: the communicator.
        local: this rank's contribution, any shape, the same on every rank.

    Returns:
        The sum, identical on every rank, with the same shape (0-d for a number).
    """
    send = np.asarray(local, dtype=np.float64, order="C")
    if comm.size == 1:
        return send
    received = np.empty_like(send)
    comm.Allreduce(send, received, op=MPI.SUM)
    # A reduction may round differently on each rank, but decisions based on it must agree.
    comm.Bcast(received, root=0)
    return received


def all_ranks_agree(comm: MPI.Comm, error: Exception | None) -> None:
    """Raise an error on every rank if any rank has one. Collective.

    Ranks without an error raise that of the lowest failing rank (same type, same message), so
    that a failure on one rank never leaves the others waiting in a collective call.

    Args:
        comm: the communicator.
        error: this rank's error, or None.
    """
    if comm.size > 1:
        mine = None if error is None else (comm.rank, type(error), str(error))
        first = next((other for other in comm.allgather(mine) if other is not None), None)
        if error is None and first is not None:
            rank, kind, message = first
            error = kind(message)
            setattr(error, _RAISED_BY, rank)
    if error is not None:
        raise error


def same_on_all_ranks(comm: MPI.Comm, **values: Any) -> None:
    """Raise an error on every rank if an argument differs between ranks. Collective.

    Args:
        comm: the communicator.
        values: numbers, strings, None, or arrays, which are compared bit by bit.

    Raises:
        ValueError: if an argument differs; the message names the first one.
    """
    if comm.size == 1:
        return
    mine = {
        name: (value.shape, zlib.crc32(value.tobytes()))
        if isinstance(value, np.ndarray)
        else repr(value)
        for name, value in values.items()
    }
    others = comm.allgather(mine)
    for name in mine:
        found = [other[name] for other in others]
        if len(set(found)) > 1:
            shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(found[:4]))
            raise ValueError(
                f"{name} is not the same on every rank ({shown}): read or draw it on one rank and "
                "broadcast it, or use the same random seed on every rank"
            )


def on_root[T](comm: MPI.Comm, work: Callable[[], T]) -> T:
    """Call a function on rank 0 and send its (pickled) result to every rank. Collective.

    Args:
        comm: the communicator.
        work: called without arguments on rank 0 only.

    Returns:
        The result of ``work``, on every rank.

    Raises:
        Exception: on every rank, the exception that ``work`` raised; types whose constructor does
            not take one message become ``RuntimeError``.
    """
    result: T | None = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            result = work()
        except (ValueError, RuntimeError, TypeError, ImportError, OSError) as caught:
            error = caught
        except Exception as caught:
            error = RuntimeError(f"{type(caught).__name__}: {caught}")
            error.__cause__ = caught
    all_ranks_agree(comm, error)
    return comm.bcast(result, root=0)  # type: ignore[no-any-return]


def setup_logging(comm: MPI.Comm, level: int = logging.INFO) -> None:
    """Show the package's log on rank 0's standard error; other ranks show only errors.

    The package itself never configures logging; demos and scripts call this function once.

    Args:
        comm: the communicator whose rank 0 shows the log.
        level: the lowest level shown.
    """
    logger = logging.getLogger("fem_mf")
    for handler in [h for h in logger.handlers if h.name == _HANDLER_NAME]:
        logger.removeHandler(handler)
    handler = _StandardError()
    handler.name = _HANDLER_NAME
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if comm.rank == 0 else logging.ERROR)
    logger.propagate = False
    compiler = logging.getLogger("ffcx")
    for filter_ in [f for f in compiler.filters if isinstance(f, _Compilation)]:
        compiler.removeFilter(filter_)
    compiler.addFilter(_Compilation(logger))
    compiler.setLevel(logging.INFO)


class _StandardError(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at the moment, which programs and tests may replace."""

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: object) -> None:
        """Ignore what the base class would keep."""


class _Compilation(logging.Filter):
    """Logs that forms are being compiled, at most once every five seconds."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger, self._said = logger, -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Let only warnings pass."""
        now = time.monotonic()
        if record.getMessage() == "Calling JIT C compiler" and now - self._said >= LOG_SECONDS:
            self._logger.info("compiling forms (once; they are cached for later runs)")
            self._said = now
        return record.levelno >= logging.WARNING


def warn(comm: MPI.Comm, logger: logging.Logger, message: str, *args: object) -> None:
    """Log a warning on rank 0, with the word "warning" for any logging configuration."""
    if comm.rank == 0:
        logger.warning("warning: " + message, *args)


def install_abort_hook() -> None:
    """Make an uncaught exception on any rank end the whole MPI job.

    Without this hook the other ranks wait indefinitely in their next collective call. The traceback
    is printed first: once for an error that several ranks share (same type, same message), by rank
    0 or, if the error occurred on one rank and was passed on to the others, by that rank. The ranks
    wait about a second for each other, then the job ends. Nothing is installed if the job has one
    rank.
    """
    if MPI.COMM_WORLD.size == 1:
        return

    def abort(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, value, trace))
        end_job(value, f"rank {MPI.COMM_WORLD.rank}: {text}")

    sys.excepthook = abort


def end_job(error: BaseException, text: str) -> None:
    """Print the text of an error, once for all ranks that share it, and end the job.

    With one rank the text is only printed.
    """
    if MPI.COMM_WORLD.size == 1:
        sys.stderr.write(text)
        return
    try:
        sys.stdout.flush()
        try:
            mine = _is_printed_here(MPI.COMM_WORLD, type(error), error)
        except Exception:  # printing it twice is better than not at all
            mine = True
        if mine:
            sys.stderr.write(text)  # in one call, so that output is not interleaved
            sys.stderr.flush()
        # The rank that prints it may have failed later than this one.
        time.sleep(_FLUSH if mine else _FLUSH + _PATIENCE)
    finally:  # even if Ctrl-C interrupts the wait
        MPI.COMM_WORLD.Abort(1)


def _is_printed_here(comm: MPI.Comm, kind: type[BaseException], value: BaseException) -> bool:
    """Whether this rank has to print an uncaught exception; decided within a second."""
    # Ranks that have not failed may be inside any call, so messages need not be received.
    error = zlib.crc32(f"{kind.__qualname__}: {value}".encode(errors="replace"))
    passed_on = getattr(value, _RAISED_BY, comm.rank) != comm.rank
    reports = {comm.rank: (error, passed_on, comm.rank)}
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    _SENT.extend(comm.isend(reports[comm.rank], rank, _TAG) for rank in others)
    give_up, status = time.monotonic() + _PATIENCE, MPI.Status()
    while len(reports) < comm.size and time.monotonic() < give_up:
        while comm.iprobe(tag=_TAG, status=status):
            reports[status.source] = comm.recv(source=status.source, tag=_TAG)
        time.sleep(_POLL)
    return min(r for r in reports.values() if r[0] == error) == reports[comm.rank]


def number(name: str, value: Any) -> float:
    """Return a real number, or raise a TypeError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Return a finite positive number, or raise a TypeError or ValueError naming the argument."""
    if not (math.isfinite(number(name, value)) and value > 0):
        raise ValueError(f"{name} must be a positive number, not {value}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """Return an integer, or raise a TypeError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


class ConvergenceError(RuntimeError):
    """An iteration did not converge, or produced values that are not finite.

    It is raised on every rank. Results yielded or written before it remain valid. Invalid input
    raises a plain ``ValueError`` instead.
    """


class LinearSolverError(ConvergenceError):
    """A linear solver failed although the matrix may be positive definite."""


class StagnationError(ConvergenceError):
    """Rounding prevents further progress: the tolerance is too small, not the step too long."""
