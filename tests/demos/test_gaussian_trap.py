"""The demo gaussian_trap: its exact solution, its numbers, its files, its command line."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
from dolfinx.io import XDMFFile

import fem_mf as mf
from demos import gaussian_trap as demo
from demos.common import parse
from tests.exact import gaussian_energy, moving_gaussian

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "demos" / "gaussian_trap.py"
FILES = {
    "history.csv",
    "fields.xdmf",
    "fields.h5",
    "fields.bin",
    "convergence.csv",
    "trajectories.png",
    "densities.png",
    "convergence.png",
}
COARSE = {"dim": 2, "h": 0.8, "dt": 0.1, "t_end": 1.0, "levels": 2}


def check_orders(numbers, degree, scheme_caps, space_caps):
    for (scheme, order), cap in zip(demo.SCHEMES.items(), scheme_caps, strict=True):
        tolerance = 0.35 if order == 1 else 0.15  # backward Euler is not asymptotic at dt = 0.05
        assert abs(numbers[scheme]["psi order"][-1] - order) < tolerance
        assert numbers[scheme]["psi"][-1] < cap
    space = numbers["space"]
    for name, order, cap in zip(
        ("psi", "energy"), (degree + 1, 2 * degree), space_caps, strict=True
    ):
        assert abs(space[f"{name} order"][-1] - order) < 0.3
        assert space[name][-1] < cap


def table(path):
    with path.open() as file:
        return {
            (row["study"], row["quantity"], float(row["size"])): float(row["error"])
            for row in csv.DictReader(file)
        }


def check_files(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    for name in (name for name in FILES if name.endswith(".png")):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    with XDMFFile(MPI.COMM_SELF, folder / "fields.xdmf", "r") as file:
        assert file.read_mesh().topology.index_map(0).size_local > 10


# -- the exact solution ----------------------------------------------------------------------------


def start(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d))
    return demo.Gaussian(rng.normal(size=d), np.eye(d) + root @ root.T)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_exact_solution_fulfils_the_hjb_equation(d):
    trap = demo.make_trap(d, 0.7, 0.9, 3.0, 0.6, (0.4, -0.3, 0.2))
    flow, t, x = trap.flow(start(d), 1.0), 0.4, np.random.default_rng(0).normal(size=(3, 20))
    g, dt = flow(t), 1e-4
    before, after = (-np.log(flow(s)(x)) for s in (t - dt, t + dt))
    y = x[:d] - g.mean[:, None]
    gradient = g.precision @ y
    potential = 0.5 * np.sum(x[:d] * (trap.q @ x[:d]), axis=0)
    potential += trap.strength * (g.mean - trap.target) @ x[:d]
    right = 0.5 * trap.sigma**2 * np.trace(g.precision) + potential
    right -= 0.25 * trap.sigma**2 * np.sum(gradient**2, axis=0)
    gauge = (after - before) / (2 * dt) - right  # −λ_t, the same everywhere
    assert np.ptp(gauge) < 1e-5


@pytest.mark.parametrize("d", [1, 2, 3])
def test_energy_decreases_at_the_rate_of_the_dissipation(d):
    trap = demo.make_trap(d, 0.7, 0.9, 3.0, 0.6, (0.4, -0.3, 0.2))
    flow, dt = trap.flow(start(d), 40.0), 1e-4
    rate = (trap.energy(flow(0.5 + dt)) - trap.energy(flow(0.5 - dt))) / (2 * dt)
    assert rate == pytest.approx(-trap.dissipation(flow(0.5)), rel=1e-6)
    limit = trap.limit()
    assert np.allclose(flow(40.0).mean, limit.mean, atol=1e-9)
    assert np.allclose(flow(40.0).precision, limit.precision, atol=1e-9)
    assert trap.dissipation(limit) < 1e-25


def test_isotropic_trap_is_the_moving_gaussian():
    numbers = {"sigma": 0.7, "kappa": 0.9, "strength": 0.6, "target": np.array([0.4, -0.3])}
    trap = demo.make_trap(2, 0.7, 0.9, 1.0, 0.6, (0.4, -0.3))
    g = trap.flow(demo.Gaussian(np.array([-1.0, 0.5]), 1.3 * np.eye(2)), 2.0)(2.0)
    mean, precision = moving_gaussian(2.0, [-1.0, 0.5], 1.3, **numbers)
    assert np.allclose(g.mean, mean, rtol=0, atol=1e-10)
    assert np.allclose(g.precision, precision * np.eye(2), rtol=0, atol=1e-10)
    assert trap.energy(g) == pytest.approx(gaussian_energy(mean, precision, **numbers), rel=1e-10)


# -- the numbers -----------------------------------------------------------------------------------


def test_moving_gaussian_on_a_line(tmp_path):
    numbers = demo.main(dim=1, dt=0.1, t_end=1.0, output=str(tmp_path), target=(1.5,), mean=(-1.2,))
    check_orders(numbers, 2, (6e-3, 5e-5, 2.5e-5), (1.5e-5, 3.5e-7))
    run = numbers["run"]
    assert run["psi"] < 2e-3
    assert run["mean"] < 1e-3
    assert run["energy"] < 1.2e-3
    check_files(tmp_path)
    history = mf.History.read(tmp_path / "history.csv")
    assert history["t"].tolist() == pytest.approx(np.linspace(0.0, 1.0, 11))
    assert np.abs(history["energy"] - history["exact_energy"]).max() == run["energy"]
    assert np.abs(history["mean_1"] - history["exact_mean_1"]).max() == run["mean"]
    assert np.allclose(history["dissipation"], history["exact_dissipation"], rtol=0.02)
    assert np.all(np.diff(history["energy"]) < 0)


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(tmp_path, mpirun):
    numbers = demo.main(**COARSE, output=str(tmp_path / "one"))
    check_orders(numbers, 2, (2.5e-2, 1.5e-3, 7e-4), (1e-3, 2.5e-4))
    assert numbers["run"]["psi"] < 8e-3
    # The axes of the Gaussian have turned.
    history = mf.History.read(tmp_path / "one" / "history.csv")
    assert abs(history["precision_12"][-1] - history["exact_precision_12"][-1]) < 1e-2
    assert history["exact_precision_12"][-1] < -0.5

    options = [word for k, v in COARSE.items() for word in (f"--{k.replace('_', '-')}", v)]
    job = mpirun(2, [SCRIPT, *options, "--output", tmp_path / "two"])
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("discrete minimiser") == 1
    check_files(tmp_path / "two")
    serial, parallel = (table(tmp_path / n / "convergence.csv") for n in ("one", "two"))
    assert parallel == pytest.approx(serial, rel=1e-4, abs=1e-8)
    assert serial["sdirk2", "psi", 0.05] == numbers["sdirk2"]["psi"][-1]
    other = mf.History.read(tmp_path / "two" / "history.csv")
    for column in ("energy", "dissipation", "mean_2", "precision_12", "psi_error"):
        assert other[column] == pytest.approx(history[column], rel=1e-7, abs=1e-9)


def test_mesh_from_a_file(tmp_path):
    numbers = demo.main(
        mesh=str(ROOT / "meshes" / "disk.msh"),
        anisotropic=False,
        dt=0.25,
        t_end=0.5,
        levels=2,
        output=str(tmp_path),
    )
    assert numbers["space"]["psi order"][-1] == pytest.approx(3, abs=0.1)
    assert numbers["space"]["energy order"][-1] == pytest.approx(4, abs=0.1)
    assert numbers["space"]["energy"][-1] < 2e-6
    check_files(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"levels": 1}, "two levels"),
        ({"mean": (1.0,)}, "mean needs 2 numbers"),
        ({"precision": -1.0}, "precision must be positive"),
        ({"t_end": 0.0}, "less than one step"),
        ({"cell": "hexahedron"}, "does not fill"),
    ],
)
def test_bad_numbers_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        demo.main(**wrong, output=str(tmp_path))


# -- the command line ------------------------------------------------------------------------------


def test_options_are_those_of_main():
    parameters = inspect.signature(demo.main).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert parse(demo.main, demo.__doc__, demo.HELP, []) == defaults
    assert demo.HELP.keys() == defaults.keys()


def test_options_are_read_and_petsc_gets_its_own():
    line = "--dim 3 --mean -1e-3 2 -4 --no-anisotropic -fem_mf_test_a 1e-8 -fem_mf_test_b --h 1"
    values = parse(demo.main, "", demo.HELP, line.split())
    assert values["dim"] == 3
    assert values["mean"] == (-0.001, 2.0, -4.0)
    assert values["anisotropic"] is False
    assert values["h"] == 1.0
    options = PETSc.Options("fem_mf_test_")
    assert options.getReal("a") == 1e-8
    assert options.getBool("b")
    options.delValue("a")
    options.delValue("b")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--sigm 1", 2, "unrecognized arguments: --sigm 1"),
        ("coarse", 2, "unrecognized arguments: coarse"),
        ("-sigma 1", 2, "write --sigma"),
        ("--scheme euler", 2, "invalid choice"),
        ("--help", 0, "(default: sdirk2)"),
    ],
)
def test_command_line_mistakes(capsys, line, code, message):
    with pytest.raises(SystemExit) as stop:
        parse(demo.main, demo.__doc__, demo.HELP, line.split())
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_petsc_options_reach_the_solvers(tmp_path, mpirun):
    line = ["-fem_mf_schrodinger_pc_type", "nonsense", "--h", "2", "--output", tmp_path]
    job = mpirun(2, [SCRIPT, *line])
    assert job.returncode != 0
    assert "PETSc refused the solver options" in job.stderr


def test_a_mistake_is_told_once_and_ends_every_rank(mpirun):
    job = mpirun(2, [SCRIPT, "--sigm", "1"])
    assert job.returncode == 2
    assert job.stderr.count("unrecognized arguments") == 1
