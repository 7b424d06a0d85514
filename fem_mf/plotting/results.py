"""Everything in a folder of results as pictures.

This is what ``python -m fem_mf.plotting run`` does for a folder ``run``:

    paths = render("run")    # the pictures, the film and the curves
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mpi4py import MPI

from fem_mf.mpi import on_root
from fem_mf.output.history import History
from fem_mf.plotting.curves import plot_convergence
from fem_mf.plotting.film import check_film, chosen_steps, load_imageio, make_film, write_picture
from fem_mf.plotting.framing import Look
from fem_mf.plotting.recorded import Recorded
from fem_mf.plotting.scenes import make_scene
from fem_mf.stationary.limit import Limit
from fem_mf.typing import PathLike

__all__ = ["render"]

_LOG = logging.getLogger(__name__)


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
    """Draw what is in a folder of results. Collective on ``comm``, whose rank 0 draws.

    Of each ``.xdmf`` series pictures of the first and the last step and a film, all
    with one camera and one scale of colours, and the curves of ``history.csv``, with the minimum
    and the predicted rate from the ``history.json`` that :class:`fem_mf.Limit` writes.

        render("run")
        render("run", field="u", times=[0.5, 1.0], kind=None)

    Args:
        folder: where the results are, also of a run that goes on; or one of its files.
        output: where pictures go; the folder if not given.
        field: the name of the field.
        times: of pictures (the nearest steps) in place of the first and the last.
        kind: of the film, "mp4" or "gif"; None for no film.
        fps: images per second of the film.
        every: the film has the first step, each ``every``-th after it, and the last.
        look: size, colours, what is in the picture.
        comm: the communicator that calls.

    Returns:
        What was written.

    Raises:
        ValueError: nothing to draw, no such field, or a mistake in the arguments.
        RuntimeError: a file cannot be read or written, or nothing here can draw in 3-d.
        ImportError: pyvista, matplotlib or imageio is missing.
    """

    def work() -> list[Path]:
        where = Path(folder)
        out = Path(output) if output else where.parent if where.is_file() else where
        chosen = look or Look()
        check_film(out / f"film.{kind or 'gif'}", fps, every, chosen)
        load_imageio()
        files = _files(where)
        drawn: list[Path] = []
        problems: list[Exception] = []
        for series in _with_field(files, field, problems):
            steps = chosen_steps(series, every) if kind else []
            drawn += _draw(series, out, field, times, steps, f".{kind}", fps, chosen)
        for file in files:
            if file.suffix == ".csv":
                try:
                    limit = Limit.read(file)
                    plot_convergence(out / "convergence.png", History.read(file), lowest=limit)
                    drawn.append(out / "convergence.png")
                except ValueError as error:
                    problems.append(ValueError(f"'{file}': {error}"))
        if not drawn:
            raise problems[0]
        for problem in problems:
            _LOG.warning("left out: %s", problem)
        return drawn

    return on_root(comm, work)


def _files(where: Path) -> list[Path]:
    """The files of a folder that can be drawn."""
    if where.is_file():
        return [where]
    patterns = ("*.xdmf", "history.csv")
    files = [file for pattern in patterns for file in sorted(where.glob(pattern))]
    if not files:
        raise ValueError(f"no results in '{where}': no .xdmf or history.csv")
    return files


def _with_field(files: list[Path], field: str, problems: list[Exception]) -> list[Recorded]:
    """Open the series that have a field, one of each name; say what is wrong with others."""
    opened = []
    for file in files:
        if file.suffix != ".csv":
            try:
                opened.append(Recorded(file))
            except (OSError, ValueError) as error:
                problems.append(error)
    chosen: dict[str, Recorded] = {}
    for series in opened:
        if field in series.fields:
            chosen.setdefault(series.path.stem, series)
    if opened and not chosen:
        there = "; ".join(f"{s.path.name} has {', '.join(s.fields)}" for s in opened)
        raise ValueError(f"no field '{field}': {there}")
    return list(chosen.values())


def _draw(
    series: Recorded,
    out: Path,
    field: str,
    times: Sequence[float],
    film: Sequence[int],
    suffix: str,
    fps: float,
    look: Look,
) -> list[Path]:
    """Pictures and the film of one series."""
    if times:
        nearest = sorted({series.nearest(time) for time in times})
        pictures = {step: f"t{series.times[step]:g}" for step in nearest}
    else:
        pictures = {0: "first", len(series.times) - 1: "last"}
    name = f"{series.path.stem}-{field}"
    drawn = []
    with closing(make_scene(series, field, sorted({*pictures, *film}), look)) as scene:
        for step, which in pictures.items():
            drawn.append(out / f"{name}-{which}.png")
            write_picture(drawn[-1], scene.draw(step))
        if len(film) > 1:
            drawn.append(out / f"{name}{suffix}")
            make_film(drawn[-1], scene, film, fps)
    return drawn
