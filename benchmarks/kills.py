"""Kill a run again and again, restart it each time, and compare it with one that was left alone.

    python benchmarks/kills.py --kills 20 --ranks 2

Every rank of the run, which writes a checkpoint at each step, is killed (SIGKILL) at a random
moment; the next run goes on from the checkpoint on another number of ranks. What must hold: each
checkpoint is whole, at most the step being written is lost, no line of ``history.csv`` is missing
or twice, and all numbers and fields are those of the run that was left alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
import pyvista

from fem_mf.doctor import mpi_launcher

_RUN = """
import sys, time
from pathlib import Path
import numpy as np
import fem_mf as mf
from mpi4py import MPI

comm, folder, steps, pause = MPI.COMM_WORLD, Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
restart = (folder / "checkpoint" / "manifest.json").exists()
saved = mf.Checkpoint.read(folder / "checkpoint", comm) if restart else None
z = np.linspace(-1.5, 1.5, 6)
functional = mf.Potential(lambda x: 0.3 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
    z, np.cos(2 * z), lambda x, z: np.tanh(x[0] * z + x[1])
)
mesh = saved.mesh if saved else mf.disk(comm, 5.5, 1.0)
problem = mf.Problem(mesh, functional, 0.7, degree=2)
flow = mf.SchrodingerFlow(
    problem, 0.02, "sdirk2", fixed_point_tolerance=1e-12, petsc_options={"ksp_rtol": 1e-13}
)
start = (
    saved.state(problem) if saved
    else mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 0.5) ** 2) - x[1] ** 2))
)
with (
    mf.History(folder / "history.csv", comm, resume=saved) as history,
    mf.XDMFSeries(folder / "series.xdmf", problem, every=10, resume=saved) as series,
    mf.Checkpoint(folder / "checkpoint", problem, every=1, resume=saved) as checkpoint,
):
    for state in flow.run(start, steps * 0.02):
        history.append(state)
        series.write(state.t, state.density)
        checkpoint.write(state)
        time.sleep(pause)
"""


def _start(
    script: Path, folder: Path, ranks: int, steps: int, pause: float
) -> subprocess.Popen[bytes]:
    launch = [str(mpi_launcher()), "-n", str(ranks), sys.executable]
    return subprocess.Popen(
        [*launch, str(script), str(folder), str(steps), str(pause)],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _kill(job: subprocess.Popen[bytes], script: Path) -> None:
    """Kill the ranks themselves, wherever they are; the launcher then ends."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(script).encode() in words and b"-n" not in words:
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
    job.wait(timeout=30)


def _steps(folder: Path) -> int:
    history = folder / "history.csv"
    return len(history.read_text().splitlines()) - 2 if history.exists() else -1


def main(kills: int, ranks: int, steps: int, seed: int) -> int:
    """Run the experiment; the exit code."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "run.py"
        script.write_text(_RUN)
        alone, killed = Path(name) / "alone", Path(name) / "killed"
        if _start(script, alone, 1, steps, 0.0).wait() != 0:
            return 1
        lost = []
        for number in range(kills):
            job = _start(script, killed, 1 + number % ranks, steps, 0.002)
            before = _steps(killed)
            while job.poll() is None and _steps(killed) <= max(before, 0):
                time.sleep(0.01)  # until it has taken a step of its own
            time.sleep(chance.uniform(0.0, 0.5))
            if job.poll() is not None:
                print(f"the run ended before kill {number + 1}, with code {job.returncode}")
                break
            reached = _steps(killed)
            _kill(job, script)
            saved = mf.Checkpoint.read(killed / "checkpoint", MPI.COMM_SELF)
            lost.append(reached - saved.step)
            print(f"kill {number + 1}: at step {reached}, checkpoint of step {saved.step}")
        if _start(script, killed, ranks, steps, 0.0).wait() != 0:
            return 1
        return _compare(alone, killed, lost, steps)


def _compare(alone: Path, killed: Path, lost: list[int], steps: int) -> int:
    one, other = (mf.History.read(folder / "history.csv") for folder in (alone, killed))
    same_steps = one["step"].tolist() == other["step"].tolist() == list(range(steps + 1))
    names = ("t", "energy", "eigenvalue", "residual", "mass")
    deviation = max(abs(one[name] - other[name]).max() for name in names)
    reader, again = (pyvista.get_reader(folder / "series.xdmf") for folder in (alone, killed))
    times = again.time_values
    same_times = np.allclose(times, one["t"][::10], rtol=1e-14)
    for step in range(len(times)):
        fields = []
        for series in (reader, again):
            series.set_active_time_point(step)
            grid = series.read()
            order = np.lexsort(np.round(grid.points, 6).T)  # ranks number the nodes differently
            fields.append(np.stack([grid[name][order] for name in ("m", "psi", "V")]))
        deviation = max(deviation, abs(fields[1] - fields[0]).max())
    print(f"{len(lost)} kills; steps lost by each: at most {max(lost)}")
    print(f"history whole: {same_steps}; series whole: {same_times}, {len(times)} times")
    print(f"largest deviation of numbers and fields {deviation:.1e}")
    return 0 if same_steps and same_times and deviation < 1e-10 and max(lost) <= 1 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2, help="most ranks; runs cycle through fewer")
    parser.add_argument("--steps", type=int, default=1000, help="of the whole run")
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(main(**vars(parser.parse_args())))
