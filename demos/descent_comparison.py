"""Several descents for one network from one start, and their asymptotic rate.

A network with infinitely many neurons tanh(az + b) learns a sine by minimising (E1)

    F^σ(m) = (1/K) Σ_j (y_j − ∫N(z_j; ·) dm)² + ½κ ∫|x|² dm + (σ²/4) ∫|∇log m|² dm

- by the Schrödinger flow of ψ = √m (D2),
- by the Hamilton–Jacobi–Bellman flow of u = −log m (D3), the same curve in another variable,
- by descents in relative entropy, m_{k+1} = argmin h⁻¹ H(m|m_k) + F^σ(m) (J1), near it for small h,
- and by mean-field Langevin dynamics (L1), which descend F + (σ²/2) ∫m log m dm instead.

The first three decay as e^{−rt}, where r comes from the linearised flow (D5). The rate of the
Schrödinger flow is measured at the end of the run, relative to the certified minimum (C1).

    mpirun -n 2 python demos/descent_comparison.py --steps 0.5 5
"""

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure

import fem_mf as mf
from common import say, study


def main(
    sigma: float = 0.5,  # σ, the strength of the Fisher information
    kappa: float = 0.2,  # κ of the confinement ½κ|x|²
    t_end: float = 30.0,  # final time
    dt: float = 0.1,  # time step
    steps: tuple[float, ...] = (0.5, 2.0),  # h of the descents in relative entropy
    h: float = 0.6,  # mesh size; half of it for Langevin dynamics
    output: str = "results/descent_comparison",  # folder of energies.png
) -> dict[str, Any]:
    """Run all descents; return energies above the minimum, predicted and measured rate."""
    comm = MPI.COMM_WORLD
    z = np.linspace(-np.pi, np.pi, 40)
    trap = mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2))
    F = trap + mf.NetworkLoss(z, np.sin(z), neuron=lambda x, z: np.tanh(x[0] * z + x[1]))
    problem = mf.Problem(mf.box(comm, 6.0, h), F, sigma, degree=2)
    linear = mf.Problem(mf.box(comm, 6.0, 0.5 * h), F, sigma, degree=1, mass="lumped")

    def u0(x: Any) -> Any:
        return 0.6 * ((x[0] - 1.0) ** 2 + (x[1] + 0.5) ** 2)

    start = mf.LogDensity.from_function(problem, u0)
    psi = mf.Density(problem, start.amplitude())
    gaussian = mf.Density.from_function(linear, lambda x: np.exp(-u0(x)))
    descents: dict[str, Any] = {
        "Schrödinger": mf.SchrodingerFlow(problem, dt, "sdirk2").run(psi, t_end),
        "HJB": mf.HJBFlow(problem, dt, "sdirk2").run(start, t_end),
        "Langevin": mf.LangevinFlow(linear, dt).run(gaussian, t_end),
    }
    for step in steps:
        flow = mf.RelativeEntropyDescent(problem, step)
        descents[f"relative entropy, h = {step:g}"] = flow.run(start, t_end)
    limit, entropic = mf.Limit.of(mf.minimise(problem)), mf.minimise_entropic(linear)
    # In terms of u the discrete minimum is a different one; long steps converge to it.
    run = mf.RelativeEntropyDescent(problem, 1e3).run(start, 5e3)
    *_, end = mf.progress(run, 5e3, comm, "minimum of the HJB form")
    minima = {"Schrödinger": limit.minimum, "Langevin": entropic.energy}
    curves: dict[str, tuple[Any, Any]] = {}
    for name, descent in descents.items():
        states = list(mf.progress(descent, t_end, comm, name))
        t = np.array([state.t for state in states])
        energy = np.array([state.energy for state in states])
        curves[name] = t, energy - minima.get(name, end.energy)
    t, excess = curves["Schrödinger"]
    decay = mf.measure_decay(t, excess + limit.minimum, limit)
    rate = limit.decay_rate or float("nan")
    say(f"Schrödinger: {decay}")
    say(f"predicted: e^(−{rate:.4f} t) as t → ∞")
    if comm.rank == 0:
        figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=120)
        axes = figure.subplots()
        axes.semilogy(t, excess[0] * np.exp(-rate * t), "k--", label="predicted rate")
        for name, (t, excess) in curves.items():
            # The minima in u and ψ differ by the error in space; below a hundredth of this
            # difference the curves of u bend.
            floor = 1e-9 if name in minima else 0.01 * abs(end.energy - limit.minimum)
            axes.semilogy(t[excess > floor], excess[excess > floor], label=name)
        axes.set(xlabel="t", ylabel="energy − its minimum")
        axes.legend(frameon=False)
        Path(output).mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{output}/energies.png")
    return {"curves": curves, "rate": rate, "decay": decay}


if __name__ == "__main__":
    study(main)
