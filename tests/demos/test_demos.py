"""Every demo at a coarse size: its numbers against what must be true, its files, two ranks."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path

from petsc4py import PETSc

import imageio.v3 as imageio
import numpy as np
import pytest

import fem_mf as mf
from demos import classification as wines
from demos import descent_comparison as descents
from demos import gaussian_trap as trap
from demos import gross_pitaevskii as gas
from demos import hjb_decomposition as hjb
from demos import two_layer_network as network
from demos import weak_form, well_posedness
from demos.common import parse
from demos.networks import cross_validate
from tests.exact import moving_gaussian

DEMOS = Path(__file__).resolve().parents[2] / "demos"
RUN = {"series.xdmf", "series.bin", "history.csv", "checkpoint", "run.json", "run.lock"}
NETWORK = {"h": 0.7, "t_end": 2.0, "tolerance": 5e-3}
WINES = {"h": 4.4, "t_end": 1.0, "tolerance": 2e-2}


def options(values):
    """The command line of keywords."""
    return [str(w) for k, v in values.items() for w in (f"--{k.replace('_', '-')}", v)]


def names(folder):
    """The files in a folder, pictures among them that show something."""
    assert all(path.stat().st_size > 5000 for path in folder.glob("*.png"))
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def two_ranks(mpirun, tmp_path):
    """Run a demo on two ranks; what it printed."""

    def run(name, *words, ranks=2):
        again = [] if "--restart" in words else ["--overwrite"]
        done = mpirun(
            ranks, [DEMOS / f"{name}.py", *words, "--output", tmp_path, *again], timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


# -- the weak form ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"sigma": 0.8, "kappa": 0.4, "dt": 0.5, "steps": 3}])
def test_plain_dolfinx_and_the_package_take_the_same_steps(tmp_path, values):
    plain, package = weak_form.main(**values, output=str(tmp_path))
    assert plain == pytest.approx(package, rel=1e-10)
    assert names(tmp_path) == {"density.png"}
    if not values:  # far from the start, and not at the minimum yet
        assert 0.30 < plain < 0.5


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_weak_form_on_several_ranks(two_ranks, tmp_path, ranks):
    petsc = "-weak_form_ksp_type cg -weak_form_pc_type jacobi -weak_form_ksp_rtol 1e-13"
    words = ["--steps", "3", *(petsc.split() if ranks == 2 else [])]
    printed = two_ranks("weak_form", *words, ranks=ranks)
    assert "WARNING" not in printed
    energy = next(float(line.split()[-1]) for line in printed.splitlines() if "t = 0.30" in line)
    assert energy == pytest.approx(weak_form.main(steps=3, output=str(tmp_path))[0], rel=1e-10)


def test_the_method_is_short():
    """Seventy lines of code, without imports, options and docstrings: it is to be read."""
    body = inspect.getsource(weak_form.main).partition('"""\n')[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 70


# -- the moving Gaussian ---------------------------------------------------------------------------


def test_the_exact_solution_is_that_of_the_theory():
    mean, theta = trap.exact(1.3, 0.7)
    numbers = {"kappa": trap.KAPPA, "strength": trap.STRENGTH, "target": trap.TARGET}
    true = moving_gaussian(1.3, trap.MEAN, trap.PRECISION, sigma=0.7, **numbers)
    np.testing.assert_allclose(mean, true[0], rtol=0, atol=1e-10)
    assert theta == pytest.approx(true[1], rel=1e-12)


def test_the_computed_gaussian_is_the_exact_one(two_ranks, tmp_path):
    coarse = trap.main(h=0.6, dt=0.1, t_end=1.0, output=str(tmp_path))
    fine = trap.main(h=0.3, dt=0.05, t_end=1.0, output=str(tmp_path))
    assert names(tmp_path) == {"trap.png"}
    for name, cap in {"psi": 4e-3, "mean": 4e-3, "precision": 8e-3, "energy": 1.2e-2}.items():
        assert fine[name] < cap
        assert fine[name] < 0.4 * coarse[name]  # of order two in time, three in space
    printed = two_ranks("gaussian_trap", "--h", "0.6", "--dt", "0.1", "--t-end", "1")
    assert f"ψ {coarse['psi']:.1e}, mean {coarse['mean']:.1e}" in printed


# -- u = v + w -------------------------------------------------------------------------------------


def test_v_is_as_convex_as_the_theory_says(two_ranks, tmp_path):
    values = {"h": 1.0, "t_end": 1.0}
    flat = hjb.main(**values, output=str(tmp_path))
    assert names(tmp_path) == {"history.csv", "fields.png"}
    assert abs(flat["convexity of v above θ_t"]) < 1e-9  # an equality
    assert flat["Lipschitz constant of w"] < 1.0
    assert flat["distance of the flows"] < 5e-3
    history = mf.History.read(tmp_path / "history.csv")
    assert np.all(np.diff(history["energy"]) < 0)
    assert history["energy"][-1] == flat["energy"]
    steep = hjb.main(**values, quartic=0.05, radius=4.0, output=str(tmp_path))
    assert steep["convexity of v above θ_t"] > -1e-3
    assert steep["distance of the flows"] < 2e-2
    printed = two_ranks("hjb_decomposition", *options(values), "--weighted")
    energy = float(printed.split()[-1])
    assert energy == pytest.approx(flat["energy"], abs=2e-3)


# -- descents --------------------------------------------------------------------------------------


def test_the_rate_of_a_long_run_is_the_predicted_one(tmp_path):
    results = descents.main(h=1.2, t_end=30.0, dt=0.2, steps=(2.0,), output=str(tmp_path))
    assert names(tmp_path) == {"energies.png"}
    decay, rate = results["decay"], results["rate"]
    assert decay.settled and decay.window[1] > 20.0
    assert rate < decay.rate < 1.03 * rate
    assert abs(decay.extrapolated - rate) < 0.015 * rate
    for t, excess in results["curves"].values():
        assert t[-1] == 30.0
        assert np.all(np.diff(excess) < 1e-12)
    (t, schrodinger), (_, other) = (results["curves"][name] for name in ("Schrödinger", "HJB"))
    np.testing.assert_allclose(other[t <= 6.0], schrodinger[t <= 6.0], rtol=0.05)


def test_the_map_of_well_posedness_contracts_in_proportion(two_ranks, tmp_path):
    lengths, factors, bound = well_posedness.main(h=0.5, output=str(tmp_path))
    assert names(tmp_path) == {"contraction.png"}
    ratios = np.array(factors[:4]) / lengths[:4]
    assert ratios.max() / ratios.min() < 1.15 and max(factors) < 1.0
    # the explicit step: 2/(largest eigenvalue), which is about (σ²/2)·60/h² for degree 2
    assert 0.5 < bound / (2.0 / (0.5 * 0.6**2 * 60.0 / 0.5**2)) < 1.5
    printed = two_ranks("well_posedness", "--h", "0.5")
    assert f"contracts by {factors[0]:.4f} at T = 0.02" in printed
    assert f"descend for h < {bound:.2e}" in printed


def test_a_short_run_says_so(two_ranks):
    printed = two_ranks("descent_comparison", "--h", "2", "--t-end", "0.4", "--dt", "0.2")
    assert "predicted: e^(−" in printed
    assert "too few steps" in printed or "not asymptotic yet" in printed


# -- a Bose gas ------------------------------------------------------------------------------------


def test_published_ground_states(tmp_path):
    results = gas.main(cells=8, output=str(tmp_path))
    assert names(tmp_path) == {"table.csv", "densities.png"}
    assert len(results["rows"]) == 5
    for row in (dict(zip(gas.COLUMNS, row, strict=True)) for row in results["rows"]):
        assert abs(row["difference"]) < 2e-5  # the accuracy of the table
        assert row["change"] < 2e-5
        assert abs(row["virial"]) < 1e-7
        assert row["gap"] <= 1e-12
    assert results["walls"] == pytest.approx(gas.WALLS, abs=1e-10)  # the digits of the paper
    table = np.genfromtxt(tmp_path / "table.csv", delimiter=",", names=True)
    np.testing.assert_allclose(table["mu"], [row[2] for row in results["rows"]])


def test_a_gas_on_a_line_and_on_two_ranks(two_ranks, tmp_path):
    (row,) = gas.main(dim=1, cells=16, output=str(tmp_path))["rows"]
    assert row[1] == pytest.approx(21.3601, abs=5e-5)
    assert row[2] == pytest.approx(35.5775, abs=5e-5)
    printed = two_ranks("gross_pitaevskii", "--beta", "62.742", "--cells", "8")
    assert "4.6098" in printed and "0.54072298" in printed


# -- a network -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    return folder, network.main(**NETWORK, output=str(folder))


def test_the_network_learns(trained):
    folder, result = trained
    history = mf.History.read(folder / "history.csv")
    assert history["t"][-1] == 2.0
    assert np.all(np.diff(history["energy"]) < 0)
    assert np.all(np.abs(history["mass"] - 1) < 1e-13)
    # The data have a noise of about 0.2 of their variance: a smooth fit leaves that.
    assert history["loss"][0] > 0.95 and history["held_out_loss"][0] > 0.8
    assert 0.2 < result["loss"] < 0.27
    assert 0.1 < result["held_out"] < 0.27
    pictures = {"fit.png", "neurons.png", "history.png"}
    assert names(folder) == {*RUN, *pictures, "history.json"}


def test_the_energy_is_measured_from_the_certified_minimum(trained):
    folder, result = trained
    limit = mf.Limit.read(folder / "history.csv")
    assert limit.gap <= 1e-10
    history = mf.History.read(folder / "history.csv")
    assert limit.minimum < history["energy"][-1] == result["energy"]
    # far from asymptotic at t = 2, where the energy falls faster than in the end
    decay = mf.measure_decay(history["t"], history["energy"], limit)
    assert 0.0 < limit.decay_rate < decay.rate


def test_finite_networks_approach_the_limit_as_one_over_n(trained):
    _, result = trained
    for n, (mean, error, expected) in result["networks"].items():
        assert abs(mean - expected) < 4 * error, n
    excess = [row[0] - result["loss"] for row in result["networks"].values()]
    slope = np.polyfit(np.log(list(result["networks"])), np.log(excess), 1)[0]
    assert abs(slope + 1) < 0.25


def test_the_network_resumes(trained, tmp_path, monkeypatch):
    folder, whole = trained
    write = mf.Checkpoint.write

    def stop_at_step_5(self, state, **keywords):
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, state, **keywords)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(mf.Checkpoint, "write", stop_at_step_5)
        network.main(**NETWORK, output=str(tmp_path))
    result = network.main(**NETWORK, output=str(tmp_path), restart=True)
    assert result["energy"] == pytest.approx(whole["energy"], rel=1e-10)
    assert result["fits"].keys() == whole["fits"].keys()
    here, there = (mf.History.read(path / "history.csv") for path in (tmp_path, folder))
    assert here["step"].tolist() == there["step"].tolist()
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=1e-8)


def test_the_network_on_two_ranks(trained, two_ranks, tmp_path):
    folder, alone = trained
    printed = two_ranks("two_layer_network", *options(NETWORK))
    assert f"loss {alone['loss']:.5f}, held out {alone['held_out']:.5f}" in printed
    assert "predicted decay" in printed
    here, there = (mf.Limit.read(path / "history.csv") for path in (tmp_path, folder))
    assert here.minimum == pytest.approx(there.minimum, rel=1e-9)
    assert here.decay_rate == pytest.approx(there.decay_rate, rel=2e-4)


def test_three_parameters_per_neuron_and_a_mesh_from_a_file(tmp_path):
    values = {"t_end": 0.2, "tolerance": 2e-2, "samples": 5, "output": str(tmp_path)}
    assert network.main(dim=3, h=3.0, **values)["loss"] < 0.6
    mesh = str(DEMOS.parent / "meshes" / "disk.msh")
    assert network.main(mesh=mesh, overwrite=True, **values)["loss"] < 0.6
    with pytest.raises(ValueError, match="--dim 3 needs a mesh"):
        network.main(dim=3, mesh=mesh, output=str(tmp_path))


def test_cross_validation_prefers_what_made_the_data(capsys):
    z = np.linspace(-2.0, 2.0, 30)
    y = np.sin(2.0 * z) + 0.1 * np.random.default_rng(0).normal(size=z.size)
    loss = mf.NetworkLoss(z, y, lambda x, z: 10.0 * np.tanh(x[0] * z + x[1]))
    chosen = cross_validate(loss, (1.0, 0.5), (5.0, 0.2), h=2.0, folds=3)
    assert chosen[1] == 0.2  # a κ that leaves no room for the fit is refused
    printed = capsys.readouterr().out
    assert "σ = 0.5" in printed and f"chosen: σ = {chosen[0]:g}, κ = 0.2" in printed


# -- a classifier ----------------------------------------------------------------------------------


def test_the_classifier_does_what_a_straight_line_cannot(two_ranks, tmp_path):
    result = wines.main(**WINES, output=str(tmp_path))
    pictures = {"boundary.png", "boundary.mp4"}
    assert names(tmp_path) == {*RUN, *pictures}
    history = mf.History.read(tmp_path / "history.csv")
    assert np.all(np.diff(history["energy"]) < 0)
    assert history["loss"][0] == pytest.approx(np.log(2.0))
    line, curve = (result["scores"][name] for name in ("straight line", "network"))
    assert curve["held_out_accuracy"] > max(0.8, line["held_out_accuracy"] + 0.1)
    for name in ("loss", "held_out_loss"):
        assert curve[name] < line[name] - 0.1
    excess = [result["scores"][f"{n} neurons"]["loss"] for n in (10, 100, 1000)]
    assert np.all(np.diff([*excess, curve["loss"]]) < 0)
    best = result["minimum"]
    assert best.convexity is mf.functionals.Convexity.PROVED and best.gap <= 1e-6
    assert best.energy < result["energy"]
    film = imageio.imread(tmp_path / "boundary.mp4")
    assert film.shape == (result["frames"], 480, 640, 3)
    assert np.ptp(film[0] - film[-1]) > 0

    printed = two_ranks("classification", *options(WINES))
    other = mf.History.read(tmp_path / "history.csv")
    for column in ("t", "energy", "held_out_loss"):
        assert other[column] == pytest.approx(history[column], rel=1e-7)
    assert f"F = {best.energy:.12f}"[:12] in printed
    with pytest.raises(SystemExit, match="takes two of"):
        wines.main(features=("flavanoids", "vintage"))


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "demo", [weak_form, well_posedness, trap, hjb, descents, gas, network, wines]
)
def test_options_are_those_of_main(demo, capsys):
    parameters = inspect.signature(demo.main).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    assert parse(demo.main, []) == {"overwrite": False} | defaults
    with pytest.raises(SystemExit):
        parse(demo.main, ["--help"])
    assert len(inspect.getsource(demo).splitlines()) <= {network: 130, wines: 140}.get(demo, 100)


def test_options_are_read_and_petsc_gets_its_own():
    line = "--beta 3 -4.5 -fem_mf_test_a 1e-8 -fem_mf_test_c -2 -fem_mf_test_b --dim 1"
    values = parse(gas.main, line.split())
    assert values["beta"] == (3.0, -4.5) and values["dim"] == 1
    assert parse(hjb.main, ["--weighted"])["weighted"] is True
    database = PETSc.Options("fem_mf_test_")
    assert database.getReal("a") == 1e-8
    assert database.getInt("c") == -2
    assert database.getBool("b")
    for name in "abc":
        database.delValue(name)
    PETSc.Options().delValue("options_left")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--sigm 1", 2, "unrecognized arguments: --sigm"),
        ("coarse", 2, "unrecognized arguments: coarse"),
        ("-sigma 1", 2, "unrecognized arguments: -sigma"),
        ("-fem_mf_schrodinger_pc_type lu --sigm 1", 2, "unrecognized arguments: --sigm"),
        ("--scheme euler", 2, "invalid choice"),
        ("--help", 0, "(default: sdirk2)"),
    ],
)
def test_command_line_mistakes(capsys, line, code, message):
    with pytest.raises(SystemExit) as stop:
        parse(trap.main, line.split())
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_petsc_options_reach_the_solvers_and_unused_ones_are_reported(mpirun, tmp_path):
    line = [DEMOS / "gaussian_trap.py", "--h", "2", "--t-end", "0.1", "--output", tmp_path]
    job = mpirun(2, [*line, "-fem_mf_schrodinger_pc_type", "nonsense"])
    assert job.returncode != 0
    assert "PETSc rejected the solver options" in job.stderr
    job = mpirun(2, [*line, "-fem_mf_shrodinger_pc_type", "lu"])
    assert "-fem_mf_shrodinger_pc_type" in job.stdout + job.stderr


def test_a_mistake_is_told_once_and_ends_every_rank(mpirun):
    job = mpirun(2, [DEMOS / "gaussian_trap.py", "--sigm", "1"])
    assert job.returncode == 2
    assert job.stderr.count("unrecognized arguments") == 1
