"""Pictures and films of the fields of a run, without a display.

    film("run/series.xdmf", "run/m.mp4", field="m")
    picture("run/series.xdmf", "run/u.png", field="u", time=1.0)

The run may still be running, or may have been killed. All images of a film share the camera, the
frame and the colour scale. They show curves for d = 1, surfaces for d = 2, isosurfaces for d = 3.
"""

from __future__ import annotations

import ctypes.util
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import unescape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.mpi import LOG_SECONDS, on_root
from fem_mf.output.history import History
from fem_mf.plotting.density import Sampled, curve, frame
from fem_mf.plotting.history import plot_convergence
from fem_mf.plotting.style import COLOURS, INSTALL, axis_names, make_figure
from fem_mf.stationary.limit import Limit
from fem_mf.typing import Array, PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "Look", "film", "film_of_figures", "picture", "render"]

FORMATS = (".mp4", ".gif")
_SYMBOLS = {"psi": "ψ", "V": "V[m]"}
_DATA = r'Dimensions="(\d+) (\d+)" Seek="(\d+)">([^<]+)<'
_SHELLS = (0.9, 0.6, 0.3)  # share of the mass inside each isosurface of m
_LINE = "#31688e"  # colour of a curve, taken from the colour map

type Image = npt.NDArray[np.uint8]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """The appearance of pictures and films.

    Attributes:
        size: width and height in pixels.
        limits: ends of the scale of colours and heights; the default is the range of all images.
        whole: whether to show the whole mesh, not only the box with 99.9 % of the mass.
        names: names of the axes.
    """

    size: tuple[int, int] = (1280, 720)
    limits: tuple[float, float] | None = None
    whole: bool = False
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.size) < 64:
            raise ValueError(f"size {self.size}: at least 64 pixels each way")
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits {self.limits}: the first must be the lower one")


def film(
    path: PathLike,
    out: PathLike,
    field: str = "m",
    fps: float = 15.0,
    every: int = 1,
    seconds: float = 5.0,
    look: Look | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Make a film of a field, in uniform time. Collective on ``comm``; rank 0 draws.

    The images show the recorded steps nearest to equally spaced times.

    Args:
        path: the ``.xdmf`` file of an ``XDMFSeries``.
        out: the film, ``.mp4`` or ``.gif``; missing folders are created.
        field: the name of the field.
        fps: images per second.
        every: use only the first step, each ``every``-th step after it, and the last.
        seconds: length of the film; a series with one step gives a film with one image.
        look: size, colours, frame and names of the axes.
        comm: the communicator that calls.

    Raises:
        ValueError: if there is no such field or no step yet, or an argument is invalid.
        OSError: if a file cannot be read or written.
        RuntimeError: if no library can draw in 3-d.
        ImportError: if pyvista, matplotlib or imageio is missing.
    """

    def work() -> None:
        series = _Series(path)
        steps = _uniform(series.times, fps, every, seconds)
        _write_film(Path(out), _Scene(series, field, steps, look).images(steps), fps, len(steps))

    on_root(comm, work)


def picture(
    path: PathLike,
    out: PathLike,
    field: str = "m",
    time: float | None = None,
    look: Look | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw one step of a series. Collective; for errors see :func:`film`.

    Args:
        path: the ``.xdmf`` file of an ``XDMFSeries``.
        out: the picture (png, jpg, ...).
        field: the name of the field.
        time: time whose nearest step is drawn; the default is the last step.
        look: size, colours, frame and names of the axes.
        comm: the communicator that calls.
    """

    def work() -> None:
        series = _Series(path)
        step = series.nearest(series.times[-1] if time is None else time)
        _Scene(series, field, [step], look).save(step, Path(out))

    on_root(comm, work)


def render(
    folder: PathLike,
    output: PathLike | None = None,
    field: str = "m",
    times: Sequence[float] = (),
    kind: str | None = "mp4",
    fps: float = 15.0,
    every: int = 1,
    look: Look | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> list[Path]:
    """Draw the contents of a folder of results. Collective; for errors see :func:`film`.

    The curves of ``history.csv`` come first, with the minimum and the predicted rate from the
    ``history.json`` that :class:`fem_mf.Limit` writes. Each ``.xdmf`` series gives pictures of the
    first and the last step and a film, which share the camera and the colour scale.

    Args:
        folder: the folder of the results, or one of its files.
        output: folder for the pictures; the default is that of the results.
        field: the name of the field.
        times: times of the pictures (the nearest steps) instead of the first and the last step.
        kind: format of the film, "mp4" or "gif"; None for no film.
        fps: images per second of the film.
        every: the film uses only the first step, each ``every``-th step after it, and the last.
        look: size, colours, frame and names of the axes.
        comm: the communicator that calls.

    Returns:
        The files that were written.
    """

    def work() -> list[Path]:
        where = Path(folder)
        files = [where] if where.is_file() else [*where.glob("history.csv"), *where.glob("*.xdmf")]
        if not files:
            raise ValueError(f"no results in '{where}': no .xdmf or history.csv")
        out = Path(output or (where.parent if where.is_file() else where))
        drawn: list[Path] = []
        for file in sorted(files):
            if file.suffix == ".csv":
                drawn.append(out / "convergence.png")
                plot_convergence(drawn[-1], History.read(file), lowest=Limit.read(file))
                continue
            series, start = _Series(file), f"{file.stem}-{field}"
            steps = _uniform(series.times, fps, every) if kind else []
            ends = {"first": 0, "last": len(series.times) - 1}
            shown = {f"t{t:g}": series.nearest(t) for t in times} or ends
            scene = _Scene(series, field, [*shown.values(), *steps], look)
            for name, step in shown.items():
                drawn.append(out / f"{start}-{name}.png")
                scene.save(step, drawn[-1])
            if len(steps) > 1:
                drawn.append(out / f"{start}.{kind}")
                _write_film(drawn[-1], scene.images(steps), fps, len(steps))
        return drawn

    return on_root(comm, work)


def film_of_figures(path: PathLike, figures: Iterable[Figure], fps: float = 15.0) -> None:
    """Make a film of matplotlib figures of one size. Not collective: the calling rank draws.

    Args:
        path: the film, ``.mp4`` or ``.gif``; missing folders are created.
        figures: the figures in order. Each is drawn before the next one is requested, so a
            generator may change one figure and yield it again.
        fps: images per second.

    Raises:
        ValueError: if the path has another suffix.
        ImportError: if imageio is missing.
    """
    _write_film(Path(path), (_pixels(figure) for figure in figures), fps)


class _Series:
    """An XDMF series, read by pyvista."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        try:
            import pyvista
        except ImportError as error:
            raise ImportError(f"pictures of a series need pyvista: {INSTALL}") from error
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix != ".xdmf" or "xi:include" in text:  # VTK crashes on the latter
            raise ValueError(f"'{path}' was not written by XDMFSeries")
        if "<Time" not in text:
            raise ValueError(f"nothing written yet to '{path}'")
        # If values are missing, VTK would show those of another step.
        for rows, columns, start, name in re.findall(_DATA, text):
            file = self.path.with_name(unescape(name))
            end = int(start) + 8 * int(rows) * int(columns)
            if not file.exists() or file.stat().st_size < end:
                raise OSError(f"'{file}', a part of '{path}', is missing or cut short")
        self._reader: Any = pyvista.XdmfReader(str(self.path))
        self.times = [float(t) for t in self._reader.time_values]
        first = self._reader.read()
        self.dim, self.fields = int(first.get_cell(0).dimension), list(first.point_data)

    def nearest(self, time: float) -> int:
        """The number of the step nearest to a time."""
        return int(np.argmin(np.abs(np.array(self.times) - time)))

    def read(self, step: int) -> Any:
        """A step as linear simplices."""
        self._reader.set_active_time_point(step)
        return self._reader.read().triangulate()

    def sample(self, step: int, field: str) -> Sampled:
        """One field of a step."""
        grid = self.read(step)
        (cells,) = grid.cells_dict.values()
        return Sampled(grid.points[:, : self.dim], cells, grid.point_data[field])


def _uniform(times: Sequence[float], fps: float, every: int, seconds: float = 5.0) -> list[int]:
    """Choose the recorded steps nearest to equally spaced times."""
    if not (fps > 0.0 and seconds > 0.0 and every >= 1):
        raise ValueError(
            f"fps = {fps:g}, every = {every} and seconds = {seconds:g} must be positive"
        )
    steps = np.array(sorted({*range(0, len(times), every), len(times) - 1}))
    t = np.array(times)[steps]
    wanted = np.linspace(t[0], t[-1], max(2, round(seconds * fps)) if len(t) > 1 else 1)
    return [int(steps[np.argmin(np.abs(t - time))]) for time in wanted]


class _Scene:
    """Images of one field of a series, with a common camera, frame and scale."""

    def __init__(
        self, series: _Series, field: str, steps: Sequence[int], look: Look | None
    ) -> None:
        if field not in series.fields:
            raise ValueError(f"no field '{field}' in '{series.path}', which has {series.fields}")
        self._series, self._field, self._look = series, field, look or Look()
        self._names = axis_names(self._look.names, series.dim)
        self._symbol = _SYMBOLS.get(field, field)
        shown = sorted(set(steps))
        self._first = shown[0]
        # The titles of all images have the same number of digits, so that they do not jump.
        digits = max(0, 2 - int(np.floor(np.log10(abs(series.times[shown[-1]]) or 1.0))))
        self._titles = [f"t = {t:.{digits}f}" for t in series.times]
        # For d > 1 round numbers at the ends of the axes already leave a margin.
        margin = 0.05 if series.dim == 1 else 0.0
        self.box = frame((series.sample(step, "m") for step in shown), self._look.whole, margin)
        self.limits = self._look.limits or self._range(shown)
        self._drawn: list[Any] = []
        if series.dim > 1:
            self.box = np.array([_ticks(*ends)[[0, -1]] for ends in self.box])
            self._plotter = self._prepare()

    def _range(self, steps: Sequence[int]) -> tuple[float, float]:
        """The range of the field within the frame, between round numbers."""
        ends = []
        for step in steps:
            sample = self._series.sample(step, self._field)
            inside = (sample.points >= self.box[:, 0]) & (sample.points <= self.box[:, 1])
            values = sample.values[inside.all(axis=1)]
            ends += [values.min(), values.max()]
        low = 0.0 if self._field in ("m", "psi") and min(ends) > 0.0 else min(ends)
        ticks = _ticks(low, max(ends))
        return float(ticks[0]), float(ticks[-1])

    def images(self, steps: Iterable[int]) -> Iterable[Image]:
        """Draw steps in order; a repeated step is drawn only once."""
        for step, repeats in groupby(steps):
            image = self.image(step)
            for _ in repeats:
                yield image

    def save(self, step: int, out: Path) -> None:
        """Draw one step and write the picture."""
        from matplotlib.image import imsave

        out.parent.mkdir(parents=True, exist_ok=True)
        imsave(out, self.image(step))

    def image(self, step: int) -> Image:
        """Draw one step."""
        if self._series.dim == 1:
            return self._curve(step)
        self._plotter.remove_actor(self._drawn, render=False)
        self._drawn = [self._text(self._titles[step], 0.02, 0.93)]
        (self._add_shells if self._series.dim == 3 else self._add_surface)(self._series.read(step))
        self._plotter.render()
        return np.array(self._plotter.screenshot(return_img=True), dtype=np.uint8)

    def _curve(self, step: int) -> Image:
        """Draw a curve for d = 1, in front of a pale curve of the first step."""
        width, height = self._look.size
        dpi = height / 4.8  # so that letters scale with the size of the picture
        figure = make_figure(width / dpi, height / dpi, dpi)
        axes = figure.subplots()
        for which, colour in ((self._first, "0.7"), (step, _LINE)):
            x, y = curve(self._series.sample(which, self._field))
            axes.plot(x, y, color=colour, linewidth=2.0, label=self._titles[which])
        axes.fill_between(x, y, self.limits[0], color=_LINE, alpha=0.15, linewidth=0)
        axes.set(xlim=self.box[0], ylim=self.limits, xlabel=self._names[0], ylabel=self._symbol)
        axes.set_title(self._titles[step], loc="left")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper right")
        return _pixels(figure)

    def _add_surface(self, grid: Any) -> None:
        """Add the graph of the field over the plane, with contour lines."""
        (low, high), height = self.limits, self._space[2, 1]
        part = grid.clip_box([*self.box.ravel(), -1.0, 1.0], invert=False)
        part["height"] = np.clip(part[self._field], low, high) - low
        surface = part.extract_surface(algorithm="dataset_surface")
        surface = surface.warp_by_scalar("height", factor=height / (high - low))
        self._add(surface, 1.0)
        lines = surface.contour(np.linspace(low, high, 16)[1:-1].tolist(), self._field)
        lines.translate((0.0, 0.0, 0.004 * height), inplace=True)  # above the surface
        self._add(lines, 0.4, color="white")

    def _add_shells(self, grid: Any) -> None:
        """Add isosurfaces, for m around shares of the mass, else at fractions of the scale."""
        levels = self.limits[0] + np.array([0.25, 0.5, 0.75]) * np.ptp(self.limits)
        if self._field == "m":
            cells = grid.point_data_to_cell_data().compute_cell_sizes(length=False, area=False)
            order = np.argsort(-cells["m"])
            mass = np.cumsum((cells["m"] * np.abs(cells["Volume"]))[order])
            levels = cells["m"][order][np.searchsorted(mass, np.multiply(_SHELLS, mass[-1]))]
        part = grid.clip_box(self.box.ravel().tolist(), invert=False)
        for level, opacity in zip(levels, (0.2, 0.45, 1.0), strict=True):
            self._add(part.contour([float(level)], self._field), opacity)

    def _add(self, mesh: Any, opacity: float, color: str | None = None) -> None:
        if mesh.n_points == 0:
            return
        actor = self._plotter.add_mesh(
            mesh, color=color, scalars=None if color else self._field, clim=self.limits,
            cmap=COLOURS, opacity=opacity, smooth_shading=True, ambient=0.25,
            show_scalar_bar=False, reset_camera=False, render=False,
        )  # fmt: skip
        self._drawn.append(actor)

    def _text(self, text: str, x: float, y: float) -> Any:
        width, height = self._look.size
        return self._plotter.add_text(
            text, position=(x * width, y * height), font_size=height // 50, font_file=_font(),
            color="black", render=False,
        )  # fmt: skip

    def _prepare(self) -> Any:
        """Prepare what all images share: axes, the scale of colours and the camera."""
        import pyvista

        _check_library()
        plotter: Any = pyvista.Plotter(off_screen=True, window_size=list(self._look.size))
        plotter.set_background("white")
        plotter.enable_anti_aliasing("ssaa")
        self._plotter, letter = plotter, self._look.size[1] // 55
        edge = float(np.ptp(self.box, axis=1).max())
        flat = self._series.dim == 2
        self._space = space = np.vstack([self.box, [[0.0, 0.5 * edge]] if flat else self.box[:0]])
        shown = np.vstack([self.box, [self.limits]]) if flat else space
        bar = _ticks(*self.limits)
        plotter.show_bounds(
            bounds=space.ravel().tolist(), axes_ranges=shown.ravel().tolist(),
            xtitle=" ", ytitle=" ", ztitle=" ", fmt="%.4g", font_size=letter, bold=False,
            n_xlabels=len(_ticks(*shown[0])), n_ylabels=len(_ticks(*shown[1])),
            n_zlabels=len(_ticks(*shown[2])), use_3d_text=False,
            grid="back", location="outer", ticks="outside", color="black",
        )  # fmt: skip
        plotter.add_scalar_bar(
            " ", cmap=COLOURS, clim=self.limits, vertical=True, n_labels=len(bar), fmt="%.4g",
            position_x=0.9, position_y=0.2, width=0.05, height=0.6, color="black",
            label_font_size=round(1.5 * letter),
        )  # fmt: skip
        self._text(self._symbol, 0.905, 0.83)
        # The axis titles of show_bounds support neither Greek letters nor subscripts.
        (low, high), middle, out = space.T, space.mean(axis=1), 0.22 * edge
        places = [[middle[0], low[1] - out, low[2]], [low[0] - out, middle[1], low[2]],
                  [low[0] - 0.6 * out, high[1] + 0.6 * out, middle[2]]]  # fmt: skip
        plotter.add_point_labels(
            places[: self._series.dim], list(self._names), shape=None, show_points=False,
            always_visible=True, font_size=round(1.6 * letter), font_file=_font(),
            text_color="black", justification_horizontal="center", justification_vertical="center",
        )  # fmt: skip
        plotter.enable_parallel_projection()
        plotter.view_vector((-1.1, -1.7, 1.3), viewup=(0.0, 0.0, 1.0), bounds=space.ravel())
        plotter.camera.zoom(1.08 if flat else 0.93)
        plotter.camera.SetWindowCenter(0.1, 0.0)  # room for the scale of colours
        plotter.renderer.ResetCameraClippingRange()
        return plotter


def _ticks(low: float, high: float) -> Array:
    """Equally spaced round numbers around an interval, as close to it as possible."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        low, high = low - 0.5, high + 0.5
    locators = [MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]) for count in (8, 7, 6, 5, 4)]
    slack = 1e-9 * (high - low)
    ticks = [np.asarray(locator.tick_values(low + slack, high - slack)) for locator in locators]
    # VTK replaces more than nine numbers by fewer ones that are not round.
    return min((t for t in ticks if len(t) <= 9), key=np.ptp)


def _font() -> str:
    """A font with Greek letters and subscripts, which VTK's font lacks."""
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _check_library() -> None:
    """Find a library that draws without a display, since VTK crashes if there is none."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        if ctypes.util.find_library("EGL"):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        elif not ctypes.util.find_library("OSMesa"):
            raise RuntimeError("no library can draw in 3-d: install libegl1 (Debian, Ubuntu)")


def _pixels(figure: Figure) -> Image:
    """Draw a figure as an image, ``(height, width, 3)`` bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _write_film(out: Path, images: Iterable[Image], fps: float, count: int | None = None) -> None:
    """Write images to a film; the file appears once it is complete."""
    if out.suffix not in FORMATS:
        raise ValueError(f"'{out}' must end in .mp4 or .gif")
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(f"films need imageio and imageio-ffmpeg: {INSTALL}") from error
    settings: Any = {"fps": fps, "quality": 8, "macro_block_size": 2}
    if out.suffix == ".gif":
        settings = {"duration": 1000.0 / fps, "loop": 0}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.stem}-new{out.suffix}")
    try:
        writer: Any = imageio.get_writer(draft, **settings)
        _LOG.info("rendering the film '%s'%s", out, f": {count} frames" if count else "")
        said = time.monotonic()
        with writer:
            for number, image in enumerate(images, 1):
                writer.append_data(image)
                if time.monotonic() - said >= LOG_SECONDS:
                    _LOG.info("film '%s': frame %d", out, number)
                    said = time.monotonic()
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
