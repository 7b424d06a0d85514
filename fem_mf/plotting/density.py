"""Pictures of one density: a curve, colours or marginals.

    plot_density("run/density.png", density, title="t = 1")

The densities of several problems in one dimension may share a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fem_mf.mpi import on_root
from fem_mf.plotting.curves import make_figure, save
from fem_mf.plotting.sampled import Sampled, gather, spread
from fem_mf.typing import Array, PathLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from fem_mf.density import Density

__all__ = ["plot_density"]

_BINS = 50  # per axis of a marginal
_SAMPLES = 2_000_000  # points that share the mass of a 3-d density, 800 per bin of a marginal


def plot_density(
    path: PathLike,
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


def _curves(path: PathLike, samples: dict[str, Sampled], title: str, points: Array | None) -> None:
    figure = make_figure(5.2, 3.4)
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
    save(figure, path)


def _colours(path: PathLike, sample: Sampled, title: str, points: Array | None) -> None:
    figure = make_figure(5.0, 4.2)
    from matplotlib.tri import Triangulation

    axes = figure.subplots()
    triangles = Triangulation(sample.points[:, 0], sample.points[:, 1], sample.cells)
    colours = axes.tripcolor(triangles, sample.values, shading="gouraud", rasterized=True)
    if points is not None:
        axes.plot(*points.T, ".", color="white", markersize=2.5, markeredgewidth=0, alpha=0.7)
    axes.set(xlabel="x₁", ylabel="x₂", title=title)
    _finish_map(figure, axes, colours, "m(x)")
    save(figure, path)


def _marginals(path: PathLike, sample: Sampled, title: str, points: Array | None) -> None:
    figure = make_figure(10.5, 3.4)
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
    save(figure, path)


def _finish_map(figure: Figure, axes: Axes, colours: ScalarMappable, label: str) -> None:
    axes.set_aspect("equal")
    axes.margins(0.0)
    # Of the height of the map, whatever its proportions.
    figure.colorbar(colours, cax=axes.inset_axes((1.04, 0.0, 0.05, 1.0)), label=label)
