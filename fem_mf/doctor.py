"""Is everything here that the package needs? Each check names a remedy.

On the command line:

    python -m fem_mf doctor            # a table; exit code 1 if a required item fails
    python -m fem_mf doctor --clean    # first remove what a killed compilation left behind
"""

from __future__ import annotations

import importlib
import os
import platform
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

import dolfinx
import dolfinx.jit
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Check", "check", "doctor", "half_compiled", "mpi_launcher", "remove"]

_OLD_ENOUGH = 60.0  # seconds: no form of the package takes as long to compile
_WITH_WHEEL = "pip install 'fem_mf[wheel]'"


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        passed: whether it is as it should be.
        detail: what was found.
        remedy: what to do if it did not pass.
        required: whether the package is of no use without it.
    """

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    required: bool = True


def check() -> list[Check]:
    """Look at everything the package needs. Not collective: each rank looks at its own machine."""
    return [
        _python(),
        _dolfinx(),
        _scalar_type(),
        _direct_solver(),
        _slepc(),
        _launcher(),
        _compiler(),
        _cache_writable(_cache_dir()),
        _cache_complete(_cache_dir()),
        _module("gmsh", "meshes", "pip install 'fem_mf[mesh]'; Debian: libglu1-mesa libxft2"),
        _module("pyvista", "pictures", "pip install 'fem_mf[plot]'; Debian: libegl1"),
    ]


def doctor(comm: MPI.Comm, clean: bool = False) -> bool:
    """Print the table of all checks on rank 0. Collective.

    Args:
        comm: the ranks whose machines are looked at.
        clean: first remove what killed compilations left in the cache.

    Returns:
        Whether all required items passed on all ranks; the same on every rank.
    """
    console = Console(quiet=comm.rank != 0)
    if clean and comm.rank == 0:
        removed = remove(half_compiled(_cache_dir()))
        console.print(f"removed {len(removed)} files of killed compilations")
    comm.barrier()
    checks = _worst(comm.allgather(check()))
    console.print(_table(checks, f"fem_mf on {comm.size} rank{'s' * (comm.size > 1)}"))
    return all(c.passed for c in checks if c.required)


def half_compiled(cache: Path, older_than: float = _OLD_ENOUGH) -> list[Path]:
    """Find the forms whose compilation was killed: their source is there, the mark "done" is not.

    Every later run that needs such a form waits for the mark and then gives up.

    Args:
        cache: folder of the compiled forms.
        older_than: seconds; younger ones may be being compiled by another job just now.
    """
    limit = time.time() - older_than
    return [
        source
        for source in sorted(cache.glob("libffcx_*.c"))
        if not source.with_suffix(".c.cached").exists() and _modified(source) < limit
    ]


def remove(sources: Iterable[Path]) -> list[Path]:
    """Remove half-compiled forms, and return them; one that another job has removed is no error."""
    gone = list(sources)
    for source in gone:
        source.unlink(missing_ok=True)
    return gone


def mpi_launcher() -> Path | None:
    """Find mpirun: beside the interpreter if it is there, else on PATH."""
    for name in ("mpirun", "mpiexec"):
        beside = Path(sys.prefix) / "bin" / name
        if os.access(beside, os.X_OK):
            return beside
    found = shutil.which("mpirun") or shutil.which("mpiexec")
    return Path(found) if found else None


def _python() -> Check:
    name, version = "Python", platform.python_version()
    return Check(name, sys.version_info >= (3, 12), version, "install Python >= 3.12")


def _dolfinx() -> Check:
    version = dolfinx.__version__
    recent = tuple(int(part) for part in version.split(".")[:2]) >= (0, 11)
    return Check("DOLFINx", recent and dolfinx.has_petsc4py, version, _WITH_WHEEL)


def _scalar_type() -> Check:
    scalar = np.dtype(dolfinx.default_scalar_type)
    remedy = f"use a real build of PETSc: {_WITH_WHEEL}"
    return Check("scalar type", np.issubdtype(scalar, np.floating), str(scalar), remedy)


def _direct_solver() -> Check:
    name, remedy = "direct solver MUMPS", f"use a PETSc built with MUMPS: {_WITH_WHEEL}"
    try:
        from petsc4py import PETSc
    except ImportError as error:
        return Check(name, False, str(error), remedy)
    version = "PETSc " + ".".join(map(str, PETSc.Sys.getVersion()))
    return Check(name, PETSc.Sys.hasExternalPackage("mumps"), version, remedy)


def _slepc() -> Check:
    name = "eigenvalue solver SLEPc"
    try:
        from slepc4py import SLEPc
    except ImportError as error:
        return Check(name, False, str(error), _WITH_WHEEL)
    return Check(name, True, ".".join(map(str, SLEPc.Sys.getVersion())))


def _launcher() -> Check:
    name, launcher = "MPI launcher", mpi_launcher()
    if launcher is None:
        return Check(name, False, "neither mpirun nor mpiexec", _WITH_WHEEL)
    # The wheel brings its MPI along; any other launcher starts n jobs of one rank each.
    foreign = "dolfinx_solver" in sys.modules and launcher.parent.parent != Path(sys.prefix)
    remedy = f"{_WITH_WHEEL}, and call its mpirun by its path"
    return Check(name, not foreign, str(launcher), remedy)


def _compiler() -> Check:
    """Compile the smallest extension, with the command that the compilation of a form will use."""
    name, remedy = "C compiler", "apt-get install gcc libc6-dev python3-dev, or set CC"
    words = shlex.split(os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n#include <math.h>\n")
        options = [f"-I{sysconfig.get_path('include')}", "-fPIC", "-shared", str(source)]
        try:
            run = subprocess.run(
                [*words, *options, "-o", str(source.with_suffix(".so"))],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check(name, False, str(error), remedy)
    said = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip())
    return Check(name, run.returncode == 0, said or shlex.join(words), remedy)


def _cache_writable(cache: Path) -> Check:
    name, remedy = "cache of compiled forms", "set XDG_CACHE_HOME to a folder you may write to"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        return Check(name, False, str(error), remedy)
    return Check(name, True, str(cache))


def _cache_complete(cache: Path) -> Check:
    left = half_compiled(cache)
    detail = "\n".join(map(str, left)) or "none"
    remedy = "python -m fem_mf doctor --clean"
    # Not required: it only stops the programs that need one of these forms.
    return Check("killed compilations", not left, detail, remedy, required=False)


def _module(module: str, purpose: str, remedy: str) -> Check:
    name = f"{module} ({purpose})"
    try:
        found = importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a system library it needs is missing
        return Check(name, False, str(error), remedy, required=False)
    return Check(name, True, str(getattr(found, "__version__", "")), required=False)


def _cache_dir() -> Path:
    return Path(dolfinx.jit.get_options()["cache_dir"])


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another job has just removed it
        return time.time()


def _worst(per_rank: list[list[Check]]) -> list[Check]:
    """One check of each kind: the first rank's that failed, else rank 0's."""

    def worst(of_ranks: tuple[Check, ...]) -> Check:
        for rank, found in enumerate(of_ranks):
            if not found.passed:
                where = f"rank {rank}: " if rank > 0 else ""
                return replace(found, detail=where + found.detail)
        return of_ranks[0]

    return [worst(of_ranks) for of_ranks in zip(*per_rank, strict=True)]


def _table(checks: list[Check], title: str) -> Table:
    table = Table("", "", "found", "remedy", title=title, title_justify="left", box=None)
    for c in checks:
        mark = "[green]ok" if c.passed else "[red]FAILS" if c.required else "[yellow]warning"
        table.add_row(mark, c.name, escape(c.detail), "" if c.passed else escape(c.remedy))
    return table
