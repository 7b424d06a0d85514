"""A probability density, available as ψ = √m, m or u = −log m.

    start = Density.from_function(problem, lambda x: np.exp(-0.5 * (x[0]**2 + x[1]**2)))
    start.mean(), start.fisher_information(), start.sample(1000, seed=1)

Densities are immutable; a flow yields a new one at every step.

The Hamilton–Jacobi–Bellman solvers use a density represented by u = −log m:

    density = LogDensity.from_function(problem, lambda x: x[0] ** 2 + x[1] ** 2)
    density.u(), density.mean(), density.fisher_information()

m = e^{−u} is integrated by quadrature, with u in the finite-element space of the problem; a
quadratic u is exactly a Gaussian of any width. With lumped mass the quadrature is the problem's.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from fem_mf import equations
from fem_mf.mpi import all_ranks_agree, global_sum, same_on_all_ranks
from fem_mf.points import (
    evaluate,
    evaluate_at,
    interpolate_between,
    sample_exponential,
    sample_square,
)
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exponential_measure, set_owned
from fem_mf.typing import Array, SpaceFunction

__all__ = [
    "Density",
    "LogDensity",
    "WorkDensity",
    "log_density",
]

# ψ is kept above this multiple of its maximum, so that u = −log m is finite where the true ψ is
# far below what a linear solver resolves. The added mass, 1e-40, is far below rounding.
_FLOOR = 1e-20


class Density:
    """A density m = ψ² with ∫m dx = 1 exactly in the problem's quadrature.

    Args:
        problem: the problem on which the density is defined.
        psi: ``(num_owned,)`` owned values of the amplitude; its sign and norm are arbitrary.
        normalised: whether ψ already has mass one; it is then stored unchanged, including the small
            negative values that solvers leave where a mesh does not resolve ψ.

    Raises:
        ValueError: if ψ is zero or not finite.
    """

    def __init__(self, problem: Problem, psi: Array, *, normalised: bool = False) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        self.psi: fem.Function = self._discrete.new_amplitude()
        self._measure: Array | None = None
        self._mass_amplitude: Array | None = None
        if normalised:
            set_owned(self.psi, psi)
        else:
            self._normalise(psi, signed=False)

    def _normalise(self, psi: Array, *, signed: bool) -> float:
        """Store ψ, or |ψ|, scaled to mass one; return the norm before scaling. Collective."""
        problem = self.problem
        discrete = problem.discretisation
        largest = discrete.max(np.abs(psi).max(initial=0.0) if np.isfinite(psi).all() else np.nan)
        if not np.isfinite(largest):
            raise ValueError("the density is not finite")
        if largest == 0.0:
            raise ValueError(
                "the density is zero everywhere on the mesh; does its support meet it?"
            )
        values = psi.copy() if signed else np.maximum(np.abs(psi), _FLOOR * largest)
        values[discrete.constrained] = 0.0
        mass_psi = discrete.apply_mass(values)
        norm = float(np.sqrt(discrete.dot(values, mass_psi)))
        self._mass_amplitude = mass_psi / norm
        set_owned(self.psi, values / norm)
        self._measure = None
        return norm

    def __repr__(self) -> str:
        """One line with the space, without numbers of m, since those would be collective."""
        space = self.psi.function_space
        dofs, dim = space.dofmap.index_map.size_global, self.problem.dim
        return f"{type(self).__name__}(d = {dim}, degree {self.problem.degree}, {dofs} dofs)"

    @staticmethod
    def from_log(problem: Problem, u: SpaceFunction | fem.Function) -> LogDensity:
        """The density proportional to e^{−u}, represented by its logarithm. Collective.

        Args:
            problem: the problem on which the density is defined.
            u: a callable of ``x``, shape ``(3, n)``, returning ``(n,)``, or a function of the
                problem's space; the additive constant is arbitrary.

        Raises:
            ValueError: if u is not finite, or has the wrong shape or space.
        """
        if not isinstance(u, fem.Function):
            return LogDensity.from_function(problem, u)
        if u.x.array.size != problem.discretisation.nodes.shape[1]:
            raise ValueError("u must be a function of the problem's space")
        return LogDensity(problem, u.x.array[: problem.discretisation.num_owned])

    @classmethod
    def from_function(cls, problem: Problem, m: SpaceFunction) -> Density:
        """The density proportional to m, by interpolation of √m at the nodes. Collective.

        Args:
            problem: the problem on which the density is defined.
            m: callable of ``x``, shape ``(3, n)``, returning ``(n,)`` non-negative values; it need
                not be normalised.

        Raises:
            ValueError: if m is negative, zero everywhere, not finite or of the wrong shape.
        """
        values = evaluate(problem.comm, m, problem.discretisation.owned_nodes, "the density m")
        error = None
        if values.size and values.min() < 0:
            error = ValueError(f"the density m is negative: its minimum is {values.min():.3e}")
        all_ranks_agree(problem.comm, error)
        return cls(problem, np.sqrt(values))

    def on(self, problem: Problem) -> Density:
        """Interpolate ψ onto another problem and normalise it there. Collective.

        At nodes just outside this density's mesh, for example at a curved boundary, the polynomial
        of the nearest cell is used; farther outside, ψ is negligible.

        Args:
            problem: the target problem, on any mesh and of any degree.

        Returns:
            The density on that problem; ``self`` if it is already defined there.
        """
        if problem is self.problem:
            return self
        if problem.space is self.problem.space:
            return Density(problem, self.amplitude())
        target = problem.discretisation.new_amplitude()
        return Density(problem, interpolate_between(self.psi, target))

    def copy(self) -> Density:
        """An independent density with the same values."""
        return Density(self.problem, self.amplitude(), normalised=True)

    def amplitude(self) -> Array:
        """Owned values of ψ, ``(num_owned,)``."""
        return self.psi.x.array[: self._discrete.num_owned].copy()

    def mass_amplitude(self) -> Array:
        """Mψ, owned values. Collective."""
        if self._mass_amplitude is None:
            self._mass_amplitude = self._discrete.apply_mass(self.amplitude())
        return self._mass_amplitude

    def m(self) -> fem.Function:
        """m = ψ² at the nodes of ψ's space."""
        return self._new("m", self.psi.x.array**2)

    def u(self) -> fem.Function:
        """u = −log m at the nodes of ψ's space (finite also where ψ = 0 is imposed)."""
        psi = np.maximum(np.abs(self.psi.x.array), np.finfo(float).tiny)
        return self._new("u", -2.0 * np.log(psi))

    def _new(self, name: str, values: Array) -> fem.Function:
        function = self._discrete.new_amplitude()
        function.name = name
        function.x.array[:] = values
        return function

    def measure(self) -> Array:
        """Nodal measure b on the potential space: ∫f dm = Σ_i b_i f(x_i). Collective once.

        Returns:
            ``(num_potential_owned,)`` owned values.
        """
        if self._measure is None:
            self._measure = self._discrete.measure(self.amplitude())
        return self._measure

    # A user-defined functional is written with the points x_i, weights b_i and values m(x_i).

    def points(self) -> Array:
        """The points x_i of the nodal measure owned by this rank, ``(3, n)``."""
        return self._discrete.potential_nodes[:, : self._discrete.num_potential_owned]

    def weights(self) -> Array:
        """Weights b_i of the nodal measure, ``(n,)``: ∫f dm = Σ_i b_i f(x_i). Collective once."""
        return self.measure()

    def values(self) -> Array:
        """m(x_i), ``(n,)``. Collective."""
        squares = self._discrete.square_on_potential_space(self.psi)
        return squares[: self._discrete.num_potential_owned]

    def expect(self, values: npt.ArrayLike) -> float:
        """∫f dm = Σ_i b_i f(x_i) over all ranks, from the values f(x_i), ``(n,)``. Collective."""
        return self._discrete.dot(self.measure(), np.asarray(values, dtype=np.float64))

    def potential(self, values: npt.ArrayLike) -> fem.Function:
        """The function V with values V(x_i), ``(n,)``, for a derivative to return. Collective."""
        function = self.problem.new_potential()
        set_owned(function, np.asarray(values, dtype=np.float64))
        return function

    def integrate(self, f: SpaceFunction) -> float:
        """∫f dm, with f interpolated on the potential space. Collective.

        Args:
            f: callable of ``x``, shape ``(3, n)``, returning ``(n,)``.
        """
        return self.expect(evaluate(self.problem.comm, f, self.points(), "the integrand"))

    def mass(self) -> float:
        """∫m dx, 1 up to rounding. Collective."""
        psi = self.amplitude()
        return self._discrete.dot(psi, self._discrete.apply_mass(psi))

    def mean(self) -> Array:
        """∫x dm, ``(d,)``. Collective."""
        return global_sum(self.problem.comm, self.points()[: self.problem.dim] @ self.measure())

    def covariance(self) -> Array:
        """∫(x − mean)(x − mean)ᵀ dm, ``(d, d)``. Collective."""
        centred = self.points()[: self.problem.dim] - self.mean()[:, None]
        return global_sum(self.problem.comm, (centred * self.measure()) @ centred.T)

    def moment(self, p: float) -> float:
        """∫|x|^p dm, p ≥ 0. Collective."""
        if not p >= 0:
            raise ValueError(f"the order of a moment must be non-negative, not {p}")
        return self.expect(np.linalg.norm(self.points(), axis=0) ** p)

    def fisher_information(self) -> float:
        """I(m) = ∫|∇log m|² dm = 4∫|∇ψ|² dx. Collective."""
        psi = self.amplitude()
        return 4.0 * self._discrete.dot(psi, self._discrete.multiply(self.problem.stiffness, psi))

    def entropy(self) -> float:
        """∫m log m dx, minus the differential entropy (H in theory §6). Collective."""
        return self._discrete.entropy(self.psi)

    def relative_entropy(self, other: Density) -> float:
        """H(m|m') = ∫m log(m/m') dx ≥ 0, where m' is the other density. Collective.

        Raises:
            ValueError: if the other density is defined on another space.
        """
        if other.psi.function_space is not self.psi.function_space:
            raise ValueError("relative_entropy needs two densities of the same problem")
        return self._relative_entropy(other)

    def _relative_entropy(self, other: Density) -> float:
        return self._discrete.entropy(self.psi, other.psi)

    def evaluate(self, points: npt.ArrayLike, fill: float = float("nan")) -> Array:
        """Evaluate m at points; the result is the same on every rank. Collective.

        Args:
            points: ``(n, d)``, the same on every rank.
            fill: the value outside the mesh; use 0 if the mesh represents all of R^d.

        Returns:
            ``(n,)`` values.
        """
        array = np.asarray(points, dtype=np.float64)
        same_on_all_ranks(self.problem.comm, points=array)
        values = self._values_at(array)
        return np.where(np.isnan(values), fill, values)

    def _values_at(self, points: Array) -> Array:
        """m at points, NaN outside the mesh. Collective."""
        return evaluate_at(self.psi, points) ** 2

    def sample(self, n: int, seed: int) -> Array:
        """n independent samples of m, ``(n, d)``, the same on every rank. Collective.

        The points depend on the seed, not on the number of ranks.

        Args:
            n: number of samples, at least 1.
            seed: seed of NumPy's default generator.
        """
        return sample_square(self.psi, n, seed)


class WorkDensity(Density):
    """A density that a solver overwrites, which avoids a new one in every iteration."""

    def set_amplitude(self, psi: Array, *, signed: bool = False) -> float:
        """Replace ψ by |ψ|, normalised, and return the norm before scaling. Collective.

        Args:
            psi: owned values.
            signed: whether to keep the signs of ψ.
        """
        return self._normalise(psi, signed=signed)


# A density floors ψ near e^{−U/2} of its maximum, so ψ does not determine u above U.
_LARGEST_U = 90.0


class _Forms:
    """Integrals with weight e^{−u}, compiled once per problem."""

    def __init__(self, problem: Problem) -> None:
        discrete = problem.discretisation
        self.u: fem.Function = discrete.new_amplitude()
        self.other: fem.Function = discrete.new_amplitude()
        self._load: fem.Function = problem.new_potential()
        if problem.lumped:
            dx = discrete.dx_mass
        else:
            dx = exponential_measure(problem.mesh, problem.degree, discrete.potential_degree)
        theta = ufl.TestFunction(problem.potential_space)
        self.measure = fem.form(equations.mass(1.0, theta, dx, self.u))
        self.mass = fem.form(equations.mass(1.0, 1.0, dx, self.u))
        self.fisher = fem.form(equations.log_energy(self.u, 2.0, dx))  # σ²/4 = 1
        self.mean = fem.form(equations.mass(self.other, 1.0, dx, self.u))
        self.square = fem.form(equations.mass(self.other, self.other, dx, self.u))
        self._comm = problem.comm

    def integral(self, form: fem.Form) -> float:
        """The value of a scalar form over all ranks. Collective."""
        return float(global_sum(self._comm, fem.assemble_scalar(form)))

    def nodal_measure(self) -> Array:
        """∫e^{−u}θ_i for every θ_i of the potential space, owned. Collective."""
        return assemble_owned(self.measure, self._load).copy()


_FORMS: WeakKeyDictionary[Problem, _Forms] = WeakKeyDictionary()


def _forms(problem: Problem) -> _Forms:
    if problem not in _FORMS:
        _FORMS[problem] = _Forms(problem)
    return _FORMS[problem]


class LogDensity(Density):
    """m = e^{−u} with ∫m dx = 1 by quadrature; ``psi`` is e^{−u/2} at the nodes. Collective.

    Args:
        problem: the problem; except with lumped mass, its degree should be at least 2.
        u: ``(num_owned,)`` owned values of u, up to an additive constant fixed by normalisation.

    Raises:
        ValueError: if u is not finite, or e^{−u} has no mass.
    """

    def __init__(self, problem: Problem, u: Array) -> None:
        discrete = problem.discretisation
        lowest = discrete.min(u if np.isfinite(u).all() else np.array([np.nan]))
        if not np.isfinite(lowest):
            raise ValueError("u = −log m is not finite")
        self._log: fem.Function = discrete.new_amplitude()
        self._log.name = "u"
        set_owned(self._log, u - lowest)
        mass = self._bind(problem).integral(_forms(problem).mass)
        if not mass > 0.0:
            raise ValueError("e^{−u} has no mass on this mesh")
        self._log.x.array[:] += np.log(mass)
        psi = np.exp(-0.5 * self._log.x.array[: discrete.num_owned])
        super().__init__(problem, psi, normalised=True)

    def _bind(self, problem: Problem) -> _Forms:
        forms = _forms(problem)
        forms.u.x.array[:] = self._log.x.array
        return forms

    @classmethod
    def from_function(cls, problem: Problem, u: SpaceFunction) -> LogDensity:
        """The density proportional to e^{−u}. Collective.

        Args:
            problem: the problem on which the density is defined.
            u: callable of ``x``, shape ``(3, n)``, returning ``(n,)``, up to an additive constant.

        Raises:
            ValueError: if u is not finite or of the wrong shape.
        """
        return cls(
            problem, evaluate(problem.comm, u, problem.discretisation.owned_nodes, "u = −log m")
        )

    def copy(self) -> LogDensity:
        """An independent density with the same values."""
        return LogDensity(self.problem, self.log_values())

    def log_values(self) -> Array:
        """Owned values of u, ``(num_owned,)``."""
        return self._log.x.array[: self.problem.discretisation.num_owned].copy()

    def u(self) -> fem.Function:
        """u = −log m, normalised."""
        return self._new("u", self._log.x.array)

    def m(self) -> fem.Function:
        """m = e^{−u} at the nodes."""
        return self._new("m", np.exp(-self._log.x.array))

    def measure(self) -> Array:
        """Nodal measure b of m, with total mass one. Collective once."""
        if self._measure is None:
            self._measure = self._bind(self.problem).nodal_measure()
        return self._measure

    def mass(self) -> float:
        """∫m dx, 1 up to rounding. Collective."""
        return self._bind(self.problem).integral(_forms(self.problem).mass)

    def fisher_information(self) -> float:
        """I(m) = ∫|∇u|² e^{−u} dx. Collective."""
        return self._bind(self.problem).integral(_forms(self.problem).fisher)

    def entropy(self) -> float:
        """∫m log m dx = −∫u dm. Collective."""
        return -self.expectation(self.log_values())

    def _relative_entropy(self, other: Density) -> float:
        return self.expectation(log_density(other).log_values() - self.log_values())

    def expectation(self, values: Array) -> float:
        """∫f dm for a function of the space, given by its owned values. Collective."""
        return self._integrate(values, _forms(self.problem).mean)

    def variance(self, values: Array) -> float:
        """∫(f − ∫f dm)² dm for a function of the space, given by owned values. Collective."""
        mean = self.expectation(values)
        return self._integrate(values - mean, _forms(self.problem).square)

    def _integrate(self, values: Array, form: Any) -> float:
        forms = self._bind(self.problem)
        set_owned(forms.other, values)
        return forms.integral(form)

    def sample(self, n: int, seed: int) -> Array:
        """n independent samples of e^{−u}, ``(n, d)``, the same on every rank. Collective.

        Args:
            n: number of samples, at least 1.
            seed: seed of NumPy's default generator.
        """
        return sample_exponential(self._log, n, seed)

    def _values_at(self, points: Array) -> Array:
        return np.exp(-evaluate_at(self._log, points))


def log_density(density: Density) -> LogDensity:
    """Convert a density to one represented by its logarithm. Collective.

    Raises:
        ValueError: if ψ is too small somewhere for its logarithm to be meaningful.
    """
    discrete = density.problem.discretisation
    if isinstance(density, LogDensity):
        return density
    u = density.u().x.array[: discrete.num_owned]
    spread = discrete.max(float(u.max(initial=-np.inf))) - discrete.min(u)
    if spread > _LARGEST_U:
        raise ValueError(
            f"the density falls by e^{{−{spread:.0f}}} on this mesh, too far for ψ to determine u: "
            "give u itself, LogDensity.from_function(problem, u), or take a smaller mesh"
        )
    return LogDensity(density.problem, u.copy())
