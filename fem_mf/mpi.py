"""Exceptions, and what ranks do together: sums, agreement, work on one rank, logging, abort.

Every function takes its communicator; ``MPI.COMM_WORLD`` is named only by the abort hook, which
has to end the whole job.

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
from dataclasses import dataclass, replace
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
_RAISED_BY = "_fem_mf_raised_by"  # attribute of an exception that another rank passed on: its rank
_TAG = 32_749  # of messages between failing ranks; MPI guarantees tags up to 32,767
_PATIENCE = 1.0  # seconds that a failing rank waits for the reports of the others
_POLL = 2e-3  # seconds
_TRAVEL = 0.2  # seconds for the output to arrive: the launcher drops what it has not forwarded


def global_sum(comm: MPI.Comm, local: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sum an array of one shape over all ranks. Collective.

    Args:
        comm: the communicator.
        local: this rank's contribution, any shape, the same on every rank.

    Returns:
        The sum, identical on every rank, of the same shape (0-d for a number).
    """
    send = np.asarray(local, dtype=np.float64, order="C")
    if comm.size == 1:
        return send
    received = np.empty_like(send)
    comm.Allreduce(send, received, op=MPI.SUM)
    # A reduction may associate differently from rank to rank; decisions taken on it must not.
    comm.Bcast(received, root=0)
    return received


def all_ranks_agree(comm: MPI.Comm, error: Exception | None) -> None:
    """Raise on every rank when any rank has an error. Collective.

    Ranks without an error raise the lowest failing rank's error (same type, same message), so
    that a failure of one rank never leaves the others waiting in a collective call.

    Args:
        comm: the communicator.
        error: this rank's error, or None.
    """
    if comm.size > 1:
        errors = comm.allgather(None if error is None else (type(error), str(error)))
        rank, first = next(((r, e) for r, e in enumerate(errors) if e is not None), (0, None))
        if error is None and first is not None:
            kind, message = first
            error = kind(message)
            setattr(error, _RAISED_BY, rank)
    if error is not None:
        raise error


def same_on_all_ranks(comm: MPI.Comm, **values: Any) -> None:
    """Raise on every rank when an argument is not the same on all of them. Collective.

    Args:
        comm: the communicator.
        values: by name; numbers, strings, None, or arrays, which are compared bit by bit.

    Raises:
        ValueError: naming the first argument that differs.
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
                "broadcast it, or seed random numbers alike"
            )


def on_root[T](comm: MPI.Comm, work: Callable[[], T]) -> T:
    """Do something on rank 0 and give its (pickled) result to every rank. Collective.

    Args:
        comm: the communicator.
        work: called without arguments on rank 0 only.

    Returns:
        What ``work`` returned, on every rank.

    Raises:
        Exception: whatever ``work`` raised, on every rank; types whose constructor does not take
            one message arrive as ``RuntimeError``.
    """
    result: T | None = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            result = work()
        except (ValueError, RuntimeError, TypeError, ImportError) as caught:
            error = caught
        except Exception as caught:
            error = RuntimeError(f"{type(caught).__name__}: {caught}")
            error.__cause__ = caught
    all_ranks_agree(comm, error)
    return comm.bcast(result, root=0)  # type: ignore[no-any-return]


def setup_logging(comm: MPI.Comm, level: int = logging.INFO) -> None:
    """Show the package's log on rank 0's standard error; other ranks show only errors.

    The package itself never configures logging: demos and scripts call this once.

    Args:
        comm: the communicator whose rank 0 speaks.
        level: the lowest level shown.
    """
    logger = logging.getLogger("fem_mf")
    for handler in [h for h in logger.handlers if h.name == _HANDLER_NAME]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.name = _HANDLER_NAME
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level if comm.rank == 0 else logging.ERROR)
    logger.propagate = False


def warn(comm: MPI.Comm, logger: logging.Logger, message: str, *args: object) -> None:
    """Log a warning once, on rank 0, with that word, whatever the user's logging is.

    Args:
        comm: the communicator whose rank 0 speaks.
        logger: of the module.
        message: with ``%`` formats.
        args: for the formats.
    """
    if comm.rank == 0:
        logger.warning("warning: " + message, *args)


def install_abort_hook() -> None:
    """Make an uncaught exception on any rank end the whole MPI job.

    Without it the other ranks wait for ever in their next collective call. The traceback is
    printed first: once for an error that several ranks share (same type, same message), by rank 0
    or, if the error occurred on one rank and was passed on to the others, by that rank. The ranks
    wait about a second for each other, then the job ends. Nothing is installed when the job has
    one rank.
    """
    if MPI.COMM_WORLD.size == 1:
        return

    def abort(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        def show() -> None:
            # In one piece.
            text = "".join(traceback.format_exception(kind, value, trace))
            sys.stdout.flush()
            sys.stderr.write(f"rank {MPI.COMM_WORLD.rank}: {text}")
            sys.stderr.flush()

        try:
            _print_once(MPI.COMM_WORLD, kind, value, show)
        except Exception:
            show()
        finally:  # also when Ctrl-C interrupts the wait
            sys.stdout.flush()
            time.sleep(_TRAVEL)
            MPI.COMM_WORLD.Abort(1)

    sys.excepthook = abort


def _print_once(
    comm: MPI.Comm, kind: type[BaseException], value: BaseException, show: Callable[[], None]
) -> None:
    """Show an uncaught exception unless another rank shows the same one; bounded in time."""
    reports = _Reports(comm, kind, value)
    if reports.mine_to_print():
        show()
        reports.tell_printed()
    reports.wait_for_printers()


@dataclass(frozen=True)
class _Report:
    """What a rank tells the others of its uncaught exception.

    Attributes:
        error: type and a checksum of the message.
        precedence: the lowest of the ranks that share an error prints it: (whether the exception
            was passed on from another rank, rank).
        printed: whether this rank has printed its traceback.
    """

    error: tuple[str, int]
    precedence: tuple[bool, int]
    printed: bool = False


class _Reports:
    """The uncaught exceptions of all ranks, as far as they are known to this one.

    Ranks that have not failed may be inside any call and take part in nothing: there are only
    messages that nobody has to receive, and every wait is bounded.
    """

    def __init__(self, comm: MPI.Comm, kind: type[BaseException], value: BaseException) -> None:
        passed_on = getattr(value, _RAISED_BY, comm.rank) != comm.rank
        self._comm = comm
        error = kind.__qualname__, zlib.crc32(str(value).encode(errors="replace"))
        self._mine = _Report(error, (passed_on, comm.rank))
        self._known = {comm.rank: self._mine}
        self._sent: list[MPI.Request] = []  # the buffers live as long as the requests
        self._give_up = time.monotonic() + _PATIENCE
        self._send()

    def _send(self) -> None:
        for rank in range(self._comm.size):
            if rank != self._comm.rank:
                self._sent.append(self._comm.isend(self._mine, rank, _TAG))

    def _receive(self) -> None:
        status = MPI.Status()
        while self._comm.iprobe(tag=_TAG, status=status):
            self._known[status.source] = self._comm.recv(source=status.source, tag=_TAG)

    def _shared(self) -> list[_Report]:
        return [report for report in self._known.values() if report.error == self._mine.error]

    def _complete(self) -> bool:
        return len(self._known) == self._comm.size

    def _wait(self, done: Callable[[], bool]) -> None:
        self._receive()
        while not done() and time.monotonic() < self._give_up:
            time.sleep(_POLL)
            self._receive()

    def mine_to_print(self) -> bool:
        """Whether no other rank prints this error; known at once on rank 0, else after a wait."""
        first = (False, 0)
        self._wait(
            lambda: (
                self._complete() or any(r.printed or r.precedence == first for r in self._shared())
            )
        )
        if any(report.printed for report in self._shared()):
            return False
        return min(report.precedence for report in self._shared()) == self._mine.precedence

    def tell_printed(self) -> None:
        """Say so to ranks that find out later that they failed alike."""
        self._mine = replace(self._mine, printed=True)
        self._known[self._comm.rank] = self._mine
        self._send()

    def wait_for_printers(self) -> None:
        """Give the other failing ranks the time to print their errors."""
        if not self._mine.printed:  # the rank that prints it may wait for as long itself
            self._give_up = time.monotonic() + 2.0 * _PATIENCE

        def done() -> bool:
            printed = {report.error for report in self._known.values() if report.printed}
            return self._complete() and printed >= {r.error for r in self._known.values()}

        self._wait(done)


def number(name: str, value: Any) -> float:
    """A real number.

    Raises:
        TypeError: it is none, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite positive number.

    Raises:
        TypeError: it is no number, naming the argument.
        ValueError: it is not positive or not finite.
    """
    if not (math.isfinite(number(name, value)) and value > 0):
        raise ValueError(f"{name} must be a positive number, not {value}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """An integer.

    Raises:
        TypeError: it is none, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


class ConvergenceError(RuntimeError):
    """An iteration did not converge, or produced values that are not finite.

    Raised on every rank. Whatever was yielded or written before it stays valid. Bad input is a
    plain ``ValueError`` instead.
    """


class LinearSolverError(ConvergenceError):
    """A linear solver gave up on a matrix that may well be positive definite."""


class StagnationError(ConvergenceError):
    """Rounding hides all further progress: the tolerance is too small, not the step too long."""
