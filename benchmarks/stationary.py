"""The certified minimiser: time, accuracy and iterations, beside two other codes.

    python benchmarks/stationary.py                     # everything but the largest sizes
    python benchmarks/stationary.py --only size --dofs 1e4 1e5 1e6

The problem is the tanh network: K = 40 samples of sin on [−π, π], κ = 0.2, σ = 0.5 in d = 2, neuron
c·tanh(az + b) and κ = 0.5 in d = 3. Every line is a process of its own, after one that compiles its
forms. "work" is the time of ``minimise`` in products with the matrix of H[m], measured in the same
process; errors are against the energy of the same box at a degree higher by two. The baselines
(``baselines/``) need scikit-fem: ``pip install ".[bench]"``. Times on a noisy machine mean little;
ratios and counts are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
from rich.console import Console
from rich.table import Table

from fem_mf.doctor import mpi_launcher

HERE = Path(__file__).resolve().parent
CONSOLE = Console(width=160)
Z = np.linspace(-np.pi, np.pi, 40)
RADIUS = {2: 6.0, 3: 5.5}
# name: dimension, cell, degree, mass
SPACES = {
    "degree 2, triangles": (2, "triangle", 2, "consistent"),
    "degree 4, quadrilaterals": (2, "quadrilateral", 4, "lumped"),
    "degree 6, quadrilaterals": (2, "quadrilateral", 6, "lumped"),
    "degree 8, quadrilaterals": (2, "quadrilateral", 8, "lumped"),
    "degree 2, tetrahedra": (3, "tetrahedron", 2, "consistent"),
    "degree 4, hexahedra": (3, "hexahedron", 4, "lumped"),
    "degree 6, hexahedra": (3, "hexahedron", 6, "lumped"),
}


def functional(dim: int) -> mf.Functional:
    """Trap plus network loss."""
    if dim == 2:
        neuron, kappa = (lambda x, z: np.tanh(x[0] * z + x[1])), 0.2
    else:
        neuron, kappa = (lambda x, z: x[2] * np.tanh(x[0] * z + x[1])), 0.5
    trap = mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2))
    return trap + mf.NetworkLoss(Z, np.sin(Z), neuron)


def build(case: dict[str, Any]) -> mf.Problem:
    """The problem of a case."""
    if "beta" in case:
        return bose_gas(case["beta"])
    dim, cell, degree, mass = SPACES[case["space"]]
    degree += case.get("more", 0)
    per_axis = case["dofs"] ** (1 / dim) - 1
    h = 2 * RADIUS[dim] * degree / per_axis
    # Unstructured simplices have more vertices than a grid of the same h.
    h *= {"triangle": 1.07, "tetrahedron": 1.15}.get(cell, 1.0)
    mesh = mf.box(MPI.COMM_WORLD, RADIUS[dim], h, dim=dim, cell=cell)
    begin = time.perf_counter()
    problem = mf.Problem(mesh, functional(dim), case["sigma"], degree=degree, mass=mass)
    mf.energy(
        problem, mf.Density(problem, np.ones(problem.discretisation.num_owned))
    )  # evaluates the neurons
    problem.setup_seconds = time.perf_counter() - begin
    return problem


def bose_gas(beta: float) -> mf.Problem:
    """A contact term in a harmonic trap, σ² = ½, on a box five lengths wider than the cloud."""
    radius = 5.0 + (4.0 * beta / np.pi) ** 0.25
    mesh = mf.box(MPI.COMM_WORLD, radius, radius / 10, cell="quadrilateral")
    trap = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
    problem = mf.Problem(mesh, trap + mf.Contact(beta), np.sqrt(0.5), degree=6, mass="lumped")
    problem.setup_seconds = 0.0
    return problem


def starting(problem: mf.Problem, name: str | None) -> mf.Density | None:
    """A bad start: constant, or a narrow Gaussian halfway to the boundary."""
    if name is None:
        return None
    if name == "uniform":
        return mf.Density(problem, np.ones(problem.discretisation.num_owned))
    radius = float(np.abs(problem.mesh.geometry.x).max())
    radius = problem.comm.allreduce(radius, op=MPI.MAX)
    return mf.Density.from_function(
        problem,
        lambda x: np.exp(-((x[0] - radius / 2) ** 2 + (x[1] - radius / 3) ** 2) / 0.2),
    )


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Minimise one case on this communicator."""
    problem = build(case)
    start = starting(problem, case.get("start"))
    begin = time.perf_counter()
    best = mf.minimise(
        problem, start, tol=case.get("tol", 1e-10), residual_tol=case.get("residual")
    )
    seconds = time.perf_counter() - begin
    x, y = problem.stiffness.createVecs()
    repeats = 50
    begin = time.perf_counter()
    for _ in range(repeats):
        problem.stiffness.mult(x, y)
    product = (time.perf_counter() - begin) / repeats
    return {
        "dofs": problem.space.dofmap.index_map.size_global,
        "setup": problem.setup_seconds,
        "seconds": seconds,
        "work": seconds / product,
        "energy": best.energy,
        "gap": best.gap,
        "residual": best.residual,
        "steps": best.iterations,
        "products": best.linear_iterations,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run(ranks: int = 1, **case: Any) -> dict[str, Any]:
    """Measure a case in a job of its own, its forms compiled before."""
    case = {"sigma": 0.5, **case}
    small = {**case, "dofs": 600 if SPACES[case["space"]][0] == 2 else 3000, "tol": 1.0}
    _job(1, small)
    return _job(ranks, case)


def _job(ranks: int, case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        _call(
            *(str(mpi_launcher()), "-n", str(ranks), sys.executable, __file__),
            *("--case", json.dumps(case), "--result", str(result)),
        )
        return json.loads(result.read_text())  # type: ignore[no-any-return]


def _call(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}")
    return done.stdout


def reference(dim: int) -> float:
    """The energy on the box at a degree higher by two than any in the tables."""
    if dim == 2:
        return float(run(space="degree 8, quadrilaterals", more=0, dofs=25_000)["energy"])
    return float(run(space="degree 6, hexahedra", more=2, dofs=200_000)["energy"])


def show(title: str, lines: list[dict[str, Any]]) -> None:
    """Print a table."""
    formats = {
        **dict.fromkeys(("dofs", "work", "memory"), ",.0f"),
        **dict.fromkeys(("setup", "seconds"), ".2f"),
        **dict.fromkeys(("error", "gap", "residual"), ".1e"),
    }
    table = Table(title=title, title_justify="left")
    for name in lines[0]:
        table.add_column(name, justify="left" if name == "case" else "right")
    for line in lines:
        table.add_row(*(format(v, formats.get(k, "")) for k, v in line.items()))
    CONSOLE.print(table)


def line(case: str, found: dict[str, Any], exact: float | None = None) -> dict[str, Any]:
    """A row of a table."""
    row = {"case": case, **found}
    energy = row.pop("energy")
    if exact is not None:
        row["error"] = energy - exact
    return row


def accuracy() -> None:
    """Time and error in d = 2 beside the other codes."""
    exact = reference(2)
    lines = [
        line(f"{space}, {dofs:g}", run(space=space, dofs=dofs, residual=1e-10), exact)
        for space, dofs in (
            *(("degree 8, quadrilaterals", 4_225), ("degree 6, quadrilaterals", 8_281)),
            *(("degree 4, quadrilaterals", 66_000), ("degree 2, triangles", 66_000)),
        )
    ]
    show(
        "d = 2, residual 1e-10; setup: spaces, operators, neurons at the nodes; memory in MB", lines
    )
    rows = []
    for script in ("scikit_fem", "plain_dolfinx"):
        command = (sys.executable, str(HERE / "baselines" / f"{script}.py"))
        _call(*command, "1000")  # compiles
        found = json.loads(_call(*command, "66000"))
        setup = found.get("setup", 0.0)
        rows.append(
            {
                "case": f"{script}, degree 2, triangles",
                "dofs": found["dofs"],
                "setup": setup,
                "seconds": found["seconds"] - setup,
                "steps": found["steps"],
                "error": found["energy"] - exact,
            }
        )
    show("the same with other codes (plain_dolfinx stops when the energy changes by 1e-11)", rows)


def three_dimensions() -> None:
    """Time, error and memory in d = 3."""
    exact = reference(3)
    lines = [
        line(f"{space}, {dofs:g}", run(space=space, dofs=dofs, residual=1e-6), exact)
        for space, dofs in (
            *(("degree 6, hexahedra", 50_653), ("degree 6, hexahedra", 117_649)),
            *(("degree 4, hexahedra", 185_193), ("degree 2, tetrahedra", 185_000)),
        )
    ]
    show("d = 3, residual 1e-6; memory in MB", lines)


def sizes(dofs: list[float]) -> None:
    """Iterations against the size, from the coarse box and from a uniform density."""
    for space in ("degree 2, triangles", "degree 4, hexahedra"):
        lines = []
        for n in dofs:
            lines.append(line(f"{n:.0e}, from the coarse box", run(space=space, dofs=n)))
            lines.append(line(f"{n:.0e}, from uniform", run(space=space, dofs=n, start="uniform")))
        show(f"{space}: iterations against size", lines)


def ranks() -> None:
    """Iterations against the number of ranks."""
    for space in ("degree 2, triangles", "degree 4, hexahedra"):
        lines = [
            line(f"{n} ranks", run(n, space=space, dofs=66_000, start="uniform")) for n in (1, 2, 4)
        ]
        show(f"{space}, from uniform: iterations against ranks", lines)


def sigmas() -> None:
    """Iterations against σ and against the strength of a contact term, from bad starts."""
    for start in ("uniform", "narrow"):
        space = {"space": "degree 6, quadrilaterals", "dofs": 20_000, "start": start}
        lines = [line(f"sigma = {s}", run(**space, sigma=s)) for s in (1.0, 0.5, 0.2, 0.1, 0.05)]
        lines += [line(f"contact, beta = {b:g}", run(**space, beta=b)) for b in (1.0, 1e2, 1e4)]
        show(f"degree 6, quadrilaterals, start {start}: iterations against sigma and beta", lines)


def main() -> None:
    """Drive the jobs, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("accuracy", "three", "size", "ranks", "sigma")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--dofs", type=float, nargs="+", default=[1e4, 1e5])
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        found = measure(arguments.case)
        if MPI.COMM_WORLD.rank == 0:
            arguments.result.write_text(json.dumps(found))
        return
    chosen = {
        "accuracy": accuracy,
        "three": three_dimensions,
        "size": lambda: sizes(arguments.dofs),
        "ranks": ranks,
        "sigma": sigmas,
    }
    for name in arguments.only:
        chosen[name]()


if __name__ == "__main__":
    main()
