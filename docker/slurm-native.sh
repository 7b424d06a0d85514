#!/usr/bin/env bash
# A demo on a cluster that runs SLURM, with the environment that ./setup.sh made in a shared folder:
#
#   cd fem_mf && sbatch --nodes=2 --ntasks-per-node=16 docker/slurm-native.sh --sigma 0.3
#
# What follows the script's name goes to the demo; DEMO and OUTPUT choose which, and its results.
#SBATCH --job-name=fem_mf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time is over this script, and nobody else, is told by a signal that cannot be
# taken for the one of scancel.
#SBATCH --signal=B:USR1@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit
demo=${DEMO:-two_layer_network}
output=${OUTPUT:-results/$demo}

export OMP_NUM_THREADS=1
# TCP works between any two nodes. Without these two lines MPICH chooses by itself (UCX), which may
# be faster where there is InfiniBand; docker/README.md says why it is not the default here.
export MPIR_CVAR_CH4_NETMOD=ofi
export FI_PROVIDER=tcp

# On SIGTERM the run writes a checkpoint after the step it is at and ends with 0; mpirun hands the
# signal on to every rank, on every node. Told by the clock, the job then goes back into the queue;
# told by scancel or by a job of higher priority, it does not, or SLURM sees to it.
job='' again=no
trap 'again=yes; ${job:+kill -TERM $job}' USR1
trap '${job:+kill -TERM $job}' TERM

arguments=("$@")
# Back from the queue, go on. A checkpoint that lies there at the first start may be of another run.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$output/checkpoint/manifest.json" ]; then
  arguments+=(--restart)
fi

# This mpirun and no other: it belongs to the MPI of the environment. It asks SLURM for the nodes,
# and starts one process on each by srun. In the background, because a shell runs its traps only
# after the command in the foreground has ended.
.venv/bin/mpirun -n "${SLURM_NTASKS:-2}" \
  .venv/bin/python "demos/$demo.py" --output "$output" "${arguments[@]}" </dev/null &
job=$!
# A trap also ends `wait`.
wait "$job"
status=$?
while kill -0 "$job" 2>/dev/null; do
  wait "$job"
  status=$?
done

# Not after a failure: it would come back for ever.
if [ $again = yes ] && [ $status = 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
