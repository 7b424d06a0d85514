"""The demo descent_comparison: one curve, one rate, two regularisations, its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demos import descent_comparison as demo

SCRIPT = Path(__file__).resolve().parents[2] / "demos" / "descent_comparison.py"
FILES = {"energies.png", "minimisers.png", "minimisers.csv"}


def test_numbers_and_files(shared_tmp_path):
    results = demo.main(
        h=1.2, t_end=6.0, dt=0.2, data=10, sigmas=(1.0, 0.5), output=str(shared_tmp_path)
    )
    assert {path.name for path in shared_tmp_path.iterdir()} == FILES
    curves = results["curves"]
    for t, gap in curves.values():
        assert t[-1] == 6.0
        assert np.all(np.diff(gap) < 1e-12)
    schrodinger, hjb = (np.array(curves[name][1]) for name in ("Schrödinger", "HJB"))
    np.testing.assert_allclose(hjb, schrodinger, rtol=0.05)
    # no mode is slower than the slowest; faster ones have not quite died out
    assert 0.99 < results["observed"] / results["rate"] < 1.25
    assert not results["decay"].settled
    wide, narrow = results["table"]
    assert narrow["F, Fisher"] < wide["F, Fisher"]
    assert narrow["F, entropy"] < wide["F, entropy"]


def test_command_line_on_two_ranks(mpirun, tmp_path):
    options = ["--h", "2", "--t-end", "0.4", "--dt", "0.2", "--data", "5", "--sigmas", "1"]
    done = mpirun(2, [SCRIPT, *options, "--steps", "0.2", "--output", tmp_path])
    assert done.returncode == 0, done.stderr
    assert "the two minimisers" in done.stdout
    assert "the run is too short for a comparison" in done.stdout


def test_the_rate_of_a_long_run_is_the_predicted_one(shared_tmp_path, capsys):
    results = demo.main(
        h=1.2, t_end=30.0, dt=0.2, data=10, sigmas=(1.0,), steps=(2.0,), output=str(shared_tmp_path)
    )
    decay, rate = results["decay"], results["rate"]
    assert decay.settled and decay.window[1] > 20.0
    assert rate < decay.rate < 1.03 * rate
    assert abs(decay.extrapolated - rate) < 0.015 * rate
    said = capsys.readouterr().out
    assert f"predicted rate as t → ∞: {rate:.4f} (measured: +" in said
    assert f"e^(−{decay.rate:.4f} t) for " in said
