"""Pictures: densities in memory, and everything in a folder of results; the public face of drawing.

    plot_density("run/density.png", density, title="t = 1")
    render("run")                                   # pictures, film and curves of what is there
    film("run/series.xdmf", "run/m.mp4", field="m")

On the command line (``--help`` for the rest), also while the run goes on:

    python -m fem_mf.plotting results/run --format gif --every 2

matplotlib, pyvista and imageio are optional (``pip install 'fem_mf[plot]'``) and imported only when
something is drawn; rank 0 draws, no window is ever opened and no display is needed. The format of
pictures follows the suffix of the path.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.curves import Path_, make_figure, plot_convergence, plot_fit, plot_history, save
from fem_mf.film import FORMATS, Look, film, picture
from fem_mf.parallel import on_root
from fem_mf.results import render
from fem_mf.sampled import Array, Sampled, gather, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from fem_mf.density import Density

__all__ = [
    "Look",
    "Sampled",
    "film",
    "gather",
    "picture",
    "plot_convergence",
    "plot_density",
    "plot_fit",
    "plot_history",
    "render",
]

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


def _colours(path: Path_, sample: Sampled, title: str, points: Array | None) -> None:
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


def _marginals(path: Path_, sample: Sampled, title: str, points: Array | None) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a folder of results: ``python -m fem_mf.plotting``. Collective on all ranks.

    Args:
        arguments: the words of the command line, those of this process by default.

    Returns:
        The exit code: 0, 1 when there is nothing to draw or it cannot be drawn, 2 for a mistake
        in the arguments.
    """
    comm = MPI.COMM_WORLD
    options: argparse.Namespace | int | str | None = None
    if comm.rank == 0:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit as stop:  # has said why
            options = stop.code
    options = comm.bcast(options, root=0)
    if not isinstance(options, argparse.Namespace):
        return int(options or 0)
    try:
        files = render(
            options.results,
            options.output,
            field=options.field,
            times=options.time,
            kind=None if options.no_film else options.format,
            fps=options.fps,
            every=options.every,
            look=Look(options.size, options.range, options.rescale, options.whole),
            comm=comm,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        if not isinstance(cause, OSError | None):
            raise  # a mistake of ours: with its traceback
        if comm.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 1
    if comm.rank == 0:
        print(*files, sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fem_mf.plotting",
        description="Pictures, a film and curves of a folder of results, without a display; "
        "also while the run goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("results", help="folder with .xdmf or .pvd series and history.csv, or one of these files")
    add("--output", metavar="DIR", help="folder for the pictures; that of the results if not given")
    add("--field", default="m", help="m, psi, u or V")
    add("--time", type=float, nargs="+", default=(), metavar="T", help="of the pictures")
    add("--format", choices=[kind.removeprefix(".") for kind in FORMATS], default="mp4")
    add("--no-film", action="store_true", help="pictures only")
    add("--fps", type=float, default=15.0, help="images of the film per second")
    add("--every", type=int, default=1, metavar="N", help="one image for so many steps")
    add("--size", type=_size, default=Look.size, metavar="WxH", help="in pixels")
    add("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of colours and heights")
    add("--rescale", action="store_true", help="a new range for each image")
    add("--whole", action="store_true", help="the whole mesh, not only where there is mass")
    return parser


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
