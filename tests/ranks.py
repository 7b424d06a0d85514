"""The same run on all ranks and on one: what the tests of rank independence share.

All ranks compute the reference on meshes of their own; what is compared came from another partition
of the same mesh, with other numberings, other sums and, in parallel, ghosts.
"""

from __future__ import annotations

from mpi4py import MPI

import numpy as np

import fem_mf as mf

COMM = MPI.COMM_WORLD
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
LOOSE = {"rtol": 1e-8, "atol": 1e-8}
Z = np.linspace(-1.5, 1.5, 10)


def trap(x):
    return 0.15 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) + 0.1 * np.sin(x[0])


def network():
    return mf.Potential(trap) + mf.NetworkLoss(
        Z, np.cos(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1])
    )


def contact():
    return mf.Potential(trap) + mf.MeanInteraction(0.5, 0.3) + mf.Contact(3.0)


def once(made, key, make):
    """What ``make`` makes on all ranks, and on one, kept in ``made``. Collective."""
    if key not in made:
        made[key] = [make(comm) for comm in (COMM, MPI.COMM_SELF)]
    return made[key]


def compare_scalars(shared, alone, counters, loose=()):
    """Two runs, state by state: all numbers but the counters. Collective."""
    assert len(shared) == len(alone)
    for here, there in zip(shared, alone, strict=True):
        own, reference = here.scalars(), there.scalars()
        assert list(own) == list(reference)
        for name in own:
            if name not in counters:
                caps = LOOSE if name in loose else TIGHT
                np.testing.assert_allclose(own[name], reference[name], **caps, err_msg=name)
        assert abs(here.fixed_point_iterations - there.fixed_point_iterations) <= 3
        assert len(set(COMM.allgather(repr(own)))) == 1  # to the last bit
