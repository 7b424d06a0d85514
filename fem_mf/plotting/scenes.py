"""One field at one time as an image: a curve, a surface, or isosurfaces and slices.

    scene = make_scene(Recorded("run/series.xdmf"), "m", steps=range(3))
    image = scene.draw(2)    # (720, 1280, 3) bytes

What does not belong to the field stays the same in all images of a scene: camera, axes, colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fem_mf.plotting.framing import BAR, COLOURS, Look, Scene, add_bar
from fem_mf.plotting.perspective import Perspective
from fem_mf.plotting.recorded import Recorded
from fem_mf.typing import Array

if TYPE_CHECKING:
    import pyvista
    from matplotlib.figure import Figure

__all__ = ["make_scene"]


_AXES = ("x₁", "x₂", "x₃")
_DENSITIES = ("m", "psi")
_SHELLS = (0.9, 0.6, 0.3)  # of the mass inside each isosurface of m


class CurveScene(Scene):
    """d = 1: the curve, before a pale one of the first step."""

    def __init__(self, series: Recorded, field: str, steps: Sequence[int], look: Look) -> None:
        super().__init__(series, field, steps, look)
        self._first = _curve(self._read(steps[0]), field)
        self._start = series.times[steps[0]]

    def _paint(
        self, figure: Figure, grid: pyvista.UnstructuredGrid, limits: tuple[float, float]
    ) -> None:
        axes = figure.add_axes((0.09, 0.12, 0.87, 0.78))
        label = f"t = {self._start:.{self._digits}f}"
        axes.plot(*self._first, color="0.7", linewidth=1.2, label=label)
        x, y = _curve(grid, self._field)
        axes.plot(x, y, color="#31688e", linewidth=2.0)
        axes.fill_between(x, y, limits[0], color="#31688e", alpha=0.15, linewidth=0)
        room = 0.04 * (limits[1] - limits[0])
        bottom = limits[0] if limits[0] == 0.0 else limits[0] - room
        axes.set(xlim=self._box[:2], ylim=(bottom, limits[1] + room))
        axes.set(xlabel="x", ylabel=self._label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right")


class SurfaceScene(Scene):
    """d = 2: the graph over the plane, coloured by its height, with contour lines."""

    def __init__(self, series: Recorded, field: str, steps: Sequence[int], look: Look) -> None:
        super().__init__(series, field, steps, look)
        self._height = 0.5 * max(self._box[1] - self._box[0], self._box[3] - self._box[2])
        self._views: dict[tuple[float, float], Perspective] = {}

    def _view(self, limits: tuple[float, float]) -> Perspective:
        if limits not in self._views:
            self.close()
            self._views = {
                limits: Perspective(
                    _beside_bar(self._look.size),
                    (*self._box[:4], 0.0, self._height),
                    (*self._box[:4], *limits),
                    (*_AXES[:2], self._label),
                )
            }
        return self._views[limits]

    def _paint(
        self, figure: Figure, grid: pyvista.UnstructuredGrid, limits: tuple[float, float]
    ) -> None:
        low, high = limits
        values = np.clip(grid.point_data[self._field], low, high)
        # Above the floor, and the lines above the surface, or they show through each other.
        thin = 0.004 * self._height
        points: Any = grid.points
        points[:, 2] = self._height * (values - low) / (high - low) + thin
        surface = grid.extract_surface(algorithm="dataset_surface")
        lines = surface.contour(np.linspace(low, high, 11)[1:-1].tolist(), self._field)
        lines.translate((0.0, 0.0, thin), inplace=True)
        style = _style(self._field, limits)
        view = self._view(limits)
        image = view.shoot(
            [
                (surface, style | {"smooth_shading": True, "specular": 0.1, "ambient": 0.2}),
                (lines, {"color": "white", "opacity": 0.5, "line_width": _width(self._look)}),
            ]
        )
        figure.figimage(image, 0, 0, origin="upper")
        view.label(figure)
        add_bar(figure, limits, self._label)

    def close(self) -> None:
        for view in self._views.values():
            view.close()


class VolumeScene(Scene):
    """d = 3: isosurfaces, and three slices through the highest point of the last step."""

    def __init__(self, series: Recorded, field: str, steps: Sequence[int], look: Look) -> None:
        super().__init__(series, field, steps, look)
        width, height = _beside_bar(look.size)
        self._view = Perspective((width // 2, height), self._box, self._box, _AXES)
        self._lines = {"color": "#909090", "line_width": _width(look), "lighting": False}
        last = self._read(steps[-1])
        weight = last.point_data["m" if "m" in last.point_data else field]
        self._centre = last.points[np.argmax(weight)]

    def _paint(
        self, figure: Figure, grid: pyvista.UnstructuredGrid, limits: tuple[float, float]
    ) -> None:
        style = _style(self._field, limits)
        shine = {"smooth_shading": True, "ambient": 0.35, "specular": 0.2}
        levels = _levels(grid, self._field, limits)
        shells = [
            (grid.contour([level], self._field), style | shine | {"opacity": opacity})
            for level, opacity in zip(levels, (0.2, 0.4, 1.0), strict=True)
        ]
        left = self._view.shoot(shells)
        slices = grid.slice_orthogonal(**dict(zip("xyz", self._centre, strict=True))).combine()
        # Where there is hardly any mass, one sees the slices behind.
        fade = [0.0, *[1.0] * 7] if self._field in _DENSITIES else 1.0
        right = self._view.shoot(
            [
                (slices, style | {"lighting": False, "opacity": fade}),
                *((outline, self._lines) for outline in self._outlines()),
            ]
        )
        for number, image in enumerate((left, right)):
            figure.figimage(image, number * image.shape[1], 0, origin="upper")
            self._view.label(figure, number * image.shape[1])
        share = (1.0 - BAR) / 2.0
        for number, text in enumerate(self._captions()):
            figure.text((0.5 + number) * share, 0.03, text, ha="center", fontsize=9)
        add_bar(figure, limits, self._label)

    def _outlines(self) -> list[pyvista.PolyData]:
        """Edges of the three slices."""
        import pyvista

        boxes = []
        for axis in range(3):
            box = np.array(self._box)
            box[[2 * axis, 2 * axis + 1]] = self._centre[axis]
            boxes.append(pyvista.Box(box.tolist()).extract_all_edges())
        return boxes

    def _captions(self) -> tuple[str, str]:
        masses = ", ".join(f"{100 * share:.0f}" for share in _SHELLS[::-1])
        around = f"isosurfaces around {masses} % of the mass"
        parts = "isosurfaces at ¼, ½, ¾ of the scale"
        decimals = 2 - int(np.floor(np.log10(max(np.abs(self._box)))))
        point = ", ".join(f"{x + 0.0:g}" for x in np.round(self._centre, decimals))
        return (
            around if self._field == "m" else parts,
            f"slices through ({point.replace('-', '−')})",
        )

    def close(self) -> None:
        self._view.close()


def make_scene(
    series: Recorded, field: str, steps: Sequence[int], look: Look | None = None
) -> Scene:
    """Prepare images of a field at some steps, which are all read once or twice for it.

    Args:
        series: the opened series.
        field: the name of the field.
        steps: numbers of the steps that will be drawn; at least one.
        look: size, colours, what is in the picture.

    Raises:
        ValueError: the series has no such field.
        ImportError: matplotlib is missing.
    """
    if field not in series.fields:
        raise ValueError(f"no field '{field}' in '{series.path}', which has {series.fields}")
    kinds: dict[int, type[Scene]] = {1: CurveScene, 2: SurfaceScene, 3: VolumeScene}
    return kinds[series.dim](series, field, steps, look or Look())


def _curve(grid: pyvista.UnstructuredGrid, field: str) -> tuple[Array, Array]:
    order = np.argsort(grid.points[:, 0])
    return grid.points[order, 0], grid.point_data[field][order]


def _levels(grid: pyvista.UnstructuredGrid, field: str, limits: tuple[float, float]) -> list[float]:
    """Values of the three isosurfaces, from the outermost to the innermost."""
    low, high = limits
    if field != "m":
        return [low + part * (high - low) for part in (0.25, 0.5, 0.75)]
    cells = grid.point_data_to_cell_data().compute_cell_sizes(length=False, area=False)
    m = cells.cell_data["m"]
    order = np.argsort(-m)
    mass = np.cumsum((m * np.abs(cells.cell_data["Volume"]))[order])
    return [float(m[order][np.searchsorted(mass, share * mass[-1])]) for share in _SHELLS]


def _style(field: str, limits: tuple[float, float]) -> dict[str, Any]:
    return {"scalars": field, "clim": limits, "cmap": COLOURS}


def _width(look: Look) -> float:
    return look.size[1] / 500.0


def _beside_bar(size: tuple[int, int]) -> tuple[int, int]:
    return round((1.0 - BAR) * size[0] / 2) * 2, size[1]
