"""The demo gross_pitaevskii: published tables, its files, its command line, ranks."""

from __future__ import annotations

import csv
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest

from demos import gross_pitaevskii as demo

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "demos" / "gross_pitaevskii.py"
FILES = {"fields.xdmf", "fields.h5", "fields.bin", "table.csv", "densities.png"}


def test_two_dimensional_table(shared_tmp_path):
    results = demo.main(cells=8, output=str(shared_tmp_path))
    for line in results["trap"]:
        assert abs(line["difference"]) < 2e-5  # the accuracy of the table
        assert line["mu change"] < 2e-5
        assert line["E change"] < 2e-6
        assert abs(line["virial"]) < 1e-7
        assert line["gap"] <= 1e-12
        assert line["steps"] <= 5  # from the coarser mesh
    (walls,) = results["walls"]
    assert abs(walls["difference"]) < 1e-10  # the digits of the paper
    assert {path.name for path in shared_tmp_path.iterdir()} == FILES
    with (shared_tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mu"]) for row in rows] == [line["mu"] for line in results["trap"]]


def test_one_dimensional_table(tmp_path):
    if MPI.COMM_WORLD.size > 1:
        pytest.skip("one rank is enough")
    results = demo.main(dim=1, walls=False, output=str(tmp_path))
    (line,) = results["trap"]
    assert line["E"] == pytest.approx(21.3601, abs=5e-5)
    assert line["mu"] == pytest.approx(35.5775, abs=5e-5)
    assert abs(line["virial"]) < 1e-8
    assert line["E change"] < 1e-8


def test_thomas_fermi_radius():
    # mass of (R² − |x|²)/(2β) is one
    for dim in (1, 2, 3):
        radius = demo.thomas_fermi_radius(7.0, dim)
        r = np.linspace(0.0, radius, 20_001)
        shell = {1: 2.0, 2: 2 * np.pi * r, 3: 4 * np.pi * r**2}[dim]
        assert np.trapezoid(shell * (radius**2 - r**2) / 14.0, r) == pytest.approx(1.0, abs=1e-6)


def test_command_line_on_two_ranks(mpirun, tmp_path):
    options = ["--beta", "10", "--cells", "4", "--degree", "6"]
    done = mpirun(2, [SCRIPT, *options, "--output", tmp_path])
    assert done.returncode == 0, done.stderr
    assert "β = 10" in done.stdout and "gap ≤" in done.stdout
    assert f"results in {tmp_path}" in done.stdout.replace("\n", "")
