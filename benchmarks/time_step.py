"""Seconds per time step of (X1), as a multiple of one preconditioned linear solve.

    python benchmarks/time_step.py                 # 1 and 2 ranks, about 66k dofs
    python benchmarks/time_step.py --dofs 1e6 --steps 20

For each discretisation, side by side in one run: a backward Euler step of the flow (its fixed point
converged to 1e-10), one conjugate-gradient solve with the constant matrix (2/dt) M + σ²A + ∫V_0ψχ
from the same start to the same tolerance with the same preconditioner, and one product with that
matrix. Times are medians. The machine's noise is why only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

from fem_mf.doctor import mpi_launcher

RADIUS, SIGMA, KAPPA, STRENGTH, DT = 6.0, 0.5, 1.0, 0.5, 0.01
CASES = {
    "degree 1 lumped, triangles": ("triangle", 1, "lumped"),
    "degree 2, triangles": ("triangle", 2, "consistent"),
    "degree 4 lumped, quadrilaterals": ("quadrilateral", 4, "lumped"),
}


def build(case: str, dofs: float) -> mf.Problem:
    """The problem (X1) of a case with about so many degrees of freedom."""
    cell, degree, mass = CASES[case]
    per_axis = np.sqrt(dofs) / degree
    # An unstructured triangulation has about 15 % more vertices than a grid of the same h.
    h = 2 * RADIUS / per_axis * (1.07 if cell == "triangle" else 1.0)
    mesh = mf.box(MPI.COMM_WORLD, RADIUS, h, cell=cell)
    functional = mf.Potential(lambda x: 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2))
    return mf.Problem(
        mesh,
        functional + mf.MeanInteraction(STRENGTH, [1.0, 0.0]),
        SIGMA,
        degree=degree,
        mass=mass,
    )


def median_time(comm: MPI.Comm, work: Callable[[], Any], repeats: int) -> float:
    """Median wall time of a collective call, over the slowest rank."""
    times = []
    for _ in range(repeats):
        comm.barrier()
        start = time.perf_counter()
        work()
        times.append(comm.allreduce(time.perf_counter() - start, op=MPI.MAX))
    return float(np.median(times))


def measure(case: str, dofs: float, steps: int) -> dict[str, float]:
    """Step, solve and product times of one case on this communicator."""
    problem = build(case, dofs)
    comm = problem.comm
    start = mf.Density.from_function(
        problem, lambda x: np.exp(-((x[0] + 0.5) ** 2) - (x[1] - 0.3) ** 2)
    )
    flow = mf.SchrodingerFlow(problem, DT)
    states = flow.run(start, steps * DT)
    first = [next(states) for _ in range(4)]  # compiled, allocated, extrapolating
    fixed_point, linear = [], []
    density = first[-1].density

    def step() -> None:
        nonlocal density
        state = next(states)
        density = state.density
        fixed_point.append(state.fixed_point_iterations)
        linear.append(state.linear_iterations)

    seconds = median_time(comm, step, steps - 4)
    stage = flow._stage
    stage.operator.matrix.zeroEntries()
    stage.operator.constant.copy(stage.operator.matrix)
    if problem.lumped:
        diagonal = stage.operator.matrix.getDiagonal()
        diagonal.array[:] += 2.0 / DT * problem.discretisation.mass_diagonal
        stage.operator.matrix.setDiagonal(diagonal)
    else:
        stage.operator.matrix.axpy(2.0 / DT, problem.mass_matrix)
    psi = density.amplitude()
    stage.right.array[:] = 2.0 / DT * problem.discretisation.apply_mass(psi)
    iterations = 0

    def solve() -> None:
        nonlocal iterations
        stage.solution.array[:] = psi
        iterations = stage.solver(DT).solve(stage.right, stage.solution, stage.rtol)

    solve_seconds = median_time(comm, solve, 30)
    product = median_time(
        comm, lambda: stage.operator.matrix.mult(stage.solution, stage.right), 200
    )
    return {
        "dofs": problem.space.dofmap.index_map.size_global,
        "step": seconds,
        "solve": solve_seconds,
        "product": product,
        "fixed_point": float(np.mean(fixed_point)),
        "linear": float(np.mean(linear)),
        "solve_iterations": iterations,
    }


def run(ranks: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure all cases in a job of so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        subprocess.run(
            [
                *(str(mpi_launcher()), "-n", str(ranks), sys.executable, __file__),
                *("--dofs", str(arguments.dofs), "--steps", str(arguments.steps)),
                *("--measure", str(result)),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return json.loads(result.read_text())  # type: ignore[no-any-return]


def report(results: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print the two tables."""
    console = Console(width=150)
    table = Table(title=f"(X1), d = 2, dt = {DT}, backward Euler; times in ms")
    for name in (
        *("case", "dofs", "ranks", "step", "solve", "product", "fixed-point its"),
        *("CG its", "CG its of solve", "step / solve", "target"),
    ):
        table.add_column(name, justify="left" if name == "case" else "right")
    for ranks, cases in results.items():
        for case, r in cases.items():
            table.add_row(
                *(case, f"{r['dofs']:.0f}", str(ranks), f"{1e3 * r['step']:.1f}"),
                *(f"{1e3 * r['solve']:.1f}", f"{1e3 * r['product']:.2f}"),
                *(f"{r['fixed_point']:.1f}", f"{r['linear']:.1f}", f"{r['solve_iterations']:.0f}"),
                *(f"{r['step'] / r['solve']:.2f}", f"{1.5 + 0.1 * r['fixed_point']:.2f}"),
            )
    console.print(table)
    if 1 in results and 2 in results:
        speed = Table(title="speed-up from 1 to 2 ranks")
        for name in ("case", "step", "product", "step / product"):
            speed.add_column(name)
        for case, one in results[1].items():
            two = results[2][case]
            a, b = one["step"] / two["step"], one["product"] / two["product"]
            speed.add_row(case, f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}")
        console.print(speed)


def main() -> None:
    """Drive the jobs, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dofs", type=float, default=66_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is None:
        report({n: run(n, arguments) for n in arguments.ranks})
        return
    measured = {case: measure(case, arguments.dofs, arguments.steps) for case in CASES}
    if MPI.COMM_WORLD.rank == 0:
        arguments.measure.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
