"""Long backward Euler steps: how they are solved, what they cost, how true their time is.

    python benchmarks/long_steps.py

First N2 x 30 (forty samples of a sine, neurons 30 tanh(az + b), σ = 0.5, d = 2) with dt = 10,
beside one call of ``minimise`` and a fine run by SDIRK2. Then one step of several lengths by the
fixed point and by Newton's method on the sphere, for the same network, a contact term and a moving
Gaussian. Times are medians of wall time on one rank.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

from fem_mf.flows.schrodinger_stage import Guess
from fem_mf.stationary.newton_cg import Anchor

COMM = MPI.COMM_WORLD
CONSOLE = Console(quiet=COMM.rank != 0, width=120)
LENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3)


def trap(kappa: float) -> mf.Potential:
    """½κ|x|²."""
    return mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2))


def network(scale: float, h: float) -> mf.Problem:
    """N2, its neurons times a factor."""
    z = np.linspace(-np.pi, np.pi, 40)
    loss = mf.NetworkLoss(z, np.sin(z), lambda x, z: scale * np.tanh(x[0] * z + x[1]))
    return mf.Problem(mf.disk(COMM, 7.0, h), trap(0.1) + loss, 0.5, 2)


PROBLEMS: dict[str, Callable[[float], mf.Problem]] = {
    "N2": lambda h: network(1.0, h),
    "N2 x 30": lambda h: network(30.0, h),
    "X1": lambda h: mf.Problem(
        mf.disk(COMM, 6.0, h), trap(1.0) + mf.MeanInteraction(2.0, [1.5, -1.0]), 0.7, 2
    ),
    "contact 1000": lambda h: mf.Problem(
        mf.disk(COMM, 9.0, h), trap(1.0) + mf.Contact(1e3), 0.7, 2
    ),
}


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall time of some work, and its last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result


def centred(problem: mf.Problem) -> mf.Density:
    """exp(−|x|²/2)."""
    return mf.Density.from_function(problem, lambda x: np.exp(-0.5 * (x[0] ** 2 + x[1] ** 2)))


def strong_coupling(h: float, repeats: int) -> None:
    """N2 x 30 to t = 40 in four steps."""
    problem = network(30.0, h)
    start = centred(problem)
    long, states = seconds(
        lambda: list(mf.SchrodingerFlow(problem, 10.0).run(start, 40.0)), repeats
    )
    minimum, best = seconds(lambda: mf.minimise(problem, start), repeats)
    fine = list(mf.SchrodingerFlow(problem, 0.02, "sdirk2").run(start, 10.0))
    CONSOLE.print(f"N2 x 30, dt = 10, {problem.space.dofmap.index_map.size_global} dofs")
    for state in states[1:]:
        CONSOLE.print(
            f"  t = {state.t:.0f}  F = {state.energy:.9f}, above the minimum by "
            f"{state.energy - best.energy:.1e}"
        )
    CONSOLE.print(f"  fine run (SDIRK2, dt = 0.02) at t = 10: {fine[-1].energy:.9f}")
    CONSOLE.print(
        f"  four steps {long:.3f} s, minimise {minimum:.3f} s: ratio {long / minimum:.2f} (≤ 4)\n"
    )


def one_step(problem: mf.Problem, length: float, repeats: int) -> list[str]:
    """A step by the fixed point and by Newton's method."""
    flow = mf.SchrodingerFlow(problem, length)
    now, stage = flow._start(centred(problem)), flow._stage
    anchor, guess = Anchor(now.value), Guess(now.psi, now.y, now.eigenvalue)
    newton, by_newton = seconds(lambda: stage.by_newton(anchor, length, now.psi), repeats)
    cells = [f"{1e3 * newton:.1f}", f"{by_newton.iterations}"]
    try:
        fixed, by_loop = seconds(lambda: stage.by_fixed_point(anchor, guess, length), repeats)
    except mf.ConvergenceError:
        return ["–", "–", *cells, "–"]
    distance = problem.discretisation.norm(by_loop.psi - by_newton.psi)
    return [f"{1e3 * fixed:.1f}", f"{by_loop.iterations}", *cells, f"{distance:.1e}"]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--h", type=float, default=0.5, help="mesh size")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.getLogger("fem_mf").setLevel(logging.ERROR)
    strong_coupling(arguments.h, arguments.repeats)
    table = Table(title="one step from exp(−|x|²/2): ms and evaluations")
    for name in (
        "problem",
        "length",
        "loop ms",
        "evaluations",
        "Newton ms",
        "steps",
        "‖difference‖",
    ):
        table.add_column(name, justify="left" if name == "problem" else "right")
    for name, make in PROBLEMS.items():
        problem = make(arguments.h)
        for length in LENGTHS:
            table.add_row(name, f"{length:g}", *one_step(problem, length, arguments.repeats))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
