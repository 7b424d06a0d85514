"""The command line of a demo: options from the keywords of ``main``; the rest go to PETSc."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import typing
from collections.abc import Callable, Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import fem_mf as mf

PETSC = r"-(fem_mf|weak_form)_\w+"  # the prefixes of the solvers


def say(text: object) -> None:
    """Print on rank 0."""
    if MPI.COMM_WORLD.rank == 0:
        print(text, flush=True)


def study(main: Callable[..., object]) -> None:
    """Run a demo that is a study: a record is written, and ``--overwrite`` may replace it."""
    mf.setup_logging(MPI.COMM_WORLD)
    values = parse(main)
    overwrite = values.pop("overwrite")
    with mf.Run(values["output"], parameters=values, overwrite=overwrite):
        main(**values)


def parse(main: Callable[..., object], argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The keywords of ``main`` from the command line, the same on all ranks. Collective.

    Every keyword has a default, a comment after it, which is its help text, and a type: int, float,
    str, bool (``--x``, ``--no-x``), ``Literal`` (choices), ``tuple[float, ...]`` (several values),
    or one of these or None. After an error all ranks end, and rank 0 prints the message.
    """
    comm, outcome = MPI.COMM_WORLD, None
    if comm.rank == 0:
        try:
            outcome = _read(main, argv)
        except SystemExit as stop:
            outcome = stop.code
    outcome = comm.bcast(outcome)
    if not isinstance(outcome, tuple):
        raise SystemExit(outcome)
    values, petsc = outcome
    if petsc:  # with -options_left PETSc lists unused options at the end
        PETSc.Options().insertString(shlex.join([*petsc, "-options_left"]))
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _read(main: Callable[..., object], argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        description=inspect.getmodule(main).__doc__,
        epilog="Options of PETSc have one dash: -fem_mf_schrodinger_pc_type lu.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # because options of PETSc may begin with -h
    )
    parser.add_argument("--help", action="help", help="show this message")
    helps = dict(re.findall(r"^    (\w+): .*,  # (.+)$", inspect.getsource(main), re.MULTILINE))
    hints = typing.get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        text = f"{helps[name]} (default: {parameter.default})".replace("%", "%%")
        option = {"default": parameter.default, "help": text, **_kind(hints[name])}
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    if "overwrite" not in hints:
        text = "replace the results in the output folder"
        parser.add_argument("--overwrite", action="store_true", help=text)
    values, rest = parser.parse_known_args(argv)
    for word, before in zip(rest, ["", *rest], strict=False):
        is_value = re.match(PETSC, before) and not re.match("-[-a-z]", word)
        if not (is_value or re.fullmatch(PETSC, word)):
            parser.error(f"unrecognized arguments: {word} (options of PETSc begin with -fem_mf_)")
    return vars(values), rest


def _kind(hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in inner:
        return _kind(inner[0])
    if origin is typing.Literal:
        return {"choices": inner, "type": type(inner[0])}
    if origin is tuple:
        return {"type": inner[0], "nargs": "+"}
    return {"action": argparse.BooleanOptionalAction} if hint is bool else {"type": hint}
