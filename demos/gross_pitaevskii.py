"""Ground states of the Gross–Pitaevskii equation against published tables.

With σ² = ½ the regularised energy is the usual one of a Bose gas in a trap,
E = ∫ ½|∇ψ|² + Vψ² + (β/2)ψ⁴, its minimiser the ground state and λ the chemical potential μ (X6).
Each case is solved from the solution of the case before it, on a box of collocated quadrilaterals
of high degree, then on one of half the cell size: the change is the error estimate that is printed.
Beside it: the published value, the certificate and the virial identity 2K − 2P + d I₄ = 0.

    python demos/gross_pitaevskii.py
    mpirun -n 2 python demos/gross_pitaevskii.py --cells 8 --output results/gp

Published: d = 1, β = 400: Bao, Chern, Lim 2006; d = 2: Muruganandam, Adhikari 2009; with walls,
½F^σ for V = σ = β = 1 and ψ = 0 around (−8, 8)²: Gallistl, Hauck, Liang, Peterseim,
arXiv:2402.06311.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi4py import MPI

import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

import fem_mf as mf
from common import CONSOLE, parse
from fem_mf.mpi import on_root
from fem_mf.typing import Array

PUBLISHED = {  # β: μ, E where the source has it
    1: {400.0: (35.5775, 21.3601)},
    2: {
        3.1371: (1.42005, np.nan),
        12.5484: (2.25583, np.nan),
        62.742: (4.60982, np.nan),
        313.71: (10.06825, np.nan),
        627.42: (14.18922, np.nan),
    },
}
WALL = 0.5407229817
"""½F^σ of the case with walls."""
FORMATS = {
    **dict.fromkeys(("E", "mu", "F/2"), ".11f"),
    **dict.fromkeys(("E published", "mu published", "F/2 published"), ".10g"),
    **dict.fromkeys(("beta", "steps"), "g"),
}
VALUES = ("beta", "E", "E change", "E published", "mu", "mu change")
CHECKS = ("beta", "mu published", "difference", "virial", "gap", "residual", "steps")

type Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GroundState:
    """A ground state and its checks.

    Attributes:
        minimum: the minimiser with its certificate.
        energy_change: of F^σ from the coarser mesh.
        eigenvalue_change: of λ.
        virial: 2K − 2P + d I₄, zero for the exact ground state in a harmonic trap.
    """

    minimum: mf.Minimum
    energy_change: float
    eigenvalue_change: float
    virial: float


def trap(x: Array) -> Array:
    """½|x|²."""
    return np.asarray(0.5 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2))


def thomas_fermi_radius(beta: float, dim: int) -> float:
    """Where the cloud ends when the kinetic energy is neglected: μ = R²/2 and mass one."""
    unit_ball = {1: 2.0, 2: np.pi, 3: 4.0 * np.pi / 3.0}[dim]
    return float((beta * (dim + 2) / unit_ball) ** (1.0 / (dim + 2)))


def solve(
    beta: float, dim: int, cells: int, degree: int, start: mf.Density | None, tol: float
) -> GroundState:
    """The ground state on ``cells`` cells an axis, with errors from half as many. Collective."""
    potential, contact = mf.Potential(trap), mf.Contact(beta)
    radius = thomas_fermi_radius(beta, dim) + 5.0  # ψ ~ exp(−|x|²/2) outside the cloud
    results = []
    for n in (cells, 2 * cells):
        mesh = (
            mf.interval(MPI.COMM_WORLD, radius, 2.0 * radius / n)
            if dim == 1
            else mf.box(MPI.COMM_WORLD, radius, 2.0 * radius / n, cell="quadrilateral")
        )
        problem = mf.Problem(mesh, potential + contact, np.sqrt(0.5), degree=degree, mass="lumped")
        # |ψ| on the coarser mesh need not reach what the finer one does.
        results.append(mf.minimise(problem, start, tol=tol if n > cells else max(tol, 1e-8)))
        start = results[-1].density
    coarse, fine = results
    kinetic = 0.125 * fine.density.fisher_information()
    virial = 2.0 * kinetic - 2.0 * potential.value(fine.density)
    return GroundState(
        minimum=fine,
        energy_change=abs(fine.energy - coarse.energy),
        eigenvalue_change=abs(fine.eigenvalue - coarse.eigenvalue),
        virial=virial + dim * contact.value(fine.density),
    )


def solve_walls(cells: int, degree: int, tol: float) -> mf.Minimum:
    """σ = V = β = 1 on (−8, 8)² with ψ = 0 on the boundary. Collective."""
    mesh = mf.box(MPI.COMM_WORLD, 8.0, 16.0 / cells, cell="quadrilateral")
    functional = mf.Potential(lambda x: np.ones_like(x[0])) + mf.Contact(1.0)
    problem = mf.Problem(mesh, functional, 1.0, degree=degree, boundary="dirichlet", mass="lumped")
    return mf.minimise(problem, tol=tol)


def row(beta: float, state: GroundState, published: tuple[float, float]) -> Row:
    """One line of the table."""
    best, (mu, energy) = state.minimum, published
    return {
        "beta": beta,
        "E": best.energy,
        "E change": state.energy_change,
        "E published": energy,
        "mu": best.eigenvalue,
        "mu change": state.eigenvalue_change,
        "mu published": mu,
        "difference": best.eigenvalue - mu,
        "virial": state.virial,
        "gap": best.gap,
        "residual": best.residual,
        "steps": best.iterations,
    }


def show(title: str, rows: list[Row], names: Sequence[str]) -> None:
    """Print some columns of a table on rank 0."""
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for line in rows:
        table.add_row(*(_cell(name, line[name]) for name in names))
    CONSOLE.print(table)


def _cell(name: str, value: float) -> str:
    return "" if np.isnan(value) else format(value, FORMATS.get(name, ".1e"))


def write(path: Path, rows: list[Row]) -> None:
    """The table as CSV; called on rank 0."""
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, fieldnames=list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)


def draw(path: Path, states: dict[float, GroundState], dim: int) -> None:
    """Sections of the densities through the centre, over their Thomas–Fermi limits. Collective."""
    sections = {}
    for beta, state in states.items():
        radius = thomas_fermi_radius(beta, dim)
        x = np.linspace(0.0, radius + 3.0, 400)
        points = np.zeros((x.size, dim))
        points[:, 0] = x
        limit = np.maximum(0.5 * (radius**2 - x**2), 0.0) / beta
        sections[beta] = x, state.minimum.density.evaluate(points), limit

    def paint() -> None:
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for beta, (x, m, limit) in sections.items():
            (line,) = axes.plot(x, m, label=f"β = {beta:g}")
            axes.plot(x, limit, ":", color=line.get_color(), linewidth=1.0)
        axes.set(xlabel="|x|", ylabel="m", title=f"ground states, d = {dim}; dotted: Thomas–Fermi")
        axes.legend()
        figure.savefig(path, dpi=150)
        plt.close(figure)

    on_root(MPI.COMM_WORLD, paint)


HELP = {
    "dim": "1 or 2",
    "beta": "strengths β of the contact term (default: the published ones)",
    "degree": "of ψ",
    "cells": "per axis of the coarser mesh",
    "tol": "of the gap",
    "walls": "also solve the case with walls",
    "output": "folder of the results",
}


def main(
    dim: Literal[1, 2] = 2,
    beta: tuple[float, ...] | None = None,
    degree: int = 8,
    cells: int = 16,
    tol: float = 1e-12,
    walls: bool = True,
    output: str = "results/gross_pitaevskii",
) -> dict[str, list[Row]]:
    """Solve, compare with the tables, write and draw. Collective.

    The keywords are the options of the command line (``HELP``).

    Returns:
        "trap": one row per β; "walls": one row, unless left out.
    """
    folder, published, unknown = Path(output), PUBLISHED[dim], (np.nan, np.nan)
    states: dict[float, GroundState] = {}
    start = None
    for strength in sorted(beta or published):
        states[strength] = solve(strength, dim, cells, degree, start, tol)
        best = states[strength].minimum
        CONSOLE.print(f"β = {strength:g}: {best}, {best.iterations} Newton steps")
        start = best.density
    rows = [row(b, state, published.get(b, unknown)) for b, state in states.items()]
    results = {"trap": rows}
    show(f"ground states in the trap, d = {dim}, degree {degree}", rows, VALUES)
    show("against the tables, and the checks", rows, CHECKS)
    if walls:
        coarse, fine = (0.5 * solve_walls(n, degree, tol).energy for n in (cells, 2 * cells))
        line = {"F/2": fine, "change": abs(fine - coarse), "F/2 published": WALL}
        results["walls"] = [{**line, "difference": fine - WALL}]
        show("ground state between walls", results["walls"], list(results["walls"][0]))
    density = states[max(states)].minimum.density
    with mf.XDMFSeries(folder / "fields.xdmf", density.problem) as series:
        series.write(0.0, density)
    on_root(MPI.COMM_WORLD, lambda: write(folder / "table.csv", rows))
    draw(folder / "densities.png", states, dim)
    CONSOLE.print(f"results in {folder}", soft_wrap=True)
    return results


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main, __doc__, HELP))
