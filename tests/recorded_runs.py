"""Small series on disk and what the solver had in memory, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mpi4py import MPI

import numpy as np
from dolfinx import fem

import fem_mf as mf

TIMES = (0.0, 0.1, 1.0 / 3.0)


@dataclass
class Run:
    """A folder, and for each step the range of each field at the nodes of the series."""

    folder: Path
    ranges: list[dict[str, tuple[float, float]]] = field(default_factory=list)


def write_run(folder: Path, d: int, comm: MPI.Comm = MPI.COMM_SELF) -> Run:
    """Write a Gaussian that moves: series.xdmf (of degree 2) and history.csv."""
    mesh = {
        1: lambda: mf.interval(comm, 3.0, 0.5),
        2: lambda: mf.box(comm, 3.0, 0.75, dim=2, cell="triangle"),
        3: lambda: mf.box(comm, 3.0, 1.5, dim=3, cell="hexahedron"),
    }[d]()
    functional = mf.Potential(lambda x: x[0] + 0.5 * np.sum(x**2, axis=0))
    problem = mf.Problem(mesh, functional, sigma=0.5, degree=2)
    run = Run(folder)
    about = {"command": "python 'a b.py' --σ \"1\" <x> & #\n-v", "problem": '{"sigma": 0.5}'}
    comments = [f"{name}: {text}" for name, text in about.items()]
    with (
        mf.XDMFSeries(folder / "series.xdmf", problem, information=about) as xdmf,
        mf.History(folder / "history.csv", comm, comments=comments) as history,
    ):
        for step, t in enumerate(TIMES):
            density = mf.Density.from_function(problem, lambda x, t=t: gaussian(x, t))
            xdmf.write(t, density)
            history.append({"t": t, "step": step, "energy": 1.0 - t, "linear_iterations": step})
            potential = fem.Function(problem.space)
            potential.interpolate(functional.derivative(density))
            v = potential.x.array
            run.ranges.append(_ranges(density.psi.x.array) | {"V": (v.min(), v.max())})
    return run


def gaussian(x: np.ndarray, t: float) -> np.ndarray:
    """ψ, not normalised, whose middle is at x₁ = −1 + 6t."""
    return np.exp(-0.5 * ((x[0] + 1.0 - 6.0 * t) ** 2 + np.sum(x[1:] ** 2, axis=0)))


def _ranges(psi: np.ndarray) -> dict[str, tuple[float, float]]:
    m, u = psi**2, -2.0 * np.log(np.maximum(np.abs(psi), np.finfo(float).tiny))
    return {"psi": (psi.min(), psi.max()), "m": (m.min(), m.max()), "u": (u.min(), u.max())}
