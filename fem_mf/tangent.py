"""Truncated conjugate gradients on the tangent space of the sphere ‖ψ‖ = 1.

    step = newton_direction(
        problem, hessian.apply, psi, mass_psi, gradient, precondition, tolerance=0.1
    )
    step.direction, step.iterations, step.truncated

Solves J δ = −r for δ ⊥ ψ, J symmetric but only known to be positive near a minimiser: where a
direction of negative curvature turns up, what has been found so far is returned, which is a
direction of descent in any case (Dembo and Steihaug 1983). Its first iterate is the
preconditioned, energy-adaptive Riemannian gradient, so that far from the minimiser the method is
that gradient descent and near it Newton's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fem_mf.features import Array
from fem_mf.problem import Problem

__all__ = ["NotPositiveError", "TangentStep", "newton_direction"]


class NotPositiveError(Exception):
    """The preconditioner is not positive definite."""


@dataclass(frozen=True)
class TangentStep:
    """A direction of descent δ ⊥ ψ, owned values.

    Attributes:
        direction: δ.
        iterations: products with J.
        truncated: whether negative curvature, or the iteration limit, ended it.
    """

    direction: Array
    iterations: int
    truncated: bool


def newton_direction(
    problem: Problem,
    apply: Callable[[Array], Array],
    psi: Array,
    mass_psi: Array,
    gradient: Array,
    precondition: Callable[[Array], Array],
    *,
    tolerance: float,
    max_iterations: int = 500,
) -> TangentStep:
    """Solve J δ = −r on the tangent space. Collective.

    Args:
        problem: the problem.
        apply: v ↦ Jv, a load vector.
        psi: owned values of ψ, of norm one.
        mass_psi: Mψ.
        gradient: r, a load vector.
        precondition: load vector ↦ owned values, symmetric positive definite.
        tolerance: relative, of the residual in the norm of the preconditioner.
        max_iterations: products with J.

    Raises:
        NotPositiveError: the preconditioner is not positive definite.
    """
    dot = problem.dot
    normal = precondition(mass_psi)
    length = dot(normal, mass_psi)

    def tangent(load: Array) -> tuple[Array, float]:
        # The projection that is orthogonal in the metric of the preconditioner.
        z = precondition(load)
        z -= normal * (dot(mass_psi, z) / length)
        return z, dot(load, z)

    if not length > 0.0:
        raise NotPositiveError
    residual = -gradient
    z, size = tangent(residual)
    if not size >= 0.0:
        raise NotPositiveError
    first, total = size, np.zeros_like(gradient)
    direction = z
    for iteration in range(1, max_iterations + 1):
        product = apply(direction)
        curvature = dot(direction, product)
        if not curvature > 1e-12 * size:
            return TangentStep(z if iteration == 1 else total, iteration, True)
        total = total + (size / curvature) * direction
        residual = residual - (size / curvature) * product
        residual -= dot(psi, residual) * mass_psi  # which is not zero by rounding, and grows
        z, new = tangent(residual)
        if new < 0.0:
            raise NotPositiveError
        if new <= tolerance**2 * first:
            return TangentStep(total, iteration, False)
        direction = z + (new / size) * direction
        size = new
    return TangentStep(total, max_iterations, True)
