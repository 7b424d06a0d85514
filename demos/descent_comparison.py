"""Four descents from one start, and two regularisations as σ → 0.

The same two-layer network is trained by the Schrödinger flow (ψ), the Hamilton–Jacobi–Bellman flow
(u = −log m), descents in relative entropy with several steps (J1), and mean-field Langevin dynamics
(L1), which descends the entropic energy F + (σ²/2)∫m log m instead of F^σ = F + (σ²/4)I. The first
three follow one curve, whose rate tends to the one that the linearised flow predicts as faster
modes die out; the rate is measured over the end of the run, above the certified minimum, and the
demo says whether it has settled. Langevin goes elsewhere. Then both minimisers are computed for
σ → 0: their losses meet, their widths do not.

    python demos/descent_comparison.py
    mpirun -n 2 python demos/descent_comparison.py --sigmas 1 0.5 0.25 --output results/descents
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.tri import Triangulation
from rich.table import Table

import fem_mf as mf
from common import CONSOLE, parse
from fem_mf.mpi import on_root
from fem_mf.plotting import Sampled, gather
from fem_mf.typing import Array

type Curves = dict[str, tuple[list[float], list[float]]]
type Row = dict[str, float]


@dataclass(frozen=True)
class Pair:
    """The two minimisers of one σ.

    Attributes:
        fisher: of F + (σ²/4) I.
        entropic: of F + (σ²/2)∫m log m.
    """

    fisher: mf.Density
    entropic: mf.Density


@dataclass(frozen=True)
class Descents:
    """The energies of all flows.

    Attributes:
        curves: times and energies above the minimum, by flow.
        floors: by flow, the energy above the minimum below which its error shows.
        limit: the certified minimum of F^σ and the predicted rate.
        decay: the measured rate of the Schrödinger flow.
    """

    curves: Curves
    floors: dict[str, float]
    limit: mf.Limit
    decay: mf.Decay


def make_functional(kappa: float, data: int) -> mf.Functional:
    """Trap plus the loss of a network of neurons tanh(az + b) on samples of a sine."""
    z = np.linspace(-np.pi, np.pi, data)
    trap = mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2))
    return trap + mf.NetworkLoss(z, np.sin(z), neuron=lambda x, z: np.tanh(x[0] * z + x[1]))


def log_start(x: Array) -> Array:
    """u_0 of a Gaussian off the centre."""
    return np.asarray(0.6 * ((x[0] - 1.0) ** 2 + (x[1] + 0.5) ** 2))


def descend(
    smooth: mf.Problem, linear: mf.Problem, t_end: float, dt: float, steps: tuple[float, ...]
) -> Descents:
    """Run all flows from one start. Collective."""
    start = mf.LogDensity.from_function(smooth, log_start)
    amplitude = mf.Density(smooth, start.amplitude())
    limit, entropic = mf.Limit.of(mf.minimise(smooth)), mf.minimise_entropic(linear)
    states: list[mf.State] = list(mf.SchrodingerFlow(smooth, dt, "sdirk2").run(amplitude, t_end))
    energies = [s.energy for s in states]
    decay = mf.measure_decay([s.t for s in states], energies, limit)
    curves = {"Schrödinger": _above(states, limit.minimum)}
    floors = {"Schrödinger": 10.0 * limit.uncertainty}
    flows = {
        "HJB": mf.HJBFlow(smooth, dt, "sdirk2").run(start, t_end),
        **{
            f"relative entropy, h = {h:g}": mf.RelativeEntropyDescent(smooth, h).run(start, t_end)
            for h in steps
        },
    }
    for name, flow in flows.items():
        states = list(flow)
        # In terms of u the minimum is another one. The flow stops at a point that differs from its
        # minimiser by the discretisation error; below, this shows as a term of half the rate.
        own = _limit(smooth, states[-1])
        curves[name] = _above(states, own)
        floors[name] = max(1e-9, 1e-2 * abs(own - limit.minimum))
    begin = mf.Density.from_function(linear, lambda x: np.exp(-log_start(x)))
    states = list(mf.LangevinFlow(linear, dt).run(begin, t_end))
    curves["Langevin"] = _above(states, entropic.energy)
    floors["Langevin"] = max(1e-9, 10.0 * entropic.gap)
    return Descents(curves, floors, limit, decay)


def _above(states: Sequence[mf.State], minimum: float) -> tuple[list[float], list[float]]:
    return [s.t for s in states], [s.energy - minimum for s in states]


def _limit(problem: mf.Problem, last: mf.State) -> float:
    """The minimum in terms of u: where one long step of the descent leads. Collective."""
    states = list(mf.RelativeEntropyDescent(problem, 1e3).run(last.density, 3e3))
    return states[-1].energy


def shrink(fine: mf.Problem, sigmas: tuple[float, ...]) -> dict[float, Pair]:
    """Both minimisers on one mesh, from the largest σ. Collective."""
    pairs = {}
    for sigma in sorted(sigmas, reverse=True):
        problem = fine.with_sigma(sigma)
        fisher = mf.minimise(problem, tol=1e-8)
        pairs[sigma] = Pair(fisher.density, mf.minimise_entropic(problem).density)
    return pairs


def tabulate(functional: mf.Functional, pairs: dict[float, Pair]) -> list[Row]:
    """F and the total variance of each minimiser."""
    return [
        {
            "sigma": sigma,
            "F, Fisher": float(functional.value(pair.fisher)),
            "F, entropy": float(functional.value(pair.entropic)),
            "variance, Fisher": float(np.trace(pair.fisher.covariance())),
            "variance, entropy": float(np.trace(pair.entropic.covariance())),
        }
        for sigma, pair in pairs.items()
    ]


def show(rows: list[Row]) -> None:
    """Print the table on rank 0."""
    table = Table(title="the two minimisers", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.6g}" for value in row.values()))
    CONSOLE.print(table)


def write(path: Path, rows: list[Row]) -> None:
    """The table as CSV; called on rank 0."""
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, fieldnames=list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)


def compare_rates(limit: mf.Limit, decay: mf.Decay) -> None:
    """Print the measured and the predicted rate on rank 0, and what to make of them."""
    CONSOLE.print(f"Schrödinger: {decay}", soft_wrap=True)
    if limit.decay_rate is None:
        return
    text = f"predicted rate as t → ∞: {limit.decay_rate:.4f}"
    if decay.settled:
        measured, extrapolated = (
            f"{100.0 * (rate / limit.decay_rate - 1.0):+.1f} %"
            for rate in (decay.rate, decay.extrapolated)
        )
        text += f" (measured: {measured}, extrapolated: {extrapolated})"
    else:
        text += (
            "; the run is too short for a comparison, since faster modes have not died out: use a "
            "larger --t-end"
        )
    CONSOLE.print(text, soft_wrap=True)


def draw_energies(path: Path, descents: Descents) -> None:
    """Energies above their minima, and the predicted rate; called on rank 0."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    styles = {"Schrödinger": "-", "HJB": "--", "Langevin": "-"}
    shown = {}
    for name, curve in descents.curves.items():
        t, gap = (np.array(part) for part in curve)
        usable = gap > descents.floors[name]
        shown[name] = t[usable], gap[usable]
        axes.semilogy(*shown[name], styles.get(name, "o:"), ms=3, label=name)
    rate, decay = descents.limit.decay_rate, descents.decay
    if rate is not None:
        t, gap = shown["Schrödinger"]
        tail = t[t >= 0.5 * t[-1]]
        line = 0.3 * gap[-1] * np.exp(rate * (tail[-1] - tail))
        axes.semilogy(tail, line, "k--", lw=1, label=f"e^(−{rate:.4f} t), predicted")
    if np.isfinite(decay.rate):
        label = f"measured: {decay.rate:.4f}" + ("" if decay.settled else ", not asymptotic")
        axes.axvspan(*decay.window, color="0.9", zorder=0, label=label)
    axes.set(xlabel="t", ylabel="energy − its minimum")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_minimisers(path: Path, pairs: dict[float, Pair]) -> None:
    """Both minimisers side by side, σ from the left. Collective."""
    samples: list[tuple[str, Sampled | None]] = []
    for kind in ("fisher", "entropic"):
        for sigma, pair in pairs.items():
            name = "Fisher" if kind == "fisher" else "entropy"
            samples.append((f"{name}, σ = {sigma:g}", gather(getattr(pair, kind).m())))

    def paint() -> None:
        n = len(pairs)
        figure, axes = plt.subplots(
            2, n, figsize=(2.6 * n, 5.2), layout="constrained", sharex=True, sharey=True
        )
        for one, (title, sample) in zip(np.ravel(axes), samples, strict=True):
            assert sample is not None
            x, y = sample.points.T
            one.tripcolor(
                Triangulation(x, y, sample.cells), sample.values, shading="gouraud", rasterized=True
            )
            one.set(title=title, aspect="equal", xlim=(-3.0, 3.0), ylim=(-3.0, 3.0))
        figure.savefig(path, dpi=150)
        plt.close(figure)

    on_root(MPI.COMM_WORLD, paint)


HELP = {
    "sigma": "σ > 0 of the flows",
    "sigmas": "σ of the minimisers",
    "kappa": "κ of the confinement ½κ|x|²",
    "data": "number of samples of the sine",
    "t_end": "final time of the flows",
    "dt": "time step of the flows",
    "steps": "steps h of the descents in relative entropy",
    "radius": "half-length of the square",
    "h": "cell size of the flows; half of it for Langevin, a quarter for the minimisers",
    "output": "folder of the results",
}


def main(
    sigma: float = 0.5,
    sigmas: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125),
    kappa: float = 0.2,
    data: int = 40,
    t_end: float = 30.0,
    dt: float = 0.1,
    steps: tuple[float, ...] = (0.5, 2.0),
    radius: float = 6.0,
    h: float = 0.6,
    output: str = "results/descent_comparison",
) -> dict[str, object]:
    """Descend, compare, write and draw. Collective.

    The keywords are the options of the command line (``HELP``).

    Returns:
        "curves": times and energies above the minimum by flow; "rate": predicted, of F^σ;
        "observed": of the Schrödinger flow at its end; "decay": how that was measured, and whether
        it is asymptotic; "table": one row per σ.
    """
    comm, folder = MPI.COMM_WORLD, Path(output)
    functional = make_functional(kappa, data)
    smooth = mf.Problem(mf.box(comm, radius, h), functional, sigma, degree=2)
    linear = mf.Problem(mf.box(comm, radius, 0.5 * h), functional, sigma, degree=1, mass="lumped")
    descents = descend(smooth, linear, t_end, dt, steps)
    compare_rates(descents.limit, descents.decay)
    fine = mf.Problem(mf.box(comm, radius, 0.25 * h), functional, sigma, degree=1, mass="lumped")
    pairs = shrink(fine, sigmas)
    rows = tabulate(functional, pairs)
    show(rows)
    on_root(comm, lambda: folder.mkdir(parents=True, exist_ok=True))
    on_root(comm, lambda: write(folder / "minimisers.csv", rows))
    on_root(comm, lambda: draw_energies(folder / "energies.png", descents))
    draw_minimisers(folder / "minimisers.png", pairs)
    CONSOLE.print(f"results in {folder}", soft_wrap=True)
    return {
        "curves": descents.curves,
        "rate": descents.limit.decay_rate,
        "observed": descents.decay.rate,
        "decay": descents.decay,
        "table": rows,
    }


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main, __doc__, HELP))
