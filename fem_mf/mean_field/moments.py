"""The mean field y as the unknown of a fixed-point iteration, and V as a function of it.

For a cylindrical functional y holds moments of m and V = V_0 + Σ_j w_j(y) Q_j; otherwise y holds
the nodal values of m itself.

    mean_field = mean_field_of(problem)
    y = mean_field.evaluate(density)        # moments, or the field m
    V = mean_field.potential(y)          # on the potential space, owned and ghosts
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fem_mf.density import Density, WorkDensity
from fem_mf.functionals.features import FeatureMatrix
from fem_mf.functionals.terms import Cylindrical, flatten
from fem_mf.mpi import global_sum
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = ["MeanField", "Moments", "NodalDensity", "mean_field_of"]

_ROWS = 8192  # nodes per block, so that products of features need no second copy of them

type MeanField = Moments | NodalDensity


def _cylindrical(problem: Problem) -> list[tuple[float, Cylindrical]]:
    return [(c, f) for c, f in flatten(problem.functional) if isinstance(f, Cylindrical)]


def _fixed_potential(problem: Problem) -> Array:
    """V_0, the constant potential of the linear terms, owned and ghosts. Collective."""
    base = np.zeros(problem.discretisation.potential_nodes.shape[1])
    for factor, term in _cylindrical(problem):
        if term.linear:
            base += factor * term.matrix(problem).combine(np.ones(1))
    return base


class Moments:
    """The moments y of the compressed features, equal on all ranks.

    With features Φ ≈ Q R (:class:`fem_mf.functionals.features.FeatureMatrix`), y = ∫Q dm has r
    components; the K moments are Rᵀy, and V − V_0 = Q w with w = R ∇Φ(Rᵀy) dual to y.

    Args:
        problem: the problem; non-cylindrical terms of its functional are left out.

    Attributes:
        base: V_0 on the potential space, owned and ghosts.
        basis: Q, ``(n, r)``.
    """

    def __init__(self, problem: Problem) -> None:
        self.base = _fixed_potential(problem)
        self._terms = [(c, t, t.matrix(problem)) for c, t in _cylindrical(problem) if not t.linear]
        columns = [np.empty((self.base.size, 0)), *(m.basis for _, _, m in self._terms)]
        self.basis: Array = np.ascontiguousarray(np.hstack(columns))
        self._splits = np.cumsum([m.rank for _, _, m in self._terms])[:-1]
        self._comm, self._owned = problem.comm, problem.discretisation.num_potential_owned

    def _parts(self, y: Array) -> Iterator[tuple[float, Cylindrical, FeatureMatrix, Array]]:
        parts = np.split(y, self._splits) if self._terms else []
        for (factor, term, matrix), part in zip(self._terms, parts, strict=True):
            yield factor, term, matrix, part @ matrix.coordinates

    def evaluate(self, density: Density) -> Array:
        """∫Q dm. Collective."""
        return global_sum(self._comm, density.measure() @ self.basis[: self._owned])

    def coefficients(self, y: Array) -> Array:
        """w, ``(r,)``."""
        weights = [
            factor * (matrix.coordinates @ term.gradient(moments))
            for factor, term, matrix, moments in self._parts(y)
        ]
        return np.concatenate([np.zeros(0), *weights])

    def potential(self, y: Array) -> Array:
        """V = V_0 + Q w on the potential space, owned and ghosts."""
        return self.base + self.basis @ self.coefficients(y)

    def value(self, y: Array, density: Density) -> float:
        """F(m) − ∫V_0 dm = Σ c Φ(Rᵀy) over the nonlinear terms."""
        return sum(factor * term.phi(moments) for factor, term, _, moments in self._parts(y))

    def work(self, y: Array, density: Density) -> float:
        """∫(V[m] − V_0) dm = w·y."""
        return self.gauge(y, y)

    def gauge(self, y: Array, at: Array) -> float:
        """∫(V(y) − V_0) dm = w(y)·at, where m has the moments ``at``."""
        return float(self.coefficients(y) @ at)

    def stiffness(self, y: Array) -> Array:
        """∂w/∂y, ``(r, r)``, by forward differences of the user's gradient."""
        here = self.coefficients(y)
        steps = 1e-7 * np.maximum(1.0, np.abs(y))
        columns = [
            (self.coefficients(y + h * e) - here) / h
            for h, e in zip(steps, np.eye(y.size), strict=True)
        ]
        return np.column_stack([np.empty((y.size, 0)), *columns])

    def sensitivity(self, density: Density) -> float:
        """A bound on ‖δy‖ / ‖δψ‖: 2 (Σ_j ∫Q_j² dm)^½. Collective."""
        return 2.0 * float(np.sqrt(self.second_moments(density).sum()))

    def second_moments(self, density: Density) -> Array:
        """∫Q_j² dm, ``(r,)``. Collective."""
        squares = density.measure() @ self.basis[: self._owned] ** 2
        return np.abs(global_sum(self._comm, squares))

    def covariance(self, density: Density) -> Array:
        """∫(Q − y)(Q − y)ᵀ dm, ``(r, r)``. Collective."""
        basis, measure = self.basis[: self._owned], density.measure()
        total = np.zeros((basis.shape[1] + 1, basis.shape[1]))
        for first in range(0, len(basis), _ROWS):
            rows, weights = basis[first : first + _ROWS], measure[first : first + _ROWS]
            total[:-1] += (rows * weights[:, None]).T @ rows
            total[-1] += weights @ rows
        total = global_sum(self._comm, total)
        return np.asarray(total[:-1] - np.outer(total[-1], total[-1]))

    def dot(self, a: Array, b: Array) -> float:
        """The Euclidean product, without communication since every rank holds y."""
        return float(a @ b)


class NodalDensity:
    """ψ|ψ| at the nodes of ψ's space, distributed; for contact and user-defined terms.

    It equals m, with the sign of ψ where ψ is negative on a coarse mesh. The methods are those of
    :class:`Moments`.
    """

    basis = None

    def __init__(self, problem: Problem) -> None:
        self.problem, self._discrete = problem, problem.discretisation
        self.base = _fixed_potential(problem)
        self._density = WorkDensity(problem, np.ones(self._discrete.num_owned))

    def evaluate(self, density: Density) -> Array:
        """ψ|ψ| at the owned nodes."""
        psi = density.amplitude()
        return psi * np.abs(psi)

    def gauge(self, y: Array, at: Array) -> float:
        """Zero, since the integral would need another evaluation of V."""
        return 0.0

    def potential(self, y: Array) -> Array:
        """V[m], where ψ is the normalised signed root of y. Collective."""
        psi = np.copysign(np.sqrt(np.abs(y)), y)
        self._density.set_amplitude(psi, signed=True)
        return self.problem.on_potential_space(self.problem.functional.derivative(self._density))

    def value(self, y: Array, density: Density) -> float:
        """F(m) − ∫V_0 dm. Collective."""
        linear = density.expect(self.base[: self._discrete.num_potential_owned])
        return float(self.problem.functional.value(density)) - linear

    def work(self, y: Array, density: Density) -> float:
        """∫(V[m] − V_0) dm. Collective."""
        varying = self.potential(y) - self.base
        return density.expect(varying[: self._discrete.num_potential_owned])

    def coefficients(self, y: Array) -> Array:
        """V[m] at the owned nodes of ψ's space. Collective."""
        return self._discrete.potential_at_nodes(self.potential(y))

    def sensitivity(self, density: Density) -> float:
        """2 max ψ. Collective."""
        return 2.0 * self._discrete.max(float(density.amplitude().max(initial=0.0)))

    def dot(self, a: Array, b: Array) -> float:
        """∫ab dx with equal weights. Collective."""
        return self._discrete.dot(a, b) * self._discrete.mean_mass


def mean_field_of(problem: Problem) -> MeanField:
    """Moments if every term of the functional is cylindrical, else the field m. Collective."""
    if all(isinstance(term, Cylindrical) for _, term in flatten(problem.functional)):
        return Moments(problem)
    return NodalDensity(problem)
