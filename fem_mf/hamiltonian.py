"""The Hamiltonian H[m] = −σ²Δ + V[m] as a matrix that is updated in place (F2).

    operator = MeanFieldHamiltonian(problem, mean_field)
    operator.update(2.0 / dt, y)    # c M + σ²A + ∫V[m]ψχ, in the same matrix object
    operator.matrix, operator.evaluate(density)

    frozen = Hamiltonian(problem)
    V = functional.derivative(density)
    frozen.update(problem.on_potential_space(V))    # σ²A + ∫Vψχ for any V

If V − V_0 has few features, the matrix of each is assembled once and an update is a few axpys.
"""

from __future__ import annotations

from typing import Any

from petsc4py import PETSc

import numpy as np

from fem_mf.density import Density
from fem_mf.mean_field.moments import MeanField
from fem_mf.mpi import global_sum
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.typing import Array

__all__ = ["Hamiltonian", "MeanFieldHamiltonian"]

# With preassembled matrices ∫φ_jψχ an update of V costs one axpy per feature; for more features
# they would need too much memory, and ∫Vψχ is assembled instead.
_MAX_PIECES = 24
_SAME: Any = PETSc.Mat.Structure.SAME_NONZERO_PATTERN


class MeanFieldHamiltonian:
    """The matrix c M + σ²A + ∫Vψχ for varying c and V.

    Args:
        problem: the problem.
        mean_field: the mean field, which determines V.
    """

    def __init__(self, problem: Problem, mean_field: MeanField) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        self.mean_field = mean_field
        self.constant = problem.stiffness.copy()  # σ²A + ∫V_0ψχ
        self.constant.scale(problem.sigma**2)
        term = self._discrete.add_potential(self.constant, mean_field.base)
        if term is not None:
            term.destroy()
        self.constant_diagonal = self.constant.getDiagonal()
        basis = mean_field.basis
        # Whether V − V_0 is a combination of preassembled matrices.
        self.by_pieces = not problem.lumped and basis is not None and basis.shape[1] <= _MAX_PIECES
        self._pieces: list[PETSc.Mat] = []
        if self.by_pieces and basis is not None:
            self._pieces = [self._discrete.assemble_potential(None, column) for column in basis.T]
        self.matrix = self.constant.copy()
        self._diagonal = self.constant_diagonal.copy()
        self._term: PETSc.Mat | None = None
        self._state: Array | None = None  # coefficients of M and of the pieces in ``matrix``
        self._updates = 0

    def update(self, mass_factor: float, y: Array) -> None:
        """Set the matrix to c M + σ²A + ∫V(y)ψχ. Collective.

        Args:
            mass_factor: c.
            y: the mean field.
        """
        if self.by_pieces:
            self._update_by_pieces(np.concatenate(([mass_factor], self.mean_field.coefficients(y))))
            return
        varying = self.mean_field.potential(y) - self.mean_field.base
        if self.problem.lumped:
            ones = np.ones(self._discrete.num_owned)
            added = self._discrete.apply_potential(mass_factor + varying, ones)
            self._diagonal.array[:] = owned_values(self.constant_diagonal) + added
            self.matrix.setDiagonal(self._diagonal)
        else:
            self.constant.copy(self.matrix, structure=_SAME)
            self.matrix.axpy(mass_factor, self.problem.mass_matrix, structure=_SAME)
            self._term = self._discrete.add_potential(self.matrix, varying, self._term)
            self.matrix.stateIncrease()

    def _update_by_pieces(self, state: Array) -> None:
        # Updated in place by the change of each coefficient; rebuilt regularly against rounding.
        if self._state is None or self._updates >= 100:
            self.constant.copy(self.matrix, structure=_SAME)
            self._state, self._updates = np.zeros_like(state), 0
        for change, piece in zip(
            state - self._state, [self.problem.mass_matrix, *self._pieces], strict=True
        ):
            if change != 0.0:
                self.matrix.axpy(float(change), piece, structure=_SAME)
        # An axpy does not change the state of a distributed matrix, on which preconditioners rely.
        self.matrix.stateIncrease()
        self._state, self._updates = state, self._updates + 1

    def evaluate(self, density: Density) -> Array:
        """The mean field y of a density, by the cheapest method. Collective."""
        if not self._pieces:
            return self.mean_field.evaluate(density)
        psi = density.amplitude()
        loads = self.basis_loads(psi)
        return global_sum(self.problem.comm, np.array([psi @ load for load in loads]))

    def basis_loads(self, psi: Array) -> list[Array]:
        """Owned values of ∫Q_jψχ for every χ and each feature Q_j of the basis. Collective."""
        if self._pieces:
            return [self._discrete.multiply(piece, psi) for piece in self._pieces]
        assert self.mean_field.basis is not None
        return [self._discrete.apply_potential(column, psi) for column in self.mean_field.basis.T]

    def largest_ratio(self) -> float:
        """max_i σ²A_ii / M_ii, the stiffness of the problem. Collective."""
        problem = self.problem
        mass = problem.mass_matrix.getDiagonal().array
        free = mass > 0
        ratio = problem.stiffness.getDiagonal().array[free] / mass[free]
        return problem.sigma**2 * problem.discretisation.max(float(ratio.max(initial=0.0)))


class Hamiltonian:
    """The matrix σ²A + ∫Vψχ − sM for any V and s, updated in place.

    Args:
        problem: the problem.

    Attributes:
        matrix: the matrix.
        potential: the array V that was last set; None at first.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        self.matrix: PETSc.Mat = problem.stiffness.copy()
        self.potential: Array | None = None
        self._term: PETSc.Mat | None = None

    def shifted(self, other: Hamiltonian, shift: float) -> None:
        """Take V from another operator, whose shift is zero, and set s. Collective."""
        self.potential = other.potential
        if other is not self:
            other.matrix.copy(self.matrix, structure=_SAME)
        if self.problem.lumped:
            mass = self._discrete.apply_mass(np.ones(self._discrete.num_owned))
            self._discrete.add_diagonal(self.matrix, -shift * mass)
        else:
            self.matrix.axpy(-shift, self.problem.mass_matrix, structure=_SAME)
        # An axpy does not change the state of a distributed matrix, on which preconditioners rely.
        self.matrix.stateIncrease()

    def update(self, potential: Array) -> None:
        """Set V (on the potential space, owned and ghosts), and set s to zero. Collective."""
        self.potential = potential
        problem, matrix = self.problem, self.matrix
        problem.stiffness.copy(matrix, structure=_SAME)
        matrix.scale(problem.sigma**2)
        self._term = problem.discretisation.add_potential(matrix, potential, self._term)
        matrix.stateIncrease()
