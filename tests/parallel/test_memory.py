"""A long run at two ranks holds as much memory at its end as early on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

# 2,000 steps with assembled matrices; every state is looked at and dropped.
PROGRAM = """
import gc, json, sys
from pathlib import Path

import fem_mf as mf

from mpi4py import MPI

import numpy as np

comm = MPI.COMM_WORLD
functional_name, dt = sys.argv[2], float(sys.argv[3])
z = np.linspace(-2.0, 2.0, 6)
functional = mf.Potential(lambda x: 0.2 * (x[0]**2 + x[1]**2)) + {
    "moments": mf.NetworkLoss(z, np.sin(z), lambda x, z: np.tanh(x[0] * z + x[1])),
    "field": mf.Contact(1.0),
}[functional_name]
problem = mf.Problem(mf.box(comm, 4.0, 0.8), functional, 0.5, degree=1)
start = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] - 1)**2 - x[1]**2))


def resident():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


memory = {}
for state in mf.SchrodingerFlow(problem, dt).run(start, 2000 * dt):
    numbers = state.scalars(), state.density.mean(), state.density.u()
    if state.step in (500, 1000, 1500, 2000):
        memory[state.step] = resident()
memory = comm.gather(memory)
if comm.rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(memory))
"""
# What the allocator and the MPI buffers may do by themselves.
NOISE = 400_000


def measure(mpirun, folder: Path, *arguments: str) -> list[tuple[int, int]]:
    program, result = folder / "program.py", folder / "memory.json"
    program.write_text(PROGRAM)
    job = mpirun(2, [program, result, *arguments], timeout=100)
    assert job.returncode == 0, job.stderr
    return [(m["500"], m["2000"]) for m in json.loads(result.read_text())]


@pytest.mark.parametrize("mean_field", ["moments", "field"])
def test_memory_is_flat(mpirun, tmp_path: Path, mean_field: str) -> None:
    for early, late in measure(mpirun, tmp_path, mean_field, "0.01"):
        assert abs(late - early) < 0.005 * early + NOISE
