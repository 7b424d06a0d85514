"""Fixtures of all tests, and what makes pytest behave under mpirun.

At several ranks only rank 0 reports; a failure on another rank is printed there and then, and a
rank that failed does not wait for ever for ranks that are stuck where it left them.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

# --- before DOLFINx is imported: it reads these once ----------------------------------------

# Beside the user's own, and shared by all clones: compiling is a quarter of the tests' work.
_NAME = "fem_mf-tests"
_USERS = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
_CACHE = _USERS if _USERS.name == _NAME else _USERS / _NAME
# -O1 compiles twice as fast as the default -O2 and runs ten times as fast as -O0 (degree 4 to 6);
# the time-out allows for a busy machine.
_JIT_OPTIONS = {"timeout": 60, "cffi_extra_compile_args": ["-O1", "-g0"]}


def _use_own_cache() -> None:
    """Keep the user's cache and settings out of the tests, and the tests out of the user's cache.

    Programs started by a test inherit this. A test that is killed while it compiles leaves a half
    in the cache, which stops every later run that needs the same form.
    """
    config = _CACHE / "config" / "dolfinx" / "dolfinx_jit_options.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    # Every rank writes the same; renaming is atomic, so none reads half of it.
    draft = config.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(_JIT_OPTIONS))
    draft.replace(config)
    os.environ["XDG_CACHE_HOME"] = str(_CACHE)
    os.environ["XDG_CONFIG_HOME"] = str(_CACHE / "config")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


_use_own_cache()

# First, since it loads MPI before everything that is linked with it.
import fem_mf  # noqa: F401  # isort: skip
from mpi4py import MPI
from petsc4py import PETSc

import dolfinx.jit
import pytest

from fem_mf.doctor import half_compiled, mpi_launcher, remove

_COMM = MPI.COMM_WORLD
_PATIENCE = 20.0  # seconds a rank that failed waits for the others

# --- fixtures -------------------------------------------------------------------------------


@pytest.fixture
def shared_tmp_path(tmp_path: Path) -> Path:
    """One empty folder for all ranks: rank 0's. Collective."""
    return Path(_COMM.bcast(str(tmp_path), root=0))


@pytest.fixture
def database() -> Iterator[PETSc.Options]:
    """The PETSc options, empty of ours before and after."""
    options = PETSc.Options()
    before = options.getAll()
    assert not any(key.startswith("fem_mf") for key in before)
    yield options
    for key in options.getAll():
        if key not in before:
            options.delValue(key)


type MpiRun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mpirun() -> MpiRun:
    """Run a Python program on n ranks in a process group of its own.

    ``mpirun(n, script_or_args, timeout=60.0)``; ``script_or_args`` is the path of a script, or the
    arguments of the interpreter (``["-m", "fem_mf", "doctor"]``). Returns the CompletedProcess
    whatever its exit code; a job that takes longer is killed with all its ranks and fails the test.
    """
    if _COMM.size > 1:
        pytest.skip("an MPI job cannot start another one")
    launcher = mpi_launcher()
    assert launcher is not None, "no mpirun: python -m fem_mf doctor"

    def run(
        n: int, script_or_args: str | Path | Sequence[str | Path], timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        args = [script_or_args] if isinstance(script_or_args, str | Path) else script_or_args
        command = [str(launcher), "-n", str(n), sys.executable, *map(str, args)]
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            out, err = _kill(job)
            pytest.fail(f"{command} took longer than {timeout} s\n{out[-4000:]}\n{err[-4000:]}")
        except BaseException:  # the test itself is being stopped: leave no ranks spinning
            _kill(job)
            raise
        return subprocess.CompletedProcess(command, job.returncode, out, err)

    return run


def _kill(job: subprocess.Popen[str]) -> tuple[str, str]:
    # The ranks are in groups of their own, which only the launcher knows: let it end them first.
    job.terminate()
    try:
        return job.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        return job.communicate()


# --- pytest under mpirun --------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if _COMM.size > 1:
        # A rank inside an MPI call never returns to Python, where a signal would be handled.
        config.option.timeout_method = "thread"


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if _COMM.rank > 0:
        config.pluginmanager.unregister(name="terminalreporter")
        silent = open(os.devnull, "w")  # noqa: SIM115  # as long as the session
        config.pluginmanager.register(pytest.TerminalReporter(config, silent), "terminalreporter")


def pytest_sessionstart() -> None:
    if _COMM.rank == 0:
        remove(half_compiled(Path(dolfinx.jit.get_options()["cache_dir"])))
    _COMM.barrier()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = report.failed or item.stash.get(_FAILED, False)
    if report.failed and _COMM.size > 1:
        # At once: if the others are stuck, this rank will not live to see the summary.
        _say(f"\n== rank {_COMM.rank} of {_COMM.size}, {item.nodeid}\n{report.longreprtext}\n")
    return report


@pytest.fixture(autouse=True)
def _ranks_in_step(request: pytest.FixtureRequest) -> Iterator[None]:
    """Destroy PETSc objects and communicators on all ranks between the same two tests."""
    yield
    if _COMM.size == 1:
        return
    gc.collect()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    arrived = _COMM.Ibarrier()
    failed = request.node.stash.get(_FAILED, False)
    give_up = time.monotonic() + _PATIENCE
    while not arrived.Test():
        time.sleep(1e-3)
        if failed and time.monotonic() > give_up:
            with capture.global_and_fixture_disabled():
                _say(f"rank {_COMM.rank} failed and the others are stuck: ending the job\n")
            time.sleep(0.5)  # the launcher drops what it has not yet passed on
            _COMM.Abort(1)


def _say(text: str) -> None:
    """Write to the terminal of this rank, whose pytest may be a silent one."""
    assert sys.__stderr__ is not None
    sys.__stderr__.write(text)
    sys.__stderr__.flush()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The package's log, also after a demo has taken it for itself."""
    logger = logging.getLogger("fem_mf")
    before = logger.propagate, logger.level
    logger.propagate = True
    with caplog.at_level(logging.WARNING, logger="fem_mf"):
        yield caplog
    logger.propagate, level = before
    logger.setLevel(level)
