#!/usr/bin/env bash
# Exercise the two job scripts where there is no SLURM: docker/slurm-test.sh
#
# Stand-ins for srun, scancel, scontrol and apptainer come first on PATH, and a small program takes the
# place of the demo. Native jobs run on two "nodes", which are this machine twice. It shows that the
# scripts start, stop, requeue and restart what they should, not that SLURM does what its manual says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
results=$work/results/standin
failed=0
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$work"/{bin,demos,results}
ln -s "$PWD/.venv" "$work/.venv"
cp docker/slurm-*.sh "$work"

# Told to stop it writes a checkpoint and ends with 0, as the demos do.
cat >"$work/demos/standin.py" <<'END'
import argparse
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path)
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--status", type=int, default=0)
parser.add_argument("--restart", action="store_true")
arguments = parser.parse_args()
comm, told = MPI.COMM_WORLD, []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
checkpoint = arguments.output / "checkpoint" / "manifest.json"
if arguments.restart:
    arguments.steps = 1
for step in range(arguments.steps):
    time.sleep(0.1)
    stop = comm.allreduce(bool(told), op=MPI.LOR)
    if comm.rank == 0:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        (arguments.output / "started").touch()
    if stop:
        # One rank is enough, and the signal may reach the others later: wait for it a while.
        deadline = time.time() + 20
        while not told and time.time() < deadline:
            time.sleep(0.1)
        ranks_told = comm.allreduce(bool(told), op=MPI.SUM)
        if comm.rank == 0:
            checkpoint.touch()
            print(f"stopped, {ranks_told} of {comm.size} ranks told")
        break
else:
    if comm.rank == 0:
        print(f"finished, restarted: {arguments.restart}")
sys.exit(arguments.status)
END

# mpirun calls it for one process a node, slurm-apptainer.sh, with --mpi, for one a rank.
cat >"$work/bin/srun" <<'END'
#!/bin/bash
nodes=1
case $1 in
  --mpi=pmi2)
    shift
    echo $$ >"$WORK/step"
    unset "${!SLURM_@}"
    exec "$WORK/.venv/bin/mpirun" -n 4 "$@" ;;
  -N) nodes=$2 ;;
  *) echo "srun: unexpected $*"; exit 2 ;;
esac
[ "$3 $5 $6" = "-n --input none" ] || { echo "srun: unexpected $*"; exit 2; }
shift 6
for ((i = 0; i < nodes; i++)); do SLURM_NODEID=$i "$@" & done
wait
END
cat >"$work/bin/scancel" <<'END'
#!/bin/bash
[ "$*" = "--signal=TERM 7" ] && kill -TERM "$(cat "$WORK/step")"
END
cat >"$work/bin/scontrol" <<'END'
#!/bin/bash
echo "scontrol $*"
END
cat >"$work/bin/apptainer" <<'END'
#!/bin/bash
[ "$1 $2 $4 $6 $7" = "exec --bind --pwd fem_mf.sif python" ] || { echo "apptainer: unexpected $*"; exit 2; }
script=$8
shift 8
exec "$WORK/.venv/bin/python" "$WORK/${script#/fem_mf/}" "$@"
END
chmod +x "$work"/bin/*

# start SCRIPT RESTARTS ARGUMENT...: as SLURM would, in the background; its process is $batch.
start() {
  rm -f "$results/started"
  env WORK="$work" PATH="$work/bin:$PATH" DEMO=standin SLURM_SUBMIT_DIR="$work" SLURM_JOB_ID=7 \
    SLURM_RESTART_COUNT="$2" SLURM_NTASKS=4 SLURM_NNODES=2 SLURM_JOB_NUM_NODES=2 \
    SLURM_JOB_NODELIST='node[1-2]' SLURM_NODELIST='node[1-2]' SLURM_TASKS_PER_NODE='2(x2)' \
    bash "$work/$1" "${@:3}" >"$work/out" 2>&1 </dev/null &
  batch=$!
}

# signal NAME: to the batch script, once the program is at work.
signal() {
  for _ in $(seq 600); do [ ! -e "$results/started" ] || break; sleep 0.1; done
  kill "-$1" "$batch"
}

# expect STATUS LINE...: the exit code of the batch script, and all it printed.
expect() {
  local status=0
  wait "$batch" || status=$?
  if [ "$status" = "$1" ] && diff <(printf '%s\n' "${@:2}") "$work/out"; then
    echo "ok      $what"
  else
    echo "FAILED  $what: exit code $status, expected $1"
    failed=1
  fi
}

for script in slurm-native.sh slurm-apptainer.sh; do
  rm -rf "$results"
  what="$script: runs"
  start $script 0 --steps 2
  expect 0 "finished, restarted: False"

  what="$script: told by the clock, stops and goes back into the queue"
  start $script 0
  signal USR1
  expect 0 "stopped, 4 of 4 ranks told" "scontrol requeue 7"

  what="$script: goes on when it comes back"
  start $script 1
  expect 0 "finished, restarted: True"

  what="$script: a failure is passed on, and not repeated"
  start $script 0 --status 3
  signal USR1
  expect 3 "stopped, 4 of 4 ranks told"
done

what="slurm-native.sh: cancelled, stops for good"
start slurm-native.sh 0
signal TERM
expect 0 "stopped, 4 of 4 ranks told"
exit $failed
