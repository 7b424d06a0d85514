"""The demo hjb_decomposition: the theory's bounds, the other flow, its files, its command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fem_mf as mf
from demos import hjb_decomposition as demo

SCRIPT = Path(__file__).resolve().parents[2] / "demos" / "hjb_decomposition.py"
FILES = {"history.csv", "fields.xdmf", "fields.h5", "fields.bin", "bounds.png", "fields.png"}
COARSE = {"h": 1.0, "dt": 0.2, "t_end": 1.0, "data": 10}


def test_quadratic_confinement(shared_tmp_path):
    results = demo.main(**COARSE, output=str(shared_tmp_path))
    assert abs(results["theta defect"]) < 1e-9  # an equality
    assert results["lipschitz"] < 1.0
    assert results["distance"] < 5e-3
    assert {path.name for path in shared_tmp_path.iterdir()} == FILES
    history = mf.History.read(shared_tmp_path / "history.csv")
    assert np.all(np.diff(history["energy"]) < 0)
    assert history["energy"][-1] == results["energy"]
    np.testing.assert_allclose(history["mass"], 1.0, rtol=0, atol=1e-12)


def test_quartic_confinement_is_more_convex_than_the_bound(shared_tmp_path):
    results = demo.main(**COARSE, quartic=0.05, radius=4.0, output=str(shared_tmp_path))
    assert results["theta defect"] > -1e-3
    assert results["distance"] < 2e-2


def test_command_line_on_two_ranks(mpirun, tmp_path):
    options = ["--h", "0.8", "--t-end", "0.4", "--data", "5", "--weighted"]
    done = mpirun(2, [SCRIPT, *options, "--output", tmp_path])
    assert done.returncode == 0, done.stderr
    assert "‖∇w‖∞ ≤" in done.stdout
