"""The command line of the package: ``python -m fem_mf doctor [--clean]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mpi4py import MPI

from fem_mf.doctor import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the package. Collective.

    Args:
        arguments: the words of the command line, those of this process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m fem_mf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("doctor", help="check that everything the package needs is here")
    check.add_argument(
        "--clean", action="store_true", help="remove what killed compilations left in the cache"
    )
    options = parser.parse_args(arguments)
    return 0 if doctor(MPI.COMM_WORLD, clean=options.clean) else 1


if __name__ == "__main__":
    sys.exit(main())
