"""A small job that tells where its ranks are: three time steps, then one line of JSON on rank 0.

    mpirun -hosts h1,h2 -n 2 python docker/hosts_job.py

The line holds "hosts", the host name of each rank, "shared", how many ranks rank 0 shares memory
with, itself included, and "energies", those of the start and of every step.
"""

import json
import socket

import fem_mf as mf  # first: it loads MPI

from mpi4py import MPI  # isort: skip
import numpy as np

comm = MPI.COMM_WORLD
# Degree 2 and a functional that is not quadratic: every kind of communication the package does.
z = np.linspace(-np.pi, np.pi, 40)
functional = mf.Potential(lambda x: 0.1 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
    z, np.sin(z), neuron=lambda x, z: np.tanh(x[0] * z + x[1])
)
problem = mf.Problem(mf.disk(comm, radius=7.0, h=0.8), functional, sigma=0.5, degree=2)
start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * (x[0] ** 2 + x[1] ** 2)))
flow = mf.SchrodingerFlow(problem, dt=0.1)
energies = [state.energy for state in flow.run(start, t_end=0.3)]

hosts = comm.gather(socket.gethostname())
shared = comm.Split_type(MPI.COMM_TYPE_SHARED).size
if comm.rank == 0:
    print(json.dumps({"hosts": hosts, "shared": shared, "energies": energies}))
