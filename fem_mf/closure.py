"""The mean field as an unknown: what the fixed point iterates on, and V as a function of it.

For a cylindrical functional y holds the K moments ∫φ_j dm and V = V_0 + Σ_j ∂_jΦ(y) φ_j; for any
other y holds the nodal values of m itself.

    closure = make_closure(problem)
    y = closure.order(density)        # moments, or the field m
    V = closure.potential(y)          # on the potential space, owned and ghosts
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fem_mf.density import Density
from fem_mf.features import Array
from fem_mf.functionals import Cylindrical, flatten
from fem_mf.problem import Problem

__all__ = ["Closure", "FieldClosure", "MomentClosure", "make_closure"]


class Closure(Protocol):
    """The unknown of the fixed point and the potential it gives."""

    base: Array  # V_0, the part of V that never changes, owned and ghosts
    basis: Array | None  # (n, r): V − V_0 = basis @ weights(y), None when V is a general field

    def order(self, density: Density) -> Array:
        """y of a density."""

    def weights(self, y: Array) -> Array:
        """Coefficients of the basis, ``(r,)`` (moments only)."""

    def potential(self, y: Array) -> Array:
        """V on the potential space, owned and ghosts."""

    def order_of_basis(self, moments: Array) -> Array:
        """y from the moments of the basis (moments only)."""

    def value(self, y: Array, density: Density) -> float:
        """F(m) − ∫V_0 dm."""

    def work(self, y: Array, density: Density) -> float:
        """∫(V[m] − V_0) dm."""

    def dot(self, a: Array, b: Array) -> float:
        """Inner product of two y."""

    def coefficients(self, y: Array) -> Array:
        """δF/δy, dual to y under ``dot``."""


class MomentClosure:
    """K moments, the same numbers on every rank; updates of V are matrix-vector products."""

    def __init__(self, problem: Problem, terms: list[tuple[float, Cylindrical]]) -> None:
        self.base = np.zeros(problem.potential_nodes.shape[1])
        for factor, term in terms:
            if term.linear:
                self.base += factor * term.matrix(problem).combine(np.ones(1))
        self._terms = [(c, t, t.matrix(problem)) for c, t in terms if not t.linear]
        columns = [matrix.basis for _, _, matrix in self._terms]
        self.basis: Array | None = (
            np.ascontiguousarray(np.hstack(columns)) if columns else np.empty((self.base.size, 0))
        )
        shapes = np.array([m.coordinates.shape for _, _, m in self._terms], dtype=int)
        self._rank_splits, self._splits = np.cumsum(shapes.reshape(-1, 2), axis=0)[:-1].T

    def order(self, density: Density) -> Array:
        """The moments of every nonlinear term, one after the other. Collective."""
        measure = density.measure()
        if not self._terms:
            return np.zeros(0)
        return np.concatenate([matrix.moments(measure) for _, _, matrix in self._terms])

    def order_of_basis(self, moments: Array) -> Array:
        """y from the moments of the compressed basis."""
        if not self._terms:
            return np.zeros(0)
        parts = np.split(moments, self._rank_splits)
        return np.concatenate(
            [part @ m.coordinates for (_, _, m), part in zip(self._terms, parts, strict=True)]
        )

    def value(self, y: Array, density: Density) -> float:
        """Σ c Φ(y) over the nonlinear terms."""
        if not self._terms:
            return 0.0
        parts = np.split(y, self._splits)
        return sum(c * t.phi(part) for (c, t, _), part in zip(self._terms, parts, strict=True))

    def work(self, y: Array, density: Density) -> float:
        """Σ_j ∂_jΦ(y) y_j."""
        return float(self.coefficients(y) @ y)

    def coefficients(self, y: Array) -> Array:
        """∂_jΦ(y)."""
        if not self._terms:
            return np.zeros(0)
        parts = np.split(y, self._splits)
        return np.concatenate(
            [c * t.gradient(part) for (c, t, _), part in zip(self._terms, parts, strict=True)]
        )

    def weights(self, y: Array) -> Array:
        """Coefficients of the compressed basis."""
        if not self._terms:
            return np.zeros(0)
        parts = np.split(self.coefficients(y), self._splits)
        return np.concatenate(
            [
                matrix.coordinates @ part
                for (_, _, matrix), part in zip(self._terms, parts, strict=True)
            ]
        )

    def potential(self, y: Array) -> Array:
        """V_0 + Σ_j ∂_jΦ(y) φ_j."""
        assert self.basis is not None
        return self.base + self.basis @ self.weights(y)

    def dot(self, a: Array, b: Array) -> float:
        """The Euclidean product; no communication, every rank holds y."""
        return float(a @ b)


class FieldClosure:
    """Nodal values of m on ψ's space, distributed; for contact terms and users' functionals."""

    basis: Array | None = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.base = np.zeros(problem.potential_nodes.shape[1])
        self._density = Density(problem, np.ones(problem.num_owned))
        self._volume = problem.dot(
            np.ones(problem.num_owned), problem.apply_mass(np.ones(problem.num_owned))
        )
        self._dofs: int = problem.space.dofmap.index_map.size_global

    def order(self, density: Density) -> Array:
        """m at the owned nodes."""
        return density.amplitude() ** 2

    def potential(self, y: Array) -> Array:
        """V[m], m the positive part of y, normalised. Collective."""
        self._density.set_amplitude(np.sqrt(np.maximum(y, 0.0)))
        return self.problem.on_potential_space(self.problem.functional.derivative(self._density))

    def weights(self, y: Array) -> Array:
        """A field has no basis."""
        raise NotImplementedError

    order_of_basis = weights

    def value(self, y: Array, density: Density) -> float:
        """F(m). Collective."""
        return float(self.problem.functional.value(density))

    def work(self, y: Array, density: Density) -> float:
        """∫V[m] dm. Collective."""
        own = self.problem.num_potential_owned
        return self.problem.dot(self.potential(y)[:own], density.measure())

    def coefficients(self, y: Array) -> Array:
        """V[m] at the owned nodes of ψ's space. Collective."""
        return self.problem.potential_at_nodes(self.potential(y))

    def dot(self, a: Array, b: Array) -> float:
        """∫ab dx with equal weights. Collective."""
        return self.problem.dot(a, b) * self._volume / self._dofs


def make_closure(problem: Problem) -> Closure:
    """Moments when every term of the functional is cylindrical, else the field m. Collective."""
    terms = flatten(problem.functional)
    cylindrical = [(c, term) for c, term in terms if isinstance(term, Cylindrical)]
    if len(cylindrical) == len(terms):
        return MomentClosure(problem, cylindrical)
    return FieldClosure(problem)
