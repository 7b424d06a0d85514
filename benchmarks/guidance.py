"""The tables behind docs/choosing.md: radius, degree, time step and σ against what they cost.

    python benchmarks/guidance.py                  # all of them, as Markdown
    python benchmarks/guidance.py --only steps

Errors are against exact Gaussians (X1), except those of networks, which are against the energy on
a finer mesh. Each table takes about a minute; one process, after a first one that compiles.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
from scipy.integrate import solve_ivp

COMM = MPI.COMM_SELF
Z = np.linspace(-np.pi, np.pi, 40)
# name: cell, degree, mass
ELEMENTS = {
    "triangles, degree 1, lumped": ("triangle", 1, "lumped"),
    "triangles, degree 2": ("triangle", 2, "consistent"),
    "triangles, degree 3": ("triangle", 3, "consistent"),
    "quadrilaterals, degree 2": ("quadrilateral", 2, "lumped"),
    "quadrilaterals, degree 4": ("quadrilateral", 4, "lumped"),
    "quadrilaterals, degree 6": ("quadrilateral", 6, "lumped"),
    "quadrilaterals, degree 8": ("quadrilateral", 8, "lumped"),
}
SCHEMES = ("backward-euler", "crank-nicolson", "sdirk2")

type Row = Sequence[object]


def trap(kappa: float) -> mf.Functional:
    """∫½κ|x|² dm in any dimension."""
    return mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2))


def network(kappa: float, activation: Callable[[Any], Any]) -> tuple[mf.Functional, mf.NetworkLoss]:
    """Forty samples of a sine, neurons activation(az + b) in a trap; and the loss alone."""
    loss = mf.NetworkLoss(Z, np.sin(Z), lambda x, z: activation(x[0] * z + x[1]))
    return trap(kappa) + loss, loss


def box(functional: mf.Functional, sigma: float, radius: float, h: float, name: str) -> mf.Problem:
    """A problem on a square."""
    cell, degree, mass = ELEMENTS[name]
    return mf.Problem(
        mf.box(COMM, radius, min(h, radius), cell=cell), functional, sigma, degree=degree, mass=mass
    )


def size(problem: mf.Problem) -> int:
    """Degrees of freedom."""
    return int(problem.space.dofmap.index_map.size_global)


def radii() -> Iterator[Row]:
    """Minimum energy of the trap, dσ√(κ/2), on disks of the radius for a tolerance."""
    yield ("tol", "radius · (2κ)^¼ σ^−½", "boundary mass", "natural", "ψ = 0")
    kappa, sigma = 1.0, 0.5
    exact = 2 * sigma * np.sqrt(kappa / 2)
    for tol in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        radius = mf.truncation_radius(kappa, sigma, tol)
        mesh = mf.disk(COMM, radius, radius / 8, cell="quadrilateral")
        errors = []
        for boundary in ("natural", "dirichlet"):
            problem = mf.Problem(
                mesh, trap(kappa), sigma, degree=8, mass="lumped", boundary=boundary
            )
            best = mf.minimise(problem, tol=1e-13)
            errors.append(best.energy / exact - 1)
            if boundary == "natural":
                mass = mf.boundary_mass(problem, best.density)
        scaled = radius * (2 * kappa) ** 0.25 / sigma**0.5
        yield (f"{tol:.0e}", f"{scaled:.2f}", f"{mass:.0e}", *(f"{e:+.1e}" for e in errors))


def elements() -> Iterator[Row]:
    """Errors of the minimum energy, and times, at equal numbers of degrees of freedom."""
    yield ("element", "dofs", "h", "Gaussian", "tanh", "ReLU", "minimise s", "step ms")
    kappa, sigma, radius = 1.0, 0.5, 5.0
    # Off centre, so that nothing is exact by symmetry.
    gaussian = trap(kappa) + mf.MeanInteraction(0.5, [1.0, 0.4])
    cases = {
        "Gaussian": gaussian,
        "tanh": network(kappa, np.tanh)[0],
        "ReLU": network(kappa, lambda s: np.maximum(s, 0.0))[0],
    }
    exact = {"Gaussian": 2 * sigma * np.sqrt(kappa / 2) + kappa * 0.5 * 1.16 / (2 * (kappa + 0.5))}
    for case in ("tanh", "ReLU"):
        fine = box(cases[case], sigma, radius, 0.16, "quadrilaterals, degree 6")
        exact[case] = mf.minimise(fine, tol=1e-12).energy
    for dofs in (2500, 10_000):
        for name, (cell, degree, _) in ELEMENTS.items():
            h = 2 * radius * degree / (dofs**0.5 - 1)
            h *= 1.07 if cell == "triangle" else 1.0  # unstructured: more vertices for the same h
            errors = []
            for case, functional in cases.items():
                problem = box(functional, sigma, radius, h, name)
                begin = time.perf_counter()
                best = mf.minimise(problem, tol=1e-11)
                errors.append(abs(best.energy / exact[case] - 1))
                if case == "tanh":
                    seconds, dofs_used, step = time.perf_counter() - begin, size(problem), 0.01
                    times = [time.perf_counter()]
                    for _ in mf.SchrodingerFlow(problem, step).run(best.density, 20 * step):
                        times.append(time.perf_counter())
                    milliseconds = 1e3 * np.median(np.diff(times))
            columns = (f"{e:.0e}" for e in errors)
            yield (
                name,
                f"{dofs_used:,}",
                f"{h:.2f}",
                *columns,
                f"{seconds:.2f}",
                f"{milliseconds:.1f}",
            )


def steps() -> Iterator[Row]:
    """Error of ψ at t = 1 of a moving Gaussian, by scheme and step or tolerance."""
    yield ("", *(f"{scheme}: error | steps | s" for scheme in SCHEMES))
    kappa, strength, target, sigma, theta, mu = 1.0, 0.5, 1.0, 0.5, 1.2, -0.8
    functional = trap(kappa) + mf.MeanInteraction(strength, target)
    problem = mf.Problem(mf.interval(COMM, 6.0, 0.5), functional, sigma, degree=8, mass="lumped")

    def rate(_: float, y: Any) -> list[float]:
        return [
            kappa - 0.5 * sigma**2 * y[0] ** 2,
            -(kappa * y[1] + strength * (y[1] - target)) / y[0],
        ]

    final = solve_ivp(rate, (0, 1), [theta, mu], rtol=1e-12, atol=1e-13).y[:, -1]

    def amplitude(x: Any, theta: float, mu: float) -> Any:
        return (theta / (2 * np.pi)) ** 0.25 * np.exp(-0.25 * theta * (x[0] - mu) ** 2)

    exact = amplitude(problem.discretisation.nodes, *final)[: problem.discretisation.num_owned]
    start = mf.Density.from_function(problem, lambda x: amplitude(x, theta, mu) ** 2)
    choices: list[tuple[str, dict[str, Any]]] = [
        *((f"dt = {dt:g}", {"dt": dt}) for dt in (0.2, 0.1, 0.05, 0.025, 0.0125)),
        *((f"tolerance {t:.0e}", {"dt": 0.01, "tolerance": t}) for t in (1e-3, 1e-4, 1e-5, 1e-6)),
    ]
    for label, choice in choices:
        cells = []
        for scheme in SCHEMES:
            begin = time.perf_counter()
            *_, last = mf.SchrodingerFlow(problem, scheme=scheme, **choice).run(start, 1.0)
            seconds = time.perf_counter() - begin
            error = problem.discretisation.norm(last.density.amplitude() - exact)
            cells.append(f"{error:.1e} | {last.step} | {seconds:.2f}")
        yield (label, *cells)


def sigmas() -> Iterator[Row]:
    """What a small σ asks of the mesh, and what it gives: width and loss of the minimiser."""
    yield (
        "σ",
        "trap: width",
        "h, triangles degree 2",
        "h, quadrilaterals degree 6",
        "network: width",
        "loss",
        "h, triangles degree 2",
        "h, quadrilaterals degree 6",
    )
    pair = ("triangles, degree 2", "quadrilaterals, degree 6")
    kappa = 0.2
    functional, loss = network(kappa, np.tanh)
    for sigma in (1.0, 0.5, 0.2, 0.1, 0.05):
        width = (sigma / np.sqrt(2 * kappa)) ** 0.5
        radius = mf.truncation_radius(kappa, sigma)
        exact = 2 * sigma * np.sqrt(kappa / 2)
        row = [f"{sigma:g}", f"{width:.2f}"]
        for name in pair:
            row.append(_coarsest(trap(kappa), sigma, radius, width, name, exact))
        reach = radius + 1.5  # the mean of a well is off centre
        reference = mf.minimise(box(functional, sigma, reach, 1.2 * width, pair[1]), tol=1e-11)
        spread = np.sqrt(np.linalg.eigvalsh(reference.density.covariance()))
        row += [f"{spread[0]:.2f}, {spread[1]:.2f}", f"{loss.value(reference.density):.4f}"]
        for name in pair:
            row.append(_coarsest(functional, sigma, reach, width, name, reference.energy))
        yield row


def _coarsest(
    functional: mf.Functional, sigma: float, radius: float, width: float, name: str, exact: float
) -> str:
    """The largest h whose energy, and that of the finer ones tried, is within 1e-4."""
    good = float("nan")
    cells = [2 * radius / (width * ratio) for ratio in (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)]
    for number in cells:
        h = 2 * radius / max(2, round(number))
        best = mf.minimise(box(functional, sigma, radius, h, name), tol=1e-8)
        if abs(best.energy / exact - 1) > 1e-4:
            break
        good = h
    return f"{good:.2f}"


TABLES = {"radius": radii, "elements": elements, "steps": steps, "sigma": sigmas}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE")
    mf.setup_logging(COMM, logging.ERROR)  # meshes that are too small are what some lines are about
    for name in parser.parse_args().only:
        begin = time.perf_counter()
        for number, row in enumerate(TABLES[name]()):
            # A hyphen would let a browser break the number.
            cells = " | ".join(map(str, row)).replace("e-", "e−")
            print("|", cells, "|", flush=True)
            if number == 0:
                print("|" + " --- |" * (1 + cells.count("|")))
        print(f"\n{name}: {time.perf_counter() - begin:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
