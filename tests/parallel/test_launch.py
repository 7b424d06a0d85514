"""One failing rank ends the whole job, quickly and with its traceback."""

from __future__ import annotations

import time
from pathlib import Path

from mpi4py import MPI

import pytest

# Rank `culprit` raises while the others wait for it inside PETSc.
PROGRAM = """
import sys
import time
from pathlib import Path

import fem_mf  # installs the abort hook

from mpi4py import MPI
from petsc4py import PETSc

comm = MPI.COMM_WORLD
culprit, place = int(sys.argv[1]) % comm.size, sys.argv[2]
vector = PETSc.Vec().createMPI((5, None), comm=comm)
matrix = PETSc.Mat().createAIJ(((5, None), (5, None)), nnz=1, comm=comm)
vector.set(1.0)
comm.barrier()
if comm.rank == culprit:
    Path(sys.argv[3]).write_text(repr(time.time()))
    raise ValueError(f"rank {comm.rank} has had enough")
vector.dot(vector) if place == "dot" else matrix.assemble()
print("nobody gets here")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(
    ("n", "culprit", "place"),
    [(2, "0", "dot"), (2, "-1", "assemble"), (3, "-1", "dot")],
)
def test_one_failing_rank_ends_the_job(mpirun, program, tmp_path, n, culprit, place) -> None:
    raised = tmp_path / "raised"
    job = mpirun(n, [program, culprit, place, raised])
    # Counted from there, since a busy machine may take as long to start Python and import all.
    assert time.time() - float(raised.read_text()) < 10
    assert job.returncode != 0
    assert "Traceback (most recent call last)" in job.stderr
    assert f"ValueError: rank {int(culprit) % n} has had enough" in job.stderr
    assert "nobody gets here" not in job.stdout


# What the ranks raise, by case, and what must be printed.
ERRORS = """
import sys
import fem_mf
from fem_mf.mpi import all_ranks_agree, on_root
from mpi4py import MPI

comm, case = MPI.COMM_WORLD, sys.argv[1]
last = comm.size - 1

def fail():
    raise ValueError("the step is too long")

comm.barrier()
if case == "all":
    fail()
elif case == "all, late":
    import time
    time.sleep(0.2 * (last - comm.rank))
    fail()
elif case == "last" and comm.rank == last:
    fail()
elif case == "root":
    on_root(comm, fail)
elif case == "passed on":
    error = None
    if comm.rank == last:
        try:
            fail()
        except ValueError as caught:
            error = caught
    all_ranks_agree(comm, error)
elif case == "different":
    raise ValueError(f"rank {comm.rank} is out of memory")
comm.barrier()
print("nobody gets here")
"""


@pytest.mark.parametrize(
    ("case", "n"),
    [("all", 2), ("all, late", 3), ("last", 3), ("root", 2), ("passed on", 3), ("different", 2)],
)
def test_an_uncaught_error_prints_its_traceback_once(mpirun, tmp_path, case, n) -> None:
    program = tmp_path / "program.py"
    program.write_text(ERRORS)
    job = mpirun(n, [program, case])
    assert job.returncode != 0
    assert "nobody gets here" not in job.stdout
    assert job.stderr.count("Traceback (most recent call last)") == (
        n if case == "different" else 1
    )
    if case == "different":
        for rank in range(n):
            assert f"ValueError: rank {rank} is out of memory" in job.stderr
    else:
        # By the rank on which it happened, whose traceback leads to the place.
        printer = n - 1 if case in ("last", "passed on") else 0
        assert f"rank {printer}: Traceback" in job.stderr
        assert "in fail" in job.stderr
        assert job.stderr.count("ValueError: the step is too long") == 1


def test_job_without_failure_returns_zero(mpirun, tmp_path, n=3) -> None:
    path = tmp_path / "size.py"
    path.write_text(
        "import fem_mf\nfrom mpi4py import MPI\n"
        "total = MPI.COMM_WORLD.allreduce(1)\n"
        "if MPI.COMM_WORLD.rank == 0: print(total)\n"
    )
    job = mpirun(n, path)
    assert (job.returncode, job.stdout.strip()) == (0, str(n)), job.stderr


def test_doctor_reports_once_at_two_ranks(mpirun) -> None:
    job = mpirun(2, ["-m", "fem_mf", "doctor"])
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("C compiler") == 1


def test_a_stuck_job_is_killed_with_all_its_ranks(mpirun, tmp_path) -> None:
    path = tmp_path / "stuck.py"
    path.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom mpi4py import MPI\n"
        "rank = MPI.COMM_WORLD.rank\n"
        "Path(sys.argv[1], f'{rank}.pid').write_text(str(os.getpid()))\n"
        "MPI.COMM_WORLD.barrier()\n"
        "if rank > 0: MPI.COMM_WORLD.barrier()\n"
        "while True: pass\n"
    )
    with pytest.raises(pytest.fail.Exception, match="took longer than"):
        mpirun(2, [path, tmp_path], timeout=5)
    pids = [int(p.read_text()) for p in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank is left behind"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_shared_tmp_path_is_one_folder(shared_tmp_path: Path) -> None:
    comm = MPI.COMM_WORLD
    (shared_tmp_path / str(comm.rank)).write_text("")
    comm.barrier()
    assert len(list(shared_tmp_path.iterdir())) == comm.size
