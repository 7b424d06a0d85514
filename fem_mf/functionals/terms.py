"""Mean-field functionals F(m) and their flat derivatives V[m] = δF/δm (theory §7).

    F = Potential(lambda x: 0.1 * (x[0]**2 + x[1]**2)) + NetworkLoss(z, y, neuron)
    F.value(density)             # a number
    F.derivative(density)        # V[m], a dolfinx.fem.Function

Functionals can be added and multiplied by numbers. A user-defined functional is any object with
these two methods. A functional uses a density only through its nodal measure b on the potential
space, ∫f dm = Σ_i b_i f(x_i), so the derivatives below are those of the *discrete* functional.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import batched
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from ufl.core.expr import Expr

from fem_mf.discretisation import Discretisation
from fem_mf.functionals.features import FeatureMatrix
from fem_mf.mpi import global_sum, number, same_on_all_ranks, warn
from fem_mf.petsc import stage
from fem_mf.problem import FunctionalLike, potential_degree_of, usual_potential_degree
from fem_mf.typing import Array, SpaceFunction

__all__ = [
    "Contact",
    "Cylindrical",
    "FormFunctional",
    "Functional",
    "MeanInteraction",
    "Potential",
    "convexity_of",
    "flatten",
    "functional",
]

_LOG = logging.getLogger(__name__)
_BLOCK = 64  # features evaluated at a time
_MANY = 20_000_000  # number of feature values whose evaluation takes more than a few seconds


class Functional(ABC):
    """A functional F of a probability density, with + and scalar *."""

    #: Whether F is convex: True or False if known, None if not.
    convex: bool | None = None

    @abstractmethod
    def value(self, density: Any) -> float:
        """F(m). Collective."""

    @abstractmethod
    def derivative(self, density: Any) -> fem.Function:
        """V[m] = δF/δm(m, ·) on the potential space, up to a constant. Collective."""

    def potential_degree(self, degree: int) -> int:
        """Polynomial degree that the potential needs for an amplitude ψ of the given degree."""
        return usual_potential_degree(degree)

    def __repr__(self) -> str:
        """One line with the class and the numbers that define F."""
        return f"{type(self).__name__}(...)"

    def __add__(self, other: FunctionalLike) -> Functional:
        """F₁ + F₂."""
        if not isinstance(other, FunctionalLike):
            return NotImplemented
        return _Sum([*flatten(self), *flatten(other)])

    def __radd__(self, other: object) -> Functional:
        """Allow ``sum([...])`` and a user-defined functional on the left."""
        if other == 0:
            return self
        if not isinstance(other, FunctionalLike):
            return NotImplemented
        return _Sum([*flatten(other), *flatten(self)])

    def __mul__(self, factor: float) -> Functional:
        """c F."""
        if not isinstance(factor, (int, float, np.integer, np.floating)):
            return NotImplemented
        if not np.isfinite(factor):
            raise ValueError(f"the factor of a functional must be finite, not {factor}")
        return _Sum([(float(factor) * c, f) for c, f in flatten(self)])

    __rmul__ = __mul__


class _Callables(Functional):
    """A functional whose F and V are two callables of a density."""

    def __init__(self, value: Any, derivative: Any, convex: bool | None) -> None:
        self._value, self._derivative, self.convex = value, derivative, convex

    def __repr__(self) -> str:
        return f"functional(value={_name(self._value)})"

    def value(self, density: Any) -> float:
        return float(self._value(density))

    def derivative(self, density: Any) -> fem.Function:
        found = self._derivative(density)
        return found if isinstance(found, fem.Function) else density.potential(found)


def functional(
    *,
    value: Callable[[Any], float],
    derivative: Callable[[Any], npt.ArrayLike | fem.Function],
    convex: bool | None = None,
) -> Functional:
    """A functional from two callables, with + and scalar *.

        gas = functional(
            value=lambda m: m.expect(m.values() ** 2) / 3,
            derivative=lambda m: m.values() ** 2,
        )

    Args:
        value: F of a density, the same on every rank; write it with ``m.points()``, ``m.values()``
            and ``m.expect(values)``, which work for every mass, degree and number of ranks.
        derivative: V of a density, as values at ``m.points()`` or as a ``fem.Function``.
        convex: whether F is convex, if known; if None, convexity is probed.
    """
    return _Callables(value, derivative, convex)


class FormFunctional(Functional):
    """F(m) as a UFL form of m; V is its derivative, ∫Vθ dx = F'(m; θ) for every θ.

        gas = FormFunctional(lambda m, dx: m**3 / 3 * dx)

    m is the interpolant of ψ² on the potential space. With lumped mass V is the exact derivative of
    the discrete F; with consistent mass it is the L² projection of that derivative.

    Args:
        form: ``form(m, dx)``, where m is a ``fem.Function`` and ``dx`` the problem's measure.
        convex: whether F is convex, if known; if None, convexity is probed.
    """

    def __init__(self, form: Callable[[Any, Any], Any], *, convex: bool | None = None) -> None:
        self._form, self.convex = form, convex
        self._parts: WeakKeyDictionary[Any, tuple[fem.Function, fem.Form, fem.Form]] = (
            WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        """One line with the name of the form."""
        return f"FormFunctional({_name(self._form)})"

    def potential_degree(self, degree: int) -> int:
        """2k, for which m, a polynomial of degree 2k, is represented exactly."""
        return 2 * degree

    def _compiled(self, density: Any) -> tuple[fem.Function, fem.Form, fem.Form]:
        problem = density.problem
        discrete = problem.discretisation
        if discrete not in self._parts:
            m = problem.new_potential()
            form = self._form(m, discrete.dx_potential)
            theta = ufl.TestFunction(problem.potential_space)
            derivative = fem.form(ufl.derivative(form, m, theta))
            self._parts[discrete] = m, fem.form(form), derivative
        m, value, derivative = self._parts[discrete]
        m.x.array[:] = discrete.square_on_potential_space(density.psi)
        return m, value, derivative

    def value(self, density: Any) -> float:
        """F(m). Collective."""
        form = self._compiled(density)[1]
        return float(global_sum(density.problem.comm, fem.assemble_scalar(form)))

    def derivative(self, density: Any) -> fem.Function:
        """V[m]. Collective."""
        problem, form = density.problem, self._compiled(density)[2]
        load = fem.assemble_vector(form)
        load.scatter_reverse(la.InsertMode.add)
        discrete: Discretisation = problem.discretisation
        return discrete.represent(load.array[: discrete.num_potential_owned])


class _Sum(Functional):
    """Σ c_i F_i, flattened so that no term is itself a sum."""

    def __init__(self, terms: list[tuple[float, FunctionalLike]]) -> None:
        self.terms = terms

    def value(self, density: Any) -> float:
        return sum(c * f.value(density) for c, f in self.terms)

    def derivative(self, density: Any) -> fem.Function:
        total: fem.Function = density.problem.new_potential()
        for c, f in self.terms:
            total.x.array[:] += c * density.problem.on_potential_space(f.derivative(density))
        return total

    def potential_degree(self, degree: int) -> int:
        return max(potential_degree_of(f, degree) for _, f in self.terms)

    def __repr__(self) -> str:
        signed = [
            f"{'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c):.12g} * '}{f!r}"
            for c, f in self.terms
        ]
        return " ".join(signed).removeprefix("+ ")


def _name(function: object) -> str:
    """The name of a user's function, or dots if it has none."""
    name = getattr(function, "__name__", "<")
    return "..." if "<" in name else name


def flatten(functional: FunctionalLike) -> list[tuple[float, FunctionalLike]]:
    """The terms of a functional as ``(factor, term)``; no term is a sum."""
    return list(functional.terms) if isinstance(functional, _Sum) else [(1.0, functional)]


def convexity_of(functional: FunctionalLike) -> bool | None:
    """Whether a functional is convex, judged by its terms; None if they do not decide it."""
    terms = [
        (factor, term)
        for factor, term in flatten(functional)
        if factor != 0.0 and not getattr(term, "linear", False)
    ]
    known = [(factor, getattr(term, "convex", None)) for factor, term in terms]
    if all(factor > 0 and convex for factor, convex in known):
        return True
    if len(known) == 1:
        ((factor, convex),) = known
        if convex is not None and (factor > 0) != convex:
            return False
    return None


class Cylindrical(Functional):
    """F(m) = Φ(y) with moments y_j = ∫φ_j dm; V[m] = Σ_j ∂_jΦ(y) φ_j.

    Args:
        features: callables of ``x``, shape ``(3, n)``, returning ``(n,)``; also ``fem.Function`` or
            UFL expressions, which tie the functional to their mesh.
        phi: Φ, from the vector of moments ``(K,)`` to a number.
        gradient: ∇Φ, from the vector of moments to ``(K,)``.
        convex: whether Φ is convex, if known; if None, convexity is probed.
    """

    linear = False  # whether V does not depend on m
    _label = "feature"

    def __init__(
        self,
        features: Sequence[SpaceFunction | Expr],
        phi: Callable[[Array], float],
        gradient: Callable[[Array], Array],
        *,
        convex: bool | None = None,
    ) -> None:
        if len(features) == 0:
            raise ValueError("Cylindrical needs at least one feature")
        self._features, self._phi, self._gradient = list(features), phi, gradient
        self.convex = convex
        self._matrices: WeakKeyDictionary[Any, FeatureMatrix] = WeakKeyDictionary()

    def __repr__(self) -> str:
        """One line with the class and the number of features."""
        number = len(self._features)
        return f"{type(self).__name__}({number} feature{'s' if number > 1 else ''})"

    def phi(self, y: Array) -> float:
        """Φ(y)."""
        return float(self._phi(y))

    def gradient(self, y: Array) -> Array:
        """∇Φ(y), ``(K,)``.

        Raises:
            ValueError: if the user's gradient does not have the shape of y.
        """
        gradient = np.asarray(self._gradient(y), dtype=np.float64)
        if gradient.shape != y.shape:
            raise ValueError(f"gradient returned shape {gradient.shape}, expected {y.shape}")
        return gradient

    def feature_functions(self, dim: int) -> Sequence[SpaceFunction | Expr]:
        """The functions φ_j, for a mesh in ``dim`` dimensions."""
        return self._features

    def matrix(self, problem: Any) -> FeatureMatrix:
        """The features at the nodes of the problem, evaluated once. Collective the first time.

        Problems that share a discretisation, for example with several σ, share the matrix.
        """
        discrete = problem.discretisation
        if discrete not in self._matrices:
            same_on_all_ranks(problem.comm, **self._data())
            functions = self.feature_functions(problem.dim)
            nodes = problem.potential_space.dofmap.index_map.size_global
            if len(functions) * nodes > _MANY:
                _LOG.info("features: %d at each of %s nodes, once", len(functions), f"{nodes:,}")
            features = enumerate(functions)
            largest: list[float] = []

            def values(number: int, feature: SpaceFunction | Expr) -> Array:
                name = f"{self._label} number {number}"
                return np.asarray(discrete.potential_values(feature, name))

            def blocks() -> Iterator[Array]:
                for chunk in batched(features, _BLOCK):
                    block = np.column_stack([values(*numbered) for numbered in chunk])
                    largest.extend(np.abs(block).max(axis=0, initial=0.0))
                    yield block

            with stage("features"):
                matrix = FeatureMatrix(problem.comm, discrete.num_potential_owned, blocks())
            if not self.linear:
                self._check_not_zero(problem, largest)
            self._matrices[discrete] = matrix
        return self._matrices[discrete]

    def _data(self) -> dict[str, Any]:
        """Named data that define the functional and must be the same on every rank."""
        return {}

    def _check_not_zero(self, problem: Any, largest: list[float]) -> None:
        """Raise if all features vanish at the nodes; warn if some do. Collective."""
        zero = np.flatnonzero(np.max(problem.comm.allgather(largest), axis=0) == 0.0)
        if len(zero) == len(largest):
            raise ValueError(
                f"every feature vanishes at all nodes of the mesh: x has shape (3, n) in "
                f"every dimension, and x[{problem.dim}:] is zero on a mesh of dimension "
                f"{problem.dim}"
            )
        if zero.size:
            warn(
                problem.comm,
                _LOG,
                "%d of %d features vanish at all nodes of the mesh, the first is %s number %d",
                *(zero.size, len(largest), self._label, zero[0]),
            )

    def moments(self, density: Any) -> Array:
        """y_j = ∫φ_j dm, ``(K,)``. Collective."""
        return self.matrix(density.problem).moments(density.measure())

    def value(self, density: Any) -> float:
        """Φ(y). Collective."""
        return self.phi(self.moments(density))

    def derivative(self, density: Any) -> fem.Function:
        """Σ_j ∂_jΦ(y) φ_j. Collective."""
        potential: fem.Function = density.problem.new_potential()
        gradient = self.gradient(self.moments(density))
        potential.x.array[:] = self.matrix(density.problem).combine(gradient)
        return potential


class Potential(Cylindrical):
    """F(m) = ∫g dm; V = g.

    Args:
        g: callable of ``x``, shape ``(3, n)``, returning ``(n,)``; also a ``fem.Function`` or a UFL
            expression, which ties the functional to its mesh.
    """

    linear = True
    _label = "the potential g, term"

    def __init__(self, g: SpaceFunction | Expr) -> None:
        super().__init__([g], lambda y: float(y[0]), np.ones_like, convex=True)

    def __repr__(self) -> str:
        """One line with the name of g."""
        return f"Potential({_name(self._features[0])})"


class MeanInteraction(Cylindrical):
    """F(m) = (λ_c/2) |∫x dm − a|²; V[m](x) = λ_c (∫x dm − a)·x.

    Args:
        strength: λ_c; F is convex if λ_c ≥ 0.
        target: the point a, as one number for all coordinates or one number per coordinate.
    """

    def __init__(self, strength: float, target: float | npt.ArrayLike = 0.0) -> None:
        self.strength = number("strength", strength)
        self.target = np.atleast_1d(np.asarray(target, dtype=np.float64))
        if not (np.isfinite(self.strength) and np.isfinite(self.target).all()):
            raise ValueError("MeanInteraction needs a finite strength and target")
        super().__init__(
            [lambda x: x[0]],
            lambda y: 0.5 * self.strength * float(np.sum((y - self.target) ** 2)),
            lambda y: self.strength * (y - self.target),
            convex=self.strength >= 0,
        )

    def __repr__(self) -> str:
        """One line with λ_c and a."""
        target = ", ".join(f"{a:.12g}" for a in self.target)
        return f"MeanInteraction({self.strength:.12g}, [{target}])"

    def _data(self) -> dict[str, Any]:
        return {"strength": self.strength, "target": self.target}

    def feature_functions(self, dim: int) -> Sequence[SpaceFunction]:
        """The coordinates x_1, ..., x_d."""
        if self.target.size not in (1, dim):
            raise ValueError(
                f"the target has {self.target.size} components on a mesh of dimension {dim}"
            )
        return [itemgetter(i) for i in range(dim)]


class Contact(Functional):
    """F(m) = (β/2) ∫m² dx; V[m] = β m (Gross–Pitaevskii).

    F is convex for β ≥ 0 but not continuous in the Wasserstein distance, so hypothesis (H) of the
    theory does not hold. The potential space has degree 2k and represents β ψ² exactly.

    Args:
        beta: the strength β.
    """

    def __init__(self, beta: float) -> None:
        self.beta = number("beta", beta)
        if not np.isfinite(self.beta):
            raise ValueError(f"beta must be finite, not {beta}")
        self.convex = self.beta >= 0

    def __repr__(self) -> str:
        """One line with β."""
        return f"Contact({self.beta:.12g})"

    def potential_degree(self, degree: int) -> int:
        """2k, the degree of the square of a polynomial of degree k."""
        return 2 * degree

    def value(self, density: Any) -> float:
        """(β/2) ∫m² dx. Collective."""
        return 0.5 * self.beta * float(density.expect(density.values()))

    def derivative(self, density: Any) -> fem.Function:
        """β m. Collective."""
        discrete: Discretisation = density.problem.discretisation
        potential = discrete.new_potential()
        potential.x.array[:] = self.beta * discrete.square_on_potential_space(density.psi)
        return potential
