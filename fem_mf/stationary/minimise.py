"""The minimiser of F^σ with a certificate (F1, F2, F3, C1).

    best = minimise(problem, tol=1e-10)
    print(best)        # F = 0.512345678901  gap ≤ 3.1e-12  residual 8.2e-09
    best.density, best.energy, best.eigenvalue, best.gap

The minimiser is the ground state of its own Hamiltonian, −σ²Δψ + V[ψ²]ψ = λψ. It is computed by a
globalised Newton method (:mod:`fem_mf.stationary.newton_cg`) that starts from the solution on a
coarse box, and comes with an a posteriori bound: for convex F the gap (C1) bounds
F^σ(m) − min F^σ.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from fem_mf.boundary import warn_if_truncated
from fem_mf.density import Density
from fem_mf.functionals.checks import Convexity, convexity
from fem_mf.mpi import ConvergenceError, integer, positive, warn
from fem_mf.observables import (
    FirstOrder,
    check_density,
    check_problem,
    energy,
    energy_scale,
    first_order,
)
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.stationary.certificate import certify_gap
from fem_mf.stationary.coarse_start import coarse_problem, from_grid
from fem_mf.stationary.decay import lowest_curvature
from fem_mf.stationary.newton_cg import Descent, Iterate

__all__ = ["Iteration", "Minimum", "minimise", "minimise_nested"]

_LOG = logging.getLogger(__name__)
_COARSE_RESIDUAL = 1e-4  # residual, relative to λ − min V, of an initial guess for a finer mesh
_ROUNDS = 4  # how often the residual is tightened to reach the gap
_DEPARTURES = 4  # number of saddles to leave before one is returned
_ANGLE = 0.3  # angle in radians of the step that leaves a saddle
_CURVATURE = 1e-6  # relative error of curvatures from rounding and difference quotients of V
_SAME = 1e-4  # ‖ψ − ψ'‖ below which two critical points count as the same


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One entry of the history of a minimisation.

    Attributes:
        energy: F^σ(m).
        eigenvalue: λ.
        residual: ‖H[m]ψ − λψ‖.
        gap: the gap (C1); NaN unless ``track_gap`` is set.
        angle: angle of the last step, in radians.
        linear_iterations: products with the Hessian in that step.
    """

    energy: float
    eigenvalue: float
    residual: float
    gap: float
    angle: float
    linear_iterations: int


type Callback = Callable[[Iteration], object]


@dataclass(frozen=True, kw_only=True, repr=False)
class Minimum:
    """A minimiser with its certificate.

    Attributes:
        density: m.
        energy: F^σ(m) (E1).
        eigenvalue: λ (F2).
        residual: ‖H[m]ψ − λψ‖ of this density.
        gap: the bound (C1) on F^σ(m) − min F^σ over the densities of this problem; NaN if F is not
            convex, since nothing is proved then.
        convexity: whether convexity of F is proved from its terms, probed, or refuted.
        kind: ``"global minimum"`` if certified (proved if convexity is), ``"local minimum"``, or
            ``"saddle"``, which is logged as a warning.
        curvature: smallest eigenvalue of half the second derivative of F^σ on the sphere, if F
            is not known to be convex; else NaN.
        iterations: number of Newton steps on this problem.
        linear_iterations: number of products with the Hessian, summed over the steps.
        history: the iterates on this problem, starting with the initial guess.
    """

    density: Density
    energy: float
    eigenvalue: float
    residual: float
    gap: float
    convexity: Convexity
    kind: str = "global minimum"
    curvature: float = float("nan")
    iterations: int
    linear_iterations: int
    history: tuple[Iteration, ...]

    def __repr__(self) -> str:
        """The text of ``str``, preceded by the kind."""
        return f"Minimum({self.kind}: {self})"

    def __str__(self) -> str:
        """One line with energy, certificate and residual."""
        if self.convexity is Convexity.REFUTED:
            proof = f"no certificate: F is not convex (a {self.kind})"
        else:
            proof = f"gap ≤ {self.gap:.1e}"
            if self.convexity is Convexity.PROBED:
                proof += " if F is convex, which no probe contradicts"
        return f"F = {self.energy:.12f}  {proof}  residual {self.residual:.1e}"


@overload
def minimise(
    problem: Problem,
    start: Density | None = ...,
    *,
    starts: None = ...,
    tol: float = ...,
    residual_tol: float | None = ...,
    max_iterations: int = ...,
    continuation: Sequence[float] = ...,
    track_gap: bool = ...,
    callback: Callback | None = ...,
    petsc_options: Options | None = ...,
) -> Minimum: ...


@overload
def minimise(
    problem: Problem,
    start: None = ...,
    *,
    starts: Sequence[Density],
    tol: float = ...,
    residual_tol: float | None = ...,
    max_iterations: int = ...,
    continuation: Sequence[float] = ...,
    track_gap: bool = ...,
    callback: Callback | None = ...,
    petsc_options: Options | None = ...,
) -> list[Minimum]: ...


def minimise(
    problem: Problem,
    start: Density | None = None,
    *,
    starts: Sequence[Density] | None = None,
    tol: float = 1e-10,
    residual_tol: float | None = None,
    max_iterations: int = 200,
    continuation: Sequence[float] = (),
    track_gap: bool = False,
    callback: Callback | None = None,
    petsc_options: Options | None = None,
) -> Minimum | list[Minimum]:
    """Minimise F(m) + (σ²/4) I(m), with a bound on the energy error (E1, C1). Collective.

    If F is not known to be convex, the result is a critical point. Its lowest curvature is
    computed; at a saddle the search continues in both directions of that curvature.

    Args:
        problem: the problem.
        start: initial density, on this or any other problem, for example a coarser one; the default
            is the minimiser on a coarse box around the mesh, or a uniform density for small
            problems and for functionals that may not be defined on another mesh.
        starts: several densities instead of one, for an F with several minima.
        tol: the gap (C1) to reach. If F is not convex there is no gap; only the residual counts.
        residual_tol: tolerance of ‖H[m]ψ − λψ‖; the default is √tol / 100.
        max_iterations: most Newton steps on each mesh.
        continuation: larger values of σ to solve with first, from the largest, if σ is so small
            that the default start fails.
        track_gap: whether to compute the gap at every iterate, for the history.
        callback: called with each :class:`Iteration` on this problem; if it returns a true value,
            the search ends and the current iterate is returned with its gap.
        petsc_options: PETSc options of the preconditioner, without prefix;
            ``-fem_mf_stationary_...`` on the command line overrides them.

    Returns:
        The minimum; its ``str`` is one line with energy, gap and residual. With ``starts``, a list
        of the distinct critical points found, the lowest first.

    Raises:
        ValueError: if an argument is out of range.
        ConvergenceError: if a tolerance is not reached; the message says what to change.
    """
    if starts is not None and start is not None:
        raise ValueError("give start or starts, not both")
    check_problem(problem)
    given = [start] if starts is None else list(starts)
    for density in given:
        if density is not None:
            check_density(problem, density)
    numbers = [("tol", tol), *(("each sigma of the continuation", s) for s in continuation)]
    if residual_tol is not None:
        numbers.append(("residual_tol", residual_tol))
    for name, value in numbers:
        positive(name, value)
    if integer("max_iterations", max_iterations) < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}")
    residual_tol = 1e-2 * np.sqrt(tol) if residual_tol is None else residual_tol
    minima = []
    for density in given:
        search = _Search(problem, tol, max_iterations, track_gap, callback, petsc_options)
        first = _start(problem, density, continuation, max_iterations)
        minima.append(search.certified(first, residual_tol))
    return minima[0] if starts is None else _distinct(minima)


def minimise_nested(problems: Sequence[Problem], *, tol: float = 1e-10, **options: Any) -> Minimum:
    """Minimise on each problem, starting from the minimiser of the previous one. Collective.

    Args:
        problems: the problems, from the coarsest; meshes need not be nested, degrees may differ.
        tol: tolerance on the last problem; the earlier ones only provide initial guesses.
        options: further arguments of :func:`minimise`.

    Returns:
        The minimum on the last problem.
    """
    if not problems:
        raise ValueError("minimise_nested needs at least one problem")
    density: Density | None = None
    for problem in problems[:-1]:
        density = _rough(problem, _start(problem, density))
    return minimise(problems[-1], density, tol=tol, **options)


def _distinct(minima: list[Minimum]) -> list[Minimum]:
    """The distinct critical points, the lowest first. Collective."""
    kept: list[Minimum] = []
    for minimum in sorted(minima, key=lambda m: m.energy):
        problem, psi = minimum.density.problem, minimum.density.amplitude()
        if all(problem.discretisation.norm(psi - m.density.amplitude()) > _SAME for m in kept):
            kept.append(minimum)
    return kept


def _start(
    problem: Problem,
    start: Density | None,
    continuation: Sequence[float] = (),
    max_iterations: int = 200,
) -> Density:
    """The initial density, after the coarse box and the larger values of σ. Collective."""
    coarse = coarse_problem(problem) if start is None else None
    there = problem if coarse is None else coarse
    if start is None:
        start = Density(there, np.ones(there.discretisation.num_owned))
    sigmas = sorted(continuation, reverse=True)
    for sigma in sigmas if coarse is None else [*sigmas, problem.sigma]:
        start = _rough(there.with_sigma(sigma), start, max_iterations)
    return start.on(problem) if coarse is None else from_grid(start, problem)


def _rough(problem: Problem, start: Density, max_iterations: int = 200) -> Density:
    """A minimiser accurate enough for an initial guess. Collective."""
    density = start.on(problem)
    residual = _COARSE_RESIDUAL * energy_scale(problem, first_order(problem, density))
    run = Descent(problem).run(density, residual=residual, max_iterations=max_iterations)
    *_, last = _logged(problem, run)
    return Density(problem, last.density.amplitude())


def _logged(problem: Problem, run: Iterable[Iterate]) -> Iterator[Iterate]:
    """Log the Newton iterations as a table with one line each."""
    unknowns, begun = problem.space.dofmap.index_map.size_global, time.monotonic()
    _LOG.info("minimise: %s unknowns, σ = %g", f"{unknowns:,}", problem.sigma)
    _LOG.info("step             energy   residual      angle    CG   seconds")
    for step, iterate in enumerate(run):
        _LOG.info(
            "%4d %18.12g   %8.1e   %8.1e  %4d  %8.1f",
            *(step, iterate.energy, iterate.residual, iterate.angle, iterate.linear_iterations),
            time.monotonic() - begun,
        )
        yield iterate


class _Search:
    """Newton iterations and their certificate, with the data kept between tolerances."""

    def __init__(
        self,
        problem: Problem,
        tol: float,
        max_iterations: int,
        track_gap: bool,
        callback: Callback | None,
        options: Options | None,
    ) -> None:
        self.problem, self._tol = problem, tol
        self._callback, self._stopped = callback, False
        self._max_iterations, self._track = max_iterations, track_gap
        self._descent = Descent(problem, options)
        self._history: list[Iteration] = []

    def certified(self, density: Density, residual: float) -> Minimum:
        """A minimum, certified if F is convex; the residual is reduced as far as needed."""
        tol = self._tol
        for _ in range(_ROUNDS):
            best = self._reached(density, residual)
            if self._stopped:
                break
            if np.isnan(best.gap) and best.residual > 2.0 * residual:
                raise ConvergenceError(
                    f"ψ changes sign, and |ψ| has a residual of {best.residual:.1e} (requested: "
                    f"{residual:.1e}): refine the mesh; if the residual does not fall, F may have "
                    "no minimum that a mesh can resolve"
                )
            if not best.gap > tol:
                break
            if best.residual > 2.0 * residual:
                raise ConvergenceError(
                    f"ψ changes sign where it is small, and |ψ| has a gap of {best.gap:.1e} (asked "
                    f"for: {tol:.1e}): refine the mesh, or choose a larger tol"
                )
            density, residual = best.density, 0.1 * residual * np.sqrt(tol / best.gap)
        else:
            raise ConvergenceError(
                f"the gap stays at {best.gap:.1e} (requested: {tol:.1e}); choose a larger tol"
            )
        if best.convexity is not Convexity.PROVED and not self._stopped:
            best = self._below_saddles(best, residual)
        warn_if_truncated(self.problem, best.density)
        _LOG.info("%s", best)
        return best

    def _below_saddles(self, best: Minimum, residual: float) -> Minimum:
        """A critical point with its curvature, after leaving saddles for lower points."""
        problem = self.problem
        for departure in range(_DEPARTURES + 1):
            curvature, direction = lowest_curvature(problem, best.density, _CURVATURE)
            scale = energy_scale(problem, first_order(problem, best.density))
            if curvature >= -_CURVATURE * scale:
                certified = best.convexity is Convexity.PROBED
                kind = "global minimum" if certified else "local minimum"
                return replace(best, kind=kind, curvature=curvature)
            if departure == _DEPARTURES:
                break
            _LOG.info("F = %.12g is a saddle (curvature %.3g): leaving it", best.energy, curvature)
            across, along = np.cos(_ANGLE) * best.density.amplitude(), np.sin(_ANGLE) * direction
            both = (Density(problem, psi) for psi in (across + along, across - along))
            lower = [self._reached(density, residual) for density in both]
            found = min(lower, key=lambda minimum: minimum.energy)
            if not found.energy < best.energy:
                break
            best = found
        message = (
            "F = %.12g is a saddle of F^σ, not a minimum: its lowest curvature is %.3g; give other "
            "starts (starts=[...])"
        )
        warn(problem.comm, _LOG, message, *(best.energy, curvature))
        return replace(best, kind="saddle", curvature=curvature)

    def _reached(self, start: Density, residual: float) -> Minimum:
        """The critical point computed to a residual, and its gap."""
        run = self._descent.run(start, residual=residual, max_iterations=self._max_iterations)
        for step, iterate in enumerate(_logged(self.problem, run)):
            if step > 0 or not self._history:
                tracked = self._gap(iterate.density, iterate.condition) if self._track else np.nan
                line = Iteration(
                    energy=iterate.energy,
                    eigenvalue=iterate.condition.eigenvalue,
                    residual=iterate.residual,
                    gap=tracked,
                    angle=iterate.angle,
                    linear_iterations=iterate.linear_iterations,
                )
                self._history.append(line)
                if self._callback is not None and self._callback(line):
                    self._stopped = True
                    break
        return self._minimum(iterate, residual)

    def _gap(self, density: Density, condition: FirstOrder) -> float:
        descent = self._descent
        metric, operator = descent.frozen_metric(condition), descent.hessian.sparse
        return certify_gap(self.problem, density, condition, metric, 0.1 * self._tol, operator)

    def _minimum(self, last: Iterate, residual: float) -> Minimum:
        problem = self.problem
        density = Density(problem, last.density.amplitude())  # positive
        condition = first_order(problem, density)
        if condition.residual > 2.0 * max(residual, last.residual):
            _LOG.info(
                "the discrete minimiser changes sign below what the mesh resolves: residual %.1e "
                "with signs, %.1e without",
                *(last.residual, condition.residual),
            )
        _LOG.info("computing the certificate: the lowest eigenvalue of H[m]")
        shape = convexity(problem.functional, density)
        curvatures = self._descent.hessian.curvatures_at(density)
        if curvatures.min(initial=0.0) < -1e-6 * np.abs(curvatures).max(initial=0.0):
            shape = Convexity.REFUTED
        return Minimum(
            density=density,
            energy=energy(problem, density),
            eigenvalue=condition.eigenvalue,
            residual=condition.residual,
            gap=np.nan if shape is Convexity.REFUTED else self._gap(density, condition),
            convexity=shape,
            iterations=len(self._history) - 1,
            linear_iterations=sum(line.linear_iterations for line in self._history),
            history=tuple(self._history),
        )
