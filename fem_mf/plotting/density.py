"""Plots of densities in memory: curves, colour maps or marginals.

    plot_density("run/density.png", density, title="t = 1")
    plot_density("run/two.png", {"start": start, "end": density})

A function on the mesh is gathered on rank 0 as a piecewise linear function on simplices; a higher
degree subdivides the cells:

    sample = gather(density.psi, degree=2)    # None on the other ranks
    if sample is not None:
        sample.points, sample.cells, sample.values
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from scipy.ndimage import gaussian_filter

from fem_mf.mpi import on_root
from fem_mf.output.xdmf import cut
from fem_mf.plotting.style import COLOURS, axis_names, make_figure, save
from fem_mf.typing import Array, PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fem_mf.density import Density

__all__ = ["Sampled", "curve", "frame", "gather", "plot_density"]

_LOG = logging.getLogger(__name__)

_LEFT_OUT = 1e-3  # share of the mass of a density outside its picture
_BINS = 50  # number of bins per axis of a marginal
_POINTS = 2_000_000  # random points for the marginals of a density, 800 per bin
_PIECES = 40_000  # least number of pieces of all cells, up to four times the degree of ψ


@dataclass(frozen=True)
class Sampled:
    """A continuous, piecewise linear function on simplices, stored on one rank.

    Attributes:
        points: ``(n, d)`` vertices without repetition.
        cells: ``(c, d + 1)`` indices into ``points``.
        values: ``(n,)`` values at the points.
    """

    points: Array
    cells: npt.NDArray[np.int64]
    values: Array

    def cell_masses(self) -> Array:
        """Integral over each cell, ``(c,)``."""
        corners = self.points[self.cells]
        edges = corners[:, 1:] - corners[:, :1]
        volumes = np.abs(np.linalg.det(edges)) / np.prod(range(1, edges.shape[1] + 1))
        return np.asarray(volumes * self.values[self.cells].mean(axis=1))


def frame(samples: Iterable[Sampled], whole: bool = False, margin: float = 0.05) -> Array:
    """The box shown in a picture of densities, ``(d, 2)``: 99.9 % of each mass, and a margin.

    Along each axis the same share of the mass is left out at both ends. The margin is relative to
    the longest edge.
    """
    low, high, mesh = [], [], []
    for sample in samples:
        corners, masses = sample.points[sample.cells], sample.cell_masses()
        tail = 0.5 * _LEFT_OUT / corners.shape[2]
        quantile = partial(np.quantile, axis=0, weights=masses, method="inverted_cdf")
        low.append(quantile(corners.min(axis=1), tail))
        high.append(quantile(corners.max(axis=1), 1.0 - tail))
        mesh += [corners.min(axis=(0, 1)), corners.max(axis=(0, 1))]
    box, hull = np.array([np.min(low, axis=0), np.max(high, axis=0)]), np.array(mesh)
    room = np.inf if whole else margin * float(np.ptp(box, axis=0).max())
    box += [[-room], [room]]
    return np.asarray(np.clip(box, hull.min(axis=0), hull.max(axis=0)).T)


def gather(function: fem.Function[np.float64], degree: int = 1) -> Sampled | None:
    """Gather a scalar function on rank 0, interpolated on simplices. Collective.

    Args:
        function: a continuous scalar function.
        degree: number of pieces into which each edge of the mesh is cut. With 1, the samples
            are the values at the vertices.

    Returns:
        The sampled function on rank 0, None elsewhere.
    """
    space, points, cells = cut(function.function_space.mesh, degree, simplices=True)
    nodal: fem.Function[np.float64] = fem.Function(space)
    nodal.interpolate(function)
    parts = space.mesh.comm.gather((points, cells, nodal.x.array[: len(points)]), root=0)
    return parts and Sampled(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def plot_density(
    path: PathLike,
    density: Density | Mapping[str, Density],
    title: str = "",
    points: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draw m: a curve for d = 1, colours for d = 2, three two-dimensional marginals for d = 3.

    The picture shows the smallest box that holds 99.9 % of the mass, with a margin. Several
    densities share a panel for d = 1; otherwise they have separate panels with a common frame and
    colour scale. Collective.

    Args:
        path: the picture; missing folders are created.
        density: the density, or several on one communicator, by label.
        title: title above the picture.
        points: ``(k, d)`` positions drawn on top, such as particles.
        names: names of the axes.

    Raises:
        ValueError: if the number of names is not d.
        ImportError: if matplotlib is missing.
    """
    densities = density if isinstance(density, Mapping) else {"": density}
    mesh = next(iter(densities.values())).psi.function_space.mesh
    d = mesh.geometry.dim
    axes = axis_names(names, d)
    _LOG.info("drawing '%s'", path)
    samples = {label: _gather_m(one, d) for label, one in densities.items()}
    overlay = np.empty((0, d)) if points is None else np.reshape(points, (-1, d)).astype(float)

    def draw() -> None:
        here = {label: sample for label, sample in samples.items() if sample is not None}
        figure = (_curves if d == 1 else _maps)(here, overlay, axes)
        figure.suptitle(title)
        save(figure, path)

    on_root(mesh.comm, draw)


def _gather_m(density: Density, d: int) -> Sampled | None:
    """Samples of m on rank 0, fine enough that no facets are visible."""
    space = density.psi.function_space
    degree = space.element.basix_element.degree
    pieces = degree
    if d < 3:
        num_cells = space.mesh.topology.index_map(d).size_global
        pieces = max(degree, min(4 * degree, 16, round((_PIECES / num_cells) ** (1.0 / d))))
    sample = gather(density.psi, pieces)
    return sample and Sampled(sample.points, sample.cells, sample.values**2)


def curve(sample: Sampled) -> tuple[Array, Array]:
    """The abscissae and ordinates of a sample for d = 1, from left to right."""
    order = np.argsort(sample.points[:, 0])
    return sample.points[order, 0], sample.values[order]


def _curves(samples: Mapping[str, Sampled], points: Array, names: Sequence[str]) -> Figure:
    figure = make_figure(5.2, 3.4)
    axes = figure.subplots()
    for label, sample in samples.items():
        axes.plot(*curve(sample), label=label or None)
    axes.plot(points[:, 0], np.zeros(len(points)), "k|", markersize=8, alpha=0.4)
    axes.set(xlabel=names[0], ylabel=f"m({names[0]})", xlim=frame(samples.values())[0])
    axes.set_ylim(bottom=None if len(points) else 0.0)
    axes.grid(alpha=0.3)
    if any(samples):
        axes.legend(frameon=False)
    return figure


def _maps(samples: Mapping[str, Sampled], points: Array, names: Sequence[str]) -> Figure:
    """A panel for each density if d = 2, a row of three marginals for each if d = 3."""
    plane, box = len(names) == 2, frame(samples.values())
    if not plane:  # panels of one size
        half = 0.5 * np.ptp(box, axis=1).max()
        box = box.mean(axis=1, keepdims=True) + half * np.array([-1.0, 1.0])
    pairs = [[0, 1]] if plane else [[0, 1], [0, 2], [1, 2]]
    maps = [
        (label, pair, sample, sample.values if plane else _marginal(sample, pair, box))
        for label, sample in samples.items()
        for pair in pairs
    ]
    columns = min(len(maps), 4) if plane else 3
    rows = -(-len(maps) // columns)
    width = 4.2 if len(maps) == 1 else 3.0
    shape = np.clip(max(np.ptp(box[j]) / np.ptp(box[i]) for i, j in pairs), 0.4, 2.0)
    figure = make_figure(width * columns + 0.9, width * shape * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    top = max(float(values.max()) for *_, values in maps)
    style = {"cmap": COLOURS, "vmin": 0.0, "vmax": top, "rasterized": True}
    for axes, (label, pair, sample, values) in zip(panels, maps, strict=False):
        if plane:
            style |= {"shading": "gouraud", "triangles": sample.cells}
            colours = axes.tripcolor(*sample.points.T, values, **style)
        else:
            style |= {"origin": "lower", "extent": box[pair].ravel(), "interpolation": "bilinear"}
            colours = axes.imshow(values.T, **style)
        axes.plot(*points[:, pair].T, ".", color="white", markersize=2.5, mew=0, alpha=0.7)
        (x, y), (across, up) = box[pair], (names[axis] for axis in pair)
        axes.set(xlabel=across, ylabel=up, title=label, aspect="equal", xlim=x, ylim=y)
        axes.set_facecolor("0.92")  # where there is no mesh
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    label = f"m({', '.join(names)})" if plane else "marginals of m"
    figure.colorbar(colours, ax=panels.tolist(), label=label)
    return figure


def _marginal(sample: Sampled, pair: list[int], box: Array) -> Array:
    """A histogram over a plane; each cell distributes its mass to random points in it."""
    num_cells, corners = sample.cells.shape
    count = int(np.clip(_POINTS // num_cells, 1, 4096))
    # Gaps between sorted uniform numbers are uniform barycentric coordinates.
    cuts = np.sort(np.random.default_rng(0).random((num_cells, count, corners - 1)), axis=2)
    weights = np.diff(cuts, axis=2, prepend=0.0, append=1.0)
    places = np.einsum("ckv,cvd->dck", weights, sample.points[sample.cells][..., pair])
    shares = np.einsum("ckv,cv->ck", weights, sample.values[sample.cells])
    shares *= (sample.cell_masses() / np.maximum(shares.sum(axis=1), 1e-300))[:, None]
    x, y = places.reshape(2, -1)
    mass = np.histogram2d(x, y, _BINS, range=box[pair].tolist(), weights=shares.ravel())[0]
    # Smoothing removes the noise of the random points.
    smooth = gaussian_filter(mass, 1.0, mode="nearest")
    return np.asarray(smooth / np.prod(np.ptp(box[pair], axis=1) / _BINS))
