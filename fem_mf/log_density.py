"""A density known by u = −log m: what the Hamilton–Jacobi–Bellman side computes with.

    density = LogDensity.from_function(problem, lambda x: x[0] ** 2 + x[1] ** 2)
    density.u(), density.mean(), density.fisher_information()

m = e^{−u} is integrated by quadrature, with u in the finite-element space of the problem: a
quadratic u is a Gaussian exactly, of any width. With lumped mass the quadrature is the problem's.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem

from fem_mf import equations
from fem_mf.density import Density
from fem_mf.features import Array, SpaceFunction, evaluate
from fem_mf.parallel import global_sum
from fem_mf.points import evaluate_at, sample_exponential
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exponential_measure, set_owned

__all__ = ["LogDensity", "log_density"]

# ψ below e^{−U/2} of its maximum is where a density floors it: u beyond U is not known from ψ.
_LARGEST_U = 90.0


class _Forms:
    """Integrals against e^{−u}, compiled once per problem."""

    def __init__(self, problem: Problem) -> None:
        self.u: fem.Function = problem.new_amplitude()
        self.other: fem.Function = problem.new_amplitude()
        self._load: fem.Function = problem.new_potential()
        if problem.lumped:
            dx = problem.dx_mass
        else:
            dx = exponential_measure(problem.mesh, problem.degree, problem.potential_degree)
        theta = ufl.TestFunction(problem.potential_space)
        self.measure = fem.form(equations.mass(1.0, theta, dx, self.u))
        self.mass = fem.form(equations.mass(1.0, 1.0, dx, self.u))
        self.fisher = fem.form(equations.log_energy(self.u, 2.0, dx))  # σ²/4 = 1
        self.mean = fem.form(equations.mass(self.other, 1.0, dx, self.u))
        self.square = fem.form(equations.mass(self.other, self.other, dx, self.u))
        self._comm = problem.comm

    def integral(self, form: fem.Form) -> float:
        """A scalar form over all ranks. Collective."""
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
        problem: the problem, of degree 2 at least for anything but lumped linears to make sense.
        u: ``(num_owned,)`` owned values of u, up to a constant, which is chosen here.

    Raises:
        ValueError: u is not finite, or e^{−u} has no mass.
    """

    def __init__(self, problem: Problem, u: Array) -> None:
        lowest = problem.min(u)
        finite = problem.max(0.0 if np.isfinite(u).all() else 1.0) == 0.0
        if not finite:
            raise ValueError("u = −log m is not finite")
        self._log: fem.Function = problem.new_amplitude()
        self._log.name = "u"
        set_owned(self._log, u - lowest)
        mass = self._bind(problem).integral(_forms(problem).mass)
        if not mass > 0.0:
            raise ValueError("e^{−u} has no mass on this mesh")
        self._log.x.array[:] += np.log(mass)
        psi = np.exp(-0.5 * self._log.x.array[: problem.num_owned])
        super().__init__(problem, psi, normalised=True)

    def _bind(self, problem: Problem) -> _Forms:
        forms = _forms(problem)
        forms.u.x.array[:] = self._log.x.array
        return forms

    @classmethod
    def from_function(cls, problem: Problem, u: SpaceFunction) -> LogDensity:
        """The density proportional to e^{−u}. Collective.

        Args:
            problem: the problem it lives on.
            u: callable of ``x``, shape ``(3, n)``, returning ``(n,)``; any additive constant.

        Raises:
            ValueError: u is not finite or of the wrong shape.
        """
        values = evaluate(problem.comm, u, problem.nodes, "u = −log m")
        return cls(problem, values[: problem.num_owned])

    def copy(self) -> LogDensity:
        """An independent density with the same values."""
        return LogDensity(self.problem, self.log_values())

    def log_values(self) -> Array:
        """Owned values of u, ``(num_owned,)``."""
        return self._log.x.array[: self.problem.num_owned].copy()

    def u(self) -> fem.Function:
        """u = −log m, normalised."""
        return self._new("u", self._log.x.array)

    def m(self) -> fem.Function:
        """m = e^{−u} at the nodes."""
        return self._new("m", np.exp(-self._log.x.array))

    def measure(self) -> Array:
        """Nodal measure b of m, of total mass one. Collective once."""
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

    def relative_entropy(self, other: Density) -> float:
        """H(m|m') = ∫(u' − u) dm. Collective."""
        if other.psi.function_space is not self.psi.function_space:
            raise ValueError("relative_entropy needs two densities of the same problem")
        return self.expectation(log_density(other).log_values() - self.log_values())

    def expectation(self, values: Array) -> float:
        """∫f dm of a function of the space, by its owned values. Collective."""
        return self._integrate(values, _forms(self.problem).mean)

    def variance(self, values: Array) -> float:
        """∫(f − ∫f dm)² dm of a function of the space, by its owned values. Collective."""
        mean = self.expectation(values)
        return self._integrate(values - mean, _forms(self.problem).square)

    def _integrate(self, values: Array, form: Any) -> float:
        forms = self._bind(self.problem)
        set_owned(forms.other, values)
        return forms.integral(form)

    def sample(self, n: int, seed: int) -> Array:
        """n independent points with density e^{−u}, ``(n, d)``, the same on every rank. Collective.

        Args:
            n: how many, at least 1.
            seed: of NumPy's default generator.
        """
        return sample_exponential(self._log, n, seed)

    def evaluate(self, points: npt.ArrayLike, fill: float = float("nan")) -> Array:
        """m at points, ``fill`` outside the mesh; the same on every rank. Collective."""
        return self._filled(np.exp(-evaluate_at(self._log, self._on_all_ranks(points))), fill)


def log_density(density: Density) -> LogDensity:
    """A density as one known by its logarithm. Collective.

    Raises:
        ValueError: ψ is too small somewhere for its logarithm to mean anything.
    """
    if isinstance(density, LogDensity):
        return density
    u = density.u().x.array[: density.problem.num_owned]
    spread = density.problem.max(float(u.max(initial=-np.inf))) - density.problem.min(u)
    if spread > _LARGEST_U:
        raise ValueError(
            f"the density falls by e^{{−{spread:.0f}}} on this mesh, further than ψ is known: give "
            "u itself, LogDensity.from_function(problem, u), or take a smaller mesh"
        )
    return LogDensity(density.problem, u.copy())
