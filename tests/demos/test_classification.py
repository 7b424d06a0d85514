"""The classifier: its numbers at a coarse size, its files, its film, and a run on two ranks."""

import imageio.v3 as imageio
import numpy as np
import pytest

import fem_mf as mf
from demos import classification

COARSE = {"h": 4.4, "t_end": 2.0, "tolerance": 2e-2}
OPTIONS = ["--h", "4.4", "--t-end", "0.2", "--tolerance", "2e-2", "--no-minimiser"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    return folder, classification.main(**COARSE, output=str(folder))


def law(result):
    (row,) = (v for name, v in result["scores"].items() if name.startswith("law of the neurons"))
    return row


def test_energy_decreases_and_mass_stays(run):
    folder, _ = run
    history = mf.History.read(folder / "history.csv")
    assert history["t"][-1] == 2.0
    assert np.all(np.diff(history["energy"]) < 0)
    assert np.all(np.abs(history["mass"] - 1) < 1e-13)
    assert history["loss"][0] == pytest.approx(np.log(2.0))


def test_it_does_what_a_straight_line_cannot(run):
    _, result = run
    rows = result["scores"]
    # 60 wines are held out; of the most frequent class are 36.
    assert rows["most frequent class"]["held_out_accuracy"] == pytest.approx(0.6)
    line, curve = rows["logistic regression"], law(result)
    assert curve["held_out_accuracy"] > max(0.8, line["held_out_accuracy"] + 0.1)
    assert curve["loss"] < line["loss"] - 0.1
    assert curve["held_out_loss"] < line["held_out_loss"] - 0.1


def test_finite_networks_approach_it(run):
    _, result = run
    excess = [result["scores"][f"{n:,} neurons drawn from it"]["loss"] for n in (10, 100, 1000)]
    assert np.all(np.diff([*excess, law(result)["loss"]]) < 0)


def test_the_minimiser_is_certified(run):
    _, result = run
    minimum = result["minimum"]
    assert minimum.convexity is mf.Convexity.PROVED
    assert minimum.gap <= 1e-6
    assert minimum.energy < result["energy"]


def test_it_writes_its_files(run):
    folder, result = run
    for name in ("series.xdmf", "history.csv", "history.png", "boundary.png", "neurons.png"):
        assert (folder / name).stat().st_size > 1000, name
    film = imageio.imread(folder / "boundary.mp4")
    assert film.shape == (result["frames"], 480, 960, 3)
    assert np.ptp(film[0] - film[-1]) > 0


def test_two_ranks_from_the_command_line(run, mpirun, tmp_path):
    folder, _ = run
    job = mpirun(2, ["demos/classification.py", *OPTIONS, "--output", str(tmp_path)], timeout=100)
    assert job.returncode == 0, job.stderr
    assert "logistic regression" in job.stdout
    here, there = (mf.History.read(path / "history.csv") for path in (tmp_path, folder))
    steps = len(here["t"]) - 1  # the last one is cut at the end, which comes earlier here
    assert steps >= 3
    for column in ("t", "energy", "loss", "held_out_loss"):
        assert here[column][:steps] == pytest.approx(there[column][:steps], rel=1e-7)


def test_features_that_are_not_in_the_data_are_an_error():
    with pytest.raises(SystemExit, match="takes two of"):
        classification.main(features=("flavanoids", "vintage"))
