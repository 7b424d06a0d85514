"""The second derivative of F^σ on the sphere ‖ψ‖ = 1, for Newton's method and decay rates.

With g(ψ) = H[ψ²]ψ, half the gradient of F^σ(ψ²), and λ = ⟨ψ, g⟩,

    J v = H[m]v + (∂V[m]·2ψv)ψ − λv,    restricted to v ⊥ ψ.

The mean-field part has low rank for cylindrical terms, 2 Σ_j s_j ⟨b_j, v⟩ b_j with b_j = φ_jψ; for
contact terms it is a multiplication by 2βm, and for user-defined functionals a difference quotient
of V. A dense matrix is never formed.

    from fem_mf.observables import first_order
    hessian = Hessian(problem)
    hessian.update(density, first_order(problem, density))
    hessian.apply(v)
"""

from __future__ import annotations

import numpy as np

from fem_mf.density import Density
from fem_mf.functionals.terms import Contact, Cylindrical, flatten
from fem_mf.hamiltonian import Hamiltonian
from fem_mf.mean_field.moments import Moments
from fem_mf.mpi import global_sum
from fem_mf.observables import FirstOrder, energy_scale
from fem_mf.problem import FunctionalLike, Problem
from fem_mf.typing import Array

__all__ = ["Hessian"]

_REDUNDANT = 1e-13  # relative variance of a combination of features at rounding level
_DIFFERENCE = 1e-4  # ‖δψ‖ in the central difference of a user's V; the error is its square


class Hessian:
    """The operator J, linearised at a density by ``update``.

    Args:
        problem: the problem.
        negligible: directions of the mean field whose curvature is below this multiple of the
            scale λ − min V of H[m] (plus ``shift``) are left out.
        moments: the moments of the functional's cylindrical terms, if the caller has them already.

    Attributes:
        sparse: the operator of H[m] + 2βm, the part of J that is a sparse matrix.
        potential: V[m] + 2βm, the potential of that part.
    """

    def __init__(
        self,
        problem: Problem,
        negligible: float = 1e-10,
        moments: Moments | None = None,
    ) -> None:
        self.problem, self._negligible = problem, negligible
        self._discrete = problem.discretisation
        terms = flatten(problem.functional)
        self._moments = Moments(problem) if moments is None else moments
        self._beta = sum(c * f.beta for c, f in terms if isinstance(f, Contact))
        self._others: list[tuple[float, FunctionalLike]] = [
            (c, f) for c, f in terms if not isinstance(f, (Cylindrical, Contact))
        ]
        self.sparse = Hamiltonian(problem)
        self.potential = np.zeros(self._discrete.potential_nodes.shape[1])
        self._curvatures = np.zeros(0)
        self._loads = np.empty((self._discrete.num_owned, 0))  # b_j
        self._eigenvalue, self._psi = 0.0, np.zeros(self._discrete.num_owned)

    def update(self, density: Density, condition: FirstOrder, shift: float = 0.0) -> None:
        """Linearise at a density. Collective.

        Args:
            density: ψ.
            condition: its first-order data.
            shift: number added to J, (2/τ)⟨ψ, r⟩ for a minimising movement (D7).
        """
        problem = self.problem
        self._psi, self._eigenvalue = density.amplitude(), condition.eigenvalue - shift
        self.potential = condition.potential
        if self._beta:
            m = self._discrete.square_on_potential_space(density.psi)
            self.potential = condition.potential + 2.0 * self._beta * m
        self.sparse.update(self.potential)
        negligible = self._negligible * (energy_scale(problem, condition) + shift)
        self._curvatures, combinations = self._diagonalise(density, negligible)
        features = np.ascontiguousarray((self._moments.basis @ combinations).T)
        loads = [self._discrete.apply_potential(feature, self._psi) for feature in features]
        self._loads = np.column_stack([np.empty((self._psi.size, 0)), *loads])

    @property
    def directions(self) -> int:
        """Number of directions of the mean field that are kept."""
        return self._curvatures.size

    def curvatures_at(self, density: Density) -> Array:
        """The s_j at a density; they are negative only if F is not convex. Collective."""
        return self._diagonalise(density, 0.0)[0]

    def _diagonalise(self, density: Density, smallest: float) -> tuple[Array, Array]:
        """The relevant s_j, and the φ_j as feature combinations, orthogonal in L²(m)."""
        variances, frame = np.linalg.eigh(self._moments.covariance(density))
        seen = variances > _REDUNDANT * variances.max(initial=0.0)
        frame = frame[:, seen] * np.sqrt(variances[seen])
        stiffness = self._moments.stiffness(self._moments.evaluate(density))
        values, directions = np.linalg.eigh(frame.T @ (0.5 * (stiffness + stiffness.T)) @ frame)
        keep = np.abs(values) > max(smallest, _REDUNDANT * np.abs(values).max(initial=0.0))
        return values[keep], (frame / variances[seen]) @ directions[:, keep]

    def apply(self, v: Array) -> Array:
        """J v as an owned load vector, for owned values of v ⊥ ψ. Collective."""
        discrete = self._discrete
        result = discrete.multiply(self.sparse.matrix, v)
        result -= self._eigenvalue * discrete.apply_mass(v)
        if self._curvatures.size:
            along = global_sum(self.problem.comm, v @ self._loads)
            result += self._loads @ (2.0 * self._curvatures * along)
        if self._others:
            result += self._difference_quotient(v)
        result[discrete.constrained] = 0.0
        return result

    def _difference_quotient(self, v: Array) -> Array:
        """(∂V[m]·2ψv)ψ for the functionals for which only V is known. Collective."""
        size = self._discrete.norm(v)
        if size == 0.0:
            return np.zeros_like(v)
        step = _DIFFERENCE / size
        change = np.zeros_like(self.potential)
        for sign in (1.0, -1.0):
            moved = Density(self.problem, self._psi + sign * step * v)
            for factor, functional in self._others:
                value = self.problem.on_potential_space(functional.derivative(moved))
                change += (sign * factor / (2.0 * step)) * value
        return self._discrete.apply_potential(change, self._psi)
