"""Writing and reading the files of a run: scalars as CSV, fields for ParaView, checkpoints.

    with Run("results/trap", problem) as run:
        for state in run.steps(flow, start, t_end):
            print(state.t)

All files remain readable if the run is killed.
"""

from __future__ import annotations

from fem_mf.output.checkpoint import Checkpoint, Saved
from fem_mf.output.history import History, progress
from fem_mf.output.results import Results, open_results
from fem_mf.output.run import Run
from fem_mf.output.xdmf import XDMFSeries

__all__ = [
    "Checkpoint",
    "History",
    "Results",
    "Run",
    "Saved",
    "XDMFSeries",
    "open_results",
    "progress",
]
