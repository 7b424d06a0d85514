"""A globalised Newton method for F^σ on the sphere ‖ψ‖ = 1, for any initial guess.

    descent = Descent(problem)
    for iterate in descent.run(density, residual=1e-8, max_iterations=50):
        print(iterate.energy, iterate.residual)

The same method computes a minimising movement (D7), argmin F^σ(ψ²) + (2/τ)‖ψ − r‖²: the anchor r
contributes to energy and gradient, and adds (2/τ)⟨ψ, r⟩ to the second derivative.

Each step solves with the Hessian by truncated conjugate gradients in the energy-adaptive metric
P = H[m] − s and searches along the great circle in the computed direction: the angle is halved
until the energy falls, and doubled while that lowers the energy of a truncated step; if ψ changes
sign and |ψ| has less energy, |ψ| is used. P is reused while it remains effective.

The truncated solver can be used on its own:

    step = newton_direction(density, gradient, hessian.apply, precondition, tolerance=0.1)
    step.direction, step.iterations, step.truncated

It solves J δ = −r for δ ⊥ ψ, where J is symmetric but known to be positive only near a minimiser.
If a direction of negative curvature is found, the current iterate is returned, which is always a
descent direction (Dembo and Steihaug 1983). Its first iterate is the preconditioned,
energy-adaptive Riemannian gradient, so the method is gradient descent far from the minimiser and
Newton's method near it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fem_mf.density import Density
from fem_mf.mean_field.moments import Moments
from fem_mf.mpi import ConvergenceError, StagnationError
from fem_mf.observables import FirstOrder, dual_norm, energy, energy_scale, first_order
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.stationary.certificate import Metric, kinetic_rounding
from fem_mf.stationary.hessian import Hessian
from fem_mf.typing import Array

__all__ = [
    "Anchor",
    "Descent",
    "Iterate",
    "NotPositiveError",
    "TangentStep",
    "newton_direction",
]

_LOG = logging.getLogger(__name__)
_POSITIVE = 1.0 - 1e-10  # ⟨ψ, |ψ|⟩ below which |ψ| is tried instead of ψ
_ARMIJO = 1e-4
_FIRST_ANGLE, _LAST_ANGLE = 0.5, 0.7  # largest angle (radians) of a first trial; after doubling
_HALVINGS = {"newton": 8, "gradient": 40}
_ROUNDING = 1e-14
_FORCING = 0.1  # tolerance of the conjugate gradients far from the minimiser
_STALLED = 2  # consecutive Newton steps without progress that count as stagnation
_KEPT = 0.1  # reduction of the residual for which the Hessian of a movement is reused


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """One iterate.

    Attributes:
        density: ψ with norm one; its nodal values may be negative where they are below what the
            mesh resolves (which does not matter to uses that depend on m = ψ² only).
        condition: its first-order data; for a movement the gradient and the residual include the
            anchor term, while λ is that of H[m].
        energy: F^σ(m); for a movement it includes the anchor term.
        angle: angle of the last step, in radians; 0 at the start.
        linear_iterations: products with the Hessian in that step.
    """

    density: Density
    condition: FirstOrder
    energy: float
    angle: float = 0.0
    linear_iterations: int = 0

    @property
    def residual(self) -> float:
        """‖H[m]ψ − λψ‖."""
        return self.condition.residual


class Descent:
    """The method on one problem.

    Args:
        problem: the problem.
        options: PETSc options of the preconditioner.
        moments: the moments of the functional's cylindrical terms, if the caller has them already.
    """

    def __init__(
        self,
        problem: Problem,
        options: Options | None = None,
        moments: Moments | None = None,
    ) -> None:
        self.problem = problem
        self._discrete = problem.discretisation
        self.hessian = Hessian(problem, 1e-4, moments)
        self.metric = Metric(problem, options)
        self._iterations_when_fresh: int | None = None
        self._stale = True
        self._frozen = False  # whether the metric is that of H[m] alone
        self._anchor: Anchor | None = None
        self._weight = 0.0  # 2/τ

    def run(
        self,
        start: Density,
        *,
        residual: float,
        max_iterations: int,
        anchor: Anchor | None = None,
        length: float = np.inf,
    ) -> Iterator[Iterate]:
        """Iterate until ‖H[m]ψ − λψ‖ ≤ ``residual``; the start is yielded too. Collective.

        Args:
            start: ψ; its signs are kept.
            residual: tolerance of the gradient in L²; for a movement relative to 2/τ + λ − min V,
                which makes it comparable to the error of ψ.
            max_iterations: most Newton steps.
            anchor: r of a minimising movement (D7).
            length: τ.

        Raises:
            ConvergenceError: after too many iterations, or if rounding prevents further progress.
        """
        if 2.0 / length != self._weight:
            self._stale = True
        self._anchor, self._weight = anchor, 2.0 / length
        iterate = self._evaluate(*self._measured(start.amplitude()))
        self._outdated = True
        if anchor is not None:
            residual *= self._weight + energy_scale(self.problem, iterate.condition)
        yield iterate
        stalled = 0
        for _ in range(max_iterations):
            if iterate.residual <= residual:
                return
            before, iterate = iterate, self._step(iterate, residual)
            self._outdated = anchor is None or iterate.residual > _KEPT * before.residual
            yield iterate
            small = iterate.angle < 1e-6 and iterate.residual > 0.5 * before.residual
            stalled = stalled + 1 if small else 0
            if stalled == _STALLED:
                raise StagnationError(
                    f"the residual stays at {iterate.residual:.1e} because of rounding (requested: "
                    f"{residual:.1e}); choose a larger tol or residual_tol"
                )
        if iterate.residual > residual:
            raise ConvergenceError(
                f"residual {iterate.residual:.1e} after {max_iterations} iterations (requested: "
                f"{residual:.1e}); allow more (max_iterations), give a start or a continuation in "
                "sigma, or refine a mesh too coarse for the minimiser"
            )

    def _measured(self, psi: Array) -> tuple[Density, float]:
        """ψ, normalised with its signs, and its energy. Collective."""
        density = Density(self.problem, psi / self._discrete.norm(psi), normalised=True)
        value = energy(self.problem, density)
        if self._anchor is not None:
            value += self._weight * self._anchor.squared_distance(
                self.problem, density.amplitude(), density.mass_amplitude()
            )
        return density, value

    def _evaluate(
        self, density: Density, value: float, angle: float = 0.0, linear_iterations: int = 0
    ) -> Iterate:
        condition = first_order(self.problem, density)
        if self._anchor is not None:  # the anchor adds −(2/τ)(r − ⟨ψ, r⟩ψ) to the gradient
            across = self._anchor.load - self._overlap(density) * density.mass_amplitude()
            gradient = condition.gradient - self._weight * across
            gradient[self._discrete.constrained] = 0.0
            residual = dual_norm(self.problem, gradient)
            condition = replace(condition, gradient=gradient, residual=residual)
        return Iterate(
            density=density,
            condition=condition,
            energy=value,
            angle=angle,
            linear_iterations=linear_iterations,
        )

    def _overlap(self, density: Density) -> float:
        """⟨ψ, r⟩, or 0 without an anchor; (2/τ)⟨ψ, r⟩ is added to the Hessian. Collective."""
        if self._anchor is None:
            return 0.0
        return self._discrete.dot(density.amplitude(), self._anchor.load)

    def _step(self, now: Iterate, residual: float) -> Iterate:
        if self._outdated:
            pull = self._weight * self._overlap(now.density)
            self.hessian.update(now.density, now.condition, pull)
        step = self._direction(now, residual)
        found = self._search(now, step, "newton")
        if found is None and not self._outdated:  # the Hessian was kept for too long
            self._outdated = True
            return self._step(now, residual)
        if found is None:
            _LOG.debug("a Newton step does not descend; using a gradient step instead")
            self._rebuild(now)
            gradient = TangentStep(self._gradient(now), step.iterations + 1, True)
            found = self._search(now, gradient, "gradient")
        if found is None:
            raise ConvergenceError(
                f"no descent from residual {now.residual:.1e}: the derivative of the functional "
                "may be wrong (check_derivative shows), or rounding hides it (larger tol)"
            )
        return self._evaluate(*found, step.iterations)

    # -- direction ------------------------------------------------------------------------------

    def _direction(self, now: Iterate, residual: float) -> TangentStep:
        fresh = self._stale
        if fresh:
            self._rebuild(now)
        scale = energy_scale(self.problem, now.condition) + self._weight
        tolerance = min(_FORCING, np.sqrt(now.residual / scale))
        tolerance = max(tolerance, min(_FORCING, 0.1 * residual / now.residual))
        margin = 0.1
        while True:
            try:
                step = newton_direction(
                    now.density,
                    now.condition.gradient,
                    self.hessian.apply,
                    self.metric.solve,
                    tolerance=float(tolerance),
                )
                break
            except NotPositiveError:
                margin *= 10.0
                if margin > 1e4:
                    raise ConvergenceError(
                        "the preconditioner is not positive definite; choose another "
                        "(-fem_mf_stationary_pc_type)"
                    ) from None
                self._rebuild(now, margin)
        if fresh:
            self._iterations_when_fresh = step.iterations
        usual = 2 * (self._iterations_when_fresh or 0) + 4
        self._stale = step.truncated or step.iterations > usual
        return step

    def _rebuild(self, now: Iterate, margin: float = 0.1) -> None:
        # P includes the part 2βm of a contact term, unless β < 0 would make it indefinite.
        potential = self.hessian.potential
        if self._discrete.min(potential - now.condition.potential) < 0.0:
            potential = now.condition.potential
        eigenvalue = now.condition.eigenvalue
        shift = np.inf
        if self._anchor is not None:
            shift = eigenvalue - self._weight * self._overlap(now.density)
        self.metric.rebuild(potential, eigenvalue, margin, self.hessian.sparse, shift)
        self._stale, self._iterations_when_fresh = False, None
        self._frozen = potential is now.condition.potential

    def frozen_metric(self, condition: FirstOrder) -> Metric:
        """A preconditioner of H[m] without the second derivative of F. Collective."""
        if not self._frozen:
            self.metric.rebuild(condition.potential, condition.eigenvalue)
            self._stale = self._frozen = True
        return self.metric

    def _gradient(self, now: Iterate) -> Array:
        """−P⁻¹r on the tangent space, minus the energy-adaptive Riemannian gradient."""
        mass_psi = now.density.mass_amplitude()
        normal, z = self.metric.solve(mass_psi), self.metric.solve(now.condition.gradient)
        dot = self._discrete.dot
        return np.asarray(normal * (dot(mass_psi, z) / dot(mass_psi, normal)) - z)

    # -- search ---------------------------------------------------------------------------------

    def _search(
        self, now: Iterate, step: TangentStep, kind: str
    ) -> tuple[Density, float, float] | None:
        """A density on the great circle, its energy and angle; None if there is no descent."""
        discrete, psi = self._discrete, now.density.amplitude()
        length = discrete.norm(step.direction)
        if length == 0.0:
            return now.density, now.energy, 0.0
        tangent = step.direction / length
        slope = 2.0 * discrete.dot(now.condition.gradient, tangent)
        noise = max(1.0, abs(now.energy), abs(now.condition.eigenvalue))
        noise = max(_ROUNDING * noise, kinetic_rounding(now.density))

        def at(angle: float) -> tuple[Density, float]:
            moved = np.cos(angle) * psi + np.sin(angle) * tangent
            density, value = self._measured(moved)
            moved = density.amplitude()
            if discrete.dot(moved, discrete.apply_mass(np.abs(moved))) < _POSITIVE:
                # |ψ| has no more energy, up to mesh effects, and is not an excited state.
                positive, other = self._measured(np.abs(moved))
                if other <= value:
                    return positive, other
            return density, value

        angle = min(float(np.arctan(length)), _FIRST_ANGLE)
        for _ in range(_HALVINGS[kind]):
            trial, value = at(angle)
            if value <= now.energy + _ARMIJO * angle * slope + noise:
                break
            angle *= 0.5
        else:
            return None
        cut_short = step.truncated or np.arctan(length) > _FIRST_ANGLE
        while cut_short and 2.0 * angle <= _LAST_ANGLE:
            further, lower = at(2.0 * angle)
            if not lower < value:
                break
            trial, value, angle = further, lower, 2.0 * angle
        return trial, value, angle


class NotPositiveError(Exception):
    """The preconditioner is not positive definite."""


@dataclass(frozen=True)
class TangentStep:
    """A descent direction δ ⊥ ψ, by owned values.

    Attributes:
        direction: δ.
        iterations: number of products with J.
        truncated: whether the iteration ended by negative curvature or the iteration limit.
    """

    direction: Array
    iterations: int
    truncated: bool


def newton_direction(
    density: Density,
    gradient: Array,
    apply: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    *,
    tolerance: float,
    max_iterations: int = 500,
) -> TangentStep:
    """Solve J δ = −r on the tangent space. Collective.

    Args:
        density: ψ, with norm one.
        gradient: r, a load vector.
        apply: v ↦ Jv, a load vector.
        precondition: load vector ↦ owned values, symmetric positive definite.
        tolerance: relative tolerance of the residual in the norm of the preconditioner.
        max_iterations: most products with J.

    Raises:
        NotPositiveError: if the preconditioner is not positive definite.
    """
    dot = density.problem.discretisation.dot
    psi, mass_psi = density.amplitude(), density.mass_amplitude()
    normal = precondition(mass_psi)
    length = dot(normal, mass_psi)

    def tangent(load: Array) -> tuple[Array, float]:
        # Projection onto the tangent space, orthogonal in the metric of the preconditioner.
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
        residual -= dot(psi, residual) * mass_psi  # removes a component of rounding, which grows
        z, new = tangent(residual)
        if new < 0.0:
            raise NotPositiveError
        if new <= tolerance**2 * first:
            return TangentStep(total, iteration, False)
        direction = z + (new / size) * direction
        size = new
    return TangentStep(total, max_iterations, True)


@dataclass(frozen=True)
class Anchor:
    """r, from which a minimising movement starts (D7).

    Attributes:
        values: owned values of r, with arbitrary norm, and of M r, ``(2, num_owned)``.
    """

    values: Array

    @property
    def base(self) -> Array:
        """Owned values of r."""
        return np.asarray(self.values[0])

    @property
    def load(self) -> Array:
        """Owned values of M r."""
        return np.asarray(self.values[1])

    def squared_distance(self, problem: Problem, psi: Array, mass_psi: Array) -> float:
        """‖ψ − r‖², without the cancellation of 2 − 2⟨ψ, r⟩. Collective."""
        return problem.discretisation.dot(psi - self.base, mass_psi - self.load)
