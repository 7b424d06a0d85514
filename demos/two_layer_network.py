"""Train an infinitely wide two-layer network by a PDE for the distribution of its parameters.

The network f(z) = ∫N(z; x) dm(x) has one neuron for every point x of the parameter space, weighted
by a probability density m. With d = 2 a neuron is N(z; (a, b)) = 30 tanh(az + b), with d = 3 it is
N(z; (a, b, c)) = 15 c tanh(az + b). Training minimises (E1)

    F^σ(m) = (1/K) Σ_j (y_j − f(z_j))² + ½κ ∫|x|² dm + (σ²/4) ∫|∇log m|² dm

by its gradient flow, the mean-field Schrödinger equation for ψ = √m (D2), from a Gaussian,

    ∂_tψ = (σ²/2) Δψ − ½ (V[m_t] − λ_t) ψ,   V[m](x) = ½κ|x|² − (2/K) Σ_j (y_j − f(z_j)) N(z_j; x),

on a ball or a box with ∂ψ/∂n = 0 on its boundary. The data are head accelerations after the impact
of a motorcycle (Silverman 1985, see data/README.md); every fourth datum is held out. Drawing n
neurons from m gives a network whose mean loss exceeds that of m by (1/n) (1/K) Σ_j Var_m N(z_j; ·).

    mpirun -n 2 python demos/two_layer_network.py --dim 3
    mpirun -n 3 python demos/two_layer_network.py --restart     # resume an interrupted run
"""

from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

import numpy as np

import fem_mf as mf
import networks
from common import parse, say
from fem_mf.plotting import plot_density, plot_fit, plot_history

DATA = Path(__file__).parent / "data" / "motorcycle.csv"
SIZES = {"triangle": 0.35, "quadrilateral": 1.0, "tetrahedron": 0.9, "hexahedron": 1.6}  # of cells
SNAPSHOTS = (0.0, 0.005, 0.05, 1.0)  # fractions of the final time at which fits are drawn
SIGMAS, KAPPAS = (1.0, 0.5, 0.25), (0.2, 0.1, 0.05)  # candidates in the cross-validation


def main(
    dim: Literal[2, 3] = 2,  # parameters of a neuron: (a, b), or (a, b, c)
    sigma: float = 0.5,  # σ, the strength of the Fisher information
    kappa: float = 0.1,  # κ of the confinement; both are from --cross-validate for dim 2
    cross_validate: bool = False,  # choose σ and κ first
    h: float | None = None,  # mesh size
    cell: Literal["triangle", "quadrilateral", "tetrahedron", "hexahedron"] | None = None,  # shape
    mesh: str | None = None,  # a .msh or .xdmf file to use instead
    dt: float = 0.01,  # time step; only the first one with a tolerance
    t_end: float = 20.0,  # final time
    tolerance: float = 1e-3,  # largest estimated L² error of ψ per step; 0 for constant steps
    minutes: float = 10.0,  # time between checkpoints
    restart: bool = False,  # resume from the checkpoint in the output folder
    overwrite: bool = False,  # replace the results in the output folder
    samples: int = 20,  # repetitions of each finite network
    output: str = "results/two_layer_network",  # folder of the results
) -> dict[str, Any]:
    """Train, draw, and return the numbers. Collective."""
    parameters, comm, folder = locals(), MPI.COMM_WORLD, Path(output)
    data = np.loadtxt(DATA, delimiter=",", skiprows=1)
    held_out = np.arange(len(data)) % 4 == 2
    data = (data - data[~held_out].mean(axis=0)) / data[~held_out].std(axis=0)
    z, y = 1.5 * data[:, 0], data[:, 1]  # z is stretched to spread the features

    def neuron(x: Any, z: Any) -> Any:
        return (30.0 if dim == 2 else 15.0 * x[2]) * np.tanh(x[0] * z + x[1])

    network = mf.NetworkLoss(z[~held_out], y[~held_out], neuron)
    if cross_validate:
        sigma, kappa = networks.cross_validate(network, SIGMAS, KAPPAS, {2: 2.0, 3: 3.0}[dim])
    cell = cell or ("triangle" if dim == 2 else "hexahedron")
    # Trained neurons spread farther than the ground state of the trap alone.
    radius = mf.truncation_radius(kappa, sigma, tol=1e-8, dim=dim, offset=2.0)
    if restart:
        domain = mf.Run.mesh(folder, comm)
    elif mesh:
        domain = mf.read_mesh(mesh, comm)
    elif cell in ("triangle", "tetrahedron"):
        domain = (mf.disk if dim == 2 else mf.ball)(comm, radius, h or SIZES[cell], cell)
    else:
        domain = mf.box(comm, radius, h or SIZES[cell], dim, cell)
    if domain.geometry.dim != dim:
        raise ValueError(f"--dim {dim} needs a mesh of that dimension, not {domain.geometry.dim}")
    simplices = domain.topology.cell_name() in ("triangle", "tetrahedron")
    degree, mass = (2, "consistent") if simplices else (4, "lumped")
    problem = mf.Problem(domain, networks.trap(kappa) + network, sigma, degree=degree, mass=mass)

    start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * np.sum(x**2, axis=0)))
    flow = mf.SchrodingerFlow(problem, dt, "sdirk2", tolerance=tolerance or None)
    grid = np.linspace(z.min(), z.max(), 200)

    def losses(state: Any) -> dict[str, float]:
        errors = (network.predict(state.density, z) - y) ** 2
        return {"loss": errors[~held_out].mean(), "held_out_loss": errors[held_out].mean()}

    how: Any = {"overwrite": overwrite, "restart": restart, "every": 2, "minutes": minutes}
    with mf.Run(folder, problem, parameters=parameters, **how) as run:
        fits = run.extra.setdefault("fits", {})
        for state in run.steps(flow, start, t_end, columns=losses, description="training"):
            due = SNAPSHOTS[len(fits) :]
            if state.t == t_end or (due and state.t >= t_end * due[0] - 1e-9):
                fits[f"t = {state.t:.3g}"] = network.predict(state.density, grid).tolist()
    density, loss, test = state.density, run.result["loss"], run.result["held_out_loss"]
    say(f"t = {state.t:g}: F^σ = {state.energy:.10f}, loss {loss:.5f}, held out {test:.5f}")
    table = networks.finite_networks(density, network, samples)
    limit = None
    try:
        best = mf.minimise(problem, density, tol=1e-10)
        limit = mf.Limit.of(best)
        limit.write(folder / "history.csv", comm)
        say(f"minimiser: {best}  predicted decay e^(−{limit.decay_rate or np.nan:.4f} t)")
    except mf.ConvergenceError as error:  # the mesh is too coarse for a certificate
        say(f"the minimum is not known: {error}")
    plot_density(folder / "neurons.png", density, f"t = {state.t:g}", names="abc"[:dim])
    if comm.rank == 0:
        columns = ("energy", "loss", "held_out_loss")
        plot_history(
            folder / "history.png", mf.History.read(folder / "history.csv"), columns, lowest=limit
        )
        plot_fit(folder / "fit.png", z, y, grid, fits, labels=("time", "acceleration"))
    return {"energy": state.energy, "loss": loss, "held_out": test, "networks": table, "fits": fits}


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main))
