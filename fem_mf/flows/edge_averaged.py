"""Edge-averaged finite elements for ∂_t m = ∇·(m∇V) + (σ²/2)Δm at vertices, without outflow.

    edges = EdgeOperator(problem)
    edges.set_potential(V)                        # owned values
    edges.assemble(mass_diagonal / dt)            # sets edges.matrix to M/dt + L(V)

With couplings w_ij = −∫∇θ_i·∇θ_j, φ = (2/σ²)V and B(x) = x/(e^x − 1), mass leaves vertex i for j at
the rate (Scharfetter and Gummel 1969; on the edges of a mesh, Xu and Zikatanov 1999)

    J_ij = (σ²/2) w_ij (B(φ_j − φ_i) m_i − B(φ_i − φ_j) m_j),    (L m)_i = Σ_j J_ij.

J_ij = −J_ji conserves mass and vanishes for m ∝ e^{−φ}. If no coupling is negative, L has no
positive off-diagonal entry.
"""

from __future__ import annotations

from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from fem_mf.collocation import collocated_stiffness
from fem_mf.mpi import global_sum
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.typing import Array

__all__ = ["EdgeOperator"]

type Numbers = npt.NDArray[np.integer]

_ZERO = 1e-12  # couplings below this multiple of the largest are rounding errors
_SERIES = 1e-2  # for smaller |x| a series for B′ is more accurate than its formula


class EdgeOperator:
    """L(V) on the edges of a mesh, and a matrix with its (fixed) sparsity pattern.

    Arrays *on edges* have one entry for each pair of an owned vertex i and a neighbour j.

    Args:
        problem: a problem of degree 1 with lumped mass. On quadrilaterals and hexahedra couplings
            are computed by quadrature at the vertices; they are non-negative on axis-aligned cells.

    Attributes:
        temperature: σ²/2.
        matrix: c + L(V) as of the last :meth:`assemble`, and ``diagonal`` its diagonal.
        leave: (σ²/2) w_ij B(φ_j − φ_i), the rate at which mass moves from i to j, on edges.
        negative: number of edges of the mesh with a negative coupling.
        edges: number of edges of the mesh.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.temperature = problem, 0.5 * problem.sigma**2
        self._discrete = problem.discretisation
        stiffness = problem.stiffness
        if problem.mesh.topology.cell_name() in ("quadrilateral", "hexahedron"):
            stiffness = collocated_stiffness(problem.space, self._discrete.constrained)
        offsets, ends, values = stiffness.getValuesCSR()
        own = np.arange(*stiffness.getOwnershipRange(), dtype=ends.dtype)
        rows = np.repeat(own, np.diff(offsets))
        largest = self._discrete.max(float(np.abs(values).max(initial=0.0)))
        joined = (rows != ends) & (np.abs(values) > _ZERO * largest)
        rows, ends, coupling = rows[joined], ends[joined], -values[joined]
        counts = global_sum(problem.comm, [np.sum(coupling < 0.0), coupling.size])
        self.negative, self.edges = (int(count) // 2 for count in counts)
        self._row: Numbers = rows - (own[0] if own.size else 0)
        self._weight = self.temperature * coupling
        self._connect(stiffness, ends)
        self.matrix = _matrix(stiffness, np.concatenate((rows, own)), np.concatenate((ends, own)))
        if stiffness is not problem.stiffness:
            stiffness.destroy()
        self.diagonal = np.zeros(self._discrete.num_owned)
        self.leave: Array = np.zeros(coupling.size)
        self._enter = self._tilt = self._peclet = self.leave

    def _connect(self, stiffness: PETSc.Mat, ends: Numbers) -> None:
        # The far end of an edge need not be a ghost of the space, because a rank may own a vertex
        # without having every cell around it.
        numbers, self._end = np.unique(ends, return_inverse=True)
        self._near = stiffness.createVecRight()
        self._far = PETSc.Vec().createSeq(len(numbers))
        wanted: Any = numbers
        alone: Any = MPI.COMM_SELF
        everywhere: Any = None
        index = PETSc.IS().createGeneral(wanted, alone)
        self._scatter = PETSc.Scatter().create(self._near, index, self._far, everywhere)

    def at_end(self, values: Array) -> Array:
        """f_j on edges, from owned values f. Collective."""
        self._near.array[:] = values
        self._scatter.scatter(self._near, self._far)
        return np.take(owned_values(self._far), self._end)

    def rise(self, values: Array) -> Array:
        """f_j − f_i on edges, from owned values f. Collective."""
        return self.at_end(values) - values[self._row]

    def sum(self, edges: Array) -> Array:
        """Σ_j over a quantity on edges, ``(num_owned,)``."""
        return np.bincount(self._row, weights=edges, minlength=self.diagonal.size)

    def set_potential(self, potential: Array) -> None:
        """Set V by its owned values; the matrix is not changed. Collective."""
        x = self.rise(potential) / self.temperature
        self._peclet = 0.5 * np.abs(x)
        size = np.maximum(np.abs(x), 1e-300)
        uphill = np.exp(-size)  # B(|x|) = e^{−|x|} B(−|x|): nothing overflows
        down = size / -np.expm1(-size)
        forward, back = np.where(x > 0, (down * uphill, down), (down, down * uphill))
        self.leave, self._enter = self._weight * forward, self._weight * back
        small = np.abs(x) < _SERIES
        formula = forward * (back - 1.0) / np.where(small, 1.0, x)
        self._tilt = np.where(small, 0.5 - x / 6.0 + x**3 / 180.0, formula)  # −B′(x)

    def peclet(self, m: Array) -> float:
        """|V_j − V_i|/σ², the maximum over a vertex's edges, averaged over m. Collective.

        If m is not in equilibrium with V, the diffusion of the scheme on an edge with value p is
        too large by the factor p coth p: 1.3 for p = 1, and p for large p.
        """
        largest = np.zeros(self._discrete.num_owned)
        np.maximum.at(largest, self._row, self._peclet)
        return self._discrete.dot(self._discrete.mass_diagonal * m, largest)

    def assemble(self, inertia: Array, more: Array | None = None) -> None:
        """Set the matrix to diag(inertia) + L(V) + additional edge couplings. Collective."""
        enter, leave = self._enter, self.leave
        if more is not None:
            enter, leave = enter + more, leave + more
        self.diagonal[:] = inertia + self.sum(leave)
        values: Any = np.concatenate((-enter, self.diagonal))
        self.matrix.setValuesCOO(values)

    def mobility(self, m: Array) -> Array:
        """k on edges such that a change δV changes J_ij by k_ij (δV_i − δV_j). Collective."""
        mean: Array = self._tilt * m[self._row] + (1.0 - self._tilt) * self.at_end(m)
        return np.asarray(self._weight / self.temperature * mean)

    def dissipation(self, m: Array, mu: Array) -> float:
        """Σ J_ij (μ_i − μ_j) over the edges of the mesh. Collective."""
        flux = self.leave * m[self._row] - self._enter * self.at_end(m)
        return -0.5 * float(global_sum(self.problem.comm, flux @ self.rise(mu)))


def _matrix(like: PETSc.Mat, rows: Any, columns: Any) -> PETSc.Mat:
    """A matrix with the layout of another and entries that are set in the given order."""
    matrix = PETSc.Mat().create(comm=like.comm)
    sizes: Any = like.getSizes()
    matrix.setSizes(sizes)
    matrix.setType(PETSc.Mat.Type.AIJ)
    matrix.setPreallocationCOO(rows, columns)
    return matrix
