"""The doctor: finds what is missing, and cleans what a killed compilation left."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from mpi4py import MPI

import dolfinx.jit
import pytest

from fem_mf import doctor as doctor_module
from fem_mf.__main__ import main
from fem_mf.doctor import Check, check, doctor, half_compiled, mpi_launcher, remove


def found(name: str) -> Check:
    return next(c for c in check() if name in c.name)


def make_old(path: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a finished, a killed and a running compilation."""
    monkeypatch.setattr(doctor_module, "_cache_dir", lambda: tmp_path)
    for name in ("libffcx_forms_done.c", "libffcx_forms_done.c.cached", "libffcx_forms_killed.c"):
        (tmp_path / name).touch()
        make_old(tmp_path / name)
    (tmp_path / "libffcx_forms_running.c").touch()
    return tmp_path


def test_this_environment_is_complete() -> None:
    assert [c for c in check() if c.required and not c.passed] == []


def test_every_check_names_a_remedy_when_it_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "a-compiler-that-is-not-there")
    compiler = found("C compiler")
    assert not compiler.passed
    assert "a-compiler-that-is-not-there" in compiler.detail
    assert "gcc" in compiler.remedy


def test_compiler_that_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert not found("C compiler").passed


def test_missing_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert mpi_launcher() is None
    assert not found("MPI launcher").passed


def test_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A file in the way, since root may write to any folder.
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor_module, "_cache_dir", lambda: tmp_path / "file" / "cache")
    writable = found("cache of compiled forms")
    assert not writable.passed
    assert "XDG_CACHE_HOME" in writable.remedy


def test_half_compiled_are_the_old_ones_without_mark(cache: Path) -> None:
    assert half_compiled(cache) == [cache / "libffcx_forms_killed.c"]
    assert half_compiled(cache / "missing") == []


def test_remove_is_no_error_twice(cache: Path) -> None:
    stale = half_compiled(cache)
    assert remove(stale) == stale
    remove(stale)
    assert half_compiled(cache) == []


def test_clean_leaves_the_rest(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not found("killed compilations").passed
    assert main(["doctor", "--clean"]) == 0
    assert "removed 1" in capfd.readouterr().out
    assert sorted(p.name for p in cache.iterdir()) == [
        "libffcx_forms_done.c",
        "libffcx_forms_done.c.cached",
        "libffcx_forms_running.c",
    ]


def test_exit_code_counts_required_items_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    item = Check("thing", False, "found [nothing]", "buy one", required=False)
    monkeypatch.setattr(doctor_module, "check", lambda: [item])
    assert doctor(MPI.COMM_SELF)
    assert "found [nothing]" in capfd.readouterr().out
    monkeypatch.setattr(doctor_module, "check", lambda: [replace(item, required=True)])
    assert main(["doctor"]) == 1
    assert "buy one" in capfd.readouterr().out


def test_unknown_command_is_refused() -> None:
    assert main(["nonsense"]) == 2


def test_the_tests_use_a_cache_of_their_own() -> None:
    options = dolfinx.jit.get_options()
    assert Path(options["cache_dir"]).parent.name == "fem_mf-tests"
    assert options["timeout"] == 60
    assert "-O1" in options["cffi_extra_compile_args"]
