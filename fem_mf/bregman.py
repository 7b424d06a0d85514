"""The Bregman divergence of F^σ (E3), whose Fisher part is the relative Fisher information (D6).

F^σ(m') − F^σ(m) − ∫δF^σ/δm(m, ·) d(m' − m) is non-negative if F is convex:

    divergence = bregman(problem, density, start)
    divergence.functional, divergence.fisher    # both ≥ 0 for convex F
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dolfinx import default_scalar_type, fem

from fem_mf import equations
from fem_mf.density import Density, log_density
from fem_mf.mpi import global_sum
from fem_mf.problem import Problem
from fem_mf.spaces import exponential_measure
from fem_mf.typing import Array

__all__ = ["Bregman", "bregman"]


@dataclass(frozen=True, kw_only=True)
class Bregman:
    """F^σ(m') − F^σ(m) − ∫δF^σ/δm(m, ·) d(m' − m), non-negative by (E3).

    Attributes:
        functional: the contribution of F, F(m') − F(m) − ∫V[m] d(m' − m).
        fisher: the contribution of (σ²/4) I, (σ²/4)∫|∇log(m'/m)|² dm' (D6).
    """

    functional: float
    fisher: float

    @property
    def total(self) -> float:
        """The sum of both contributions."""
        return self.functional + self.fisher


def bregman(problem: Problem, new: Density, old: Density) -> Bregman:
    """The Bregman divergence of F^σ, whose sign is the inequality (E3). Collective.

    Args:
        problem: the problem.
        new: m'.
        old: m, at which F^σ is linearised.

    Raises:
        ValueError: if ψ is too small somewhere for its logarithm to be meaningful.
    """
    discrete = problem.discretisation
    first, second = log_density(old), log_density(new)
    functional = problem.functional
    potential = problem.on_potential_space(functional.derivative(first))
    change: Array = second.measure() - first.measure()
    linear = discrete.dot(potential[: discrete.num_potential_owned], change)
    part = float(functional.value(second)) - float(functional.value(first)) - linear
    dx = exponential_measure(problem.mesh, problem.degree, discrete.potential_degree)
    value: Any = default_scalar_type(problem.sigma)
    sigma = fem.Constant(problem.mesh, value)  # so that the form is compiled once for all σ
    form = fem.form(equations.relative_fisher(second.u(), first.u(), sigma, dx))
    fisher = float(global_sum(problem.comm, fem.assemble_scalar(form)))
    return Bregman(functional=part, fisher=fisher)
