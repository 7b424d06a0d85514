"""The command line for plots: ``python -m fem_mf plot results/run``.

``python -m fem_mf.plotting results/run`` is equivalent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mpi4py import MPI

from fem_mf.mpi import on_root
from fem_mf.plotting.film import FORMATS, Look, render

__all__ = ["DESCRIPTION", "add_options", "draw", "main"]

DESCRIPTION = (
    "Draw pictures, a film and curves of a folder of results, without a display; also during the "
    "run."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a folder of results: ``python -m fem_mf.plotting``. Collective on all ranks.

    Args:
        arguments: the words of the command line, those of this process by default.

    Returns:
        The exit code: 0, 1 if there is nothing to draw or drawing fails, 2 for wrong
        arguments.
    """
    return on_root(MPI.COMM_WORLD, lambda: _parse_and_draw(arguments))


def _parse_and_draw(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fem_mf.plotting",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    return draw(options)


def draw(options: argparse.Namespace) -> int:
    """Draw according to the options and return the exit code. Rank 0."""
    try:
        files = render(
            options.results,
            options.output,
            field=options.field,
            times=options.time,
            kind=None if options.no_film else options.format,
            fps=options.fps,
            every=options.every,
            look=Look(options.size, options.range, options.whole, options.names),
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        if not isinstance(cause, OSError | None):
            raise  # an error in the package, shown with its traceback
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*files, sep="\n")
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`draw`."""
    add = parser.add_argument
    add("results", help="folder with .xdmf series and history.csv, or one of these files")
    add("--output", metavar="DIR", help="folder for the pictures; by default that of the results")
    add("--field", default="m", help="m, psi, u or V")
    add("--time", type=float, nargs="+", default=(), metavar="T", help="times of the pictures")
    add("--format", choices=[kind.removeprefix(".") for kind in FORMATS], default="mp4")
    add("--no-film", action="store_true", help="pictures only")
    add("--fps", type=float, default=15.0, help="images of the film per second")
    add("--every", type=int, default=1, metavar="N", help="use every N-th step only")
    add("--size", type=_size, default=Look.size, metavar="WxH", help="size in pixels")
    add("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of colours, heights")
    add("--whole", action="store_true", help="show the whole mesh, not only where there is mass")
    add("--names", nargs="+", metavar="NAME", help="names of the axes")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
