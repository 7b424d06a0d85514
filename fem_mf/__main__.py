"""The command line of the package: ``python -m fem_mf``; ``--help`` lists the commands."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

from fem_mf import case as cases
from fem_mf.doctor import doctor
from fem_mf.mpi import end_job, on_root, setup_logging
from fem_mf.plotting import __main__ as plotting

_COMM = MPI.COMM_WORLD
_PETSC = r"-fem_mf_\w+"  # the prefix of the solvers
_DESCRIPTION = """Mean-field optimisation regularised by Fisher information.

Each command has a --help of its own: python -m fem_mf run --help."""
_CASE = """The case is a TOML file:

{}
In parallel: mpirun -n 4 python -m fem_mf ...
Options of PETSc have one dash and come last: -fem_mf_schrodinger_pc_type lu."""
# The final numbers of a run that are shown.
_MAIN = ("t", "step", "iterations", "energy", "eigenvalue", "residual", "gap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the package. Collective.

    Args:
        arguments: the words of the command line, those of this process by default.

    Returns:
        The exit code: 0, 1 if the command failed, 2 for wrong arguments.
    """
    parsed = on_root(_COMM, lambda: _parse(arguments))
    if isinstance(parsed, int):
        return parsed
    options, petsc = parsed
    if petsc:  # with -options_left PETSc lists unused options at the end
        PETSc.Options().insertString(shlex.join([*petsc, "-options_left"]))
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "doctor": lambda options: 0 if doctor(_COMM, clean=options.clean) else 1,
        "plot": lambda options: on_root(_COMM, lambda: plotting.draw(options)),
        "run": _run,
        "sweep": _sweep,
    }
    return commands[options.command](options)


def _run(options: argparse.Namespace) -> int:
    def work() -> list[dict[str, Any]]:
        read = cases.Case.read
        case = on_root(_COMM, lambda: read(options.case, cases.read_settings(options.set)))
        result = case.run(_COMM, overwrite=options.overwrite, restart=options.restart)
        return [{"folder": str(case.folder), **result}]

    return _report(work)


def _sweep(options: argparse.Namespace) -> int:
    def work() -> list[dict[str, Any]]:
        key, values = cases.read_values(options.over)
        settings = cases.read_settings(options.set)
        how = {"overwrite": options.overwrite, "restart": options.restart}
        return cases.sweep(options.case, key, values, _COMM, settings, **how)

    return _report(work)


def _report(work: Callable[[], list[dict[str, Any]]]) -> int:
    """Make runs and print their final numbers, or why one failed. Collective."""
    setup_logging(_COMM)
    try:
        rows = work()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        # Other ranks may not have failed and may wait inside any call.
        end_job(error, f"error: {error}\n")
        return 1
    if _COMM.rank == 0:
        print(_table(rows), flush=True)
    return 0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the first column of the rows and of the main results."""
    first, *others = rows[0]
    names = [first, *(n for n in _MAIN if n in others and all(n in row for row in rows))]
    lines = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True))
        for line in lines
    )


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _parse(arguments: Sequence[str] | None) -> int | tuple[argparse.Namespace, list[str]]:
    """The options and the words for PETSc, or the exit code if argparse fails. Rank 0."""
    parser = _parser()
    try:
        options, rest = parser.parse_known_args(arguments)
        for word, before in zip(rest, ["", *rest], strict=False):
            is_value = re.fullmatch(_PETSC, before) and not re.match("-[-a-z]", word)
            if not (is_value or re.fullmatch(_PETSC, word)):
                parser.error(
                    f"unrecognized arguments: {word} (options of PETSc begin with -fem_mf_)"
                )
        if rest and options.command not in ("run", "sweep"):
            parser.error(f"{options.command} has no solvers: {rest[0]}")
    except SystemExit as stop:
        return int(stop.code or 0)
    return options, rest


def _parser() -> argparse.ArgumentParser:
    # Options of PETSc may begin with -h, so argparse's -h is disabled.
    plain: dict[str, Any] = {
        "add_help": False,
        "allow_abbrev": False,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    parser = argparse.ArgumentParser(prog="python -m fem_mf", description=_DESCRIPTION, **plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str = "", **how: Any) -> Callable[..., Any]:
        line = text.partition(".")[0]
        found = commands.add_parser(
            name, help=line, description=text, epilog=epilog, **{**plain, **how}
        )
        found.add_argument("--help", action="help", help="show this message")
        return found.add_argument

    parser.add_argument("--help", action="help", help="show this message")
    add = command("doctor", "Check that everything the package needs is installed.")
    add("--clean", action="store_true", help="remove files that killed compilations left behind")
    command("plot", plotting.DESCRIPTION, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    plotting.add_options(commands.choices["plot"])
    example = _CASE.format(textwrap.indent(cases.EXAMPLE, "    "))
    run = command("run", "Run a case: a flow or a minimisation.", example)
    runs = command(
        "sweep",
        "Run a case for several values of a key. Each run has its own folder in that of the case; "
        "sweep.csv and sweep.png compare them. Finished runs are kept: a sweep that was stopped is "
        "completed by the same command.",
        example,
    )
    for add in (run, runs):
        add("case", help="the case, a .toml file")
    values = "the key and its values, such as sigma=1,0.5,0.2"
    runs("--over", required=True, metavar="KEY=A,B,...", help=values)
    for add in (run, runs):
        text = (
            "a value in place of the file's, such as sigma=0.2 or contact.beta=3; may be repeated"
        )
        add("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
        add("--overwrite", action="store_true", help="replace the results in the folder")
    run("--restart", action="store_true", help="resume from the checkpoint in the folder")
    text = "resume runs that were stopped from their checkpoints, not from the beginning"
    runs("--restart", action="store_true", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
