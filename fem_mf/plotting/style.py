"""The common style of all plots: figures without a window, colours, names of axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fem_mf.typing import PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INSTALL", "axis_names", "make_figure", "save"]

COLOURS = "viridis"
INSTALL = "pip install 'fem_mf[plot]'"


def make_figure(width: float, height: float, dpi: float = 150.0) -> Figure:
    """Make a figure independent of pyplot, without a window; it need not be closed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib: {INSTALL}") from error
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def save(figure: Figure, path: PathLike) -> None:
    """Write a figure; missing folders are created."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def axis_names(names: Sequence[str] | None, d: int) -> Sequence[str]:
    """The names of the axes; the default is x for d = 1, else x₁, x₂, x₃."""
    names = names or ("x" if d == 1 else ("x₁", "x₂", "x₃")[:d])
    if len(names) != d:
        raise ValueError(f"names {tuple(names)}: d = {d} needs {d}")
    return names
