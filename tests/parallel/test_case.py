"""Cases at several ranks: one message for a mistake, and the numbers of one rank."""

from __future__ import annotations

import csv
from pathlib import Path

from mpi4py import MPI

import pytest

from fem_mf.case import sweep

CASE = """
[mesh]
kind = "box"
dim = 2
radius = 4.0
h = 1.0

[problem]
sigma = 0.5

[[functional]]
term = "potential"
g = "0.5 * (x[0]**2 + x[1]**2)"

[[functional]]
term = "network"
data = "{folder}/data.csv"
neuron = "tanh(x[0] * z + x[1])"

[flow]
kind = "schrodinger"
dt = 0.1
t_end = 0.2

[output]
folder = "{folder}/run"
"""


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.toml"
    path.write_text(CASE.format(folder=tmp_path))
    (tmp_path / "data.csv").write_text("z,y\n-1.0,0.5\n1.0,1.0\n")
    return path


# Words of the command line, and what is said of them.
MISTAKES = [
    # Found by rank 0 on the command line, or in the file; or by all ranks in the problem.
    (["--sett", "sigma=1"], "error: unrecognized arguments: --sett"),
    (["--set", "sigmma=1"], "error: unknown key 'sigmma'; did you mean 'sigma'?"),
    (["--set", "sigma=-1"], "error: sigma must be a positive number, not -1"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_said_once_and_ends_the_job(
    mpirun, case: Path, words: list[str], message: str
) -> None:
    job = mpirun(2, ["-m", "fem_mf", "run", case, *words], timeout=30)
    assert job.returncode != 0
    assert job.stderr.count(message) == 1, job.stderr
    assert "Traceback" not in job.stderr
    assert not (case.parent / "run" / "run.json").exists()


def test_a_sweep_has_the_numbers_of_one_rank(mpirun, case: Path) -> None:
    words = ["--over", "sigma=1,0.5", "--set", f"output.folder={case.parent / 'two'}"]
    job = mpirun(2, ["-m", "fem_mf", "sweep", case, *words])
    assert job.returncode == 0, job.stderr
    assert [line.split()[0] for line in job.stdout.splitlines()] == ["sigma", "1", "0.5"]
    assert (case.parent / "two" / "sweep.png").exists()
    with (case.parent / "two" / "sweep.csv").open() as file:
        found = [float(row["energy"]) for row in csv.DictReader(file)]
    expected = [row["energy"] for row in sweep(case, "sigma", [1, 0.5], MPI.COMM_SELF)]
    assert found == pytest.approx(expected, rel=1e-10)
