"""Plots of a run: its history, its convergence, and the fit of a network.

The columns of a history come from its CSV file, the minimum and the rate from the file beside it:

    history, limit = History.read("run/history.csv"), Limit.read("run/history.csv")
    plot_history("run/history.png", history, lowest=limit)
    plot_convergence("run/convergence.png", history, lowest=limit)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.mpi import on_root
from fem_mf.plotting.style import make_figure, save
from fem_mf.stationary.limit import Limit
from fem_mf.typing import Array, PathLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_convergence", "plot_fit", "plot_history", "plot_sweep"]

_LOGARITHMIC = ("dissipation", "residual", "gap")
_FIRST = ("energy", *_LOGARITHMIC)
_CLOCK = ("t", "step", "next_dt")  # columns about time, which do not show convergence


def plot_history(
    path: PathLike,
    history: Mapping[str, npt.ArrayLike],
    columns: Sequence[str] = ("energy", "dissipation"),
    title: str = "",
    lowest: Limit | float | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw columns of a history against ``t``. Collective on ``comm``; rank 0 draws.

    If the minimum is known, it is subtracted from the energy, which is shown as far as the
    certificate allows, with the predicted rate as a dashed line. Otherwise the last energy of the
    run is subtracted, as the label says, and the end of the curve, which depends on that choice, is
    omitted. Energy, dissipation, residual and gap have logarithmic axes.

    Args:
        path: the picture; missing folders are created.
        history: the result of ``History.read``; only that of rank 0 is used.
        columns: the columns to draw, one panel each.
        title: title above the picture.
        lowest: the minimal energy if it is known: a number, or a limit from ``Limit.of`` (of a
            minimum) or ``Limit.read`` (from the file beside a history).
        comm: the communicator that calls.

    Raises:
        ValueError: if a column is missing.
        ImportError: if matplotlib is missing.
    """

    def draw() -> None:
        missing = [name for name in ("t", *columns) if name not in history]
        if missing:
            raise ValueError(f"no column {missing} in a history of {list(history)}")
        t = np.asarray(history["t"])
        figure, grid = _panels(len(columns), len(columns), title)
        for axes, name in zip(grid, columns, strict=True):
            _draw_column(axes, name, t, np.asarray(history[name]), lowest)
        save(figure, path)

    on_root(comm, draw)


def _panels(count: int, across: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with one or more rows of panels."""
    rows = -(-count // across)
    figure = make_figure(3.8 * across, 3.1 * rows)
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    figure.suptitle(title)
    return figure, list(grid[:count])


def _draw_column(
    axes: Axes,
    name: str,
    t: Array,
    values: Array,
    lowest: Limit | float | None,
    logarithmic: bool = False,
) -> None:
    label, rate = name.replace("_", " "), None
    logarithmic = logarithmic or name in _LOGARITHMIC
    if name == "energy" and len(values) > 1 and np.ptp(values) > 0.0:
        limit = Limit(lowest) if isinstance(lowest, int | float) else lowest
        rate = None if limit is None else limit.decay_rate
        above = _above_the_last(t, values) if limit is None else _above_the_minimum(values, limit)
        logarithmic = above is not None
        label, values = above or (label, values)
    if len(t) > 1:  # show the whole run, also where the energy is omitted
        margin = 0.05 * (t[-1] - t[0])
        axes.set_xlim(t[0] - margin, t[-1] + margin)
    shown = values > 0.0
    logarithmic = logarithmic and bool(shown.any())
    if logarithmic:
        t, values = t[shown], values[shown]
        axes.set_yscale("log")
    axes.plot(t, values, "." if len(t) == 1 else "-")
    if logarithmic and rate is not None:
        _draw_rate(axes, t, values, rate)
    axes.set(xlabel="t", ylabel=label)
    axes.grid(alpha=0.3)


def _above_the_minimum(values: Array, limit: Limit) -> tuple[str, Array] | None:
    """Energies minus the minimum, NaN where they are below its uncertainty."""
    excess = values - limit.minimum
    excess = np.where(excess > limit.uncertainty, excess, np.nan)
    if np.isnan(excess).all():  # the minimum belongs to another run
        return None
    return f"energy − minimum ({limit.minimum:.8g})", excess


def _above_the_last(t: Array, values: Array) -> tuple[str, Array] | None:
    """Energies minus the smallest, NaN where this choice changes them by more than a tenth.

    The last energy is above the minimum by an amount that is extrapolated from the decrease over
    the last two quarters of the run; the result is None if this does not converge.
    """
    least = float(np.min(values))
    excess = values - least
    before, middle, last = np.interp(t[-1] - (t[-1] - t[0]) * np.array([0.5, 0.25, 0.0]), t, values)
    first, second = before - middle, middle - last
    error = 64.0 * float(np.finfo(float).eps) * abs(least)
    if second > error:
        error = second**2 / (first - second) if first > second else np.inf
    excess = np.where(excess > 10.0 * error, excess, np.nan)
    if np.count_nonzero(excess > 0.0) < 2:
        return None
    which = "last energy" if values[-1] == least else "lowest"
    return f"energy − {which} ({least:.8g})", excess


def _draw_rate(axes: Axes, t: Array, values: Array, rate: float) -> None:
    """Draw a dashed line with the predicted slope below the second half of a curve."""
    half = np.linspace(0.5 * (t[0] + t[-1]), t[-1], 50)
    line = 0.5 * values[-1] * np.exp(np.minimum(rate * (t[-1] - half), 700.0))
    below = line <= values.max()
    axes.plot(half[below], line[below], "k--", linewidth=1.0, label=f"e^(−{rate:.4g} t), predicted")
    axes.legend(frameon=False, fontsize=8)


def plot_convergence(
    path: PathLike,
    history: Mapping[str, npt.ArrayLike],
    title: str = "",
    comm: MPI.Comm = MPI.COMM_SELF,
    lowest: Limit | float | None = None,
) -> None:
    """Draw every column of a history. Collective on ``comm``; rank 0 draws.

    Each column has its own panel, against ``t`` (or the line number if there is no ``t``); counts
    (``..._iterations``, ``rejected``) share one. The energy is drawn as by :func:`plot_history`.
    Positive columns that span a factor of ten have logarithmic axes. Columns that are constant or
    have no finite numbers are omitted.

    Args:
        path: the picture; missing folders are created.
        history: the result of ``History.read``; only that of rank 0 is used.
        title: title above the picture.
        comm: the communicator that calls.
        lowest: the minimal energy, if it is known.

    Raises:
        ValueError: if there is no column to draw.
        ImportError: if matplotlib is missing.
    """

    def draw() -> None:
        columns = {name: np.asarray(values, dtype=float) for name, values in history.items()}
        shown = {k: v for k, v in columns.items() if k not in _CLOCK and _changes(v)}
        counts = [name for name in shown if name == "rejected" or name.endswith("iterations")]
        others = [name for name in shown if name not in counts]
        others.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
        panels = others + ["iterations"] * bool(counts)
        if not panels:
            raise ValueError(f"nothing to draw in a history of {list(history)}")
        figure, grid = _panels(len(panels), min(len(panels), 3), title)
        t = columns.get("t", np.arange(len(next(iter(shown.values()))), dtype=float))
        for axes, name in zip(grid, panels, strict=True):
            if name == "iterations":
                _draw_counts(axes, t, {count: shown[count] for count in counts})
            else:
                _draw_column(axes, name, t, shown[name], lowest, _spans(shown[name]))
            axes.set_xlabel("t" if "t" in columns else "step")
        save(figure, path)

    on_root(comm, draw)


def _changes(values: Array) -> bool:
    finite = values[np.isfinite(values)]
    # A mass that is 1 up to rounding counts as constant.
    return bool(len(finite) > 1 and np.ptp(finite) > 1e-12 * np.abs(finite).max())


def _spans(values: Array) -> bool:
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0.0]
    return bool(finite.min() >= 0.0 and positive.max() >= 10.0 * positive.min())


def _draw_counts(axes: Axes, t: Array, counts: Mapping[str, Array]) -> None:
    for name, values in counts.items():
        axes.plot(t, values, ".-", markersize=3, linewidth=0.8, label=name.replace("_", " "))
    axes.set(ylabel="per step")
    if max(float(np.nanmax(values)) for values in counts.values()) > 100.0:
        axes.set_yscale("symlog", linthresh=10.0)
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def plot_fit(
    path: PathLike,
    z: npt.ArrayLike,
    y: npt.ArrayLike,
    grid: npt.ArrayLike,
    curves: Mapping[str, npt.ArrayLike],
    title: str = "",
    labels: tuple[str, str] = ("z", "y"),
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw data and regression curves. Collective on ``comm``; rank 0 draws.

    Args:
        path: the picture; missing folders are created.
        z: ``(k,)`` inputs of the data.
        y: ``(k,)`` outputs of the data.
        grid: ``(n,)`` inputs of the curves, ascending.
        curves: ``(n,)`` outputs by label.
        title: title above the picture.
        labels: names of the two axes.
        comm: the communicator that calls.

    Raises:
        ImportError: if matplotlib is missing.
    """

    def draw() -> None:
        figure = make_figure(5.6, 3.6)
        axes = figure.subplots()
        axes.plot(np.ravel(z), np.ravel(y), "o", color="0.45", markersize=3, label="data")
        for label, values in curves.items():
            axes.plot(np.ravel(grid), np.ravel(values), label=label)
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        axes.legend(frameon=False)
        save(figure, path)

    on_root(comm, draw)


def plot_sweep(
    path: PathLike, rows: Sequence[Mapping[str, Any]], comm: MPI.Comm = MPI.COMM_SELF
) -> None:
    """Draw the final energies of runs and, if present, the gaps. Collective; rank 0 draws.

    Args:
        path: the picture; missing folders are created.
        rows: the final numbers of each run; the first entry is the varied one, a number or a word.
        comm: the communicator that calls.

    Raises:
        ImportError: if matplotlib is missing.
    """

    def draw() -> None:
        key, *_ = rows[0]
        x = [row[key] for row in rows]
        numbers = all(isinstance(value, int | float) for value in x)
        panels = []
        for name in ("energy", "gap"):
            y = np.array([row.get(name, np.nan) for row in rows], dtype=float)
            if np.isfinite(y).any():
                panels.append((name, y))
        figure, grid = _panels(len(panels), len(panels), "")
        for axes, (name, y) in zip(grid, panels, strict=True):
            order = np.argsort(x) if numbers else np.arange(len(x))
            along = np.array(x, dtype=float) if numbers else np.array([str(value) for value in x])
            # A gap depends on where the solver happens to stop, so the points are not joined.
            axes.plot(along[order], y[order], ".-" if numbers and name == "energy" else "o")
            if numbers and _spans(along):
                axes.set_xscale("log")
            if name in _LOGARITHMIC and (y > 0.0).any():
                axes.set_yscale("log")
            axes.set(xlabel=key, ylabel=name)
            axes.grid(alpha=0.3)
        save(figure, path)

    on_root(comm, draw)
