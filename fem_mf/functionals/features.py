"""Feature functions, evaluated once at the nodes of a mesh and stored as a matrix.

A feature φ_j is a numpy callable of ``x``, shape ``(3, n)``, that returns ``(n,)``. K features on n
nodes form an n × K matrix Φ; with the nodal measure b of a density (∫f dm = Σ_i b_i f(x_i)) the
moments are Φᵀb, and a potential Σ_j c_j φ_j is Φc. Smooth features are often numerically
redundant (40 tanh neurons on a small domain have rank 27 at rounding level), so Φ is stored as a
factorisation Φ ≈ Q R of its numerical rank.

    x = problem.discretisation.potential_nodes
    columns = np.column_stack([np.tanh(k * x[0]) for k in range(1, 4)])
    matrix = FeatureMatrix(comm, problem.discretisation.num_potential_owned, [columns])
    y = matrix.moments(density.measure())
    V = matrix.combine(np.array([1.0, 0.5, 0.25]))
"""

from __future__ import annotations

from collections.abc import Iterable

from mpi4py import MPI

import numpy as np
from scipy.linalg import block_diag

from fem_mf.mpi import global_sum
from fem_mf.typing import Array

__all__ = ["FeatureMatrix"]

# Singular values below this multiple of the largest are rounding noise of the features themselves.
_RANK_TOLERANCE = 1e-14
# With fewer columns a decomposition saves nothing.
_WORTH_COMPRESSING = 8


class FeatureMatrix:
    """Φ ≈ Q R: ``basis`` Q is ``(n, r)`` on this rank's nodes, ``coordinates`` R is ``(r, K)``.

    Construction and :meth:`moments` are collective. Columns arrive in blocks, so the full matrix of
    a large data set is never stored. Q holds singular directions in decreasing order, so only a few
    matter to a mean field even if the rank is full. The rank is the same on all MPI ranks; singular
    values below 1e-14 of the largest are dropped, which is invisible in any result.

    Args:
        comm: the communicator of the mesh.
        num_owned: number of leading rows owned by this rank; the others are ghosts.
        blocks: arrays ``(n, k_i)`` of feature values, owned nodes first.
    """

    def __init__(self, comm: MPI.Comm, num_owned: int, blocks: Iterable[Array]) -> None:
        self.comm = comm
        self.num_owned = num_owned
        basis: Array | None = None
        coordinates = np.empty((0, 0))
        for block in blocks:
            basis = block if basis is None else np.hstack((basis, block))
            coordinates = block_diag(coordinates, np.eye(block.shape[1]))
            if basis.shape[1] >= _WORTH_COMPRESSING:
                basis, coordinates = self._compress(basis, coordinates)
        if basis is None:
            raise ValueError("no features were given")
        self.basis = np.ascontiguousarray(basis)
        self.coordinates = coordinates

    def _compress(self, basis: Array, coordinates: Array) -> tuple[Array, Array]:
        # A QR decomposition on each rank, then an SVD of the stacked triangles, gives the singular
        # values of a distributed matrix in full precision; its Gram matrix would lose half of it.
        triangle = np.linalg.qr(basis[: self.num_owned], mode="r")
        stacked = np.vstack(self.comm.allgather(triangle))
        _, values, right = np.linalg.svd(stacked, full_matrices=False)
        values, right = self.comm.bcast((values, right), root=0)
        rank = max(1, int(np.count_nonzero(values > _RANK_TOLERANCE * values[0])))
        return basis @ right[:rank].T, right[:rank] @ coordinates

    @property
    def rank(self) -> int:
        """Number of stored columns r."""
        return int(self.basis.shape[1])

    def moments(self, measure: Array) -> Array:
        """∫φ_j dm for every j, ``(K,)``. Collective.

        Args:
            measure: ``(num_owned,)`` nodal measure b of m.
        """
        local = measure @ self.basis[: self.num_owned]
        return global_sum(self.comm, local) @ self.coordinates

    def combine(self, coefficients: Array) -> Array:
        """Σ_j c_j φ_j at this rank's nodes, ``(n,)``.

        Args:
            coefficients: ``(K,)``.
        """
        return self.basis @ (self.coordinates @ coefficients)
