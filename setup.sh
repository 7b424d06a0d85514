#!/usr/bin/env bash
# Make .venv with everything the demos and the tests need: ./setup.sh [extra of pyproject.toml, default dev]
#
#   PYTHON=/path/to/python3.12 ./setup.sh     choose the interpreter
#
# Safe to run again; `make` runs it when pyproject.toml or this file has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
extra=${1:-dev}

say() { printf 'setup: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# Interpreters are tried by running them: a name on PATH may be a version manager's stand-in for a
# version that is not installed. Builds without the GIL cannot load the wheel's stable ABI.
suits() {
  "$1" -c 'import sys, sysconfig
sys.exit(sys.version_info < (3, 12) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))' \
    >/dev/null 2>&1 </dev/null
}
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; }

find_python() {
  local candidate without_venv=""
  local -a candidates=("${PYTHON:-}")
  if [ -z "${PYTHON:-}" ]; then
    candidates=(python3 python3.13 python3.12 python3.14 python
      "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[2-9]*/bin/python3)
  fi
  for candidate in "${candidates[@]}"; do
    suits "$candidate" || continue
    if can_make_venv "$candidate"; then
      python=$candidate
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  if [ -n "$without_venv" ]; then
    fail "$without_venv has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)."
  elif [ -n "${PYTHON:-}" ]; then
    fail "PYTHON=$PYTHON is not a Python >= 3.12 that runs; name another, or unset PYTHON."
  fi
  fail "found no Python >= 3.12 that runs; install one (Debian, Ubuntu: apt-get install python3" \
    "python3-venv python3-dev) or name one: PYTHON=/path/to/python3.12 ./setup.sh"
}

# DOLFINx compiles the forms when a program runs, so compiler and headers are no build-time matter.
check_compiler() {
  local cc include probe
  cc=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")')}
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  # The setting may hold options ("gcc -pthread"): the words are meant to be split.
  command -v "${cc%% *}" >/dev/null ||
    fail "found no C compiler '${cc%% *}', which DOLFINx needs at run time; install it (Debian," \
      "Ubuntu: apt-get install gcc libc6-dev) or name another: CC=gcc ./setup.sh"
  probe=$(mktemp -d)
  # shellcheck disable=SC2064,SC2086
  trap "rm -rf '$probe'" EXIT
  printf '#include <Python.h>\n#include <math.h>\nint probe(void) { return 0; }\n' >"$probe/probe.c"
  # shellcheck disable=SC2086
  $cc -I"$include" -fPIC -shared "$probe/probe.c" -o "$probe/probe.so" >"$probe/log" 2>&1 ||
    fail "'${cc%% *}' cannot compile an extension of $python, which DOLFINx needs at run time;" \
      "install the headers (Debian, Ubuntu: apt-get install libc6-dev python3-dev)." \
      "It said: $(grep -m 1 error "$probe/log" || head -n 1 "$probe/log")"
}

make_venv() {
  if [ -d .venv ]; then
    suits .venv/bin/python ||
      fail ".venv does not run any more (moved, or its Python is gone); delete it and try again."
    return
  fi
  say "making .venv with $("$python" --version) ($python)"
  "$python" -m venv .venv || fail "could not make .venv (see above); delete what is left of it."
}

install_packages() {
  # uv takes seconds where pip takes most of a minute, but trusts fewer certificates.
  if .venv/bin/python -m pip install --quiet --disable-pip-version-check uv </dev/null &&
    .venv/bin/uv pip install --quiet --python .venv/bin/python -e ".[$extra]" </dev/null; then
    return
  fi
  say "uv did not work here; trying pip" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]" </dev/null ||
    fail "could not install the packages (see above): check the network and the package index;" \
      "the DOLFINx wheel is for Linux x86_64 with glibc >= 2.34, elsewhere use conda or the container."
}

# The launcher must be the one of the MPI that DOLFINx is linked with; another one starts as many
# jobs of one rank as it was asked for ranks.
check_mpi() {
  local ranks program='from mpi4py import MPI
total = MPI.COMM_WORLD.allreduce(1)
if MPI.COMM_WORLD.rank == 0: print(total)'
  [ -x .venv/bin/mpirun ] || return 0 # not brought by the extra asked for; the doctor looks elsewhere
  ranks=$(timeout 60 .venv/bin/mpirun -n 2 .venv/bin/python -c "$program" 2>&1 </dev/null) || true
  [ "$ranks" = 2 ] ||
    fail "two MPI ranks do not find each other; unset variables left by another MPI (env | grep -E" \
      "'MPI|PMI|UCX|FI_') or delete .venv and try again. It said: ${ranks:-nothing in 60 s}"
}

find_python
check_compiler
make_venv
install_packages
check_mpi
.venv/bin/python -m fem_mf doctor || fail "the environment is not complete: see the table."
touch .venv/.ready
