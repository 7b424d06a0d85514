"""A fixed view into a box with axes: pyvista draws what is in it, matplotlib the letters.

    box = (-1.0, 1.0, -1.0, 1.0, 0.0, 0.5)
    view = Perspective((960, 720), box, values=box, names=("x₁", "x₂", "m"))
    image = view.shoot([(surface, {"color": "tan"})])   # (720, 960, 3) bytes
    view.label(figure)                                  # ticks and names, onto the figure below it

Nothing is ever shown in a window, and no display is needed.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fem_mf.typing import Array

if TYPE_CHECKING:
    import pyvista
    from matplotlib.figure import Figure

__all__ = ["Image", "Perspective"]

type Image = npt.NDArray[np.uint8]
type Box = tuple[float, float, float, float, float, float]  # as VTK has it: x, X, y, Y, z, Z

_FROM = np.array([-1.1, -1.7, 1.15])  # where the camera is, seen from the middle of the box
_TICK, _NUMBER, _NAME = 0.02, 0.065, 0.18  # how far out of the box, in lengths of its longest edge


class Perspective:
    """A camera that never moves, before a box whose near edges carry ticks.

    Attributes:
        size: of its images, in pixels: width, height.
    """

    def __init__(
        self, size: tuple[int, int], box: Box, values: Box, names: tuple[str, str, str]
    ) -> None:
        """Point the camera.

        Args:
            size: of the images, in pixels.
            box: what must be seen.
            values: what the axes say at the faces of the box.
            names: of the axes.

        Raises:
            RuntimeError: there is no library that draws.
        """
        self.size = size
        self._names = names
        self._low, self._high = np.array(box[::2]), np.array(box[1::2])
        self._values = np.array(values).reshape(3, 2)
        self._edge = float((self._high - self._low).max())
        self._plotter = _plotter(size)
        for lines, colour in ((self._grid(), "#c8c8c8"), (self._frame(), "#505050")):
            width = size[1] / 600.0
            self._plotter.add_mesh(_segments(lines), color=colour, line_width=width, lighting=False)
        margin = _NAME * self._edge
        out = np.stack([self._low - [margin, margin, 0.0], self._high], axis=1).ravel()
        camera = self._plotter.camera
        camera.focal_point = out.reshape(3, 2).mean(axis=1)
        camera.position = camera.focal_point + _FROM
        camera.up = (0.0, 0.0, 1.0)
        camera.view_angle = 20.0
        self._plotter.reset_camera(bounds=out.tolist())
        self._plotter.screenshot(return_img=True)  # before it, VTK does not know the size
        self._fit()

    def shoot(self, meshes: Sequence[tuple[pyvista.DataSet, dict[str, Any]]]) -> Image:
        """Draw meshes, each with the arguments of ``add_mesh``, and nothing from before."""
        actors = [
            self._plotter.add_mesh(
                mesh, show_scalar_bar=False, reset_camera=False, render=False, **style
            )
            for mesh, style in meshes
            if mesh.n_points > 0
        ]
        self._plotter.render()  # without it, the image would be the last one
        image = self._plotter.screenshot(return_img=True)
        self._plotter.remove_actor(actors, render=False)
        return np.array(image, dtype=np.uint8)

    def close(self) -> None:
        """Free the memory of the images."""
        self._plotter.close()

    def label(self, figure: Figure, left: int = 0) -> None:
        """Write ticks and names of the axes onto a figure with an image of this view.

        Args:
            figure: as high as the image.
            left: where the image begins, in pixels.
        """
        for axis, name in enumerate(self._names):
            low, high = self._ends(axis)
            self._write(figure, left, name, 10.0, self._edge_point(axis, (low + high) / 2.0, _NAME))
            for position, value in self._ticks(axis):
                # The corner belongs to the number of another axis.
                if axis < 2 or position > low + 0.06 * (high - low):
                    text = np.format_float_positional(value, 6, trim="-").replace("-", "−")
                    place = self._edge_point(axis, position, _NUMBER)
                    self._write(figure, left, text, 8.0, place)

    def _write(self, figure: Figure, left: int, text: str, size: float, place: Array) -> None:
        (x, y), (width, height) = self._on_image(place), figure.bbox.size
        x = (left + x) / width
        figure.text(x, y / height, text, ha="center", va="center", fontsize=size)

    def _ticks(self, axis: int) -> list[tuple[float, float]]:
        """Positions in the box, and what stands there."""
        from matplotlib.ticker import MaxNLocator

        low, high = self._values[axis]
        slack = 1e-9 * (high - low)
        ticks = MaxNLocator(4 if axis == 2 else 5).tick_values(low, high)
        scale = (self._high[axis] - self._low[axis]) / (high - low)
        return [
            (float(self._low[axis] + scale * (v - low)), float(v))
            for v in ticks
            if low - slack <= v <= high + slack
        ]

    def _edge_point(self, axis: int, position: float, out: float) -> Array:
        """A point of the edge that carries the ticks of an axis, moved out of the box."""
        out *= self._edge
        x, y, z = self._low
        if axis == 0:
            return np.array([position, y - out, z])
        if axis == 1:
            return np.array([x - out, position, z])
        return np.array([x - 0.7 * out, self._high[1] + 0.7 * out, position])

    def _grid(self) -> Iterator[tuple[Array, Array]]:
        """Lines at the ticks on the three faces behind."""
        (_, _, z), (X, Y, _) = self._low, self._high
        behind = np.array([X, Y, z])
        for axis in range(3):
            for position in {*self._ends(axis), *(position for position, _ in self._ticks(axis))}:
                for other in {0, 1, 2} - {axis}:
                    ends = np.array([behind, behind])
                    ends[:, axis] = position
                    ends[:, other] = self._low[other], self._high[other]
                    yield ends[0], ends[1]

    def _frame(self) -> Iterator[tuple[Array, Array]]:
        """The three edges with ticks, and the ticks."""
        for axis in range(3):
            yield (
                self._edge_point(axis, self._low[axis], 0.0),
                self._edge_point(axis, self._high[axis], 0.0),
            )
            for position, _ in self._ticks(axis):
                yield (
                    self._edge_point(axis, position, 0.0),
                    self._edge_point(axis, position, _TICK),
                )

    def _on_image(self, point: Array) -> tuple[float, float]:
        """Pixels from the left and from below."""
        renderer = self._plotter.renderer
        renderer.SetWorldPoint(*point, 1.0)
        renderer.WorldToDisplay()
        x, y, _ = renderer.GetDisplayPoint()
        return x, y

    def _fit(self) -> None:
        """Zoom and move until box and letters fill the image."""
        letters = [
            self._edge_point(axis, position, out)
            for axis in range(3)
            for position, out in (
                *((end, _NUMBER) for end in self._ends(axis)),
                (float(np.mean(self._ends(axis))), _NAME),
            )
        ]
        top = [np.array([x, y, self._high[2]]) for x in self._ends(0) for y in self._ends(1)]
        camera = self._plotter.camera
        for _ in range(8):  # in perspective no step is exact
            seen = np.array([self._on_image(point) for point in (*letters, *top)])
            low, high = seen.min(axis=0) / self.size, seen.max(axis=0) / self.size
            x, y = camera.GetWindowCenter()
            camera.SetWindowCenter(x + low[0] + high[0] - 1.0, y + low[1] + high[1] - 1.0)
            camera.zoom(0.92 / float((high - low).max()))

    def _ends(self, axis: int) -> tuple[float, float]:
        return float(self._low[axis]), float(self._high[axis])


def _segments(pairs: Iterator[tuple[Array, Array]]) -> pyvista.PolyData:
    import pyvista

    points = np.array([point for pair in pairs for point in pair])
    return pyvista.line_segments_from_points(points)


def _plotter(size: tuple[int, int]) -> Any:
    import pyvista

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        # VTK would look for a display first, and say so; without any library it crashes.
        if ctypes.util.find_library("EGL"):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        elif not ctypes.util.find_library("OSMesa"):
            raise RuntimeError("nothing here can draw in 3-d: install libegl1 (Debian, Ubuntu)")
    plotter: Any = pyvista.Plotter(off_screen=True, window_size=list(size))
    plotter.set_background("white")
    plotter.enable_anti_aliasing("ssaa")
    return plotter
