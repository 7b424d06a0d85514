"""Train an infinitely wide two-layer neural network by solving a PDE for the law of its neurons.

The network f(z) = ∫N(z; x) dm(x) has one neuron for every point x of the parameter space, weighted
by a probability density m. With d = 2 a neuron is N(z; (a, b)) = s tanh(az + b); with d = 3 it is
N(z; (a, b, c)) = s c tanh(az + b). Training minimises (E1)

    F^σ(m) = (1/K) Σ_j (y_j − f(z_j))² + ½κ ∫|x|² dm + (σ²/4) ∫|∇log m|² dm

by its gradient flow, the mean-field Schrödinger equation for ψ = √m (D2),

    ∂_tψ = (σ²/2) Δψ − ½ (V[m_t] − λ_t) ψ,   V[m](x) = ½κ|x|² − (2/K) Σ_j (y_j − f(z_j)) N(z_j; x),

on a ball or a box with natural boundary conditions, from a standard Gaussian. By then m is
negligible at the boundary; the run warns when it is not.

Data: head acceleration against time after the impact of a motorcycle (133 measurements; Silverman
1985, see demos/data/README.md), both variables standardised. For the theory see J. Claisse,
G. Conforti, Z. Ren, S. Wang, arXiv:2302.05938.

    mpirun -n 2 python demos/two_layer_network.py --sigma 0.5
    mpirun -n 2 python demos/two_layer_network.py --dim 3
    mpirun -n 3 python demos/two_layer_network.py --restart     # goes on after a stop

Written to the output folder: series.xdmf (m, psi, u, V for ParaView and pyvista), history.csv,
history.json (the certified minimum and the predicted rate of decay of the energy), and pictures of
the fit, of the history, of the law of the neurons and of the loss of finite networks of n neurons
drawn from m, whose mean is F + (1/n) (1/K) Σ_j Var_m N(z_j; ·). In checkpoint/ is what
``--restart`` goes on from, with the same parameters: written every so many minutes, at the end, and
when the scheduler says (SIGTERM) that the time is up.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import dolfinx
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.table import Table

from common import CONSOLE, find_limit, parse, restart_command
from fem_mf.plotting import plot_density, plot_fit, plot_history

type Array = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "motorcycle.csv"
SIZES = (10, 100, 1000, 10_000)  # of finite networks
HELPS = {
    "dim": "parameters of a neuron: (a, b), or (a, b, c)",
    "sigma": "σ, the strength of the Fisher information",
    "kappa": "κ, the curvature of the confining potential",
    "scale": "s, the factor in front of a neuron; 30 for dim 2 and 15 for dim 3 if not given",
    "data": "CSV file with one header line and two columns, input and output",
    "radius": "of the domain; from κ and σ if not given",
    "h": "mesh size",
    "cell": "of the mesh; tensor-product cells have lumped mass and a box as domain",
    "degree": "of ψ; 2 on simplices and 4 on tensor-product cells if not given",
    "mesh": "a .msh or .xdmf file to use instead",
    "dt": "time step, the first one when there is a tolerance",
    "t_end": "final time",
    "scheme": "of time stepping",
    "tolerance": "L² error of ψ that a step may make; 0 for constant steps",
    "every": "write every so many steps to the XDMF series, and the last one",
    "minutes": "between checkpoints",
    "restart": "go on from the checkpoint in the output folder, on its mesh",
    "samples": "repetitions of each finite network",
    "seed": "of the random neurons",
    "output": "folder for the results",
}


@dataclass(frozen=True)
class Data:
    """Standardised inputs and outputs, and what undoes the scaling."""

    z: Array
    y: Array
    z_label: str
    y_label: str


def read_data(path: Path) -> Data:
    """Read two columns and standardise them; z is stretched by 1.5 to spread its features."""
    with path.open() as file:
        z_label, y_label = file.readline().strip().split(",")
        z, y = np.loadtxt(file, delimiter=",", unpack=True)
    return Data(1.5 * (z - z.mean()) / z.std(), (y - y.mean()) / y.std(), z_label, y_label)


def neuron(dim: int, scale: float) -> Any:
    """N(z; x) for parameters x of shape (3, n) or (dim, n)."""
    if dim == 2:
        return lambda x, z: scale * np.tanh(x[0] * z + x[1])
    return lambda x, z: scale * x[2] * np.tanh(x[0] * z + x[1])


def build_mesh(
    dim: int, radius: float, h: float | None, cell: str | None, path: str | None
) -> dolfinx.mesh.Mesh:
    """The mesh of the parameter space that the options ask for."""
    comm = MPI.COMM_WORLD
    if path is not None:
        return mf.read_mesh(path, comm)
    cell = cell or {2: "triangle", 3: "hexahedron"}[dim]
    if cell in ("quadrilateral", "hexahedron"):
        return mf.box(comm, radius, h or {2: 1.0, 3: 1.6}[dim], cell=cell)
    build = mf.disk if dim == 2 else mf.ball
    return build(comm, radius, h or {2: 0.35, 3: 0.9}[dim], cell=cell)


def train(
    problem: mf.Problem,
    network: mf.NetworkLoss,
    grid: Array,
    folder: Path,
    run: dict[str, Any],
    t_end: float,
    every: int,
    minutes: float,
    saved: mf.Saved | None,
) -> tuple[mf.State, dict[str, list[float]]]:
    """Run the flow, write everything; the last state, and the fit on a grid at several times."""
    start: mf.Density | mf.State
    if saved is None:
        start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * np.sum(x**2, axis=0)))
        snapshots, fits = [0.0, 0.005 * t_end, 0.05 * t_end], {}
    else:
        start, fits, snapshots = saved.state(problem), saved.extra["fits"], saved.extra["snapshots"]
    flow = mf.SchrodingerFlow(problem, **run)
    with (
        mf.XDMFSeries(folder / "series.xdmf", problem, every=every, resume=saved) as series,
        mf.History(folder / "history.csv", problem.comm, resume=saved) as history,
        mf.Checkpoint(
            folder / "checkpoint", problem, minutes=minutes, resume=restart_command()
        ) as checkpoint,
    ):
        for state in mf.progress(flow.run(start, t_end), t_end, problem.comm, "training"):
            last = state.t == t_end
            loss = network.value(state.density)
            history.append({**state.scalars(), "loss": loss})
            series.write(state.t, state.density, force=last)
            if last or (snapshots and state.t >= snapshots[0] - 1e-9):
                snapshots = snapshots[1:]
                fits[f"t = {state.t:.3g}"] = network.predict(state.density, grid).tolist()
            checkpoint.write(state, force=last, extra={"fits": fits, "snapshots": snapshots})
    return state, fits


def finite_networks(
    density: mf.Density, network: mf.NetworkLoss, samples: int, seed: int
) -> dict[int, tuple[float, float, float]]:
    """Loss of networks of n neurons drawn from m, by n: mean, standard error, expected mean."""
    z, y = network.z, network.y
    limit = network.moments(density)

    def second_moment(datum: float) -> float:
        return density.integrate(lambda x: network.neuron(x, datum) ** 2)

    variance = float(np.mean([second_moment(d) for d in z] - limit**2))
    neurons = density.sample(samples * max(SIZES), seed).T.reshape(-1, samples, max(SIZES))
    results = {}
    for n in SIZES:
        chosen = neurons[:, :, :n]
        outputs = np.stack([network.neuron(chosen, d).mean(axis=1) for d in z])
        losses = np.mean((y[:, None] - outputs) ** 2, axis=0)
        error = float(losses.std(ddof=1) / np.sqrt(samples))
        results[n] = (float(losses.mean()), error, network.phi(limit) + variance / n)
    return results


def draw_finite(path: Path, results: dict[int, tuple[float, float, float]], loss: float) -> None:
    """Excess loss against n with its expected value; called on rank 0."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    n = np.array(list(results))
    mean, error, expected = np.array(list(results.values())).T
    axes.errorbar(n, mean - loss, 2 * error, fmt="o", capsize=3, label="sampled, ±2 s.e.")
    axes.plot(n, expected - loss, "k--", linewidth=1, label="Var / n")
    axes.set(xscale="log", yscale="log", xlabel="neurons n", ylabel="mean loss − F(m)")
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def report(
    state: mf.State,
    loss: float,
    results: dict[int, tuple[float, float, float]],
    minimum: mf.Minimum | None,
    limit: mf.Limit | None,
) -> None:
    """Print the outcome on rank 0."""
    CONSOLE.print(
        f"t = {state.t:g}  F^σ = {state.energy:.10f}  loss = {loss:.6f}  "
        f"residual = {state.residual:.1e}  boundary mass = {state.boundary_mass:.1e}"
    )
    if minimum is not None and limit is not None:
        rate = (
            "" if limit.decay_rate is None else f"  predicted decay e^(−{limit.decay_rate:.4f} t)"
        )
        CONSOLE.print(f"minimiser: {minimum}{rate}", soft_wrap=True)
        if state.density.problem.dim == 3 and rate:
            CONSOLE.print(
                "Neurons are even under (a, b, c) → (−a, −b, −c), and so is the start: if the "
                "slowest mode is odd, this run has no part of it and decays faster than predicted.",
                soft_wrap=True,
            )
    table = Table(title="finite networks drawn from m", title_justify="left")
    for name in ("neurons", "mean loss", "± s.e.", "expected"):
        table.add_column(name, justify="right")
    for n, (mean, error, expected) in results.items():
        table.add_row(f"{n:,}", f"{mean:.5f}", f"{error:.5f}", f"{expected:.5f}")
    CONSOLE.print(table)


def main(
    dim: Literal[2, 3] = 2,
    sigma: float = 0.5,
    kappa: float = 0.1,
    scale: float | None = None,
    data: str = str(DATA),
    radius: float | None = None,
    h: float | None = None,
    cell: Literal["triangle", "quadrilateral", "tetrahedron", "hexahedron"] | None = None,
    degree: int | None = None,
    mesh: str | None = None,
    dt: float = 0.01,
    t_end: float = 20.0,
    scheme: Literal["backward-euler", "crank-nicolson", "sdirk2"] = "sdirk2",
    tolerance: float = 1e-3,
    every: int = 2,
    minutes: float = 10.0,
    restart: bool = False,
    samples: int = 20,
    seed: int = 1,
    output: str = "results/two_layer_network",
) -> dict[str, Any]:
    """Train, draw, and return the numbers. Collective."""
    comm = MPI.COMM_WORLD
    mf.setup_logging(comm)
    points = read_data(Path(data))
    scale = scale or {2: 30.0, 3: 15.0}[dim]
    network = mf.NetworkLoss(points.z, points.y, neuron(dim, scale))
    trap = mf.Potential(lambda x: 0.5 * kappa * np.sum(x**2, axis=0))
    # Trained neurons spread beyond the ground state of the trap alone: 2 more units of room.
    radius = radius or mf.truncation_radius(kappa, sigma, tol=1e-8, dim=dim, offset=2.0)
    folder = Path(output)
    saved = mf.Checkpoint.read(folder / "checkpoint", comm) if restart else None
    domain = saved.mesh if saved else build_mesh(dim, radius, h, cell, mesh)
    if domain.geometry.dim != dim:
        raise ValueError(f"--dim {dim} needs a mesh of that dimension, not {domain.geometry.dim}")
    tensor = domain.topology.cell_name() in ("quadrilateral", "hexahedron")
    problem = mf.Problem(
        domain,
        trap + network,
        sigma,
        degree=degree or (4 if tensor else 2),
        mass="lumped" if tensor else "consistent",
    )
    logging.getLogger("fem_mf.demo").info(
        "%d ranks, %d dofs of degree %d, %d data, radius %.3g",
        comm.size,
        problem.space.dofmap.index_map.size_global,
        problem.degree,
        len(points.y),
        radius,
    )
    grid = np.linspace(points.z.min(), points.z.max(), 200)
    run = {"dt": dt, "scheme": scheme, "tolerance": tolerance or None}
    state, fits = train(problem, network, grid, folder, run, t_end, every, minutes, saved)
    loss = network.value(state.density)
    results = finite_networks(state.density, network, samples, seed)
    minimum, limit = find_limit(state.density, folder / "history.csv")
    report(state, loss, results, minimum, limit)
    title = f"law of the neurons, t = {state.t:g}"
    plot_density(folder / "neurons.png", state.density, title)
    history = mf.History.read(folder / "history.csv") if comm.rank == 0 else {}
    if comm.rank == 0:
        columns = ("energy", "loss", "dissipation")
        plot_history(folder / "history.png", history, columns, lowest=limit)
        labels = (f"{points.z_label}, standardised", f"{points.y_label}, standardised")
        plot_fit(folder / "fit.png", points.z, points.y, grid, fits, labels=labels)
        draw_finite(folder / "finite_networks.png", results, loss)
    comm.barrier()
    return {
        "energy": state.energy,
        "loss": loss,
        "residual": state.residual,
        "finite_networks": results,
        "fits": fits,
    }


if __name__ == "__main__":
    main(**parse(main, __doc__, HELPS))
