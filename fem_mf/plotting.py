"""Pictures of densities, histories and fits, drawn on rank 0 with matplotlib.

    plot_density("run/density.png", state.density, title="t = 1")
    plot_history("run/history.png", History.read("run/history.csv"))

matplotlib is optional (``pip install 'fem_mf[plot]'``) and imported only when something is drawn;
no window is ever opened. The format follows the suffix of the path (png, pdf, svg).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.parallel import on_root
from fem_mf.sampled import Array, Sampled, gather, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from fem_mf.density import Density

__all__ = ["Sampled", "gather", "plot_density", "plot_fit", "plot_history"]

type Path_ = str | os.PathLike[str]

_LOGARITHMIC = ("dissipation", "residual", "gap")
_BINS = 50  # per axis of a marginal
_SAMPLES = 2_000_000  # points that share the mass of a 3-d density, 800 per bin of a marginal


def plot_density(
    path: Path_,
    density: Density | Mapping[str, Density],
    title: str = "",
    points: npt.ArrayLike | None = None,
) -> None:
    """Draw m: a curve for d = 1, colours for d = 2, the three marginals of two axes for d = 3.

    Collective.

    Args:
        path: the picture; missing folders are created.
        density: the density; for d = 1 also several of one communicator, by label.
        title: above the picture.
        points: ``(k, d)`` positions drawn on top, such as particles.

    Raises:
        ValueError: several densities for d > 1.
        ImportError: matplotlib is missing.
    """
    densities = density if isinstance(density, Mapping) else {"": density}
    mesh = next(iter(densities.values())).psi.function_space.mesh
    d = mesh.geometry.dim
    if d > 1 and len(densities) > 1:
        raise ValueError("several densities in one picture need d = 1")
    samples = {label: _gather_m(one, d) for label, one in densities.items()}
    overlay = None if points is None else np.asarray(points, dtype=float).reshape(-1, d)

    def draw() -> None:
        here = {label: sample for label, sample in samples.items() if sample is not None}
        if d == 1:
            _curves(path, here, title, overlay)
        else:
            (_colours if d == 2 else _marginals)(path, here.popitem()[1], title, overlay)

    on_root(mesh.comm, draw)


def _gather_m(density: Density, d: int) -> Sampled | None:
    degree = density.psi.function_space.element.basix_element.degree
    # m has twice the degree of ψ, which shows in a curve.
    sample = gather(density.psi, 2 * degree if d == 1 else degree)
    return sample and Sampled(sample.points, sample.cells, sample.values**2)


def _curves(path: Path_, samples: dict[str, Sampled], title: str, points: Array | None) -> None:
    figure = _figure(5.2, 3.4)
    axes = figure.subplots()
    for label, sample in samples.items():
        order = np.argsort(sample.points[:, 0])
        axes.plot(sample.points[order, 0], sample.values[order], label=label or None)
    if points is not None:
        axes.plot(points[:, 0], np.zeros(len(points)), "k|", markersize=8, alpha=0.4)
    axes.set(xlabel="x", ylabel="m(x)", title=title)
    axes.set_ylim(bottom=0.0 if points is None else None)
    if any(samples):
        axes.legend(frameon=False)
    _save(figure, path)


def _colours(path: Path_, sample: Sampled, title: str, points: Array | None) -> None:
    figure = _figure(5.0, 4.2)
    from matplotlib.tri import Triangulation

    axes = figure.subplots()
    triangles = Triangulation(sample.points[:, 0], sample.points[:, 1], sample.cells)
    colours = axes.tripcolor(triangles, sample.values, shading="gouraud", rasterized=True)
    if points is not None:
        axes.plot(*points.T, ".", color="white", markersize=2.5, markeredgewidth=0, alpha=0.7)
    axes.set(xlabel="x₁", ylabel="x₂", title=title)
    _finish_map(figure, axes, colours, "m(x)")
    _save(figure, path)


def _marginals(path: Path_, sample: Sampled, title: str, points: Array | None) -> None:
    figure = _figure(10.5, 3.4)
    positions, masses = spread(sample, _SAMPLES)
    box = np.stack([sample.points.min(axis=0), sample.points.max(axis=0)], axis=1)
    panels = figure.subplots(1, 3)
    for axes, (i, j) in zip(panels, ((0, 1), (0, 2), (1, 2)), strict=True):
        mass, x, y = np.histogram2d(
            positions[:, i], positions[:, j], _BINS, range=box[[i, j]], weights=masses
        )
        areas = np.outer(np.diff(x), np.diff(y))
        centres = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
        colours = axes.pcolormesh(*centres, (mass / areas).T, shading="gouraud", rasterized=True)
        if points is not None:
            axes.plot(points[:, i], points[:, j], ".", color="white", markersize=2, alpha=0.6)
        names = f"x{'₁₂₃'[i]}", f"x{'₁₂₃'[j]}"
        axes.set(xlabel=names[0], ylabel=names[1])
        _finish_map(figure, axes, colours, f"m({names[0]}, {names[1]})")
    figure.suptitle(title)
    _save(figure, path)


def _finish_map(figure: Figure, axes: Axes, colours: ScalarMappable, label: str) -> None:
    axes.set_aspect("equal")
    axes.margins(0.0)
    # Of the height of the map, whatever its proportions.
    figure.colorbar(colours, cax=axes.inset_axes((1.04, 0.0, 0.05, 1.0)), label=label)


def plot_history(
    path: Path_,
    history: Mapping[str, npt.ArrayLike],
    columns: Sequence[str] = ("energy", "dissipation"),
    title: str = "",
    lowest: float | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw columns of a history against ``t``. Collective on ``comm``, whose rank 0 draws.

    The energy is drawn above its lowest value, which the label tells; it, dissipation, residual
    and gap have logarithmic axes.

    Args:
        path: the picture; missing folders are created.
        history: what ``History.read`` returns; only rank 0's is used.
        columns: a panel for each.
        title: above the picture.
        lowest: the minimal energy, if known (``minimise``); otherwise the smallest in the history,
            towards which the curve bends down at its end.
        comm: the communicator that calls.

    Raises:
        ValueError: a column is missing.
        ImportError: matplotlib is missing.
    """

    def draw() -> None:
        missing = [name for name in ("t", *columns) if name not in history]
        if missing:
            raise ValueError(f"no column {missing} in a history of {list(history)}")
        figure = _figure(3.8 * len(columns), 3.2)
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, name in zip(panels, columns, strict=True):
            _history_panel(axes, name, np.asarray(history["t"]), np.asarray(history[name]), lowest)
        figure.suptitle(title)
        _save(figure, path)

    on_root(comm, draw)


def _history_panel(axes: Axes, name: str, t: Array, values: Array, lowest: float | None) -> None:
    label = name.replace("_", " ")
    if name == "energy" and np.ptp(values) > 0.0:
        lowest = float(values.min()) if lowest is None else lowest
        label = f"energy {'+' if lowest < 0.0 else '−'} {abs(lowest):.8g}"
        values = values - lowest
    shown = values > 0.0
    logarithmic = name in ("energy", *_LOGARITHMIC) and bool(shown.any())
    if logarithmic:
        t, values = t[shown], values[shown]
        axes.set_yscale("log")
    axes.plot(t, values, "." if len(t) == 1 else "-")
    axes.set(xlabel="t", ylabel=label)
    axes.grid(alpha=0.3)


def plot_fit(
    path: Path_,
    z: npt.ArrayLike,
    y: npt.ArrayLike,
    grid: npt.ArrayLike,
    curves: Mapping[str, npt.ArrayLike],
    title: str = "",
    labels: tuple[str, str] = ("z", "y"),
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw data and regression curves. Collective on ``comm``, whose rank 0 draws.

    Args:
        path: the picture; missing folders are created.
        z: ``(k,)`` inputs of the data.
        y: ``(k,)`` outputs of the data.
        grid: ``(n,)`` inputs of the curves, ascending.
        curves: ``(n,)`` outputs by label.
        title: above the picture.
        labels: of the two axes.
        comm: the communicator that calls.

    Raises:
        ImportError: matplotlib is missing.
    """

    def draw() -> None:
        figure = _figure(5.6, 3.6)
        axes = figure.subplots()
        axes.plot(np.ravel(z), np.ravel(y), "o", color="0.45", markersize=3, label="data")
        for label, values in curves.items():
            axes.plot(np.ravel(grid), np.ravel(values), label=label)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        axes.legend(frameon=False)
        _save(figure, path)

    on_root(comm, draw)


def _figure(width: float, height: float) -> Figure:
    """Make a figure that pyplot does not know: no window, and nothing to close."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'fem_mf[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path_) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
