"""Checks of the installation: a table of components, tests and remedies.

On the command line:

    python -m fem_mf doctor            # prints the table; exit code 1 if a required item fails
    python -m fem_mf doctor --clean    # first removes files left by killed compilations
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import dolfinx.jit
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Check", "check", "doctor", "half_compiled", "mpi_launcher", "remove"]

_OLD_ENOUGH = 60.0  # seconds, longer than the compilation of any form of the package


@dataclass(frozen=True)
class Check:
    """One row of the table: the component, whether it passed, what was found, and a remedy."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    required: bool = True


def check() -> list[Check]:
    """Check all components that the package needs, on this rank's machine. Not collective."""
    checks = []
    for name, test, remedy in _REQUIRED + _OPTIONAL:
        try:
            passed, detail = test()
        except Exception as error:
            passed, detail = False, str(error)
        required = (name, test, remedy) in _REQUIRED
        checks.append(Check(name, passed, detail, remedy, required))
    return checks


def doctor(comm: MPI.Comm, clean: bool = False) -> bool:
    """Print the table of all checks on rank 0. Collective.

    Args:
        comm: the ranks whose machines are checked.
        clean: whether to remove files that killed compilations left in the cache first.

    Returns:
        Whether all required items passed on all ranks; the same on every rank.
    """
    console = Console(quiet=comm.rank != 0)
    if clean and comm.rank == 0:
        removed = remove(half_compiled(_cache_dir()))
        console.print(f"removed {len(removed)} files of killed compilations")
    comm.barrier()
    title = f"fem_mf on {comm.size} rank{'s' * (comm.size > 1)}"
    table = Table("", "", "found", "remedy", title=title, title_justify="left", box=None)
    healthy = True
    for on_ranks in zip(*comm.allgather(check()), strict=True):
        rank = next((rank for rank, c in enumerate(on_ranks) if not c.passed), 0)
        c = replace(on_ranks[rank], detail=f"rank {rank}: " * (rank > 0) + on_ranks[rank].detail)
        mark = "[green]ok" if c.passed else "[red]FAILS" if c.required else "[yellow]warning"
        table.add_row(mark, c.name, escape(c.detail), "" if c.passed else escape(c.remedy))
        healthy = healthy and (c.passed or not c.required)
    console.print(table)
    return healthy


def half_compiled(cache: Path, older_than: float = _OLD_ENOUGH) -> list[Path]:
    """Find forms whose compilation was killed: the source exists, but the completion mark does not.

    Every later run that needs such a form waits for the mark and then fails.

    Args:
        cache: folder of the compiled forms.
        older_than: age in seconds; another job may still be compiling younger ones.
    """
    found = []
    for source in sorted(cache.glob("libffcx_*.c")):
        with contextlib.suppress(FileNotFoundError):  # another job has just removed it
            old = source.stat().st_mtime < time.time() - older_than
            if old and not source.with_suffix(".c.cached").exists():
                found.append(source)
    return found


def remove(sources: Iterable[Path]) -> list[Path]:
    """Remove half-compiled forms and return them; missing files are ignored."""
    gone = list(sources)
    for source in gone:
        source.unlink(missing_ok=True)
    return gone


def mpi_launcher() -> Path | None:
    """Find mpirun, or else mpiexec, first beside the interpreter and then on PATH."""
    path = os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ.get("PATH", os.defpath)])
    found = shutil.which("mpirun", path=path) or shutil.which("mpiexec", path=path)
    return Path(found) if found else None


# Each test returns whether it passed and what it found; an exception means failure.


def _dolfinx() -> tuple[bool, str]:
    recent = tuple(int(part) for part in dolfinx.__version__.split(".")[:2]) >= (0, 11)
    scalar = np.dtype(dolfinx.default_scalar_type)
    suitable = recent and dolfinx.has_petsc4py and np.issubdtype(scalar, np.floating)
    return bool(suitable), f"{dolfinx.__version__}, {scalar}"


def _mumps() -> tuple[bool, str]:
    version = "PETSc " + ".".join(map(str, PETSc.Sys.getVersion()))
    return PETSc.Sys.hasExternalPackage("mumps"), version


def _launcher() -> tuple[bool, str]:
    launcher = mpi_launcher()
    # The wheel has its own MPI, with which any other launcher starts n jobs of one rank each.
    own = launcher is not None and launcher.parent.parent == Path(sys.prefix)
    usable = launcher is not None and (own or "dolfinx_solver" not in sys.modules)
    return usable, str(launcher or "neither mpirun nor mpiexec")


def _compiler() -> tuple[bool, str]:
    """Compile a minimal extension with the command that is used to compile forms."""
    words = shlex.split(os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n#include <math.h>\n")
        options = [f"-I{sysconfig.get_path('include')}", "-fPIC", "-shared", str(source)]
        command = [*words, *options, "-o", str(source.with_suffix(".so"))]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip())
    return run.returncode == 0, said or shlex.join(words)


def _cache_dir() -> Path:
    return Path(dolfinx.jit.get_options()["cache_dir"])


def _cache() -> tuple[bool, str]:
    _cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=_cache_dir()):
        return True, str(_cache_dir())


def _cache_complete() -> tuple[bool, str]:
    left = half_compiled(_cache_dir())
    return not left, "\n".join(map(str, left)) or "none"


def _module(name: str) -> tuple[bool, str]:
    return True, str(importlib.import_module(name).__version__)


_WHEEL = "pip install 'fem_mf[wheel]'"
_GMSH = "pip install 'fem_mf[mesh]'; Debian: libglu1-mesa libxft2"
_PYVISTA = "pip install 'fem_mf[plot]'; Debian: libegl1"
_REQUIRED = [
    ("DOLFINx with real PETSc", _dolfinx, _WHEEL),
    ("direct solver MUMPS", _mumps, f"use a PETSc built with MUMPS: {_WHEEL}"),
    ("MPI launcher", _launcher, f"{_WHEEL}, and call its mpirun by its path"),
    ("C compiler", _compiler, "apt-get install gcc libc6-dev python3-dev, or set CC"),
    ("cache of compiled forms", _cache, "set XDG_CACHE_HOME to a folder you may write to"),
]
# The first item only affects programs that need one of these forms.
_OPTIONAL = [
    ("killed compilations", _cache_complete, "python -m fem_mf doctor --clean"),
    ("gmsh (meshes)", lambda: _module("gmsh"), _GMSH),
    ("pyvista (pictures)", lambda: _module("pyvista"), _PYVISTA),
]
