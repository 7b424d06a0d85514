"""One run and its folder: what is written, how runs end, what they refuse, and full disks."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.output import history as history_module
from fem_mf.output.run import restart_command
from tests.conftest import MpiRun
from tests.rows import rows

pyvista = pytest.importorskip("pyvista")
COMM = MPI.COMM_SELF
T_END = 0.5
FILES = {"run.json", "run.lock", "history.csv", "series.xdmf", "series.bin", "checkpoint"}


def make_problem(mesh: Any = None, sigma: float = 0.7, **options: Any) -> mf.Problem:
    functional = mf.Potential(lambda x: x[0] ** 2) + 2 * mf.MeanInteraction(0.25, 0.3)
    mesh = mf.interval(COMM, 6.0, 0.5) if mesh is None else mesh
    return mf.Problem(mesh, functional, sigma, **{"degree": 2, **options})


def start_of(problem: mf.Problem) -> mf.Density:
    return mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 1.0) ** 2)))


def flow_of(problem: mf.Problem) -> mf.SchrodingerFlow:
    tight: Any = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}}
    return mf.SchrodingerFlow(problem, 0.1, "sdirk2", **tight)


@pytest.fixture(scope="module")
def problem() -> mf.Problem:
    return make_problem()


@pytest.fixture(scope="module")
def start(problem: mf.Problem) -> mf.Density:
    return start_of(problem)


type Steps = Callable[..., list[mf.flows.State]]


@pytest.fixture
def make(problem: mf.Problem, start: mf.Density, tmp_path: Path) -> Steps:
    """Make a run in the folder "run", with the arguments of ``Run``; its states."""

    def work(t_end: float = T_END, **options: Any) -> list[mf.flows.State]:
        with mf.Run(tmp_path / "run", problem, **options) as run:
            return list(run.steps(flow_of(problem), start, t_end))

    return work


def record(folder: Path) -> Any:
    """``run.json`` as any program reads it: NaN and Infinity are not JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def status(folder: Path) -> tuple[str, str]:
    found = record(folder)
    return found["status"], found["reason"]


# -- what is written -------------------------------------------------------------------------


def test_all_files(tmp_path: Path, problem: mf.Problem, start: mf.Density) -> None:
    folder = tmp_path / "new folder" / "σ = 0.7"
    parameters = {
        "kappa": np.float32(0.5),
        "n": np.int64(3),
        "flag": np.bool_(True),
        "grid": np.arange(3),
        "where": Path("a b"),
        "limits": (0.1, float("inf"), float("nan")),
        "nested": {1: np.float64(np.pi)},
        "function": np.tanh,
    }
    with mf.Run(folder, problem, parameters=parameters, every=2) as run:
        assert status(folder) == ("running", "")
        assert run.result == {}
        states = []
        columns = {"double": lambda s: np.float64(2.0 * s.t), "one": lambda s: np.int32(1)}
        for state in run.steps(
            flow_of(problem),
            start,
            T_END,
            columns=lambda s: {name: f(s) for name, f in columns.items()},
        ):
            states.append(state)
            assert run.result["t"] == state.t
    assert {path.name for path in folder.iterdir()} == FILES
    found = record(folder)
    expected = {
        "format": "fem_mf run 1",
        "status": "finished",
        "reason": "",
        "restarted_at": None,
        "ranks": 1,
        "pid": os.getpid(),
    }
    assert {name: found[name] for name in expected} == expected
    assert found["parameters"] == {
        "kappa": 0.5,
        "n": 3,
        "flag": True,
        "grid": [0, 1, 2],
        "where": "a b",
        "limits": [0.1, "inf", "nan"],
        "nested": {"1": np.pi},
        "function": str(np.tanh),
    }
    assert found["problem"] == {
        "functional": "Potential(...) + 2 * MeanInteraction(0.25, [0.3])",
        "sigma": 0.7,
        "dim": 1,
        "cell": "interval",
        "cells": 24,
        "degree": 2,
        "mass": "consistent",
        "boundary": "natural",
        "dofs": 49,
    }
    assert found["flow"] == {
        "class": "SchrodingerFlow",
        "dt": 0.1,
        "scheme": "sdirk2",
        "tolerance": None,
    }
    assert "fem_mf_schrodinger_" in found["solvers"]
    assert set(found["versions"]) == {"fem_mf", "DOLFINx", "PETSc", "MPI", "Python"}
    assert found["started"] <= found["ended"]
    assert "pytest" in found["command"]
    # Every number of the history, and of the result, to the last digit.
    history = mf.History.read(folder / "history.csv")
    assert list(history) == [*states[0].scalars(), "double", "one"]
    for name, column in history.items():
        values = [
            columns[name](s) if name in columns else s.scalars()[name]  #
            for s in states
        ]
        np.testing.assert_array_equal(column, values)
    for name, value in run.result.items():
        np.testing.assert_array_equal(float(found["result"][name]), value)
    reader = pyvista.get_reader(folder / "series.xdmf")
    assert reader.time_values == [states[i].t for i in (0, 2, 4, 5)]
    saved = mf.Checkpoint.read(folder / "checkpoint", COMM)
    again = saved.state(make_problem(saved.mesh))
    np.testing.assert_equal(again.scalars(), states[-1].scalars())
    np.testing.assert_array_equal(again.density.psi.x.array, states[-1].density.psi.x.array)


def test_result_that_is_not_finite(make: Steps, tmp_path: Path) -> None:
    make(0.0)
    assert record(tmp_path / "run")["result"]["contraction"] == "nan"
    assert np.isnan(mf.open_results(tmp_path / "run", COMM).run["result"]["contraction"])


def test_head_of_the_history(make: Steps, tmp_path: Path) -> None:
    states = make(parameters={"text": 'a "quoted", <tag> & #\nσ'})
    lines = (tmp_path / "run" / "history.csv").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    names = ["versions", "commit", "command", "parameters", "problem", "started"]
    assert [line.split()[1] for line in head] == [f"{name}:" for name in names]
    assert lines[: len(head)] == head
    rest = list(csv.reader(lines[len(head) :]))
    assert rest[0] == list(states[0].scalars())
    assert [float(row[0]) for row in rest[1:]] == [s.t for s in states]
    path = tmp_path / "run" / "history.csv"
    table = np.genfromtxt(path, delimiter=",", skip_header=len(head), names=True)
    np.testing.assert_array_equal(table["energy"], [s.energy for s in states])
    # pyvista reads the series whatever is said in it.
    assert len(pyvista.get_reader(tmp_path / "run" / "series.xdmf").time_values) == len(states)
    text = (tmp_path / "run" / "series.xdmf").read_text()
    assert [f'<Information Name="{name}"' in text for name in names] == [True] * len(names)


def test_relative_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: mf.Problem, start: mf.Density
) -> None:
    monkeypatch.chdir(tmp_path)
    with mf.Run("runs/a", problem) as run:
        list(run.steps(flow_of(problem), start, T_END))
    domain = mf.Run.mesh(tmp_path / "runs" / "a", COMM)  # another name of the same folder
    with mf.Run("./runs/a", make_problem(domain), restart=True) as run:
        states = list(run.steps(flow_of(run.problem), None, 0.6))
    assert [s.step for s in states] == [5, 6]
    assert mf.open_results("runs/a", COMM).run["restarted_at"] == T_END


def test_no_fields_and_no_checkpoints(make: Steps, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make(every=0, minutes=None)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "run.lock", "history.csv"}
    assert signal.getsignal(signal.SIGTERM) is before
    before_bad = (tmp_path / "run" / "history.csv").read_text()
    for bad, message in (({"every": -1}, "every is a number of"), ({"minutes": 0}, "positive")):
        with pytest.raises(ValueError, match=message):
            make(overwrite=True, **bad)
    assert (tmp_path / "run" / "history.csv").read_text() == before_bad
    assert status(tmp_path / "run") == ("finished", "")


def test_a_study(tmp_path: Path, problem: mf.Problem, start: mf.Density) -> None:
    with mf.Run(tmp_path, comm=COMM, parameters={"n": 3}) as run:
        with pytest.raises(ValueError, match="a study"):
            next(run.steps(flow_of(problem), start, T_END))
        with pytest.raises(ValueError, match="a study"):
            run.save(mf.minimise(problem))
        (tmp_path / "table.csv").write_text("")
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", "run.lock", "table.csv"}
    assert record(tmp_path)["problem"] is None
    with pytest.raises(FileExistsError, match="--overwrite"):
        mf.Run(tmp_path, comm=COMM)
    with pytest.raises(ValueError, match="a study has no checkpoint"):
        mf.Run(tmp_path, comm=COMM, restart=True)
    mf.Run(tmp_path, comm=COMM, overwrite=True).__exit__(None, None, None)


def test_a_minimiser(tmp_path: Path, problem: mf.Problem) -> None:
    best = mf.minimise(problem)
    with mf.Run(tmp_path, problem, minutes=None) as run:
        run.save(best)
        with pytest.raises(ValueError, match="different meshes"):
            run.save(mf.minimise(make_problem(sigma=0.9)))
        with pytest.raises(ValueError, match="different problems"):
            next(run.steps(flow_of(make_problem()), best.density, T_END))
    found = record(tmp_path)
    assert (found["status"], found["kind"]) == ("finished", "global minimum")
    assert found["result"]["energy"] == best.energy
    history = mf.History.read(tmp_path / "history.csv")
    np.testing.assert_array_equal(history["residual"], [i.residual for i in best.history])
    density = mf.open_results(tmp_path, COMM).density()
    assert density.mean() == pytest.approx(best.density.mean(), abs=1e-2)


# -- how runs end ----------------------------------------------------------------------------


def test_left_loop(tmp_path: Path, problem: mf.Problem, start: mf.Density) -> None:
    with mf.Run(tmp_path, problem) as run:
        for state in run.steps(flow_of(problem), start, T_END):
            if state.step == 2:
                break
    assert status(tmp_path) == ("stopped", "the loop was left")
    assert record(tmp_path)["result"]["step"] == 2
    assert not mf.output.run.is_running(tmp_path)


@rows("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals(
    tmp_path: Path, problem: mf.Problem, start: mf.Density, number: signal.Signals
) -> None:
    before, folder = signal.getsignal(number), tmp_path / number.name
    with pytest.raises(SystemExit) as stop, mf.Run(folder, problem) as run:
        for state in run.steps(flow_of(problem), start, T_END):
            if state.step == 2:
                os.kill(os.getpid(), number)
    assert stop.value.code == (130 if number == signal.SIGINT else 0)
    assert status(folder) == ("stopped", number.name)
    assert signal.getsignal(number) is before
    assert mf.Checkpoint.read(folder / "checkpoint", COMM).step == 2
    assert mf.History.read(folder / "history.csv")["step"].tolist() == [0, 1, 2]


@rows(
    ("error", "expected"),
    [
        (RuntimeError('bad "luck"\nand more'), ("failed", 'RuntimeError: bad "luck"\nand more')),
        (SystemExit("no data"), ("failed", "SystemExit: no data")),
        (SystemExit(3), ("failed", "SystemExit: 3")),
        (SystemExit(), ("stopped", "the program ended itself")),
        (KeyboardInterrupt(), ("stopped", "KeyboardInterrupt")),
        (OSError(errno.ENOSPC, "No space left"), ("failed", "OSError: [Errno 28] No space left")),
    ],
)
def test_exceptions(
    tmp_path: Path,
    problem: mf.Problem,
    start: mf.Density,
    error: BaseException,
    expected: tuple[str, str],
) -> None:
    folder = tmp_path / f"{error!r}"[:12]
    with pytest.raises(type(error)), mf.Run(folder, problem, overwrite=True) as run:
        for state in run.steps(flow_of(problem), start, T_END):
            if state.step == 2:
                raise error
    kind, reason = status(folder)
    assert (kind, reason.removeprefix("rank 0: ")) == expected
    assert record(folder)["result"]["step"] == 2
    assert not mf.output.run.is_running(folder)


def test_error_of_the_flow(make: Steps, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t_end"):
        make(-1.0)
    kind, reason = status(tmp_path / "run")
    assert kind == "failed" and "ValueError: t_end must be" in reason
    with pytest.raises(ValueError, match="columns"):  # of the body of steps
        make_columns_that_change(tmp_path / "columns")
    assert status(tmp_path / "columns")[0] == "failed"


def make_columns_that_change(folder: Path) -> None:
    problem = make_problem()
    with mf.Run(folder, problem) as run:
        start = start_of(problem)
        for _ in run.steps(flow_of(problem), start, T_END, columns=lambda s: {str(s.step): 1.0}):
            pass


_SCRIPT = textwrap.dedent("""
    import sys, time
    from mpi4py import MPI
    import numpy as np
    import fem_mf as mf

    mf.install_abort_hook()
    comm = MPI.COMM_WORLD
    functional = mf.Potential(lambda x: x[0] ** 2)
    problem = mf.Problem(mf.interval(comm, 6.0, 0.5), functional, 0.7, degree=2)
    start = mf.Density.from_function(problem, lambda x: np.exp(-(x[0] - 1) ** 2))
    folder, what = sys.argv[1:3]
    with mf.Run(folder, problem) as run:
        for state in run.steps(mf.SchrodingerFlow(problem, 0.1), start, 1e6):
            if what == "fail" and state.step == 2 and comm.rank == comm.size - 1:
                raise ArithmeticError("only here")
            time.sleep(0.01)
""")


def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT)
    return path


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in the folder "run" that has taken some steps and takes more."""
    command = [sys.executable, script(tmp_path), tmp_path / "run", "go on"]
    history = tmp_path / "run" / "history.csv"
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + 60.0
        while not (history.exists() and history.read_text().count("\n") > 12):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.02)
        yield job
        job.kill()


def test_read_while_it_runs_and_after_a_kill(
    alive: subprocess.Popen[bytes], tmp_path: Path, make: Steps
) -> None:
    results = mf.open_results(tmp_path / "run", COMM)
    assert results.run["status"] == "running" and results.run["pid"] == alive.pid
    steps = len(results.history)
    assert steps > 5 and len(results.times) >= steps - 1
    t = results.times[-1]
    assert results.density(t).mass() == pytest.approx(1.0, abs=1e-12)
    assert results.density().mass() == pytest.approx(1.0, abs=1e-12)  # no checkpoint so far
    assert results.fields().n_points == 49
    # Nobody else may write there, whatever is asked for.
    for how in ({}, {"overwrite": True}):
        with pytest.raises(RuntimeError, match=rf"another run writes.*process {alive.pid} on"):
            make(**how)
    assert "ended" in record(tmp_path / "run") and status(tmp_path / "run")[0] == "running"
    alive.kill()
    alive.wait()
    later = mf.open_results(tmp_path / "run", COMM)
    assert later.run["status"] == "killed"
    assert len(later.history) >= steps and t in later.times
    assert "killed (it ended without recording its status)" in str(later)
    with pytest.raises(FileExistsError, match="has the results"):
        make()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        make(restart=True)
    assert len(mf.open_results(tmp_path / "run", COMM).history) == len(later.history)
    make(overwrite=True)
    assert mf.open_results(tmp_path / "run", COMM).run["status"] == "finished"


def test_a_failure_on_one_rank(tmp_path: Path, mpirun: MpiRun) -> None:
    job = mpirun(2, [script(tmp_path), tmp_path / "run", "fail"])
    assert job.returncode != 0
    assert status(tmp_path / "run") == ("failed", "rank 1: ArithmeticError: only here")
    assert mf.History.read(tmp_path / "run" / "history.csv")["step"].tolist()[:3] == [0, 1, 2]


# -- refusals --------------------------------------------------------------------------------


def test_results_are_not_overwritten_unasked(make: Steps, tmp_path: Path) -> None:
    make()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match=r"'.*run' has .*--overwrite\).*--restart\)"):
        make()
    with pytest.raises(ValueError, match="choose one"):
        make(overwrite=True, restart=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


@rows("name", ["history.csv", "series.xdmf", "checkpoint/manifest.json"])
def test_files_of_something_else(make: Steps, tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="has the results of another run"):
        make()
    assert path.read_text() == "mine" and not (tmp_path / "run" / "run.json").exists()
    path.unlink()


def test_overwrite_leaves_nothing_of_the_old_run(make: Steps, tmp_path: Path) -> None:
    make()
    (tmp_path / "run" / "series-2.bin").write_bytes(b"of a restart")
    mf.Limit(1.0).write(tmp_path / "run" / "history.csv", COMM)
    (tmp_path / "run" / "picture.png").write_text("mine")
    make(0.2, overwrite=True, every=0, minutes=None)
    results = mf.open_results(tmp_path / "run", COMM)
    assert len(results.history) == 3 and len(results.times) == 0
    assert mf.Limit.read(tmp_path / "run" / "history.csv") is None
    with pytest.raises(ValueError, match="has no fields"):
        results.density()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        mf.Run.mesh(tmp_path / "run", COMM)
    assert (tmp_path / "run" / "picture.png").exists()


def test_two_runs_of_one_program(
    tmp_path: Path, make: Steps, problem: mf.Problem, start: mf.Density
) -> None:
    with mf.Run(tmp_path / "run", problem) as run:
        list(run.steps(flow_of(problem), start, 0.1))
        with pytest.raises(RuntimeError, match=f"process {os.getpid()} on"):
            make(overwrite=True)
    assert status(tmp_path / "run") == ("finished", "")


def test_a_folder_that_cannot_be_locked(
    make: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    make()
    assert "cannot be locked" in log.text
    assert status(tmp_path / "run") == ("finished", "")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, problem: mf.Problem, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mf.Run(tmp_path / name, problem)
    with pytest.raises((FileNotFoundError, ValueError), match="file"):
        mf.open_results(tmp_path / name, COMM)


# -- restarts --------------------------------------------------------------------------------


def test_restart_as_if_nothing_had_happened(
    make: Steps, tmp_path: Path, problem: mf.Problem, start: mf.Density
) -> None:
    folder = tmp_path / "run"
    whole = make(0.8)
    shutil.rmtree(folder)
    with pytest.raises(SystemExit), mf.Run(folder, problem, every=2) as run:
        run.extra["seen"] = []
        for state in run.steps(flow_of(problem), start, 0.8):
            run.extra["seen"].append(state.t)
            if state.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    with (folder / "history.csv").open("a") as file:
        file.write("0.4,0.1,")  # killed while it wrote
    other = make_problem(mf.Run.mesh(folder, COMM))
    with mf.Run(folder, other, restart=True, every=2) as run:
        assert run.extra == {"seen": [s.t for s in whole[:4]]}
        states = list(run.steps(flow_of(other), start_of(other), 0.8))
        with pytest.raises(ValueError, match="later than"):  # the checkpoint is used once
            list(run.steps(flow_of(other), start_of(other), 0.1))
    assert [s.step for s in states] == list(range(3, 9))
    assert states[-1].energy == pytest.approx(whole[-1].energy, rel=1e-10)
    results = mf.open_results(folder, COMM)
    assert results.run["restarted_at"] == whole[3].t
    history = results.history
    assert history["step"].tolist()[:9] == list(range(9))
    np.testing.assert_allclose(history["energy"][:9], [s.energy for s in whole], rtol=1e-10)
    assert results.times.tolist() == [whole[i].t for i in (0, 2, 4, 6, 8)]
    head = (folder / "history.csv").read_text().count("# versions")
    assert head == 1


def test_restarts_that_are_refused_change_nothing(
    make: Steps, tmp_path: Path, problem: mf.Problem
) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        make(restart=True)
    assert not (tmp_path / "run").exists()
    make()
    make_other = tmp_path / "other"
    shutil.copytree(tmp_path / "run", make_other)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"build the problem on Run\.mesh\('.*run', comm\)"):
        make(restart=True)
    domain = mf.Run.mesh(tmp_path / "run", COMM)
    with pytest.raises(ValueError, match=r"sigma = 0\.7, not 0\.8"):
        mf.Run(tmp_path / "run", make_problem(domain, sigma=0.8), restart=True)
    with pytest.raises(ValueError, match=r"Run\.mesh"):
        mf.Run(make_other, make_problem(domain), restart=True)  # it is that of another folder
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


@rows("name", ["history.csv", "series.xdmf"])
def test_restart_into_damaged_files(make: Steps, tmp_path: Path, name: str) -> None:
    make(overwrite=True)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-200] + b"\n")
    problem = make_problem(mf.Run.mesh(tmp_path / "run", COMM))
    with pytest.raises(ValueError, match=f"{name}' is damaged"):
        mf.Run(tmp_path / "run", problem, restart=True)
    assert status(tmp_path / "run")[0] == "failed"
    assert mf.Checkpoint.read(tmp_path / "run" / "checkpoint", COMM).step == 5


def test_the_command_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/usr/bin/python3", "demos/x.py", "--output", "a b", "--overwrite"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert restart_command() == "python demos/x.py --output 'a b' --restart"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "fem_mf", "run", "c.toml", "--restart"])
    assert restart_command() == "python -m fem_mf run c.toml --restart"


# -- disks -----------------------------------------------------------------------------------


def test_a_disk_that_is_too_small(
    make: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"disk full: .*two checkpoints may take.*are free"):
            make()
        assert status(tmp_path / "run")[0] == "failed"
        assert "disk full" in status(tmp_path / "run")[1]
    assert signal.getsignal(signal.SIGTERM) is before
    make(overwrite=True)  # the lock is released
    assert status(tmp_path / "run")[0] == "finished"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", path]
    if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root may mount a small disk")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("leave", [12, 4, 0])
def test_a_disk_that_becomes_full(
    small_disk: Path, problem: mf.Problem, start: mf.Density, leave: int
) -> None:
    """By a file of something else, after step 2, with so many kB left."""
    before = signal.getsignal(signal.SIGTERM)
    steps = []
    with (
        pytest.raises(OSError, match=r"^disk full: cannot write"),
        mf.Run(small_disk / "run", problem, minutes=1e-9) as run,
    ):
        for state in run.steps(flow_of(problem), start, 1000.0):
            steps.append(state.step)
            if state.step == 2:
                fill(small_disk / "other", 1024 * leave)
    assert signal.getsignal(signal.SIGTERM) is before
    saved = mf.Checkpoint.read(small_disk / "run" / "checkpoint", COMM)
    assert saved.step in (steps[-1] - 1, steps[-1])
    names = {p.name for p in (small_disk / "run" / "checkpoint").iterdir()}
    assert len(names) == 4, "tables that were cut short are still there"
    (small_disk / "other").unlink()
    results = mf.open_results(small_disk / "run", COMM)
    assert results.run["status"] in ("failed", "killed")
    assert results.density(saved.t).mass() == pytest.approx(1.0)
    assert len(results.history) >= saved.step
    again = make_problem(mf.Run.mesh(small_disk / "run", COMM))
    with mf.Run(small_disk / "run", again, restart=True) as run:
        list(run.steps(flow_of(again), None, saved.t + 0.1))
    assert status(small_disk / "run") == ("finished", "")


def fill(path: Path, leave: int) -> None:
    """Take all but so many bytes of a disk."""
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(free - leave))


def test_a_refusal_on_the_way_out_hides_no_error(
    tmp_path: Path,
    problem: mf.Problem,
    start: mf.Density,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RuntimeError, match="the cause"), mf.Run(tmp_path, problem) as run:
        next(run.steps(flow_of(problem), start, T_END))
        monkeypatch.setattr("fem_mf.output.run.replace_file", refuse)
        raise RuntimeError("the cause")
    assert "No space left on device" in log.text
    assert not mf.output.run.is_running(tmp_path)
    assert mf.open_results(tmp_path, COMM).run["status"] == "killed"


# -- progress --------------------------------------------------------------------------------


def test_lines_of_progress(monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(history_module.time, "monotonic", lambda: clock.now)
    states = [SimpleNamespace(t=0.5 * k, step=k, energy=1.25, dt=0.5) for k in range(9)]
    with log.at_level(logging.INFO, logger="fem_mf"):
        for _ in history_module.progress(states, 4.0, COMM, "training"):
            clock.now += 2.0
    lines = [r.getMessage() for r in log.records]
    # At the start, and again before the next step of two seconds would make it more than five.
    assert [line.split()[3] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[1] == "training: t = 1  step 2  energy 1.25  dt 0.5  12 s left"
