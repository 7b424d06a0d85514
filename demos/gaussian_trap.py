"""The moving Gaussian (X1): a computed flow compared with its exact solution.

Minimise over probability densities m on R² the functional (E1) of a trap and a mean interaction,

    F^σ(m) = ½κ ∫|x|² dm + (λ_c/2) |∫x dm − a|² + (σ²/4) ∫|∇log m|² dm,

by its gradient flow, the mean-field Schrödinger equation of ψ = √m (D2),

    ∂_tψ = (σ²/2) Δψ − ½ (V[m_t] − λ_t) ψ,   V[m](x) = ½κ|x|² + λ_c (∫x dm − a)·x.

A Gaussian stays Gaussian: m_t = N(μ_t, θ_t⁻¹ Id), θ' = κ − (σ²/2)θ², θμ' = −κμ − λ_c(μ − a).
The plane is truncated to a disk with ∂ψ/∂n = 0 on its boundary, where m is negligible.

    mpirun -n 2 python demos/gaussian_trap.py --sigma 0.6 --scheme crank-nicolson
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure

import fem_mf as mf
from common import say, study

KAPPA, STRENGTH, TARGET = 1.0, 2.0, np.array([1.5, -1.0])  # κ, λ_c and a
MEAN, PRECISION = np.array([-1.5, 1.0]), 2.5  # μ_0 and θ_0


def exact(t: float, sigma: float) -> tuple[Any, float]:
    """μ_t and θ_t in closed form."""
    limit, rate = np.sqrt(2.0 * KAPPA) / sigma, sigma * np.sqrt(0.5 * KAPPA)
    growth = np.cosh(rate * t) + limit / PRECISION * np.sinh(rate * t)
    theta = limit * growth / (np.sinh(rate * t) + limit / PRECISION * np.cosh(rate * t))
    centre = STRENGTH * TARGET / (KAPPA + STRENGTH)
    return centre + (MEAN - centre) * growth ** (-(KAPPA + STRENGTH) / KAPPA), theta


def gaussian(x: Any, mean: Any, theta: float) -> Any:
    """The density of N(μ, θ⁻¹ Id)."""
    squared = (x[0] - mean[0]) ** 2 + (x[1] - mean[1]) ** 2
    return theta / (2.0 * np.pi) * np.exp(-0.5 * theta * squared)


def main(
    sigma: float = 0.7,  # σ, the strength of the Fisher information
    t_end: float = 2.0,  # final time
    dt: float = 0.05,  # time step; steps longer than about 0.1 do not resolve the flow
    scheme: Literal["backward-euler", "crank-nicolson", "sdirk2"] = "sdirk2",  # time stepping
    h: float = 0.4,  # mesh size
    output: str = "results/gaussian_trap",  # folder of trap.png
) -> dict[str, float]:
    """Compute the flow; return the largest errors over the run (for ψ in L²)."""
    comm = MPI.COMM_WORLD
    mesh = mf.disk(comm, mf.truncation_radius(KAPPA, sigma, tol=1e-8, dim=2, offset=1.8), h)
    trap = mf.Potential(lambda x: 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2))
    problem = mf.Problem(mesh, trap + mf.MeanInteraction(STRENGTH, TARGET), sigma, degree=2)
    start = mf.Density.from_function(problem, partial(gaussian, mean=MEAN, theta=PRECISION))
    states = mf.SchrodingerFlow(problem, dt, scheme).run(start, t_end)

    grid = np.meshgrid(np.linspace(-3.6, 3.2, 137), np.linspace(-2.7, 3.0, 115))
    errors, pictures = list[Any](), list[tuple[float, Any, Any]]()
    for state in mf.progress(states, t_end, comm):
        m, (mean, theta) = state.density, exact(state.t, sigma)
        true = mf.Density.from_function(problem, partial(gaussian, mean=mean, theta=theta))
        energy = KAPPA / theta + 0.5 * sigma**2 * theta + 0.5 * KAPPA * mean @ mean
        energy += 0.5 * STRENGTH * np.sum((mean - TARGET) ** 2)
        psi_error = problem.discretisation.norm(m.amplitude() - true.amplitude())
        precision_error = abs(2.0 / np.trace(m.covariance()) - theta)
        mean_error = np.linalg.norm(m.mean() - mean)
        errors.append((psi_error, mean_error, precision_error, abs(state.energy - energy)))
        if state.t >= t_end * (0.0, 0.08, 0.25, 1.0)[len(pictures)] - 1e-9:
            computed = m.evaluate(np.reshape(grid, (2, -1)).T).reshape(grid[0].shape)
            pictures.append((state.t, computed, gaussian(grid, mean, theta)))
    worst = np.max(errors, axis=0)
    names = ("psi", "mean", "precision", "energy")
    say("largest errors: ψ {:.1e}, mean {:.1e}, precision {:.1e}, energy {:.1e}".format(*worst))

    if comm.rank == 0:
        figure = Figure(figsize=(11.0, 2.9), layout="constrained", dpi=120)
        figure.suptitle("colours: computed    lines: exact")
        for axes, picture in zip(figure.subplots(1, len(pictures)), pictures, strict=True):
            t, computed, solution = picture
            levels = solution.max() * np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.95, 1.1])
            axes.contourf(*grid, computed, levels, cmap="Blues")
            axes.contour(*grid, solution, levels, colors="black", linewidths=0.7)
            axes.set(xlabel="x₁", ylabel="x₂", aspect="equal", title=f"t = {t:.3g}")
        Path(output).mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{output}/trap.png")
    return dict(zip(names, worst, strict=True))


if __name__ == "__main__":
    study(main)
