"""One implicit stage of the linear weighted form (W3) of the decomposed equation: φ = e^{−w/2}.

With ρ = e^{−v}, equation (W2) is linear in φ and symmetric in L²(ρ). Given r, v and a, find φ with

    ∫ρ(φ − r)χ/a + (σ²/2)∫ρ∇φ·∇χ + ½∫ρ(G[m] − s)φχ = 0,    m ∝ ρφ²:

This is a third discretisation of the same curve, and it needs no Newton iterations. The boundary is
an outflow, as in :mod:`fem_mf.flows.hjb_operator`: the flux ½σ²ρ∂_nφ stays in the equation. Without
it ∂_nw would be 0 there, and w would have a boundary layer of width 1/|∇v|. The multiplier s
preserves the norm of φ in L²(ρ), so a step of any length is a minimising movement there (D7) and a
is time. ``HJBFlow(..., form="hopf-cole")`` uses it in place of ``HJBStage``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, la
from dolfinx.fem import petsc as fem_petsc

from fem_mf import equations
from fem_mf.density import LogDensity
from fem_mf.flows.hjb_stage import HJBResult
from fem_mf.flows.minimising_movement import MovementUnknown
from fem_mf.mean_field.fixed_point import FixedPoint
from fem_mf.mean_field.moments import MeanField
from fem_mf.mpi import ConvergenceError, global_sum
from fem_mf.observables import flat_scale
from fem_mf.petsc import Options, SpdSolver, mumps
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exponential_measure, set_owned
from fem_mf.typing import Array

__all__ = ["WeightedStage"]

_LOG = logging.getLogger(__name__)
_PREFIX = "fem_mf_weighted_"
_PATIENCE = 10  # evaluations of the fixed point with c, as in fem_mf.flows.schrodinger_stage
_TOLERANCE = 1e-11  # relative tolerance of linear solves
_MOST_UPDATES = 100  # largest number of updates of c at one mean field
# Largest span of v and of w/2: products of two matrix entries must not underflow. Measured on an
# interval, ∇²u is right at 417, wrong by a factor of 7 at 454, and φ is lost at 625.
_MOST_SPAN = -0.5 * float(np.log(np.finfo(np.float64).tiny))

_ADD = la.InsertMode.add
_assemble_matrix: Any = fem_petsc.assemble_matrix


class WeightedStage:
    """Solver of implicit stages; it owns the forms and the linear solver.

    Args:
        problem: the problem, with degree at least 2.
        mean_field: the mean field.
        fixed_point: the fixed-point iteration.
        petsc_options: the user's PETSc options of the linear solver.
    """

    def __init__(
        self,
        problem: Problem,
        mean_field: MeanField,
        fixed_point: FixedPoint,
        petsc_options: Options | None,
    ) -> None:
        self.problem, self.mean_field, self._fixed_point = problem, mean_field, fixed_point
        self._discrete = problem.discretisation
        self._options = petsc_options
        self.unknown = MovementUnknown(mean_field)
        self.drift: fem.Function = self._discrete.new_amplitude()
        self._start: fem.Function = self._discrete.new_amplitude()
        self._work: fem.Function = self._discrete.new_amplitude()
        self._potential: fem.Function = problem.new_potential()
        one: Any = default_scalar_type(1.0)
        self._inertia, self._weight = (fem.Constant(problem.mesh, one) for _ in range(2))
        dx = exponential_measure(problem.mesh, problem.degree, self._discrete.potential_degree)
        chi, phi = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
        v, inertia, a = self.drift, self._inertia, self._weight
        value: Any = default_scalar_type(problem.sigma)
        sigma = fem.Constant(problem.mesh, value)
        ds = ufl.ds(domain=problem.mesh, metadata=dx.metadata())
        form = a * equations.hopf_cole(phi, chi, v, self._potential, sigma, dx, ds)
        self._form: Any = fem.form(form)
        self._norm_form = fem.form(equations.mass(self._work, self._work, dx, v))
        self._load_form = fem.form(equations.mass(inertia * self._start, chi, dx, v))
        self._matrix = fem_petsc.create_matrix(self._form)
        self._right, self._solution = self._matrix.createVecLeft(), self._matrix.createVecRight()
        self._solver: SpdSolver | None = None

    def set_drift(self, v: Array) -> None:
        """Set v by its owned values, up to an additive constant. Collective.

        Raises:
            ConvergenceError: if e^{−v} exceeds the range of floating-point numbers.
        """
        self._check_span("v", v, 1.0)
        set_owned(self.drift, v - self._discrete.min(v))

    def encode(self, w: Array) -> Array:
        """The unknown φ for a given w, by owned values. Collective.

        Raises:
            ConvergenceError: if e^{−w/2} exceeds the range of floating-point numbers.
        """
        self._check_span("w", w, 0.5)
        return np.exp(-0.5 * w)

    def _check_span(self, name: str, values: Array, factor: float) -> None:
        span = self._discrete.max(float(values.max(initial=-np.inf))) - self._discrete.min(values)
        if not factor * span <= _MOST_SPAN:
            raise ConvergenceError(
                f"{name} varies by {span:.4g} on this mesh, and the Hopf–Cole form computes with "
                f"e^{{−{name if factor == 1.0 else name + '/2'}}}, which would be inaccurate or 0 "
                f"beyond {_MOST_SPAN / factor:.4g}: use weighted=False, which has no such limit, "
                "or a smaller mesh"
            )

    def rate_of_w(self, result: HJBResult) -> Array:
        """∂_t w at a solved stage, owned values."""
        return np.asarray(-2.0 * result.rate / result.value)

    def solve(self, start: Array, guess: Array, y: Array, a: float, shift: float) -> HJBResult:
        """Solve one stage, after v has been set. Collective.

        Args:
            start: owned values of r.
            guess: owned values of the initial φ; its norm in L²(ρ) is preserved.
            y: the initial mean field.
            a: the length of the stage, > 0.
            shift: initial guess of s.

        Returns:
            The solution of the stage.

        Raises:
            ConvergenceError: if the fixed point or the linear solver fails, or φ is not positive.
        """
        self._inertia.value = np.asarray(1.0 / (1.0 + a))
        self._weight.value = np.asarray(a / (1.0 + a))
        set_owned(self._start, start)
        self._right.array[:] = assemble_owned(self._load_form, self._work)
        self._solution.array[:] = guess
        evaluation = _Evaluation(self, a, guess, shift)
        try:
            c, unit = evaluation.positive(y)
            record = self._fixed_point.solve(
                evaluation,
                self.unknown.begin(y, c, unit),
                self.unknown,
                stop=replace(self._fixed_point.stop, patience=_PATIENCE),
                slow=self.unknown.slow,
            )
        except ConvergenceError as error:
            _LOG.debug("%s; the multiplier is solved for at every mean field instead", error)
            self._solution.array[:] = guess
            record = self._fixed_point.solve(evaluation.with_multiplier, y, self.mean_field)
        assert evaluation.density is not None
        return HJBResult(
            value=evaluation.phi,
            rate=(evaluation.phi - start) / a,
            density=evaluation.density,
            y=evaluation.moments,
            iterations=record.iterations,
            contraction=record.contraction,
        )

    def norm(self, phi: Array) -> float:
        """‖φ‖ in L²(ρ), given by owned values. Collective."""
        set_owned(self._work, phi)
        square = global_sum(self.problem.comm, fem.assemble_scalar(self._norm_form))
        return float(np.sqrt(square))

    def product_with_start(self, phi: Array) -> float:
        """⟨φ, r⟩ in L²(ρ), given by owned values. Collective."""
        load = np.asarray(self._right.array_r, dtype=np.float64)
        return self._discrete.dot(phi, load) / float(self._inertia.value)

    def _assemble(self, potential: Array) -> None:
        self._potential.x.array[:] = potential
        self._matrix.zeroEntries()
        _assemble_matrix(self._matrix, self._form)
        self._matrix.assemble()


class _Evaluation:
    """The map z -> T(z): potential of y plus c, linear solve, mean field of the new density."""

    def __init__(self, stage: WeightedStage, a: float, guess: Array, shift: float) -> None:
        self.stage, self._a, self._shift = stage, a, shift
        self._norm = stage.norm(guess)
        self._stretch = 1.0
        self.density: LogDensity | None = None
        self.moments, self.phi = np.empty(0), guess

    def positive(self, y: Array) -> tuple[float, float]:
        """A value of c for which the operator is positive at y, and the unit of c. Collective."""
        stage, problem = self.stage, self.stage.problem
        lowest = problem.discretisation.min(stage.mean_field.potential(y) - stage.mean_field.base)
        unit = 2.0 / self._a + max(self._shift - lowest, flat_scale(problem))
        return max(2.0 / self._a - self._shift, 1.0 / self._a - lowest), unit

    def __call__(self, z: Array, previous: float) -> Array:
        y, c = self.stage.unknown.split(z)
        c = self._solve(y, c)
        self._measure()
        return self.stage.unknown.join(self.moments, c, y)

    def with_multiplier(self, y: Array, previous: float) -> Array:
        """The map y -> T(y), with the norm of φ preserved at every y.

        Where the operator is positive, ‖φ‖ decreases in c and has the required value at exactly
        one c; a bracket around it makes the updates of c safe from any initial value.
        """
        c, unit = self.positive(y)
        low, high = -np.inf, np.inf
        for _ in range(_MOST_UPDATES):
            try:
                better = self._solve(y, c)
            except ConvergenceError:
                low, better = c, np.inf
            else:
                if abs(better - c) <= 10.0 * _TOLERANCE * unit:  # accuracy of the linear solves
                    break
                low, high = (c, high) if self._stretch > 1.0 else (low, c)
            if not low < better < high:
                better = 0.5 * (low + high) if np.isfinite(low + high) else c + unit
            c = better
        else:
            raise ConvergenceError(
                "the multiplier of a weighted stage did not converge: use a smaller dt, a finer "
                "mesh, or scheme='backward-euler', which takes longer steps than 'sdirk2'"
            )
        self._measure()
        return self.moments

    def _solve(self, y: Array, c: float) -> float:
        """Set φ to the solution at y and c, scaled to the given norm; return a better c."""
        stage, problem = self.stage, self.stage.problem
        stage._assemble(stage.mean_field.potential(y) - stage.mean_field.base + c)
        if stage._solver is None:
            defaults = {"ksp_type": "cg", "pc_type": "lu", **mumps(problem.dim)}
            stage._solver = SpdSolver(stage._matrix, _PREFIX, defaults, stage._options)
        stage._solver.solve(stage._right, stage._solution, _TOLERANCE)
        phi = np.array(stage._solution.array_r, dtype=np.float64)
        if not problem.discretisation.min(phi) > 0.0:
            stage._solution.array[:] = self.phi
            raise ConvergenceError(
                "φ is not positive: use a smaller dt, a finer mesh, or scheme='backward-euler', "
                "which takes longer steps than 'sdirk2'"
            )
        self._stretch = stage.norm(phi) / self._norm
        self.phi = phi / self._stretch
        overlap = stage.product_with_start(self.phi) / self._norm**2
        return c + 2.0 / self._a * overlap * (1.0 - 1.0 / self._stretch)

    def _measure(self) -> None:
        """Compute the density of φ and its mean field."""
        stage, problem = self.stage, self.stage.problem
        u = stage.drift.x.array[: problem.discretisation.num_owned] - 2.0 * np.log(self.phi)
        self.density = LogDensity(problem, u)
        self.moments = stage.mean_field.evaluate(self.density)
