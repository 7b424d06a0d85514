"""Classify wines by an infinitely wide two-layer network, training the law of its neurons.

A wine is known by two measured numbers z = (z₁, z₂), and is of one cultivar (y = 1) or of one of
two others (y = −1). A neuron is N(z; (a₁, a₂, b)) = s tanh(a₁z₁ + a₂z₂ + b), a point of R³; the
network f(z) = ∫N(z; x) dm(x) has one neuron for every point, weighted by a probability density m,
and gives y = 1 the probability 1/(1 + e^(−f(z))). Training minimises (E1)

    F^σ(m) = (1/K) Σ_j log(1 + e^(−y_j f(z_j))) + ½κ ∫|x|² dm + (σ²/4) ∫|∇log m|² dm

by its gradient flow, the mean-field Schrödinger equation for ψ = √m (D2), from a standard Gaussian,
of which f = 0. The loss is convex in f, and f is linear in m: F is convex, and Newton's method from
where the flow ends finds the minimiser with a proof (C1).

Data: 178 wines of three cultivars (Aeberhard and Forina 1991, https://doi.org/10.24432/C5PC7J), as
scikit-learn carries them. The default pair of features is one for which a straight line fails. A
third of the wines is held out, of each class alike; the others' mean and deviation standardise.

    mpirun -n 2 python demos/classification.py
    mpirun -n 2 python demos/classification.py --features flavanoids proline --scale 30

Written to the output folder: series.xdmf (m, psi, u, V), history.csv (with loss and accuracy on
both parts of the data), history.json (the certified minimum and the predicted rate of decay of the
energy), pictures of the decision boundary, of the history and of the law of the neurons, and a film
of the boundary with a frame for every time step. ``--restart`` goes on from what checkpoint/ has,
after a stop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from rich.table import Table
from scipy.interpolate import RectBivariateSpline
from scipy.special import expit
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from common import CONSOLE, find_limit, parse, restart_command
from fem_mf.plotting import film_of_figures, plot_density, plot_history

type Array = npt.NDArray[np.float64]
type Scores = dict[str, float]

SIZES = (10, 100, 1000)  # of finite networks
SAMPLES = 20  # of each
PANELS = (1e-3, 0.01, 0.1, 1.0)  # of the final time
GRID, FINE = 21, 200  # points per axis at which f is computed, and drawn
COLOURS = {-1.0: "#b35806", 1.0: "#542788"}  # the ends of the colour map
HELPS = {
    "features": "the two inputs, by name or by column of the data set",
    "cultivar": "the one to tell from the other two",
    "held_out": "share of the data that training does not see",
    "sigma": "σ, the strength of the Fisher information",
    "kappa": "κ, the curvature of the confining potential",
    "scale": "s, the factor in front of a neuron",
    "radius": "half an edge of the box; from κ and σ if not given",
    "h": "mesh size",
    "cell": "of the mesh; hexahedra have lumped mass",
    "degree": "of ψ; 4 on hexahedra and 2 on tetrahedra if not given",
    "dt": "first time step",
    "t_end": "final time",
    "tolerance": "L² error of ψ that a step may make",
    "minimiser": "find where the flow leads, with a certificate",
    "every": "write every so many steps to the XDMF series, and the last one",
    "minutes": "between checkpoints",
    "restart": "go on from the checkpoint in the output folder, on its mesh",
    "seed": "of the split of the data and of the random neurons",
    "output": "folder for the results",
}


@dataclass(frozen=True)
class Task:
    """The network on the data to train on and on those held out, and what undoes the scaling."""

    train: mf.NetworkLoss
    test: mf.NetworkLoss
    names: list[str]
    mean: Array
    deviation: Array

    def scores(self, train: Array, test: Array) -> Scores:
        """Loss and accuracy of outputs f on both parts of the data."""
        return {
            "loss": self.train.phi(train),
            "held_out_loss": self.test.phi(test),
            "accuracy": float(np.mean(self.train.y * train > 0)),
            "held_out_accuracy": float(np.mean(self.test.y * test > 0)),
        }

    def of(self, density: mf.Density) -> Scores:
        """Those of the network whose neurons have this law. Collective."""
        return self.scores(self.train.predict(density), self.test.predict(density))

    def axes(self, points: int) -> Array:
        """Coordinates z₁ and z₂ of a grid around all data, ``(2, points)``."""
        z = np.vstack([self.train.z, self.test.z])
        lower, upper = z.min(axis=0) - 0.4, z.max(axis=0) + 0.4
        return np.stack([np.linspace(a, b, points) for a, b in zip(lower, upper, strict=True)])

    def grid(self) -> Array:
        """The points of the grid, z₂ fastest, ``(GRID², 2)``."""
        return np.stack(np.meshgrid(*self.axes(GRID), indexing="ij"), axis=-1).reshape(-1, 2)


def read_task(
    features: tuple[str, ...], cultivar: int, held_out: float, scale: float, seed: int
) -> Task:
    """Choose two columns, split the rows, standardise."""
    wine = load_wine()
    names = [str(name) for name in wine.feature_names]
    numbers = {str(i): i for i in range(len(names))} | {n: i for i, n in enumerate(names)}
    if len(features) != 2 or not set(features) <= set(numbers):
        raise SystemExit(f"--features takes two of {names}, or their numbers from 0")
    columns = [numbers[feature] for feature in features]
    label = np.where(wine.target == cultivar - 1, 1.0, -1.0)
    z, z_test, y, y_test = train_test_split(
        wine.data[:, columns], label, test_size=held_out, random_state=seed, stratify=label
    )
    mean, deviation = z.mean(axis=0), z.std(axis=0)

    def neuron(x: Array, z: Array) -> Array:
        output: Array = scale * np.tanh(x[0] * z[0] + x[1] * z[1] + x[2])
        return output

    return Task(
        mf.NetworkLoss((z - mean) / deviation, y, neuron, loss="logistic"),
        mf.NetworkLoss((z_test - mean) / deviation, y_test, neuron, loss="logistic"),
        [names[i] for i in columns],
        mean,
        deviation,
    )


def train(
    flow: mf.SchrodingerFlow,
    task: Task,
    folder: Path,
    t_end: float,
    every: int,
    minutes: float,
    saved: mf.Saved | None,
) -> tuple[mf.State, dict[float, Array]]:
    """Run the flow, write everything; the last state, and f on the grid by time."""
    problem, grid = flow.problem, task.grid()
    start: mf.Density | mf.State
    if saved is None:
        start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * np.sum(x**2, axis=0)))
    else:
        start = saved.state(problem)
    # By time, as lists: what a checkpoint can carry.
    maps: list[tuple[float, list[float]]] = [] if saved is None else saved.extra["maps"][:-1]
    with (
        mf.XDMFSeries(folder / "series.xdmf", problem, every=every, resume=saved) as series,
        mf.History(folder / "history.csv", problem.comm, resume=saved) as history,
        mf.Checkpoint(
            folder / "checkpoint", problem, minutes=minutes, resume=restart_command()
        ) as checkpoint,
    ):
        for state in mf.progress(flow.run(start, t_end), t_end, problem.comm, "training"):
            last = state.t == t_end
            history.append({**state.scalars(), **task.of(state.density)})
            series.write(state.t, state.density, force=last)
            maps.append((state.t, task.train.predict(state.density, grid).tolist()))
            checkpoint.write(state, force=last, extra={"maps": maps})
    return state, {t: np.reshape(outputs, (GRID, GRID)) for t, outputs in maps}


def baselines(task: Task) -> dict[str, Scores]:
    """The scores of the most frequent class, and of a straight line."""
    z, y = task.train.z, task.train.y
    odds = np.log(np.mean(y > 0) / np.mean(y < 0))
    line = LogisticRegression().fit(z, y)
    return {
        "most frequent class": task.scores(np.full_like(y, odds), np.full_like(task.test.y, odds)),
        "logistic regression": task.scores(
            line.decision_function(z), line.decision_function(task.test.z)
        ),
    }


def finite_networks(task: Task, density: mf.Density, seed: int) -> dict[str, Scores]:
    """Mean scores of networks of n neurons drawn from m. Collective."""
    neurons = density.sample(SAMPLES * max(SIZES), seed).T.reshape(-1, SAMPLES, max(SIZES))
    rows = {}
    for n in SIZES:
        outputs = [
            np.stack([part.neuron(neurons[:, :, :n], z).mean(axis=1) for z in part.z], axis=1)
            for part in (task.train, task.test)
        ]
        each = [task.scores(*pair) for pair in zip(*outputs, strict=True)]
        rows[f"{n:,} neurons drawn from it"] = {
            name: float(np.mean([one[name] for one in each])) for name in each[0]
        }
    return rows


def draw_map(axes: Axes, task: Task, outputs: Array, t: float) -> ScalarMappable:
    """Probability as colours, the decision boundary and the data, in the data's own units."""
    (z1, z2), fine = task.axes(GRID), task.axes(FINE)
    f = RectBivariateSpline(z1, z2, outputs)(fine[0], fine[1]).T
    x, y = task.mean[:, None] + task.deviation[:, None] * fine
    extent = (x[0], x[-1], y[0], y[-1])
    image = axes.imshow(
        expit(f), cmap="PuOr", vmin=0, vmax=1, alpha=0.75, extent=extent, origin="lower"
    )
    if np.ptp(f) > 1e-6:  # at the start f = 0 everywhere
        axes.contour(x, y, f, levels=[0.0], colors="black", linewidths=1.5)
    for part, marker, edge, name in (
        (task.train, "o", "white", "training"),
        (task.test, "D", "black", "held out"),
    ):
        z1, z2 = (task.mean + task.deviation * part.z).T
        style: dict[str, Any] = {"marker": marker, "edgecolors": edge, "label": name}
        axes.scatter(z1, z2, s=20, c=[COLOURS[y] for y in part.y], linewidths=0.7, **style)
    axes.set(xlabel=task.names[0].replace("_", " "), title=f"t = {t:.3g}", aspect="auto")
    return image


def draw_panels(path: Path, task: Task, maps: dict[float, Array]) -> None:
    """The decision boundary at several times; called on rank 0."""
    figure = Figure(figsize=(11.5, 3.7), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    times = np.array(list(maps))
    for axes, share in zip(panels, PANELS, strict=True):
        t = float(times[np.argmin(np.abs(times - share * times[-1]))])
        image = draw_map(axes, task, maps[t], t)
    panels[0].set_ylabel(task.names[1].replace("_", " "))
    panels[-1].legend(loc="lower right", fontsize="small")
    figure.colorbar(image, ax=panels, label="probability of the cultivar", pad=0.01)
    figure.savefig(path)


def draw_film(
    path: Path, task: Task, maps: dict[float, Array], history: dict[str, npt.NDArray[Any]]
) -> None:
    """A frame for every step: the decision boundary, and the losses so far; called on rank 0."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    limits = history["t"][1], history["t"][-1]

    def frame(t: float, outputs: Array) -> Figure:
        left.clear()
        right.clear()
        draw_map(left, task, outputs, t)
        left.set_ylabel(task.names[1].replace("_", " "))
        left.legend(loc="lower right", fontsize="small")
        past = (history["t"] > 0) & (history["t"] <= t)  # the axis is logarithmic
        for column, name in (("loss", "training"), ("held_out_loss", "held out")):
            right.plot(history["t"][past], history[column][past], label=name)
        right.set(xscale="log", xlim=limits, ylim=(0.0, 1.1 * np.log(2.0)))
        right.set(xlabel="t", ylabel="mean logistic loss")
        right.legend(frameon=False, loc="lower left")
        return figure

    film_of_figures(path, (frame(t, outputs) for t, outputs in maps.items()), fps=8)


def report(state: mf.State, rows: dict[str, Scores], minimum: mf.Minimum | None) -> None:
    """Print the outcome on rank 0."""
    CONSOLE.print(
        f"t = {state.t:g}  F^σ = {state.energy:.10f}  residual = {state.residual:.1e}  "
        f"boundary mass = {state.boundary_mass:.1e}"
    )
    if minimum is not None:
        CONSOLE.print(f"minimiser: {minimum}")
    table = Table(title="logistic loss and accuracy", title_justify="left")
    table.add_column("classifier")
    for name in ("loss", "held out", "accuracy", "held out"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        numbers = zip(row.values(), (".4f", ".4f", ".1%", ".1%"), strict=True)
        table.add_row(name, *(format(value, style) for value, style in numbers))
    CONSOLE.print(table)


def main(
    features: tuple[str, ...] = ("flavanoids", "hue"),
    cultivar: Literal[1, 2, 3] = 2,
    held_out: float = 1 / 3,
    sigma: float = 0.5,
    kappa: float = 0.1,
    scale: float = 20.0,
    radius: float | None = None,
    h: float = 2.9,
    cell: Literal["hexahedron", "tetrahedron"] = "hexahedron",
    degree: int | None = None,
    dt: float = 0.01,
    t_end: float = 10.0,
    tolerance: float = 5e-3,
    minimiser: bool = True,
    every: int = 2,
    minutes: float = 10.0,
    restart: bool = False,
    seed: int = 1,
    output: str = "results/classification",
) -> dict[str, Any]:
    """Train, compare, draw, and return the numbers. Collective."""
    comm = MPI.COMM_WORLD
    mf.setup_logging(comm)
    task = read_task(features, cultivar, held_out, scale, seed)
    trap = mf.Potential(lambda x: 0.5 * kappa * np.sum(x**2, axis=0))
    # Trained neurons spread beyond the ground state of the trap alone: 2 more units of room.
    radius = radius or mf.truncation_radius(kappa, sigma, tol=1e-8, dim=3, offset=2.0)
    tensor = cell == "hexahedron"
    folder = Path(output)
    saved = mf.Checkpoint.read(folder / "checkpoint", comm) if restart else None
    problem = mf.Problem(
        saved.mesh if saved else mf.box(comm, radius, h, cell=cell),
        trap + task.train,
        sigma,
        degree=degree or (4 if tensor else 2),
        mass="lumped" if tensor else "consistent",
    )
    logging.getLogger("fem_mf.demo").info(
        "%d ranks, %d dofs of degree %d, %d data and %d held out, radius %.3g",
        comm.size,
        problem.space.dofmap.index_map.size_global,
        problem.degree,
        len(task.train.y),
        len(task.test.y),
        radius,
    )
    flow = mf.SchrodingerFlow(problem, dt, "sdirk2", tolerance=tolerance)
    state, maps = train(flow, task, folder, t_end, every, minutes, saved)
    rows = {**baselines(task), f"law of the neurons, t = {t_end:g}": task.of(state.density)}
    rows |= finite_networks(task, state.density, seed)
    minimum, limit = None, None
    if minimiser:
        minimum, limit = find_limit(state.density, folder / "history.csv", tol=1e-6)
    if minimum is not None:
        rows["minimiser"] = task.of(minimum.density)
    report(state, rows, minimum)
    title = f"law of the neurons, t = {t_end:g}"
    plot_density(folder / "neurons.png", state.density, title, names=("a₁", "a₂", "b"))
    if comm.rank == 0:
        history = mf.History.read(folder / "history.csv")
        columns = ("energy", "held_out_loss", "held_out_accuracy")
        plot_history(folder / "history.png", history, columns, lowest=limit)
        draw_panels(folder / "boundary.png", task, maps)
        draw_film(folder / "boundary.mp4", task, maps, history)
    comm.barrier()
    return {"energy": state.energy, "scores": rows, "minimum": minimum, "frames": len(maps)}


if __name__ == "__main__":
    main(**parse(main, __doc__, HELPS))
