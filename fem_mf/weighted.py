"""One implicit stage of the linear weighted form (W3) of the decomposed equation: φ = e^{−w/2}.

With ρ = e^{−v} equation (W2) is linear in φ and symmetric in L²(ρ). Given r, v and a, find φ with

    ∫ρ(φ − r)χ/a + (σ²/2)∫ρ∇φ·∇χ + ½∫ρ(G[m] − s)φχ = 0,    m ∝ ρφ²:

a third discretisation of the same curve, without Newton iterations, and with a boundary where ρ,
not an assumption about φ, makes the flux vanish. It takes the place of
:class:`fem_mf.hjb_stage.HJBStage` in ``HJBFlow(..., decomposed=True, weighted=True)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, la
from dolfinx.fem import petsc as fem_petsc

from fem_mf.closure import Closure
from fem_mf.errors import ConvergenceError
from fem_mf.features import Array
from fem_mf.fixed_point import Accelerator, StopTest, solve
from fem_mf.hjb_stage import HJBResult
from fem_mf.log_density import LogDensity
from fem_mf.options import Options, mumps
from fem_mf.problem import Problem
from fem_mf.solvers import SpdSolver
from fem_mf.spaces import assemble_owned, exponential_measure, set_owned

__all__ = ["WeightedStage"]

_ADD = la.InsertMode.add
_assemble_matrix: Any = fem_petsc.assemble_matrix
_grad: Any = ufl.grad
_inner: Any = ufl.inner


class WeightedStage:
    """Solves implicit stages; owns the forms, the linear solver and the fixed point.

    Args:
        problem: the problem, of degree 2 at least.
        closure: the mean field.
        accelerator: of the fixed point.
        stop: its stop test.
        safeguard: whether overshooting steps are shortened.
        tolerance: relative, of the linear solves.
        prefix: of the PETSc options.
        options: the user's PETSc options.
    """

    def __init__(
        self,
        problem: Problem,
        closure: Closure,
        *,
        accelerator: Accelerator,
        stop: StopTest,
        safeguard: bool,
        tolerance: float,
        prefix: str,
        options: Options | None,
    ) -> None:
        self.problem, self.closure = problem, closure
        self._accelerator, self._stop, self._safeguard = accelerator, stop, safeguard
        self._tolerance, self._prefix, self._options = tolerance, prefix, options
        self.drift: fem.Function = problem.new_amplitude()
        self._start: fem.Function = problem.new_amplitude()
        self._work: fem.Function = problem.new_amplitude()
        self._potential: fem.Function = problem.new_potential()
        one: Any = default_scalar_type(1.0)
        self._inertia, self._weight = (fem.Constant(problem.mesh, one) for _ in range(2))
        dx = exponential_measure(problem.mesh, problem.degree, problem.potential_degree)
        chi, phi = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
        rho, inertia, a = ufl.exp(-self.drift), self._inertia, self._weight
        diffusion: Any = default_scalar_type(0.5 * problem.sigma**2)
        half = fem.Constant(problem.mesh, diffusion)
        form = rho * (inertia + 0.5 * a * self._potential) * phi * chi * dx
        form += rho * a * half * _inner(_grad(phi), _grad(chi)) * dx
        self._form: Any = fem.form(form)
        self._load_form = fem.form(rho * inertia * self._start * chi * dx)
        self._matrix = fem_petsc.create_matrix(self._form)
        self._right, self._solution = self._matrix.createVecLeft(), self._matrix.createVecRight()
        self._solver: SpdSolver | None = None

    def set_drift(self, v: Array) -> None:
        """Set v by its owned values; only differences count. Collective."""
        set_owned(self.drift, v - self.problem.min(v))

    def encode(self, w: Array) -> Array:
        """The unknown φ of w, by owned values."""
        return np.exp(-0.5 * w)

    def rate_of_w(self, result: HJBResult) -> Array:
        """∂_t w at a solved stage, owned values."""
        return np.asarray(-2.0 * result.rate / result.unknown)

    def solve(self, start: Array, guess: Array, y: Array, a: float, shift: float) -> HJBResult:
        """Solve one stage; v has been set. Collective.

        Args:
            start: owned values of r.
            guess: owned values of φ to begin from.
            y: the mean field to begin from.
            a: the stage's step, > 0.
            shift: s; lowered where the operator might not stay positive otherwise.

        Returns:
            The stage's solution.

        Raises:
            ConvergenceError: the fixed point or the linear solver failed, or φ is not positive.
        """
        self._inertia.value = np.asarray(1.0 / (1.0 + a))
        self._weight.value = np.asarray(a / (1.0 + a))
        set_owned(self._start, start)
        self._right.array[:] = assemble_owned(self._load_form, self._work)
        self._solution.array[:] = guess
        evaluation = _Evaluation(self, a, shift)
        record = solve(
            evaluation,
            y,
            accelerator=self._accelerator,
            stop=self._stop,
            unknown=self.closure,
            safeguard=self._safeguard,
        )
        phi = np.array(self._solution.array_r, dtype=np.float64)
        assert evaluation.density is not None
        return HJBResult(
            unknown=phi,
            density=evaluation.density,
            rate=(phi - start) / a,
            y=evaluation.moments,
            record=record,
            newton_iterations=0,
            newton_most=0,
        )

    def _assemble(self, potential: Array) -> None:
        self._potential.x.array[:] = potential
        self._matrix.zeroEntries()
        _assemble_matrix(self._matrix, self._form)
        self._matrix.assemble()


class _Evaluation:
    """The map y -> T(y): potential of y, linear solve, mean field of the new density."""

    def __init__(self, stage: WeightedStage, a: float, shift: float) -> None:
        self.stage, self._a, self._shift = stage, a, shift
        self.density: LogDensity | None = None
        self.moments = np.empty(0)

    def __call__(self, y: Array, previous: float) -> Array:
        stage, problem = self.stage, self.stage.problem
        potential = stage.closure.potential(y) - stage.closure.base
        shift = min(self._shift, problem.min(potential) + 1.0 / self._a)
        stage._assemble(potential - shift)
        if stage._solver is None:
            defaults = {"ksp_type": "cg", "pc_type": "lu", **mumps(problem.dim)}
            stage._solver = SpdSolver(stage._matrix, stage._prefix, defaults, stage._options)
        stage._solver.solve(stage._right, stage._solution, stage._tolerance)
        phi = np.array(stage._solution.array_r, dtype=np.float64)
        if not problem.min(phi) > 0.0:
            raise ConvergenceError("φ is not positive: use a smaller dt or a finer mesh")
        u = stage.drift.x.array[: problem.num_owned] - 2.0 * np.log(phi)
        self.density = LogDensity(problem, u)
        self.moments = stage.closure.order(self.density)
        return self.moments
