"""What all images of one field have in common: its part of space, its scale, its colours.

The camera, the axes and the scale of all images of a scene are those of all its steps together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fem_mf.plotting.curves import make_figure
from fem_mf.plotting.perspective import Image
from fem_mf.plotting.recorded import Recorded

if TYPE_CHECKING:
    import pyvista
    from matplotlib.figure import Figure

__all__ = ["BAR", "COLOURS", "Look", "Scene", "add_bar", "pixels"]

COLOURS = "viridis"
BAR = 0.16  # of the width, for the colours
_NAMES = {"psi": "ψ", "V": "V[m]"}
_NEGLIGIBLE = 1e-3  # of the largest m: a picture shows where m is larger, at any of its times
_MARGIN = 0.1  # around that, in lengths of it


@dataclass(frozen=True)
class Look:
    """How pictures look.

    Attributes:
        size: width and height in pixels.
        limits: ends of the scale of colours and heights; those of all steps if not given.
        rescale: each step has its own scale.
        whole: show the whole mesh, not only where there is mass.
    """

    size: tuple[int, int] = (1280, 720)
    limits: tuple[float, float] | None = None
    rescale: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.size) < 64:
            raise ValueError(f"size {self.size}: at least 64 pixels each way")
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits {self.limits}: the first must be the lower one")
        if self.limits is not None and self.rescale:
            raise ValueError("limits and rescale exclude each other")


class Scene(ABC):
    """Images of one field of one series."""

    def __init__(self, series: Recorded, field: str, steps: Sequence[int], look: Look) -> None:
        """Find out what all steps have in common."""
        self.series = series
        self._field = field
        self._look = look
        self._label = _NAMES.get(field, field)
        last = series.times[steps[-1]]
        # So many digits in all titles that they do not jump.
        self._digits = max(0, 3 - int(np.floor(np.log10(abs(last) or 1.0))))
        self._box = _union([_extent(series.read(step), look.whole) for step in steps])
        self._limits = look.limits or self._measure(steps)

    def _read(self, step: int) -> pyvista.UnstructuredGrid:
        """The part of a step that is in the picture."""
        grid = self.series.read(step)
        inside = _union([tuple(grid.bounds), self._box]) == self._box
        # A flat mesh has no height; the faces of this box must not touch it.
        low, high = np.array(self._box[::2]), np.array(self._box[1::2])
        room = np.where(high > low, 0.0, 1.0)
        box = np.stack([low - room, high + room], axis=1).ravel()
        return grid if inside else grid.clip_box(box.tolist(), invert=False)

    def _measure(self, steps: Sequence[int]) -> tuple[float, float]:
        values = [self._read(step).point_data[self._field] for step in steps]
        low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        if 0.0 < low < _NEGLIGIBLE * high:
            low = 0.0
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def draw(self, step: int) -> Image:
        """Make the image of one step."""
        limits = self._measure([step]) if self._look.rescale else self._limits
        width, height = self._look.size
        # 4.8 inches high, whatever the number of pixels: letters keep their share.
        dpi = height / 4.8
        figure = make_figure(width / dpi, height / dpi, dpi, layout=None)
        self._paint(figure, self._read(step), limits)
        title = f"t = {self.series.times[step]:.{self._digits}f}"
        figure.text(0.03, 0.97, title, ha="left", va="top", fontsize=13)
        return pixels(figure)

    @abstractmethod
    def _paint(
        self, figure: Figure, grid: pyvista.UnstructuredGrid, limits: tuple[float, float]
    ) -> None: ...

    def close(self) -> None:  # noqa: B027  # not all have something to free
        """Free what drew the images."""


def add_bar(figure: Figure, limits: tuple[float, float], label: str) -> None:
    """Draw the scale of colours at the right of a figure."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_axes((1.0 - 0.75 * BAR, 0.2, 0.13 * BAR, 0.6))
    figure.colorbar(ScalarMappable(Normalize(*limits), COLOURS), cax=axes)
    axes.set_title(label, fontsize=11, pad=10)


def _extent(grid: pyvista.UnstructuredGrid, whole: bool) -> tuple[float, ...]:
    """Box around the points where there is mass, with some room, within the mesh."""
    bounds = np.array(grid.bounds).reshape(3, 2)
    if whole or "m" not in grid.point_data:
        return tuple(bounds.ravel().tolist())
    m = grid.point_data["m"]
    points = grid.points[m >= _NEGLIGIBLE * m.max()]
    low, high = points.min(axis=0), points.max(axis=0)
    room = _MARGIN * (high - low).max()
    low, high = np.maximum(low - room, bounds[:, 0]), np.minimum(high + room, bounds[:, 1])
    return tuple(np.stack([low, high], axis=1).ravel().tolist())


def _union(boxes: Sequence[tuple[float, ...]]) -> Any:
    all_boxes = np.array(boxes)
    union = np.where(np.arange(6) % 2 == 0, all_boxes.min(axis=0), all_boxes.max(axis=0))
    return tuple(union.tolist())


def pixels(figure: Figure) -> Image:
    """Draw a figure as an image, ``(height, width, 3)`` bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
