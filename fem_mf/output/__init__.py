"""Files of a run: fields for ParaView and pyvista, scalars as CSV, and a progress bar.

    with XDMFSeries("run/fields.xdmf", problem, every=10) as fields:
        for state in progress(flow.run(start, t_end), t_end, problem.comm):
            fields.write(state.t, state.density)

Whatever was written stays readable when the run is killed.

A run that goes on from a checkpoint goes on with its files, too: ``resume=saved`` keeps what they
have from before the time of the checkpoint.
"""

from __future__ import annotations

from fem_mf.output.checkpoint import Checkpoint, Saved
from fem_mf.output.history import History, progress
from fem_mf.output.xdmf import XDMFSeries

__all__ = ["Checkpoint", "History", "Saved", "XDMFSeries", "progress"]
