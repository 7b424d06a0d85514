"""Newton's method for F^σ on the sphere ‖ψ‖ = 1, safeguarded: from any start to a critical point.

    descent = Descent(problem)
    for iterate in descent.run(density, residual=1e-8):
        print(iterate.energy, iterate.residual)

Each step solves with the Hessian by truncated conjugate gradients in the energy-adaptive metric
P = H[m] − s (:mod:`fem_mf.tangent`) and searches along the great circle that starts in the
direction found: the angle is halved until the energy falls, and doubled while a step that was cut
short pays; where ψ changes sign and |ψ| has less energy, |ψ| is taken. P is kept while it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fem_mf.density import Density
from fem_mf.errors import ConvergenceError
from fem_mf.features import Array
from fem_mf.hessian import Hessian
from fem_mf.observables import FirstOrder, energy, first_order
from fem_mf.options import Options
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.spectrum import Metric, energy_scale
from fem_mf.tangent import NotPositiveError, TangentStep, newton_direction

__all__ = ["Descent", "Iterate"]

_LOG = logging.getLogger(__name__)
_POSITIVE = 1.0 - 1e-10  # ⟨ψ, |ψ|⟩ below which |ψ| is tried instead of ψ
_ARMIJO = 1e-4
_FIRST_ANGLE, _LAST_ANGLE = 0.5, 0.7  # of a step, in radians
_HALVINGS = {"newton": 8, "gradient": 40}
_ROUNDING = 1e-14
_FORCING = 0.1  # of the conjugate gradients, far from the minimiser
_STALLED = 2  # Newton steps in a row without progress


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """One iterate.

    Attributes:
        density: ψ of norm one; its nodal values may be negative where they are below what the mesh
            resolves (a density for every use that depends on m = ψ² only).
        condition: its first-order data.
        energy: F^σ(m).
        angle: of the step that led here, in radians; 0 at the start.
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
    """

    def __init__(self, problem: Problem, options: Options | None = None) -> None:
        self.problem = problem
        self.hessian = Hessian(problem, negligible=1e-4)
        self.metric = Metric(problem, options)
        self._diagonal = owned_values(problem.stiffness.getDiagonal()).copy()
        self._iterations_when_fresh: int | None = None
        self._stale = True
        self._frozen = False  # whether the metric is that of H[m] alone

    def run(self, start: Density, *, residual: float, max_iterations: int) -> Iterator[Iterate]:
        """Iterate until ‖H[m]ψ − λψ‖ is at most ``residual``; yields the start too. Collective.

        Raises:
            ConvergenceError: too many iterations, or rounding hides all further progress.
        """
        iterate = self._evaluate(*self._measured(start.amplitude()))
        yield iterate
        stalled = 0
        for _ in range(max_iterations):
            if iterate.residual <= residual:
                return
            before, iterate = iterate, self._step(iterate, residual)
            yield iterate
            small = iterate.angle < 1e-6 and iterate.residual > 0.5 * before.residual
            stalled = stalled + 1 if small else 0
            if stalled == _STALLED:
                raise ConvergenceError(
                    f"the residual stays at {iterate.residual:.1e} by rounding (asked for: "
                    f"{residual:.1e}); choose a larger tol or residual_tol"
                )
        if iterate.residual > residual:
            raise ConvergenceError(
                f"residual {iterate.residual:.1e} after {max_iterations} iterations (asked for: "
                f"{residual:.1e}); allow more (max_iterations), give a start or a continuation in "
                "sigma, or refine a mesh too coarse for the minimiser"
            )

    def _measured(self, psi: Array) -> tuple[Density, float]:
        """ψ normalised, signs and all, and its energy. Collective."""
        density = Density(self.problem, psi / self.problem.norm(psi), normalised=True)
        return density, energy(self.problem, density)

    def _evaluate(
        self, density: Density, value: float, angle: float = 0.0, linear_iterations: int = 0
    ) -> Iterate:
        return Iterate(
            density=density,
            condition=first_order(self.problem, density),
            energy=value,
            angle=angle,
            linear_iterations=linear_iterations,
        )

    def _step(self, now: Iterate, residual: float) -> Iterate:
        self.hessian.update(now.density, now.condition)
        step = self._direction(now, residual)
        found = self._search(now, step, "newton")
        if found is None:
            _LOG.debug("a Newton step does not descend; a gradient step instead")
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
        scale = energy_scale(self.problem, now.condition)
        tolerance = min(_FORCING, np.sqrt(now.residual / scale))
        tolerance = max(tolerance, min(_FORCING, 0.1 * residual / now.residual))
        margin = 0.1
        while True:
            try:
                step = newton_direction(
                    self.problem,
                    self.hessian.apply,
                    now.density.amplitude(),
                    now.density.mass_amplitude(),
                    now.condition.gradient,
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
        # The part 2βm of a contact term belongs to it, unless β < 0 would make it indefinite.
        potential = self.hessian.potential
        if self.problem.min(potential - now.condition.potential) < 0.0:
            potential = now.condition.potential
        self.metric.rebuild(potential, now.condition.eigenvalue, margin, self.hessian.sparse)
        self._stale, self._iterations_when_fresh = False, None
        self._frozen = potential is now.condition.potential

    def frozen_metric(self, condition: FirstOrder) -> Metric:
        """A preconditioner of H[m] without the second derivative of F. Collective."""
        if not self._frozen:
            self.metric.rebuild(condition.potential, condition.eigenvalue)
            self._stale = self._frozen = True
        return self.metric

    def _gradient(self, now: Iterate) -> Array:
        """−P⁻¹r on the tangent space: the energy-adaptive Riemannian gradient."""
        mass_psi = now.density.mass_amplitude()
        normal, z = self.metric.solve(mass_psi), self.metric.solve(now.condition.gradient)
        dot = self.problem.dot
        return np.asarray(normal * (dot(mass_psi, z) / dot(mass_psi, normal)) - z)

    def _noise(self, now: Iterate, psi: Array) -> float:
        """Rounding error of an energy: that of its value, and of the sums Aψ on fine meshes."""
        problem = self.problem
        sums = problem.sigma**2 * problem.dot(self._diagonal * psi, psi)
        value = max(1.0, abs(now.energy), abs(now.condition.eigenvalue))
        return float(max(_ROUNDING * value, np.finfo(float).eps * sums))

    # -- search ---------------------------------------------------------------------------------

    def _search(
        self, now: Iterate, step: TangentStep, kind: str
    ) -> tuple[Density, float, float] | None:
        """A density on the great circle along the step, its energy and angle; None: no descent."""
        problem, psi = self.problem, now.density.amplitude()
        length = problem.norm(step.direction)
        if length == 0.0:
            return now.density, now.energy, 0.0
        tangent = step.direction / length
        slope = 2.0 * problem.dot(now.condition.gradient, tangent)
        noise = self._noise(now, psi)

        def at(angle: float) -> tuple[Density, float]:
            moved = np.cos(angle) * psi + np.sin(angle) * tangent
            density, value = self._measured(moved)
            moved = density.amplitude()
            if problem.dot(moved, problem.apply_mass(np.abs(moved))) < _POSITIVE:
                # |ψ| has no more energy, but for the mesh, and is no excited state.
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
