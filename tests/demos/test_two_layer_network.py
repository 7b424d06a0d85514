"""The flagship: its numbers at a coarse size, its files, and a run on two ranks."""

import os
import signal

import numpy as np
import pytest

import fem_mf as mf
from demos import two_layer_network

COARSE = {"h": 0.7, "t_end": 2.0, "tolerance": 5e-3, "samples": 20}
FILES = ["series.xdmf", "history.csv", "fit.png", "history.png", "neurons.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    return folder, two_layer_network.main(**COARSE, output=str(folder))


def test_it_learns(run):
    folder, result = run
    history = mf.History.read(folder / "history.csv")
    assert history["t"][-1] == 2.0
    assert np.all(np.diff(history["energy"]) < 0)
    assert np.all(np.abs(history["mass"] - 1) < 1e-13)
    # The motorcycle data have a noise of about 0.2 of their variance: a smooth fit leaves that.
    assert history["loss"][0] > 0.95
    assert 0.2 < result["loss"] < 0.25


def test_the_energy_is_measured_from_the_certified_minimum(run):
    folder, result = run
    limit = mf.Limit.read(folder / "history.csv")
    assert limit.gap <= 1e-10
    history = mf.History.read(folder / "history.csv")
    assert limit.minimum < history["energy"][-1] == result["energy"]
    # far from asymptotic at t = 2, where the energy falls faster than in the end
    decay = mf.measure_decay(history["t"], history["energy"], limit)
    assert 0.0 < limit.decay_rate < decay.rate


def test_finite_networks_approach_the_limit_as_one_over_n(run):
    _, result = run
    for n, (mean, error, expected) in result["finite_networks"].items():
        assert abs(mean - expected) < 4 * error, n
    excess = [v[0] - result["loss"] for v in result["finite_networks"].values()]
    slope = np.polyfit(np.log10(two_layer_network.SIZES), np.log10(excess), 1)[0]
    assert abs(slope + 1) < 0.25


def test_it_writes_its_files(run):
    folder, _ = run
    assert (folder / "history.json").exists()
    for name in [*FILES, "finite_networks.png"]:
        assert (folder / name).stat().st_size > 1000, name


def test_it_goes_on_after_a_stop(run, tmp_path, monkeypatch):
    folder, whole = run
    write = mf.Checkpoint.write

    def stop_at_step_5(self, state, **options):
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, state, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(mf.Checkpoint, "write", stop_at_step_5)
        two_layer_network.main(**COARSE, output=str(tmp_path))
    result = two_layer_network.main(**COARSE, output=str(tmp_path), restart=True)
    assert result["energy"] == pytest.approx(whole["energy"], rel=1e-10)
    assert result["fits"].keys() == whole["fits"].keys()
    here, there = (mf.History.read(path / "history.csv") for path in (tmp_path, folder))
    assert here["step"].tolist() == there["step"].tolist()
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=1e-8)


def test_three_parameters_per_neuron(tmp_path):
    result = two_layer_network.main(
        dim=3, h=2.5, t_end=0.2, tolerance=2e-2, samples=5, output=str(tmp_path)
    )
    assert result["loss"] < 0.6


def test_two_ranks_from_the_command_line(run, mpirun, tmp_path):
    _, alone = run
    options = ["--h", "0.7", "--t-end", "2", "--tolerance", "5e-3", "--output", str(tmp_path)]
    job = mpirun(2, ["demos/two_layer_network.py", *options], timeout=100)
    assert job.returncode == 0, job.stderr
    assert "finite networks drawn from m" in job.stdout
    assert "predicted decay" in job.stdout.replace("\n", " ")
    folder = run[0]
    here, there = (mf.Limit.read(path / "history.csv") for path in (tmp_path, folder))
    assert here.minimum == pytest.approx(there.minimum, rel=1e-9)
    assert here.decay_rate == pytest.approx(there.decay_rate, rel=2e-4)
    history = mf.History.read(tmp_path / "history.csv")
    assert history["energy"][-1] == pytest.approx(alone["energy"], rel=1e-8)


def test_a_mesh_of_another_dimension_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--dim 3 needs a mesh"):
        two_layer_network.main(dim=3, cell="quadrilateral", output=str(tmp_path))


def test_an_unknown_option_is_an_error(mpirun):
    job = mpirun(2, ["demos/two_layer_network.py", "--sigmaa", "1"], timeout=60)
    assert job.returncode == 2
    assert "--sigmaa" in job.stderr
