"""One probability density seen as ψ = √m, m or u = −log m.

    start = Density.from_function(problem, lambda x: np.exp(-0.5 * (x[0]**2 + x[1]**2)))
    start.mean(), start.fisher_information(), start.sample(1000, seed=1)

A density does not change once made; a flow yields a new one at every step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from dolfinx import fem

from fem_mf.features import Array, SpaceFunction, evaluate
from fem_mf.parallel import all_ranks_agree, global_sum, same_on_all_ranks
from fem_mf.points import evaluate_at, interpolate_between, sample_square
from fem_mf.problem import Problem
from fem_mf.spaces import set_owned

__all__ = ["Density", "WorkDensity"]

# ψ is kept above this multiple of its maximum, so that u = −log m is finite where the true ψ is
# far below what a linear solver resolves. The mass it adds, 1e-40, is far below rounding.
_FLOOR = 1e-20


class Density:
    """A density m = ψ² with ∫m dx = 1 exactly in the problem's quadrature.

    Args:
        problem: the problem it lives on.
        psi: ``(num_owned,)`` owned values of the amplitude, of any norm; |ψ| is taken.
        normalised: promise that ψ is of mass one already; it is then kept as it is, with the small
            negative values that solvers leave where a mesh does not resolve ψ.

    Raises:
        ValueError: ψ is zero, or not finite.
    """

    def __init__(self, problem: Problem, psi: Array, *, normalised: bool = False) -> None:
        self.problem = problem
        self.psi: fem.Function = problem.new_amplitude()
        self._measure: Array | None = None
        self._mass_amplitude: Array | None = None
        if normalised:
            set_owned(self.psi, psi)
        else:
            self._normalise(psi, signed=False)

    def _normalise(self, psi: Array, *, signed: bool) -> float:
        """Take ψ, or |ψ|, scaled to mass one; its norm before that. Collective."""
        problem = self.problem
        largest = problem.max(np.abs(psi).max(initial=0.0) if np.isfinite(psi).all() else np.nan)
        if not np.isfinite(largest):
            raise ValueError("the density is not finite")
        if largest == 0.0:
            raise ValueError(
                "the density is zero everywhere on the mesh; does its support meet it?"
            )
        values = psi.copy() if signed else np.maximum(np.abs(psi), _FLOOR * largest)
        values[problem.constrained] = 0.0
        mass_psi = problem.apply_mass(values)
        norm = float(np.sqrt(problem.dot(values, mass_psi)))
        self._mass_amplitude = mass_psi / norm
        set_owned(self.psi, values / norm)
        self._measure = None
        return norm

    @classmethod
    def from_function(cls, problem: Problem, m: SpaceFunction) -> Density:
        """The density proportional to m, by interpolation of √m at the nodes. Collective.

        Args:
            problem: the problem it lives on.
            m: callable of ``x``, shape ``(3, n)``, returning ``(n,)`` non-negative values; it is
                normalised here.

        Raises:
            ValueError: m is negative, zero everywhere, not finite or of the wrong shape.
        """
        values = evaluate(problem.comm, m, problem.nodes, "the density m")[: problem.num_owned]
        error = None
        if values.size and values.min() < 0:
            error = ValueError(f"the density m is negative: its minimum is {values.min():.3e}")
        all_ranks_agree(problem.comm, error)
        return cls(problem, np.sqrt(values))

    def on(self, problem: Problem) -> Density:
        """This density on another problem: ψ interpolated there, normalised anew. Collective.

        Nodes just outside this density's mesh, as at a curved boundary, get the nearest cell's
        polynomial; where the mesh does not reach, ψ is next to nothing.

        Args:
            problem: on any mesh, of any degree.

        Returns:
            The density there; this one itself when it lives on that problem already.
        """
        if problem is self.problem:
            return self
        if problem.space is self.problem.space:
            return Density(problem, self.amplitude())
        return Density(problem, interpolate_between(self.psi, problem.new_amplitude()))

    def copy(self) -> Density:
        """An independent density with the same values."""
        return Density(self.problem, self.amplitude(), normalised=True)

    def amplitude(self) -> Array:
        """Owned values of ψ, ``(num_owned,)``."""
        return self.psi.x.array[: self.problem.num_owned].copy()

    def mass_amplitude(self) -> Array:
        """Mψ, owned values. Collective."""
        if self._mass_amplitude is None:
            self._mass_amplitude = self.problem.apply_mass(self.amplitude())
        return self._mass_amplitude

    def m(self) -> fem.Function:
        """m = ψ² at the nodes of ψ's space."""
        return self._new("m", self.psi.x.array**2)

    def u(self) -> fem.Function:
        """u = −log m at the nodes of ψ's space (finite also where ψ = 0 is imposed)."""
        psi = np.maximum(np.abs(self.psi.x.array), np.finfo(float).tiny)
        return self._new("u", -2.0 * np.log(psi))

    def _new(self, name: str, values: Array) -> fem.Function:
        function = self.problem.new_amplitude()
        function.name = name
        function.x.array[:] = values
        return function

    def measure(self) -> Array:
        """Nodal measure b on the potential space: ∫f dm = Σ_i b_i f(x_i). Collective once.

        Returns:
            ``(num_potential_owned,)`` owned values.
        """
        if self._measure is None:
            self._measure = self.problem.measure(self.amplitude())
        return self._measure

    # What a functional of your own is written on: points x_i, weights b_i and values m(x_i).

    def points(self) -> Array:
        """The points x_i of the nodal measure, ``(3, n)``, this rank's own."""
        problem = self.problem
        return problem.potential_nodes[:, : problem.num_potential_owned]

    def weights(self) -> Array:
        """Its weights b_i, ``(n,)``: ∫f dm = Σ_i b_i f(x_i) over all ranks. Collective once."""
        return self.measure()

    def values(self) -> Array:
        """m(x_i), ``(n,)``. Collective."""
        problem = self.problem
        return problem.square_on_potential_space(self.psi)[: problem.num_potential_owned]

    def expect(self, values: npt.ArrayLike) -> float:
        """∫f dm = Σ_i b_i f(x_i) over all ranks, of the values f(x_i), ``(n,)``. Collective."""
        return self.problem.dot(self.measure(), np.asarray(values, dtype=np.float64))

    def potential(self, values: npt.ArrayLike) -> fem.Function:
        """The function V of values V(x_i), ``(n,)``: what a derivative returns. Collective."""
        function = self.problem.new_potential()
        set_owned(function, np.asarray(values, dtype=np.float64))
        return function

    def integrate(self, f: SpaceFunction) -> float:
        """∫f dm, f interpolated on the potential space. Collective.

        Args:
            f: callable of ``x``, shape ``(3, n)``, returning ``(n,)``.
        """
        return self.expect(evaluate(self.problem.comm, f, self.points(), "the integrand"))

    def mass(self) -> float:
        """∫m dx, 1 up to rounding. Collective."""
        psi = self.amplitude()
        return self.problem.dot(psi, self.problem.apply_mass(psi))

    def mean(self) -> Array:
        """∫x dm, ``(d,)``. Collective."""
        local = self._points() @ self.measure()
        return global_sum(self.problem.comm, local)

    def covariance(self) -> Array:
        """∫(x − mean)(x − mean)ᵀ dm, ``(d, d)``. Collective."""
        centred = self._points() - self.mean()[:, None]
        return global_sum(self.problem.comm, (centred * self.measure()) @ centred.T)

    def moment(self, p: float) -> float:
        """∫|x|^p dm, p ≥ 0. Collective."""
        if not p >= 0:
            raise ValueError(f"the order of a moment is not negative: {p}")
        radius = np.linalg.norm(self._points(), axis=0)
        return self.problem.dot(self.measure(), radius**p)

    def _points(self) -> Array:
        problem = self.problem
        return problem.potential_nodes[: problem.dim, : problem.num_potential_owned]

    def fisher_information(self) -> float:
        """I(m) = ∫|∇log m|² dm = 4∫|∇ψ|² dx. Collective."""
        psi = self.amplitude()
        return 4.0 * self.problem.dot(psi, self.problem.multiply(self.problem.stiffness, psi))

    def entropy(self) -> float:
        """∫m log m dx: minus the differential entropy, the H of theory §6. Collective."""
        return self.problem.entropy(self.psi)

    def relative_entropy(self, other: Density) -> float:
        """H(m|m') = ∫m log(m/m') dx ≥ 0, m' the other density. Collective.

        Raises:
            ValueError: the other density lives on another space.
        """
        if other.psi.function_space is not self.psi.function_space:
            raise ValueError("relative_entropy needs two densities of the same problem")
        return self.problem.entropy(self.psi, other.psi)

    def evaluate(self, points: npt.ArrayLike, fill: float = float("nan")) -> Array:
        """m at points, the same on every rank. Collective.

        Args:
            points: ``(n, d)``, the same on every rank.
            fill: the value outside the mesh; 0 where the mesh stands for all of R^d.

        Returns:
            ``(n,)`` values.
        """
        return self._filled(evaluate_at(self.psi, self._on_all_ranks(points)) ** 2, fill)

    def _on_all_ranks(self, points: npt.ArrayLike) -> Array:
        array = np.asarray(points, dtype=np.float64)
        same_on_all_ranks(self.problem.comm, points=array)
        return array

    @staticmethod
    def _filled(values: Array, fill: float) -> Array:
        return np.where(np.isnan(values), fill, values)

    def sample(self, n: int, seed: int) -> Array:
        """n independent points of law m, ``(n, d)``, the same on every rank. Collective.

        The points depend on the seed, not on the number of ranks.

        Args:
            n: how many, at least 1.
            seed: of NumPy's default generator.
        """
        return sample_square(self.psi, n, seed)


class WorkDensity(Density):
    """A density that a solver overwrites, where a new one would be made in every iteration."""

    def set_amplitude(self, psi: Array, *, signed: bool = False) -> float:
        """Replace ψ by |ψ| normalised, and return its former norm. Collective.

        Args:
            psi: owned values.
            signed: keep the signs of ψ.
        """
        return self._normalise(psi, signed=signed)
