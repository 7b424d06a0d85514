"""Checkpoints on one rank: when they are written, what damages them, and runs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.doctor import mpi_launcher
from tests.rows import rows

pyvista = pytest.importorskip("pyvista")
COMM = MPI.COMM_SELF


def make_problem(
    mesh: Any = None, strength: float = 0.5, sigma: float = 0.7, **options: Any
) -> mf.Problem:
    functional = mf.Potential(lambda x: x[0] ** 2) + mf.MeanInteraction(strength, 0.3)
    mesh = mf.interval(COMM, 4.0, 0.5) if mesh is None else mesh
    return mf.Problem(mesh, functional, sigma, **{"degree": 2, **options})


def start_of(problem: mf.Problem) -> mf.Density:
    return mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 1.0) ** 2)))


@pytest.fixture(scope="module")
def states() -> list[mf.flows.State]:
    problem = make_problem()
    return list(mf.SchrodingerFlow(problem, 0.1).run(start_of(problem), 1.0))


def checkpoint_of(states: list[mf.flows.State], path: Path, **options: Any) -> mf.Checkpoint:
    return mf.Checkpoint(path, states[0].density.problem, **options)


def written(path: Path) -> Any:
    return json.loads((path / "manifest.json").read_text())["content"]


# -- when ------------------------------------------------------------------------------------


def test_by_steps(states: list[mf.flows.State], tmp_path: Path) -> None:
    with checkpoint_of(states, tmp_path / "c", every=4, minutes=None) as checkpoint:
        taken = [s.step for s in states if checkpoint.write(s)]
        assert taken == [0, 4, 8]
        assert checkpoint.write(states[-1], force=True)
    assert written(tmp_path / "c")["numbers"]["step"] == 10


def test_by_minutes(
    states: list[mf.flows.State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    with checkpoint_of(states, tmp_path / "c", minutes=1.0) as checkpoint:
        taken = []
        for state in states:
            clock.now += 25.0
            taken.append(checkpoint.write(state))
    assert [i for i, due in enumerate(taken) if due] == [2, 5, 8]


def test_files_of_older_checkpoints_are_removed(
    states: list[mf.flows.State], tmp_path: Path
) -> None:
    with checkpoint_of(states, tmp_path / "c", every=1) as checkpoint:
        for state in states[:4]:
            checkpoint.write(state)
    names = sorted(p.name.split("-", 1)[1] for p in (tmp_path / "c").iterdir() if "-" in p.name)
    assert names == ["cells.npy", "points.npy", "psi.npy"]
    with pytest.raises(FileExistsError, match=r"--overwrite\).*--restart\)"):
        checkpoint_of(states, tmp_path / "c")
    # A second run into the same folder leaves the first one's until it has one of its own.
    again = checkpoint_of(states, tmp_path / "c", overwrite=True)
    assert mf.Checkpoint.read(tmp_path / "c", COMM).step == 3
    again.write(states[9], force=True)
    again.close()
    assert mf.Checkpoint.read(tmp_path / "c", COMM).step == 9
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_arguments(states: list[mf.flows.State], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every"):
        checkpoint_of(states, tmp_path / "c", every=0)
    with pytest.raises(ValueError, match="minutes"):
        checkpoint_of(states, tmp_path / "c", minutes=0.0)
    other = make_problem()
    with (
        mf.Checkpoint(tmp_path / "c", other) as checkpoint,
        pytest.raises(ValueError, match="diff"),
    ):
        checkpoint.write(states[0])
    with checkpoint_of(states, tmp_path / "c") as checkpoint, pytest.raises(TypeError):
        checkpoint.write(states[0], force=True, extra={"array": np.zeros(2)})
    assert not (tmp_path / "c" / "manifest.json").exists()


# -- damage ----------------------------------------------------------------------------------


@pytest.fixture
def saved_path(states: list[mf.flows.State], tmp_path: Path) -> Path:
    with checkpoint_of(states, tmp_path / "c") as checkpoint:
        checkpoint.write(states[4], force=True)
    return tmp_path / "c"


@rows("name", ["psi", "points", "cells"])
@rows("how", ["flipped", "cut off", "empty", "missing"])
def test_damaged_tables(saved_path: Path, name: str, how: str) -> None:
    (file,) = saved_path.glob(f"*-{name}.npy")
    intact = file.read_bytes()
    content = bytearray(intact)
    content[-9] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": content, "cut off": content[:-8], "empty": b""}[how])
    with pytest.raises(ValueError, match=rf"{name}\.npy' is damaged"):
        saved = mf.Checkpoint.read(saved_path, COMM)
        saved.state(make_problem(saved.mesh))
    file.write_bytes(intact)


def test_damaged_manifest(saved_path: Path) -> None:
    manifest = saved_path / "manifest.json"
    text = manifest.read_text()
    for damaged in (text[:-20], text.replace('"step": 4', '"step": 5'), "", "[]"):
        assert damaged != text
        manifest.write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            mf.Checkpoint.read(saved_path, COMM)
    manifest.write_text(text.replace("checkpoint 1", "checkpoint 9"))
    with pytest.raises(ValueError, match="format is 'fem_mf checkpoint 9'"):
        mf.Checkpoint.read(saved_path, COMM)
    manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        mf.Checkpoint.read(saved_path, COMM)


@rows(
    ("options", "message"),
    [
        ({"degree": 3}, "degree = 2, not 3"),
        ({"sigma": 0.8}, r"sigma = 0\.7, not 0\.8"),
        ({"mass": "lumped"}, "mass = 'consistent', not 'lumped'"),
        ({"boundary": "dirichlet"}, "boundary = 'natural', not 'dirichlet'"),
        ({"strength": 0.6}, "another functional"),
    ],
)
def test_foreign_problems(saved_path: Path, options: dict[str, Any], message: str) -> None:
    saved = mf.Checkpoint.read(saved_path, COMM)
    with pytest.raises(ValueError, match=message):
        saved.state(make_problem(saved.mesh, **options))


def test_foreign_mesh(saved_path: Path) -> None:
    saved = mf.Checkpoint.read(saved_path, COMM)
    with pytest.raises(ValueError, match=r"Saved\.mesh"):
        saved.state(make_problem())


# -- files that go on ------------------------------------------------------------------------


def test_history_goes_on(states: list[mf.flows.State], tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "history.csv"
    for target, last in ((whole, 11), (path, 7)):
        with mf.History(target, COMM) as history:
            for state in states[:last]:
                history.append(state)
    with path.open("a") as file:
        file.write("0.7,0.1,0.")  # cut off
    with mf.History(path, COMM, resume=states[4]) as history:
        for state in states[4:]:
            history.append(state)
    assert path.read_text() == whole.read_text()


def test_history_of_something_else(states: list[mf.flows.State], tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="no column t"):
        mf.History(path, COMM, resume=states[4])
    path.write_text("t,energy\n0.0,2\n")
    with (
        mf.History(path, COMM, resume=states[4]) as history,
        pytest.raises(ValueError, match="columns"),
    ):
        history.append(states[4])


def test_series_go_on(states: list[mf.flows.State], tmp_path: Path) -> None:
    problem = states[0].density.problem
    path = tmp_path / "fields.xdmf"
    for first, last in ((0, 7), (4, 10), (8, 11)):  # stopped twice
        resume = states[first] if first else None
        with mf.XDMFSeries(path, problem, every=3, resume=resume) as series:
            for state in states[first:last]:
                series.write(state.t, state.density, force=state.step == 10)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["fields-2.bin", "fields-3.bin", "fields.bin", "fields.xdmf"]
    reader = pyvista.get_reader(path)
    expected = [states[i] for i in (0, 3, 6, 9, 10)]
    assert reader.time_values == pytest.approx([s.t for s in expected], abs=1e-14)
    for number, state in enumerate(expected):
        reader.set_active_time_point(number)
        data = reader.read()
        assert data["m"] == pytest.approx(state.density.evaluate(data.points[:, :1]), rel=1e-12)


def test_a_series_on_another_mesh(states: list[mf.flows.State], tmp_path: Path) -> None:
    path = tmp_path / "fields.xdmf"
    with mf.XDMFSeries(path, states[0].density.problem) as series:
        series.write(0.0, states[0].density)
    finer = make_problem(mf.interval(COMM, 4.0, 0.25))
    same = states[0].density.problem
    for problem, pieces in ((finer, None), (same, 1)):
        with pytest.raises(ValueError, match="belongs to another mesh or subdivision"):
            mf.XDMFSeries(path, problem, resume=states[4], subdivide=pieces)


# -- stopped runs ----------------------------------------------------------------------------

_RUN = textwrap.dedent("""
    import sys, time
    from mpi4py import MPI
    import numpy as np
    import fem_mf as mf

    mf.setup_logging(MPI.COMM_WORLD)
    path = sys.argv[1]
    mesh = mf.interval(MPI.COMM_WORLD, 4.0, 0.5)
    problem = mf.Problem(mesh, mf.Potential(lambda x: x[0] ** 2), 0.7, degree=2)
    start = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] - 1) ** 2))
    with (
        mf.History(path + "/history.csv", MPI.COMM_WORLD) as history,
        mf.Checkpoint(path + "/checkpoint", problem) as checkpoint,
    ):
        for state in mf.SchrodingerFlow(problem, 0.01).run(start, 1e6):
            history.append(state)
            checkpoint.write(state)
            time.sleep(0.01)
""")


def test_sigterm_to_the_launcher_stops_the_run_cleanly(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    job = subprocess.Popen(
        [str(mpi_launcher()), "-n", "2", sys.executable, str(script), str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    history = tmp_path / "history.csv"
    deadline = time.monotonic() + 60.0
    while not (history.exists() and history.read_text().count("\n") > 5):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.05)
    job.terminate()
    _, log = job.communicate(timeout=30)
    assert job.returncode == 0, log
    assert "SIGTERM: stopped at t = " in log
    assert "to resume the run" in log
    saved = mf.Checkpoint.read(tmp_path / "checkpoint", COMM)
    assert mf.History.read(history)["step"][-1] == saved.step > 0


def test_ctrl_c_is_a_failure_that_says_how_to_resume(
    states: list[mf.flows.State], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem = states[0].density.problem
    command = "python demos/x.py --sigma 0.5 --restart"
    with (
        pytest.raises(SystemExit) as stop,
        mf.Checkpoint(tmp_path / "c", problem, command=command) as checkpoint,
    ):
        os.kill(os.getpid(), signal.SIGINT)
        checkpoint.write(states[0])
    assert stop.value.code == 130
    (record,) = [r.getMessage() for r in caplog.records if "SIGINT" in r.getMessage()]
    assert record.endswith(f"to resume the run: {command}")
    assert mf.Checkpoint.read(tmp_path / "c", COMM).step == states[0].step


def test_a_second_ctrl_c_does_not_wait(states: list[mf.flows.State], tmp_path: Path) -> None:
    with checkpoint_of(states, tmp_path / "c"):
        os.kill(os.getpid(), signal.SIGINT)  # noted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_killed_runs_lose_nothing() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"
    job = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--steps", "150"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    assert "3 kills" in job.stdout
