"""What the demos share: a command line made from the defaults of ``main``, and a console.

def main(sigma: float = 0.5, steps: int = 10, plot: bool = True) -> None: ...

if __name__ == "__main__":
    main(**parse(main, __doc__, {"sigma": "regularisation", "steps": ..., "plot": ...}))
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from rich.console import Console

__all__ = ["CONSOLE", "parse"]

CONSOLE = Console(quiet=MPI.COMM_WORLD.rank != 0, highlight=False)
"""Prints on rank 0 only."""

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
    as ``-fem_mf_schrodinger_ksp_rtol 1e-8``, go to the options database of PETSc.

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
        epilog="Options with one dash (-fem_mf_schrodinger_ksp_rtol 1e-8) are those of PETSc.",
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
