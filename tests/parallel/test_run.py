"""Runs that are stopped on some ranks and restarted on others; refusals that all ranks share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.exact import gaussian

COMM = MPI.COMM_WORLD
# On fewer ranks than were there before, and on more; on as many where there is but one.
PAIRS = [(1, 1)] if COMM.size == 1 else [(COMM.size, COMM.size - 1), (COMM.size - 1, COMM.size)]
T_END = 0.4
TIGHT: dict[str, Any] = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}}
MESHES: dict[str, Callable[[Any], Any]] = {
    "triangles": lambda comm: mf.box(comm, 4.0, 1.0),
    "quadrilaterals": lambda comm: mf.box(comm, 4.0, 1.3, cell="quadrilateral"),
}


def make_problem(mesh: Any, sigma: float = 0.7) -> mf.Problem:
    trap = mf.Potential(lambda x: 0.3 * np.sum(x**2, axis=0))
    return mf.Problem(mesh, trap + mf.MeanInteraction(0.5, 0.3), sigma, degree=2)


def flow_of(problem: mf.Problem) -> mf.SchrodingerFlow:
    return mf.SchrodingerFlow(problem, 0.05, "sdirk2", **TIGHT)


def start_of(problem: mf.Problem) -> mf.Density:
    return mf.Density.from_function(problem, gaussian([0.5, -0.2], 1.4))


def on_ranks(size: int, work: Callable[[MPI.Intracomm], Any]) -> Any:
    """Let the first ranks work; what comes out on rank 0, on every rank. Collective."""
    group = COMM.Split(int(COMM.rank < size))
    result = work(group) if COMM.rank < size else None
    return COMM.bcast(result)


# Three ranks, which share cores, add little to two.
@pytest.mark.parametrize("name", MESHES if COMM.size < 3 else ["triangles"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} to {pair[1]}")
def test_restart_on_other_ranks(name: str, pair: tuple[int, int], shared_tmp_path: Path) -> None:
    folder, alone = shared_tmp_path / "run", shared_tmp_path / "alone"

    def whole(comm: MPI.Intracomm) -> list[dict[str, float]]:
        problem = make_problem(MESHES[name](comm))
        with mf.Run(alone, problem) as run:
            states = run.steps(flow_of(problem), start_of(problem), T_END)
            return [state.scalars() for state in states]

    def stopped(comm: MPI.Intracomm) -> None:
        problem = make_problem(MESHES[name](comm))
        with pytest.raises(SystemExit), mf.Run(folder, problem, every=2) as run:
            for state in run.steps(flow_of(problem), start_of(problem), T_END):
                run.extra["steps"] = state.step
                if state.step == 5 and comm.rank == comm.size - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

    def rest(comm: MPI.Intracomm) -> Any:
        problem = make_problem(mf.Run.mesh(folder, comm))
        with mf.Run(folder, problem, every=2, restart=True) as run:
            extra = dict(run.extra)
            states = [s.scalars() for s in run.steps(flow_of(problem), None, T_END)]
        results = mf.open_results(folder, comm)
        means = [results.density(t).mean() for t in results.times]
        return extra, states, means, results.run

    expected = on_ranks(pair[0], whole)
    on_ranks(pair[0], stopped)
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("stopped", "SIGTERM")
    assert record["ranks"] == pair[0]
    extra, states, means, record = on_ranks(pair[1], rest)
    assert extra == {"steps": 5}
    assert (record["status"], record["ranks"]) == ("finished", pair[1])
    assert record["restarted_at"] == expected[5]["t"]
    assert [s["step"] for s in states] == [5, 6, 7, 8]
    assert record["result"]["energy"] == pytest.approx(expected[-1]["energy"], rel=1e-11)
    # History and fields are those of the run that was left alone, as any number of ranks sees them.
    one, other = (mf.open_results(path, COMM) for path in (folder, alone))
    assert one.history["step"].tolist() == list(range(9))
    for column in ("t", "energy", "residual"):
        np.testing.assert_allclose(one.history[column], other.history[column], rtol=1e-9)
    np.testing.assert_allclose(one.times, other.times[::2], rtol=1e-14)
    for t, mean in zip(one.times, means, strict=True):
        density, same = one.density(t), other.density(t)
        assert density.mass() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(density.mean(), mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(same.mean(), mean, rtol=0, atol=1e-9)
        assert density.fisher_information() == pytest.approx(same.fisher_information(), rel=1e-8)


@pytest.fixture
def problem() -> mf.Problem:
    return make_problem(MESHES["triangles"](COMM))


def finish(folder: Path, problem: mf.Problem, **options: Any) -> None:
    with mf.Run(folder, problem, **options) as run:
        for _ in run.steps(flow_of(problem), start_of(problem), 0.1):
            pass


def test_refusals_on_every_rank(shared_tmp_path: Path, problem: mf.Problem) -> None:
    folder = shared_tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        mf.Run(folder, problem, restart=True)
    with mf.Run(folder, problem), pytest.raises(RuntimeError, match="another run writes"):
        mf.Run(folder, problem, overwrite=True)
    with pytest.raises(FileExistsError, match=r"--overwrite\).*--restart\)"):
        mf.Run(folder, problem)
    finish(folder, problem, overwrite=True)
    with pytest.raises(ValueError, match=r"build the problem on Run\.mesh"):
        mf.Run(folder, problem, restart=True)
    domain = mf.Run.mesh(folder, COMM)
    with pytest.raises(ValueError, match=r"sigma = 0\.7, not 0\.8"):
        mf.Run(folder, make_problem(domain, sigma=0.8), restart=True)
    results = mf.open_results(folder, COMM)
    assert results.run["status"] == "finished" and len(results.history) == 3
    with pytest.raises(ValueError, match="no fields at t = 0"):
        results.density(0.07)
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        mf.open_results(shared_tmp_path, COMM)


def test_a_record_that_cannot_be_written(
    shared_tmp_path: Path, problem: mf.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone writes it; all ranks hear of it, at the start and after the first step."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fem_mf.output.run.replace_file", refuse)
        with pytest.raises(OSError, match=r"disk full: cannot write '.*run'"):
            mf.Run(shared_tmp_path / "run", problem)
    steps = []
    with monkeypatch.context() as patch, mf.Run(shared_tmp_path / "run", problem) as run:
        patch.setattr("fem_mf.output.run.replace_file", refuse)
        with pytest.raises(OSError, match=r"disk full: cannot write '.*run'"):
            for state in run.steps(flow_of(problem), start_of(problem), 0.2):
                steps.append(state.step)
        patch.undo()
    assert steps == [0, 1]


def test_a_damaged_checkpoint_beside_a_series(shared_tmp_path: Path, problem: mf.Problem) -> None:
    finish(shared_tmp_path, problem)
    expected = mf.open_results(shared_tmp_path, COMM).density().mean()
    if COMM.rank == 0:
        (path,) = (shared_tmp_path / "checkpoint").glob("*-psi.npy")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # in the rows of the last rank
        path.write_bytes(content)
    COMM.barrier()
    density = mf.open_results(shared_tmp_path, COMM).density()
    assert density.problem.degree == 1
    np.testing.assert_allclose(density.mean(), expected, atol=2e-2)


def test_extra_that_json_does_not_know(shared_tmp_path: Path, problem: mf.Problem) -> None:
    """Rank 0's counts: what it cannot write is an error everywhere, that of others is not used."""
    with mf.Run(shared_tmp_path / "run", problem) as run:
        for state in run.steps(flow_of(problem), start_of(problem), 0.1):
            run.extra["last"] = state.step if COMM.rank == 0 else object()
    saved = mf.Checkpoint.read(shared_tmp_path / "run" / "checkpoint", COMM)
    assert saved.extra == {"last": 2}
    with (
        pytest.raises(TypeError, match="not JSON serializable"),
        mf.Run(shared_tmp_path / "other", problem) as run,
    ):
        run.extra["last"] = object()
        for _ in run.steps(flow_of(problem), start_of(problem), 0.1):
            pass
    COMM.barrier()  # rank 0 has removed what was cut short
    assert not list((shared_tmp_path / "other" / "checkpoint").iterdir())


@pytest.fixture
def small_disk(shared_tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, mounted by rank 0."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", shared_tmp_path]
    code = 1
    if COMM.rank == 0 and os.geteuid() == 0:
        code = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
    if COMM.bcast(code):
        pytest.skip("only root may mount a small disk")
    yield shared_tmp_path
    COMM.barrier()
    if COMM.rank == 0:
        subprocess.run(["umount", "--lazy", shared_tmp_path], check=True)


@pytest.mark.parametrize("every", [1, 0])
def test_a_full_disk_ends_the_run_on_every_rank(
    small_disk: Path, problem: mf.Problem, every: int
) -> None:
    folder, steps = small_disk / "run", []
    with (
        pytest.raises(OSError, match=r"^disk full: cannot write"),
        mf.Run(folder, problem, every=every, minutes=1e-9) as run,
    ):
        for state in run.steps(flow_of(problem), start_of(problem), 100.0):
            steps.append(state.step)
            if state.step == 2 and COMM.rank == 0:
                free = shutil.disk_usage(small_disk).free
                (small_disk / "other").write_bytes(bytes(free - 8192))
            COMM.barrier()
    saved = mf.Checkpoint.read(folder / "checkpoint", COMM)
    assert saved.step in (steps[-1] - 1, steps[-1])
    assert len(list((folder / "checkpoint").iterdir())) == 4
    state = saved.state(make_problem(saved.mesh))
    assert state.density.mass() == pytest.approx(1.0, abs=1e-12)
