"""Plots of densities, curves of a run, and films of the fields on disk.

    plot_density("run/density.png", density, title="t = 1")
    film("run/series.xdmf", "run/m.mp4", field="m")
    render("run")                                   # pictures, films and curves of a folder

On the command line (``--help`` lists the options), even during the run:

    python -m fem_mf.plotting results/run --format gif --every 2

matplotlib, pyvista and imageio are optional (``pip install 'fem_mf[plot]'``) and imported only for
drawing. Rank 0 draws; no display is needed. The suffix of a path selects the format.
"""

from __future__ import annotations

from fem_mf.plotting.density import Sampled, gather, plot_density
from fem_mf.plotting.film import Look, film, film_of_figures, picture, render
from fem_mf.plotting.history import plot_convergence, plot_fit, plot_history, plot_sweep

__all__ = [
    "Look",
    "Sampled",
    "film",
    "film_of_figures",
    "gather",
    "picture",
    "plot_convergence",
    "plot_density",
    "plot_fit",
    "plot_history",
    "plot_sweep",
    "render",
]
