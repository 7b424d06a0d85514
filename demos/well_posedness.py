"""Numerical check of the contraction argument, and the step bound of an explicit scheme (d = 1).

The contraction argument freezes the trajectory of m on [0, T], solves (W2) for w̄ with G(m_t, ·),
and obtains a new m. For small T the map w ↦ w̄ contracts sup_t‖∇w − ∇w'‖∞ by a factor ∝ T.
The explicit descent m_{k+1} ∝ m_k exp(−h δF^σ/δm(m_k, ·)) lowers the energy only for h below a
bound proportional to the square of the mesh size; minimising movements (J1) have no such bound.

    mpirun -n 2 python demos/well_posedness.py --sigma 0.6
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure

import fem_mf as mf
from common import say, study
from fem_mf.observables import Regularity

type Sweep = tuple[list[mf.Density], float]  # m_t, and sup_t‖∇w̄ − ∇w‖∞


def contraction(
    G: Any, v: Any, start: mf.Density, T: float, steps: int = 4, sweeps: int = 3
) -> list[Sweep]:
    """Iterate the map on [0, T], starting from w_t = w_0; v is stationary."""
    problem = start.problem
    operator, bounds = mf.HJBOperator(problem, v), Regularity(problem)
    own, first = problem.discretisation.num_owned, problem.discretisation.new_amplitude()
    found = []
    first.x.array[:] = start.u().x.array - v.x.array
    path, densities = [first] * steps, [start] * steps
    for _ in range(sweeps):
        before, path, w = path, [], first
        for density in densities:
            w = operator.step(w, G.derivative(density), T / steps)
            path.append(w)
        pairs = zip(path, before, strict=True)
        moved = [new.x.array[:own] - old.x.array[:own] for new, old in pairs]
        densities = [mf.LogDensity(problem, v.x.array[:own] + w.x.array[:own]) for w in path]
        found.append((densities, max(bounds.gradient(change) for change in moved)))
    return found


def explicit_descent(
    problem: mf.Problem, density: mf.Density, h: float, steps: int
) -> Iterator[mf.Density]:
    """The densities m_{k+1} ∝ m_k exp(−h δF^σ/δm(m_k, ·)), beginning with the start."""
    operator = mf.HJBOperator(problem)
    yield density
    for _ in range(steps):
        u = density.u()
        u.x.array[:] += h * operator.rate(u, problem.functional.derivative(density)).x.array
        yield (density := mf.Density.from_log(problem, u))  # ValueError after a blow-up


def main(
    sigma: float = 0.6,  # σ, the strength of the Fisher information
    kappa: float = 0.6,  # κ, the curvature of the confining potential
    h: float = 0.25,  # mesh size
    output: str = "results/well_posedness",  # folder of contraction.png
) -> tuple[list[float], list[float], float]:
    """Return the lengths T, the contraction factors, and the bound on the explicit step."""
    comm, z = MPI.COMM_WORLD, np.linspace(-2.0, 2.0, 10)
    G = mf.NetworkLoss(z, np.sin(2 * z), lambda x, z: np.tanh(x[0] * z))
    F = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2) + G
    problem = mf.Problem(mf.interval(comm, 5.0, h), F, sigma, degree=2)
    start = mf.Density.from_log(problem, lambda x: (x[0] - 0.8) ** 2)
    v = problem.discretisation.new_amplitude()
    v.interpolate(lambda x: np.sqrt(2 * kappa) / sigma * 0.5 * x[0] ** 2)  # stationary (W1)

    lengths = [0.02 * 2.0**k for k in range(9)]
    runs = (contraction(G, v, start, length)[-2:] for length in lengths)
    factors = [last / before for (_, before), (_, last) in runs]
    bound = mf.HJBOperator(problem).longest_explicit_step(start.u())
    first, *_, last = explicit_descent(problem, start, 0.9 * bound, 60)
    fall = mf.energy(problem, first) - mf.energy(problem, last)
    if comm.rank == 0:
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.loglog(lengths, factors, "o-", label="measured")
        axes.loglog(lengths, factors[0] / lengths[0] * np.array(lengths), "k--", label="∝ T")
        axes.set(xlabel="T", ylabel="factor of w ↦ w̄")
        axes.legend()
        Path(output).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(output) / "contraction.png", dpi=150)
    say(f"w ↦ w̄ contracts by {factors[0]:.4f} at T = {lengths[0]}, and ∝ T at first")
    say(f"explicit steps descend for h < {bound:.2e}: F falls by {fall:.4f} in 60 of them")
    return lengths, factors, bound


if __name__ == "__main__":
    study(main)
