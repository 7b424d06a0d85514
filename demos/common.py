"""What the demos share: a command line from the defaults of ``main``, tables of convergence.

def main(sigma: float = 0.5, steps: int = 10, plot: bool = True) -> None: ...

if __name__ == "__main__":
    main(**parse(main, __doc__, {"sigma": "regularisation", "steps": ..., "plot": ...}))
"""

from __future__ import annotations

import argparse
import csv
import inspect
import logging
import shlex
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import fem_mf as mf

__all__ = [
    "CONSOLE",
    "Columns",
    "draw_slope",
    "find_limit",
    "parse",
    "print_table",
    "restart_command",
    "with_orders",
    "write_studies",
]

CONSOLE = Console(quiet=MPI.COMM_WORLD.rank != 0, highlight=False)
"""Prints on rank 0 only."""

type Columns = dict[str, list[float]]  # one study: sizes, errors and orders, coarse to fine
type Pairs = list[tuple[str, str | None]]


def parse(
    main: Callable[..., object],
    description: str | None,
    helps: Mapping[str, str],
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Read the command line into keyword arguments of ``main``. Collective on all ranks.

    Every keyword ``some_name`` is an option ``--some-name`` with the default and the annotated type
    of the keyword: int, float, str, bool (``--x``, ``--no-x``), ``Literal`` (choices),
    ``tuple[float, ...]`` (several values), each also with ``| None``. Options with one dash, such
    as ``-fem_mf_schrodinger_pc_type lu``, go to the options database of PETSc.

    Args:
        main: every parameter has a default and an annotation.
        description: shown by ``--help``, as it is.
        helps: one line for each parameter.
        argv: the arguments; by default those of the program, as rank 0 has them.

    Returns:
        Values by parameter, the same on every rank.

    Raises:
        SystemExit: after ``--help`` (0) or a mistake (2), on every rank; rank 0 has said why.
    """
    comm = MPI.COMM_WORLD
    outcome: tuple[dict[str, Any], Pairs] | int | str | None = None
    if comm.rank == 0:
        parser = _parser(main, description, helps)
        try:
            rest, petsc = _split(parser, helps, sys.argv[1:] if argv is None else argv)
            outcome = vars(parser.parse_args(rest)), petsc
        except SystemExit as stop:
            outcome = stop.code
    outcome = comm.bcast(outcome, root=0)
    if not isinstance(outcome, tuple):
        raise SystemExit(outcome)
    values, petsc = outcome
    options = PETSc.Options()
    for name, value in petsc:
        if value is None:
            options.insertString(f"-{name}")
        else:
            options.setValue(name, value)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _parser(
    main: Callable[..., object], description: str | None, helps: Mapping[str, str]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Options with one dash (-fem_mf_schrodinger_pc_type lu) are those of PETSc.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        default = parameter.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = helps[name] if default is None else f"{helps[name]} (default: {shown})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=default,
            help=text.replace("%", "%%"),
            **_kind(hints[name]),
        )
    return parser


def _kind(hint: Any) -> dict[str, Any]:
    """What ``add_argument`` must know of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (a for a in arguments if a is not types.NoneType)
        return _kind(inner)
    if origin is typing.Literal:
        return {"choices": arguments, "type": type(arguments[0])}
    if origin is tuple:
        return {"type": arguments[0], "nargs": "+", "metavar": arguments[0].__name__.upper()}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _split(
    parser: argparse.ArgumentParser, known: Collection[str], argv: Sequence[str]
) -> tuple[list[str], Pairs]:
    """Take the options with one dash, and a value that follows one, out of the arguments."""
    ours: list[str] = []
    petsc: Pairs = []
    takes_value = False
    for token in argv:
        number = _is_number(token)
        if takes_value and (number or not token.startswith("-")):
            petsc[-1] = (petsc[-1][0], token)
            takes_value = False
        elif token.startswith("-") and not token.startswith("--") and not number and token != "-h":
            if (name := token[1:]).replace("-", "_") in known:
                parser.error(f"{token} would be an option of PETSc; write -{token}")
            petsc.append((name, None))
            takes_value = True
        else:
            # argparse takes -1e-3 for an option, but not -0.001.
            small = number and token.startswith("-") and "e" in token.lower()
            ours.append(np.format_float_positional(float(token)) if small else token)
            takes_value = False
    return ours, petsc


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def with_orders(sizes: list[float], results: list[dict[str, float]]) -> Columns:
    """Columns of errors, each followed by its observed orders (the first is NaN).

    Args:
        sizes: dt or h, coarse to fine.
        results: errors by name, one mapping per size.
    """
    columns: Columns = {}
    for name in results[0]:
        errors = [result[name] for result in results]
        ratios = np.diff(np.log(errors)) / np.diff(np.log(sizes))
        columns[name] = errors
        columns[f"{name} order"] = [float("nan"), *ratios.tolist()]
    return columns


def find_limit(
    density: mf.Density, history: Path, tol: float = 1e-10
) -> tuple[mf.Minimum | None, mf.Limit | None]:
    """The minimiser to which a run leads, and the limit of its energy beside its history.

    Collective. Without a certificate, on a mesh too coarse for one, a warning is logged and nothing
    is written.

    Args:
        density: where the run has arrived.
        history: the ``history.csv`` of the run.
        tol: the gap to reach.
    """
    problem = density.problem
    try:
        best = mf.minimise(problem, density, tol=tol)
    except mf.ConvergenceError as error:
        logging.getLogger("fem_mf.demo").warning("the minimum is not known: %s", error)
        return None, None
    limit = mf.Limit.of(best)
    limit.write(history, problem.comm)
    return best, limit


def restart_command() -> str:
    """The command line of this program, with ``--restart``."""
    words = [w for w in sys.argv if w != "--restart"]
    return shlex.join(["python", *words, "--restart"])


def print_table(title: str, columns: Columns) -> None:
    """Print one study on rank 0."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name.partition(" ")[2] or name, justify="right")
    for row in zip(*columns.values(), strict=True):
        cells = zip(columns, row, strict=True)
        table.add_row(*(_cell(name, value) for name, value in cells))
    CONSOLE.print(table)


def _cell(name: str, value: float) -> str:
    if np.isnan(value):
        return ""
    style = ".2f" if name.endswith("order") else {"dt": ".4g", "h": ".4g", "dofs": ",.0f"}.get(name)
    return format(value, style or ".2e")


def write_studies(path: Path, studies: Mapping[str, Columns]) -> None:
    """Write one line per study, quantity and size as CSV; called on rank 0."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["study", "quantity", "size", "error", "order"])
        for study, columns in studies.items():
            sizes = next(iter(columns.values()))
            for name in [key.removesuffix(" order") for key in columns if key.endswith("order")]:
                table = zip(sizes, columns[name], columns[f"{name} order"], strict=True)
                lines.writerows([study, name, *row] for row in table)


def draw_slope(axes: Axes, sizes: list[float], errors: list[float], order: int) -> None:
    """A dashed line of the expected slope under the last errors, with its number."""
    ends = np.array([sizes[0], sizes[-1]])
    line = 0.55 * errors[-1] * (ends / sizes[-1]) ** order
    axes.loglog(ends, line, "--", color="0.6", linewidth=1.0, zorder=0)
    axes.annotate(
        f"slope {order}",
        (ends.prod() ** 0.5, line.prod() ** 0.5),
        xytext=(4, -3),
        textcoords="offset points",
        color="0.4",
        fontsize=8,
        va="top",
    )
