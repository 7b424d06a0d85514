"""Tables whose rows are shared out among ranks, each written and read as one ``.npy`` file.

    blocks = write_rows(comm, "values.npy", np.eye(3))      # rank after rank
    table = read_rows(comm, "values.npy", blocks)           # on any number of ranks
    mine = table[[0, 2]]

The file is an ordinary NumPy array. The checksum of each rank's block is kept apart from it, so
that a file that was cut off or changed is found out, by all ranks together.
"""

from __future__ import annotations

import io
import os
import zlib

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.parallel import all_ranks_agree

__all__ = ["Blocks", "read_rows", "write_rows"]

type Path_ = str | os.PathLike[str]
type Blocks = list[list[int]]  # first row, row after the last, CRC-32 of the bytes between


def write_rows(comm: MPI.Comm, path: Path_, rows: npt.NDArray[np.float64 | np.int64]) -> Blocks:
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


def read_rows(comm: MPI.Comm, path: Path_, blocks: Blocks) -> npt.NDArray[np.float64 | np.int64]:
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
