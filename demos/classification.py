"""Classify wines with an infinitely wide two-layer network, trained in the mean-field limit.

A wine is described by two measured numbers z = (z₁, z₂); it belongs to one cultivar (y = 1) or to
one of two others (y = −1). A neuron N(z; (a₁, a₂, b)) = 20 tanh(a₁z₁ + a₂z₂ + b) is a point of R³;
the network f(z) = ∫N(z; x) dm(x) has one neuron for every point, weighted by a probability density
m, and assigns y = 1 the probability 1/(1 + e^(−f(z))). Training minimises (E1)

    F^σ(m) = (1/K) Σ_j log(1 + e^(−y_j f(z_j))) + ½κ ∫|x|² dm + (σ²/4) ∫|∇log m|² dm

by its gradient flow, the mean-field Schrödinger equation for ψ = √m (D2), from a standard Gaussian,
for which f = 0. F is convex, so the minimum comes with a certificate (C1). Data: 178 wines
(Aeberhard and Forina 1991, https://doi.org/10.24432/C5PC7J), of which a third is held out.

    mpirun -n 2 python demos/classification.py --features flavanoids proline
"""

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import zoom
from scipy.special import expit
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import fem_mf as mf
import networks
from common import parse, say
from fem_mf.plotting import film_of_figures

POINTS = 21  # number of points per axis at which f is computed


def neuron(x: Any, z: Any) -> Any:
    """N(z; x)."""
    return 20.0 * np.tanh(x[0] * z[0] + x[1] * z[1] + x[2])


def draw(axes: Any, outputs: Any, t: float, names: Any, grid: Any, parts: Any) -> None:
    """The probability as colours, the decision boundary and the data."""
    x, y = (np.linspace(line[0], line[-1], 8 * POINTS) for line in grid)
    f = zoom(np.reshape(outputs, (POINTS, POINTS)), 8).T  # by cubic splines
    axes.contourf(x, y, expit(f), np.linspace(0.0, 1.0, 41), cmap="PuOr", alpha=0.75)
    if t > 0.0:  # at the start f = 0 everywhere
        axes.contour(x, y, f, levels=[0.0], colors="black")
    for (z, label), marker, name in zip(parts, "oD", ("training", "held out"), strict=True):
        axes.scatter(*z.T, s=18, c=label, cmap="PuOr", edgecolors="k", marker=marker, label=name)
    axes.set(xlabel=names[0], ylabel=names[1], title=f"t = {t:.3g}")


def main(
    features: tuple[str, ...] = ("flavanoids", "hue"),  # the two inputs
    sigma: float = 0.5,  # σ, the strength of the Fisher information
    kappa: float = 0.1,  # κ, the curvature of the confining potential
    h: float = 2.9,  # mesh size; the cells are hexahedra of degree 4
    t_end: float = 10.0,  # final time
    tolerance: float = 5e-3,  # largest estimated L² error of ψ per step
    restart: bool = False,  # resume from the checkpoint in the output folder
    overwrite: bool = False,  # replace the results in the output folder
    output: str = "results/classification",  # folder of the results
) -> dict[str, Any]:
    """Train, compare, draw, and return the numbers. Collective."""
    parameters, comm, folder, wine = locals(), MPI.COMM_WORLD, Path(output), load_wine()
    known = list(wine.feature_names)
    if len(features) != 2 or not set(features) <= set(known):
        raise SystemExit(f"--features takes two of {known}")
    z = wine.data[:, [known.index(name) for name in features]]
    y = np.where(wine.target == 1, 1.0, -1.0)
    z, z_test, y, y_test = train_test_split(z, y, test_size=1 / 3, random_state=1, stratify=y)
    z, z_test = ((part - z.mean(axis=0)) / z.std(axis=0) for part in (z, z_test))
    network = mf.NetworkLoss(z, y, neuron, loss="logistic")
    test = mf.NetworkLoss(z_test, y_test, neuron, loss="logistic")

    def score(f: Any, f_test: Any) -> dict[str, float]:
        return {
            "loss": network.phi(f),
            "held_out_loss": test.phi(f_test),
            "accuracy": float(np.mean(y * f > 0)),
            "held_out_accuracy": float(np.mean(y_test * f_test > 0)),
        }

    radius = mf.truncation_radius(kappa, sigma, tol=1e-8, dim=3, offset=2.0)
    box = mf.Run.mesh(folder, comm) if restart else mf.box(comm, radius, h, 3, "hexahedron")
    problem = mf.Problem(box, networks.trap(kappa) + network, sigma, degree=4, mass="lumped")
    start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * np.sum(x**2, axis=0)))
    grid = np.linspace(z.min(axis=0) - 0.8, z.max(axis=0) + 0.8, POINTS).T
    nodes = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, 2)
    flow = mf.SchrodingerFlow(problem, 0.01, "sdirk2", tolerance=tolerance)

    def columns(state: Any) -> dict[str, float]:
        return score(network.predict(state.density), test.predict(state.density))

    how: Any = {"overwrite": overwrite, "restart": restart, "every": 2}
    with mf.Run(folder, problem, parameters=parameters, **how) as run:
        maps = run.extra.setdefault("maps", [])  # f at the nodes by time
        for state in run.steps(flow, start, t_end, columns=columns, description="training"):
            m = state.density
            if not maps or state.t > maps[-1][0]:
                maps.append((state.t, network.predict(m, nodes).tolist()))
    scores = columns(state)
    line = LogisticRegression().fit(z, y).decision_function
    rows = {"straight line": score(line(z), line(z_test)), "network": scores}
    here, there = (networks.finite_outputs(m, F, (10, 100, 1000), 20) for F in (network, test))
    for n in here:
        each = [score(*pair) for pair in zip(here[n], there[n], strict=True)]
        rows[f"{n} neurons"] = {key: np.mean([s[key] for s in each]) for key in each[0]}
    best = mf.minimise(problem, m, tol=1e-6)
    rows["minimiser"] = score(network.predict(best.density), test.predict(best.density))
    say(f"minimiser: {best}\n                loss   held out   accuracy   held out")
    for name, row in rows.items():
        say("{:14} {:.4f}     {:.4f}      {:.1%}      {:.1%}".format(name, *row.values()))
    if comm.rank == 0:
        parts = (z, y), (z_test, y_test)
        figure = Figure(figsize=(12.0, 3.4), layout="constrained", dpi=110)
        for axes, time in zip(figure.subplots(1, 4), t_end / np.logspace(3, 0, 4), strict=True):
            t, outputs = maps[int(np.argmin([abs(t - time) for t, _ in maps]))]
            draw(axes, outputs, t, features, grid, parts)
        axes.legend()
        figure.savefig(folder / "boundary.png")
        frames = [Figure(figsize=(6.4, 4.8), layout="constrained") for _ in maps]
        for frame, (t, outputs) in zip(frames, maps, strict=True):
            draw(frame.subplots(), outputs, t, features, grid, parts)
        film_of_figures(folder / "boundary.mp4", frames, fps=8)
    return {"energy": state.energy, "scores": rows, "minimum": best, "frames": len(maps)}


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main))
