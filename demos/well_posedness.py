"""Why the flow is well posed, and why an explicit step is not: two experiments in d = 1.

1. *The contraction.* Freeze the trajectory of m on [0, T], solve (W2) for w̄ with the potential
   G(m_t, ·), read off the new m. The map w ↦ m ↦ w̄ contracts sup_t‖∇w − ∇w'‖∞ for small T, by a
   factor proportional to T.
2. *The explicit descent* m_{k+1} ∝ m_k exp(−h δF^σ/δm(m_k, ·)) lowers the energy only for h below a
   bound that shrinks with the square of the mesh size; minimising movements (J1) have no bound.

    mpirun -n 2 python demos/well_posedness.py --sigma 0.6
"""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np

import fem_mf as mf
from common import parse
from fem_mf.observables import Regularity


def contraction(problem, G, v, start, length, steps=4, sweeps=3):
    """Sweeps of the map on [0, length], from w_t = w_0, with v_t = v stationary: the densities of
    each and its distance sup_t‖∇w̄ − ∇w‖∞ from the one before.
    """
    operator, bounds = mf.HJBOperator(problem, v), Regularity(problem)
    first = problem.new_amplitude()
    first.x.array[:] = start.u().x.array - v.x.array
    path, densities, found = [first] * steps, [start] * steps, []
    for _ in range(sweeps):
        before, path, w = path, [], first
        for density in densities:
            w = operator.step(w, G.derivative(density), length / steps)
            path.append(w)
        own = problem.num_owned
        distance = max(
            bounds.gradient(new.x.array[:own] - old.x.array[:own])
            for new, old in zip(path, before, strict=True)
        )
        densities = []
        for w in path:
            u = problem.new_amplitude()
            u.x.array[:] = v.x.array + w.x.array
            densities.append(mf.Density.from_log(problem, u))
        found.append((densities, distance))
    return found


def step_bound(problem, density):
    """2 over the largest modulus of an eigenvalue of the linearised equation, by power iteration."""
    apply = mf.HJBOperator(problem).linearised(density.u().x.array[: problem.num_owned].copy())
    x = problem.nodes[0, : problem.num_owned]
    mode = np.cos(1e4 * x)  # rough, and the same at any number of ranks
    for _ in range(60):
        mode = apply(mode / problem.norm(mode))
    return 2.0 / problem.norm(mode)


def explicit_descent(problem, density, h, steps):
    """Energies of the explicit rule, up to the first that is lost."""
    operator, energies = mf.HJBOperator(problem), [mf.energy(problem, density)]
    for _ in range(steps):
        u = density.u()
        u.x.array[:] += h * operator.rate(u, problem.functional.derivative(density)).x.array
        try:
            density = mf.Density.from_log(problem, u)
        except ValueError:
            break
        energies.append(mf.energy(problem, density))
    return energies


def main(
    sigma: float = 0.6,
    kappa: float = 0.6,
    h: float = 0.25,
    output: str = "results/well_posedness",
) -> dict[str, list[float]]:
    """Measure both; write a picture; return the factors, lengths, bounds and energies."""
    comm = MPI.COMM_WORLD
    z = np.linspace(-2.0, 2.0, 9)
    G = mf.NetworkLoss(z, np.sin(2 * z), lambda x, z: np.tanh(x[0] * z))
    F = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2) + G
    problem = mf.Problem(mf.interval(comm, 5.0, h), F, sigma, degree=2)
    start = mf.Density.from_log(problem, lambda x: (x[0] - 0.8) ** 2)
    v = problem.new_amplitude()
    v.interpolate(lambda x: np.sqrt(2 * kappa) / sigma * 0.5 * x[0] ** 2)  # stationary (W1)

    lengths = [0.02 * 2.0**k for k in range(9)]
    runs = [contraction(problem, G, v, start, length) for length in lengths]
    factors = [run[-1][1] / run[-2][1] for run in runs]
    bound = step_bound(problem, start)
    energies = {c: explicit_descent(problem, start, c * bound, 60) for c in (0.9, 1.1)}
    if comm.rank == 0:
        draw(Path(output), lengths, factors, energies)
        print(
            f"w ↦ w̄ contracts by {factors[0]:.4f} at T = {lengths[0]} and {factors[-1]:.3f} at "
            f"T = {lengths[-1]}; explicit steps descend up to h = {bound:.2e} = {bound / h**2:.3f} "
            f"(mesh size)²: F falls to {energies[0.9][-1]:.6f} at 0.9 of it"
        )
    return {"lengths": lengths, "factors": factors, "bound": [bound], **energies}


def draw(folder, lengths, factors, energies):
    """The factor against T, and the energies of the explicit rule within its bound and beyond."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(lengths, factors, "o-", label="measured")
    left.loglog(lengths, factors[0] / lengths[0] * np.array(lengths), "k--", label="∝ T")
    left.set(xlabel="T", ylabel="factor of w ↦ w̄")
    for share, values in energies.items():
        right.plot(values, label=f"h = {share} of the bound")
    right.set(xlabel="step", ylabel="F^σ")
    for axes in (left, right):
        axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "well_posedness.png", dpi=150)


if __name__ == "__main__":
    helps = {"sigma": "regularisation", "kappa": "of the trap", "h": "mesh size"}
    main(**parse(main, __doc__, {**helps, "output": "folder of the picture"}))
