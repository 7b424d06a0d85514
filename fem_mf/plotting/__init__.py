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

from fem_mf.plotting.curves import plot_convergence, plot_fit, plot_history
from fem_mf.plotting.density import plot_density
from fem_mf.plotting.film import Look, film, picture
from fem_mf.plotting.results import render
from fem_mf.plotting.sampled import Sampled, gather

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
