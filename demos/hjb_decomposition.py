"""The log-density u = −log m of a network's neurons, and its decomposition u = v + w.

A two-layer network with neurons tanh(az + b) is trained on samples of a sine by the mean-field
Hamilton–Jacobi–Bellman equation. v carries the confinement, w what the mean field does: the theory
says that v_t is θ_t-convex with θ' = κ − (σ²/2)θ², an equality for g = ½κ|x|², that w_t is
Lipschitz uniformly in time, that |∇u_t| grows linearly, and that ∇²u_t and all moments stay
bounded. The run shows all of it, and compares its density with that of the Schrödinger flow, which
knows nothing of u.

    python demos/hjb_decomposition.py
    mpirun -n 2 python demos/hjb_decomposition.py --quartic 0.05 --output results/quartic

With --quartic Q the potential has a term Q|x|⁴: v is then computed and its convexity exceeds θ_t.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mpi4py import MPI

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.tri import Triangulation

import fem_mf as mf
from common import CONSOLE, parse
from fem_mf.flows.decomposition import Quadratic, convexity_bound
from fem_mf.mpi import on_root
from fem_mf.plotting import gather
from fem_mf.typing import Array

type Rows = list[mf.HJBState]


def make_problem(
    sigma: float, kappa: float, quartic: float, data: int, radius: float, h: float, degree: int
) -> mf.Problem:
    """The network on a square of triangles."""

    def g(x: Array) -> Array:
        squared = x[0] ** 2 + x[1] ** 2
        return np.asarray(0.5 * kappa * squared + quartic * squared**2)

    z = np.linspace(-np.pi, np.pi, data)
    loss = mf.NetworkLoss(z, np.sin(z), neuron=lambda x, z: np.tanh(x[0] * z + x[1]))
    mesh = mf.box(MPI.COMM_WORLD, radius, h)
    return mf.Problem(mesh, mf.Potential(g) + loss, sigma, degree=degree)


def distance(a: mf.Density, b: mf.Density) -> float:
    """‖m_a − m_b‖ in L¹, by nodal quadrature. Collective."""
    problem = a.problem
    weights = problem.apply_mass(np.ones(problem.num_owned))
    difference = np.abs(a.m().x.array - b.m().x.array)[: problem.num_owned]
    return problem.dot(weights, difference)


def draw_bounds(path: Path, states: Rows, theta: Array) -> None:
    """What the theory bounds, against t; called on rank 0."""
    t = np.array([s.t for s in states])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    axes[0].plot(t, [s.theta_v for s in states], label="smallest eigenvalue of ∇²v")
    axes[0].plot(t, theta, "k:", label="θ_t of the theory")
    axes[1].plot(t, [s.lipschitz_w for s in states], label="‖∇w‖∞")
    axes[1].plot(t, [s.growth_v for s in states], label="sup |∇v|/(1 + |x|)")
    axes[1].plot(t, [s.hessian_u for s in states], label="‖∇²u‖∞")
    axes[2].plot(t, [s.second_moment for s in states], label="∫|x|² dm")
    axes[2].plot(t, [s.fourth_moment for s in states], label="∫|x|⁴ dm")
    for one in axes:
        one.set_xlabel("t")
        one.set_ylim(bottom=0.0)
        one.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_fields(path: Path, state: mf.HJBState) -> None:
    """u, v and w side by side. Collective."""
    assert state.v is not None and state.w is not None
    samples = [gather(f, 2) for f in (state.u, state.v, state.w)]

    def paint() -> None:
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
        for one, sample, name in zip(axes, samples, "uvw", strict=True):
            assert sample is not None
            x, y = sample.points.T
            triangles = Triangulation(x, y, sample.cells)
            drawn = one.tripcolor(triangles, sample.values, shading="gouraud", rasterized=True)
            one.tricontour(triangles, sample.values, 12, colors="white", linewidths=0.4)
            one.set(title=f"{name}, t = {state.t:g}", aspect="equal", xlabel="a", ylabel="b")
            figure.colorbar(drawn, ax=one, shrink=0.85)
        figure.savefig(path, dpi=150)
        plt.close(figure)

    on_root(MPI.COMM_WORLD, paint)


HELP = {
    "sigma": "σ > 0",
    "kappa": "κ of the confinement ½κ|x|²",
    "quartic": "Q of a further confinement Q|x|⁴",
    "data": "number of samples of the sine",
    "precision": "θ₀ of the start N((1, −½), θ₀⁻¹ Id)",
    "t_end": "final time",
    "dt": "time step",
    "scheme": "of the Hamilton–Jacobi–Bellman flow",
    "weighted": "compute w by the linear equation of e^{−w/2}",
    "radius": "half-length of the square",
    "h": "cell size",
    "degree": "of u, v and w; at least 2",
    "output": "folder of the results",
}


def main(
    sigma: float = 0.5,
    kappa: float = 0.4,
    quartic: float = 0.0,
    data: int = 40,
    precision: float = 1.2,
    t_end: float = 10.0,
    dt: float = 0.2,
    scheme: Literal["backward-euler", "sdirk2"] = "sdirk2",
    weighted: bool = False,
    radius: float = 6.0,
    h: float = 0.6,
    degree: int = 2,
    output: str = "results/hjb_decomposition",
) -> dict[str, float]:
    """Run the decomposed flow and the Schrödinger flow, compare, write and draw. Collective.

    The keywords are the options of the command line (``HELP``).

    Returns:
        "theta defect": smallest of θ(∇²v_t) − θ_t over the run; "lipschitz": largest ‖∇w_t‖∞;
        "distance": largest ‖m_ψ − e^{−u}‖ in L¹ at common times; "energy": at the end.
    """
    folder = Path(output)
    problem = make_problem(sigma, kappa, quartic, data, radius, h, degree)
    start = Quadratic(precision * np.eye(2), precision * np.array([-1.0, 0.5]), 0.0)
    m_0 = mf.LogDensity.from_function(problem, start.evaluate)
    flow = mf.HJBFlow(problem, dt, scheme, decomposed=True, weighted=weighted)
    psi_0 = mf.Density(problem, m_0.amplitude())
    reference = mf.SchrodingerFlow(problem, dt, "sdirk2").run(psi_0, t_end)
    states, distances = [], []
    run = mf.progress(flow.run(m_0, t_end, v_start=start), t_end, problem.comm)
    with mf.History(folder / "history.csv", problem.comm) as history:
        for state, other in zip(run, reference, strict=True):
            history.append(state)
            states.append(state)
            distances.append(distance(state.density, other.density))
    theta = np.array([convexity_bound(s.t, precision, kappa, sigma) for s in states])
    results = {
        "theta defect": float(np.min([s.theta_v for s in states] - theta)),
        "lipschitz": max(s.lipschitz_w for s in states),
        "distance": max(distances),
        "energy": states[-1].energy,
    }
    with mf.XDMFSeries(folder / "fields.xdmf", problem) as series:
        series.write(states[-1].t, states[-1].density)
    on_root(problem.comm, lambda: draw_bounds(folder / "bounds.png", states, theta))
    draw_fields(folder / "fields.png", states[-1])
    CONSOLE.print(
        f"θ(∇²v) − θ_t ≥ {results['theta defect']:.1e},  ‖∇w‖∞ ≤ {results['lipschitz']:.3f},  "
        f"‖m_ψ − e^{{−u}}‖ ≤ {results['distance']:.1e},  F = {results['energy']:.9f}"
    )
    CONSOLE.print(f"results in {folder}", soft_wrap=True)
    return results


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main, __doc__, HELP))
