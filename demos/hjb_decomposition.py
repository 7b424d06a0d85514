"""The log-density u = −log m of a network's parameters, and its decomposition u = v + w.

A network with infinitely many neurons tanh(az + b) learns a sine. With g = ½κ|x|² + Q|x|⁴ and
V[m] = g + G(m, ·) its gradient flow is the mean-field Hamilton–Jacobi–Bellman equation (D3),

    ∂_tu = (σ²/2) Δu − (σ²/4) |∇u|² + V[m_t] − λ_t,   m_t = e^{−u_t},

and u = v + w, where v contains the confinement and w the mean field (W1, W2):

    ∂_tv = (σ²/2) Δv − (σ²/4) |∇v|² + g,
    ∂_tw = (σ²/2) Δw − (σ²/2) ∇v·∇w − (σ²/4) |∇w|² + G(m_t, ·).

By the theory v_t is θ_t-convex with θ' = κ − (σ²/2)θ², with equality for Q = 0, and w_t is
Lipschitz uniformly in t. The independently discretised Schrödinger flow gives the same density.

    mpirun -n 2 python demos/hjb_decomposition.py --quartic 0.05 --output results/quartic
"""

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure

import fem_mf as mf
from common import say, study
from fem_mf.plotting import gather

PRECISION = 1.2  # θ_0 of the start, a Gaussian with mean (1, −½)


def main(
    sigma: float = 0.5,  # σ, the strength of the Fisher information
    kappa: float = 0.4,  # κ of the confinement
    quartic: float = 0.0,  # Q of the confinement
    t_end: float = 10.0,  # final time
    dt: float = 0.2,  # time step
    weighted: bool = False,  # compute w by the linear equation of e^{−w/2} (W3)
    radius: float = 6.0,  # half-length of the square
    h: float = 0.6,  # mesh size
    output: str = "results/hjb_decomposition",  # folder of history.csv and fields.png
) -> dict[str, float]:
    """Run both flows; return the bounds, the largest L¹ distance, and the final energy."""
    comm = MPI.COMM_WORLD

    def g(x: np.ndarray) -> np.ndarray:
        squared = x[0] ** 2 + x[1] ** 2
        return np.asarray(0.5 * kappa * squared + quartic * squared**2)

    z = np.linspace(-np.pi, np.pi, 40)
    loss = mf.NetworkLoss(z, np.sin(z), neuron=lambda x, z: np.tanh(x[0] * z + x[1]))
    problem = mf.Problem(mf.box(comm, radius, h), mf.Potential(g) + loss, sigma, degree=2)
    start = mf.LogDensity.from_function(
        problem, lambda x: 0.5 * PRECISION * ((x[0] - 1.0) ** 2 + (x[1] + 0.5) ** 2)
    )
    flow = mf.HJBFlow(problem, dt, "sdirk2", decomposed=True, weighted=weighted)
    run = mf.progress(flow.run(start, t_end), t_end, comm)
    schrodinger = mf.SchrodingerFlow(problem, dt, "sdirk2")
    others = schrodinger.run(mf.Density(problem, start.amplitude()), t_end)
    discrete = problem.discretisation
    weights = discrete.apply_mass(np.ones(discrete.num_owned))
    states, distances = [], []
    with mf.History(f"{output}/history.csv", comm, overwrite=True) as history:
        for state, other in zip(run, others, strict=True):
            history.append(state)
            states.append(state)
            difference = state.density.m().x.array - other.density.m().x.array
            distances.append(discrete.dot(weights, np.abs(difference[: discrete.num_owned])))

    t = np.array([s.t for s in states])
    limit, tanh = np.sqrt(2.0 * kappa) / sigma, np.tanh(sigma * np.sqrt(0.5 * kappa) * t)
    theta = limit * (PRECISION + limit * tanh) / (limit + PRECISION * tanh)
    convexity, lipschitz = np.array([(s.theta_v, s.lipschitz_w) for s in states]).T
    results = {
        "convexity of v above θ_t": float(np.min(convexity - theta)),
        "Lipschitz constant of w": float(lipschitz.max()),
        "distance of the flows": max(distances),
        "energy": state.energy,
    }
    say(", ".join(f"{name}: {value:.9g}" for name, value in results.items()))
    samples = [gather(f, 2) for f in (state.u, state.v, state.w) if f is not None]
    if comm.rank == 0:
        figure = Figure(figsize=(14.0, 3.2), layout="constrained", dpi=120)
        *maps, curves = figure.subplots(1, 4)
        for axes, sample, name in zip(maps, samples, "uvw", strict=True):
            assert sample is not None  # on rank 0
            x, y = sample.points.T
            colours = axes.tricontourf(x, y, sample.cells, sample.values, 24)
            axes.set(title=f"{name}, t = {state.t:g}", aspect="equal", xlabel="a", ylabel="b")
            figure.colorbar(colours, ax=axes)
        curves.plot(t, convexity, label="smallest eigenvalue of ∇²v")
        curves.plot(t, theta, "k:", label="θ_t")
        curves.plot(t, lipschitz, label="‖∇w‖∞")
        curves.set(xlabel="t", ylim=(0.0, 1.6 * max(convexity.max(), lipschitz.max())))
        curves.legend(frameon=False, loc="upper left")
        figure.savefig(f"{output}/fields.png")
    return results


if __name__ == "__main__":
    study(main)
