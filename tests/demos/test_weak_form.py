"""The first demo: plain DOLFINx and the package, the same steps."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from demos import weak_form as demo

SCRIPT = Path(__file__).resolve().parents[2] / "demos" / "weak_form.py"


def test_both_take_the_same_steps(shared_tmp_path):
    plain, package = demo.main(output=str(shared_tmp_path))
    assert plain == pytest.approx(package, rel=1e-10)
    # Far from the start, and not at the minimum yet: ten steps of a flow.
    problem = mf.Problem(mf.read_mesh(demo.MESH, MPI.COMM_WORLD), network(), 0.5, 2)
    assert mf.minimise(problem).energy + 0.05 < plain < 0.5
    assert {p.name for p in shared_tmp_path.iterdir()} == {"series.xdmf", "series.h5", "series.bin"}


def network():
    z = np.linspace(-np.pi, np.pi, 40)
    return mf.Potential(lambda x: 0.05 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, np.sin(z), lambda x, z: np.tanh(x[0] * z + x[1])
    )


def test_long_steps_and_another_sigma(shared_tmp_path):
    plain, package = demo.main(sigma=0.8, kappa=0.4, dt=0.5, steps=3, output=str(shared_tmp_path))
    assert plain == pytest.approx(package, rel=1e-10)


@pytest.mark.parametrize("ranks", [2, 3])
def test_command_line(mpirun, tmp_path, ranks):
    options = ["--steps", "10", "--output", tmp_path]
    petsc = [
        "-weak_form_ksp_type",
        "cg",
        "-weak_form_pc_type",
        "jacobi",
        "-weak_form_ksp_rtol",
        "1e-13",
    ]
    done = mpirun(ranks, [SCRIPT, *options, *(petsc if ranks == 2 else [])])
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    *_, last, package = done.stdout.strip().splitlines()
    energy = float(last.split()[-1])
    assert energy == pytest.approx(demo.main(output=str(tmp_path / "alone"))[0], rel=1e-10)
    assert abs(float(package.split()[-1])) <= 1e-10 * energy


def test_the_method_is_short():
    """Seventy lines of code, without imports, help and docstrings: it is to be read."""
    lines = SCRIPT.read_text(encoding="utf-8").partition(") -> tuple[float, float]:")[2]
    code = lines.partition("    return energy")[0].splitlines()
    assert sum(bool(line.strip()) for line in code) <= 70
