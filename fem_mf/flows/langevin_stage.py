"""One step of the mean-field Langevin flow (L1) by edge-averaged finite elements.

A step of length dt from mⁿ solves (M/dt + L(V[m])) m = M mⁿ/dt with the lumped mass M and the
edge-averaged L of :mod:`fem_mf.flows.edge_averaged`; an infinite step gives the minimiser, m ∝
e^{−φ}. The fixed-point iteration on the mean field contains linear solves. Newton's method for it
is exact, since R comes from the derivative of L. A potential βm depends on m pointwise and would
need a Newton correction for each vertex; it is instead linearised within each evaluation, where it
couples the same edges.

    stage = LangevinStage(problem, mean_field, FixedPoint(Anderson(), StopTest()))
    result = stage.solve(m, y, dt)
"""

from __future__ import annotations

from petsc4py import PETSc

import numpy as np
from scipy.special import wrightomega

from fem_mf.density import WorkDensity
from fem_mf.flows.edge_averaged import EdgeOperator
from fem_mf.flows.tableau import StageResult
from fem_mf.functionals.terms import Contact, flatten
from fem_mf.mean_field.fixed_point import Accelerator, Anderson, FixedPoint, Picard
from fem_mf.mean_field.moments import MeanField, Moments
from fem_mf.mean_field.newton import Newton
from fem_mf.mpi import ConvergenceError, global_sum
from fem_mf.petsc import Options, SpdSolver
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.typing import Array

__all__ = ["LangevinStage", "default_accelerator"]

_FLOOR = 1e-300  # m is kept above this multiple of its maximum, so that log m is finite
# In three dimensions a factorisation, repeated for every V, takes 10 times as long at 30k dofs.
_DIRECT_DOFS = {1: 10_000_000, 2: 500_000, 3: 3_000}
_UNSOLVED = 1e-6  # relative residual above which a linear system counts as unsolved

_RTOL = 1e-12  # relative tolerance of iterative linear solves
_PREFIX = "fem_mf_langevin_"


class LangevinStage:
    """Solver of steps; it owns the edge operator and the linear solver.

    Args:
        problem: the problem, with degree 1 and lumped mass.
        mean_field: the mean field.
        fixed_point: the fixed-point iteration.
        options: the user's PETSc options.

    Attributes:
        clipped: mass that the last step added to keep m above the bound from mⁿ and the M-matrix.
    """

    def __init__(
        self,
        problem: Problem,
        mean_field: MeanField,
        fixed_point: FixedPoint,
        options: Options | None = None,
    ) -> None:
        self.problem, self.mean_field, self.edges = problem, mean_field, EdgeOperator(problem)
        self._discrete = problem.discretisation
        self._fixed_point, self._options = fixed_point, options or {}
        newton = fixed_point.accelerator
        self._newton = newton if isinstance(newton, Newton) else None
        if self._newton is not None and isinstance(mean_field, Moments):
            self._newton.bind(self._response, mean_field.stiffness)
        self._beta = _contact(problem)
        self._constant = mean_field.basis is not None and mean_field.basis.shape[1] == 0
        self._solver: SpdSolver | None = None
        self._right, self._solution, self._work = (
            self.edges.matrix.createVecRight() for _ in range(3)
        )
        self._density = WorkDensity(problem, np.ones(self._discrete.num_owned))
        self._start = self._m = self._at = self._moments = np.empty(0)
        self._dt, self._assembled, self.clipped, self._iterations = 0.0, 0.0, 0.0, 0

    def solve(self, start: Array, y: Array, dt: float) -> StageResult:
        """Solve one step; the value is m⁺, with mass one. Collective.

        Args:
            start: mⁿ, owned values with mass one.
            y: the initial mean field.
            dt: length of the step, > 0; ∞ gives the minimiser, independent of mⁿ.

        Raises:
            ConvergenceError: if the fixed point or the linear solver fails.
        """
        self._start, self._dt, self._iterations, self.clipped = start, dt, 0, 0.0
        if self._newton is not None:
            self._newton.rescale(dt)
        record = self._fixed_point.solve(self._evaluate, y, self.mean_field)
        return StageResult(
            value=self._m,
            y=self._moments,
            iterations=record.iterations,
            contraction=record.contraction,
            linear_iterations=self._iterations,
        )

    def _evaluate(self, y: Array, previous: float) -> Array:
        """T(y): the mean field at the end of the step in the potential of y."""
        problem = self.problem
        discrete = problem.discretisation
        potential = self.mean_field.potential(y)[: discrete.num_owned]
        m = self._gibbs(potential, y) if np.isinf(self._dt) else self._step(potential, y)
        m = np.maximum(m, _FLOOR * discrete.max(m.max(initial=0.0)))
        self._m, self._at = m / discrete.dot(discrete.mass_diagonal, m), y
        self._density.set_amplitude(np.sqrt(self._m))
        self._moments = self.mean_field.evaluate(self._density)
        return self._moments

    def _step(self, potential: Array, y: Array) -> Array:
        """Solve (M/dt + L(V)) m = M mⁿ/dt, with V of contact terms linearised around m = y."""
        problem, edges, solution = self.problem, self.edges, self._solution
        discrete = problem.discretisation
        inertia = discrete.mass_diagonal / self._dt
        self._right.array[:] = inertia * self._start
        if self._beta > 0.0:
            edges.set_potential(potential)
            contact = self._beta * edges.mobility(np.maximum(y, 0.0))
            self._right.array[:] -= edges.sum(contact * edges.rise(y))
            edges.assemble(inertia, contact)
        elif not (self._constant and self._dt == self._assembled):
            edges.set_potential(potential)
            edges.assemble(inertia)
            self._assembled = self._dt
        if self._solver is None:
            defaults = _defaults(problem, _PREFIX, self._options)
            self._solver = SpdSolver(edges.matrix, _PREFIX, defaults, self._options)
        solution.array[:] = self._start
        self._iterations += self._solver.solve(self._right, solution, _RTOL)
        self._verify()
        m = owned_values(solution)
        # What remains of mⁿ without inflow: an exact solution is never below it.
        least = np.maximum(m, inertia * self._start / (inertia + edges.sum(edges.leave)))
        self.clipped = discrete.dot(discrete.mass_diagonal, least - m)
        return least

    def _verify(self) -> None:
        """Check the residual: a preconditioner may have been applied as if it were a solver."""
        self.edges.matrix.mult(self._solution, self._work)
        residual = np.abs(self._work.array - self._right.array).sum()
        scale = np.abs(self.edges.diagonal * owned_values(self._solution)).sum()
        residual, scale = global_sum(self.problem.comm, [residual, scale])
        if not residual <= max(_UNSOLVED, 10.0 * _RTOL) * scale:
            raise ConvergenceError(
                f"the linear solver {_PREFIX} left a residual of {residual / scale:.1e}; "
                "choose another solver (ksp_type and pc_type), or a smaller dt"
            )

    def _gibbs(self, potential: Array, y: Array) -> Array:
        """The m for which (σ²/2) log m + V is constant, with V of contact terms taken at m."""
        problem, s, beta = self.problem, self.edges.temperature, self._beta
        discrete = problem.discretisation
        if beta > 0.0:
            potential = potential - beta * y
        exponent = (discrete.min(potential) - potential) / s
        if beta == 0.0:
            return np.asarray(np.exp(exponent))
        # s log m + βm = c − V has the solution m = (s/β) ω((c − V)/s − log(s/β)), ω + log ω = x.
        # The logarithm of its mass is concave in c and c starts below, so Newton is monotone.
        exponent += np.log(beta / s / discrete.dot(discrete.mass_diagonal, np.exp(exponent)))
        for _ in range(100):
            m = s / beta * wrightomega(exponent)
            mass = discrete.dot(discrete.mass_diagonal, m)
            if mass >= 1.0 - 1e-13:
                break
            slope = discrete.dot(discrete.mass_diagonal, m / (1.0 + m * beta / s))
            exponent -= np.log(mass) * mass / slope
        return np.asarray(m)

    def _response(self, y: Array) -> Array:
        """R at y, ``(r, r)``: minus the derivative of T by the potential's coefficients w."""
        assert isinstance(self.mean_field, Moments) and self.mean_field.basis is not None
        if not np.array_equal(y, self._at):
            self._evaluate(y, np.inf)
        if np.isinf(self._dt):
            return self.mean_field.covariance(self._density) / self.edges.temperature
        assert self._solver is not None
        problem, edges, solution = self.problem, self.edges, self._solution
        basis, mobility = (
            self.mean_field.basis[: problem.discretisation.num_owned],
            edges.mobility(self._m),
        )
        local = np.zeros((y.size, y.size))
        for column, feature in enumerate(basis.T):
            self._right.array[:] = -edges.sum(mobility * edges.rise(feature))
            solution.set(0.0)
            self._solver.solve(self._right, solution, 1e-3, typical=False)
            local[:, column] = (
                problem.discretisation.mass_diagonal * owned_values(solution)
            ) @ basis
        return global_sum(problem.comm, local)


def default_accelerator(problem: Problem, mean_field: MeanField) -> Accelerator:
    """The accelerator that needs the fewest evaluations for the terms of F."""
    if isinstance(mean_field, Moments):
        return Newton()
    others = [term for _, term in flatten(problem.functional) if not isinstance(term, Contact)]
    if _contact(problem) > 0.0 and all(getattr(term, "linear", False) for term in others):
        return Picard()  # its steps are Newton steps, half as many as with Anderson
    return Anderson(depth=3)  # a larger depth converges more slowly from a distant start


def _contact(problem: Problem) -> float:
    """The sum of β over all contact terms, which is linearised; 0 if it would be negative."""
    terms = flatten(problem.functional)
    return max(sum(factor * f.beta for factor, f in terms if isinstance(f, Contact)), 0.0)


def _defaults(problem: Problem, prefix: str, chosen: Options) -> dict[str, str | int | float]:
    """LU if affordable; otherwise, or if the user chose a preconditioner, BiCGStab."""
    own = "pc_type" in chosen or PETSc.Options(prefix).hasName("pc_type")
    dofs: int = problem.space.dofmap.index_map.size_global
    if own or dofs > _DIRECT_DOFS[problem.dim]:
        return {"ksp_type": "bcgs", "pc_type": "bjacobi", "sub_pc_type": "ilu"}
    return {
        "ksp_type": "preonly",
        "pc_type": "lu",
        "pc_factor_mat_solver_type": "mumps",
        "mat_mumps_icntl_7": 2,  # approximate minimum fill
        # The diagonal of an M-matrix is always a good pivot. With no other pivots, numbers of
        # opposite sign are added only on it, so m has relative precision even where it is tiny.
        "mat_mumps_icntl_6": 0,
        "mat_mumps_icntl_8": 0,
        "mat_mumps_cntl_1": 0.0,
    }
