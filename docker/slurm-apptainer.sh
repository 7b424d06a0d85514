#!/usr/bin/env bash
# A demo on a cluster that runs SLURM and Apptainer, from the image alone:
#
#   apptainer build fem_mf.sif docker-archive:fem_mf.tar
#   sbatch --nodes=2 --ntasks-per-node=16 slurm-apptainer.sh --sigma 0.3
#
# What follows the script's name goes to the demo; DEMO and OUTPUT choose which, and its results,
# IMAGE the image.
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
image=${IMAGE:-fem_mf.sif}
mkdir -p "$output"

export OMP_NUM_THREADS=1
# As in slurm-native.sh: TCP, which works between any two nodes.
export MPIR_CVAR_CH4_NETMOD=ofi
export FI_PROVIDER=tcp

# On SIGTERM the run writes a checkpoint after the step it is at and ends with 0. scancel sends it to
# every rank itself, past srun, which would take it as an order to give up, and not to this script.
# Told by the clock, the job then goes back into the queue; told by scancel from outside or by a job
# of higher priority, it does not, or SLURM sees to it.
again=no
trap 'again=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap : TERM

arguments=("$@")
# Back from the queue, go on. A checkpoint that lies there at the first start may be of another run.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$output/checkpoint/manifest.json" ]; then
  arguments+=(--restart)
fi

# srun starts the ranks, each in a container of its own: inside one there is neither srun nor ssh
# with which mpirun could reach another node. MPICH understands SLURM's pmi2 (see srun --mpi=list).
# In the background, because a shell runs its traps only after the command in the foreground.
srun --mpi=pmi2 apptainer exec --bind "$PWD" --pwd "$PWD" "$image" \
  python "/fem_mf/demos/$demo.py" --output "$output" "${arguments[@]}" </dev/null &
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
