"""The certificate (C1): a bound on the energy error from the ground state of H[m].

    gap(problem, density)    # ≥ F^σ(m) − min F^σ ≥ 0 for convex F and any density

The bound includes the error of the eigenvalue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petsc4py import PETSc

import numpy as np

from fem_mf.density import Density
from fem_mf.hamiltonian import Hamiltonian
from fem_mf.mpi import ConvergenceError, positive
from fem_mf.observables import FirstOrder, dual_norm, energy_scale, first_order, flat_scale
from fem_mf.petsc import (
    LEAST_UNKNOWNS,
    Options,
    Preconditioner,
    States,
    default_preconditioner,
    lowest_states,
    stage,
)
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.typing import Array

__all__ = [
    "LowestPairs",
    "Metric",
    "certify_gap",
    "gap",
    "kinetic_rounding",
    "prepare",
    "smooth_guess",
]

_PREFIX = "fem_mf_stationary_"
# A state with ⟨ψ̂, |ψ̂|⟩ < 1 − this number changes sign and is not the ground state.
_SIGN = 1e-3
_ROUNDING = 1e-14  # relative error of a Rayleigh quotient
_TIGHTER = 5
_MOST_STATES = 6  # largest number of states: a cluster and the state above it
# Direction of the guess of an excited state; irrational, so that no symmetry of F spoils it.
_DIRECTION = np.array([1.0, np.sqrt(2.0) - 1.0, np.sqrt(3.0) - 1.0])


class Metric:
    """P = σ²A + ∫Vψχ − sM with s below min V, applied by a factorisation or a preconditioner.

    Args:
        problem: the problem.
        options: the user's PETSc options (``-fem_mf_stationary_...`` on the command line).
    """

    def __init__(self, problem: Problem, options: Options | None = None) -> None:
        self.problem, self._options = problem, options
        self._operator = Hamiltonian(problem)
        self._preconditioner: Preconditioner | None = None
        self._right = self._operator.matrix.createVecLeft()
        self._solution = self._operator.matrix.createVecRight()

    @property
    def applications(self) -> int:
        """Number of applications of the preconditioner."""
        return 0 if self._preconditioner is None else self._preconditioner.applications

    def rebuild(
        self,
        potential: Array,
        eigenvalue: float,
        margin: float = 0.1,
        assembled: Hamiltonian | None = None,
        shift: float = np.inf,
    ) -> None:
        """Rebuild P for V (on the potential space), shifted to be positive. Collective.

        Args:
            potential: V.
            eigenvalue: λ ≥ min V, which sets the scale.
            margin: distance of s from min V, in units of λ − min V.
            assembled: an operator that may already be assembled with this V.
            shift: the largest admissible s, −c for a minimising movement (D7).
        """
        problem = self.problem
        lowest = problem.discretisation.min(potential)
        spread = max(eigenvalue - lowest, flat_scale(problem))
        if assembled is None or assembled.potential is not potential:
            assembled = self._operator
            assembled.update(potential)
        self._operator.shifted(assembled, min(lowest - margin * spread, shift))
        if self._preconditioner is not None:
            self._preconditioner.rebuild()
            return
        dofs = problem.space.dofmap.index_map.size_global
        self._preconditioner = Preconditioner(
            self._operator.matrix, _PREFIX, default_preconditioner(dofs, problem.dim), self._options
        )

    def apply(self, right: PETSc.Vec, solution: PETSc.Vec) -> None:
        """Overwrite ``solution`` with P⁻¹ times ``right``. Collective."""
        assert self._preconditioner is not None
        self._preconditioner.apply(right, solution)

    def solve(self, load: Array) -> Array:
        """Apply P⁻¹ to a load vector; return owned values. Collective."""
        self._right.array[:] = load
        self.apply(self._right, self._solution)
        return np.array(self._solution.array, dtype=np.float64)


@stage("certificate")
def certify_gap(
    problem: Problem,
    density: Density,
    condition: FirstOrder,
    metric: Metric,
    tolerance: float,
    operator: Hamiltonian | None = None,
) -> float:
    """The gap (C1), with the eigenvalue known to ``tolerance``. Collective.

    Two states are computed: the second bounds the error of the first, and the first must be
    positive, since only the ground state is. If wells of V make the lowest eigenvalues almost
    equal, more states are added, and the first state above the cluster gives the bound.

    Args:
        problem: the problem.
        density: m.
        condition: its first-order data.
        metric: a preconditioner of H[m].
        tolerance: tolerance of λ₀, > 0; its error bound (Kato and Temple) is added to the result.
        operator: workspace; its matrix is overwritten.

    Returns:
        An upper bound of F^σ(m) − min F^σ over the discrete densities, for convex F.

    Raises:
        ConvergenceError: if the eigensolver fails, or its lowest state is not positive.
    """
    operator = Hamiltonian(problem) if operator is None else operator
    operator.update(condition.potential)
    pairs = LowestPairs(
        metric, operator.matrix, [density.amplitude(), smooth_guess(problem, metric, 1)]
    )
    spread = energy_scale(problem, condition)
    tolerance = max(tolerance, _ROUNDING * abs(condition.eigenvalue))
    # The excited state is only needed roughly, and the ground state is often known already.
    sharp = float(np.sqrt(tolerance * spread))
    pairs.solve(0.02 * spread)
    error, cluster = pairs.lowest_error()
    for _ in range(_MOST_STATES - 1):
        for i in range(_TIGHTER):
            if error <= tolerance:
                break
            pairs.solve(sharp * 0.1**i)
            error, cluster = pairs.lowest_error()
        if error <= tolerance or not pairs.grow():
            break
    if error > tolerance:
        raise ConvergenceError(
            f"λ₀ is only known to {error:.1e}, not to {tolerance:.1e}; choose a larger tol"
        )
    if _sign(density, pairs.states[:cluster]) < 1.0 - _SIGN:
        raise ConvergenceError(
            "the lowest eigenfunction of H[m] changes sign: the mesh is too coarse for the ground "
            "state; refine it"
        )
    rounding = _ROUNDING * max(abs(condition.eigenvalue), spread)
    return max(condition.eigenvalue - pairs.values[0], 0.0) + error + rounding


def _sign(density: Density, states: list[Array]) -> float:
    """⟨ψ̂, |ψ̂|⟩/‖ψ̂‖², with ψ̂ the lowest state or ψ projected on several. Collective."""
    discrete, ground = density.problem.discretisation, states[0]
    if len(states) > 1:
        load = density.mass_amplitude()
        ground = np.sum([state * discrete.dot(state, load) for state in states], axis=0)
    mass = discrete.apply_mass(ground)
    return abs(discrete.dot(np.abs(ground), mass)) / discrete.dot(ground, mass)


class LowestPairs:
    """The lowest eigenpairs of a symmetric matrix, computed to successive tolerances.

    Args:
        metric: a preconditioner of the matrix.
        matrix: the matrix; its values must not change.
        states: owned values of one initial vector per pair.
        deflate: vectors to whose complement the search is restricted.

    Attributes:
        values: Rayleigh quotients, ascending.
        residuals: L² norms of their residuals.
        states: owned values of the states, with norm one.
    """

    def __init__(
        self, metric: Metric, matrix: PETSc.Mat, states: list[Array], deflate: Sequence[Array] = ()
    ) -> None:
        self.problem, self._metric, self._matrix = metric.problem, metric, matrix
        self._mass = _aij_mass(metric.problem)
        self.states, self._deflate = states, list(deflate)
        self.values: list[float] = []
        self.residuals: list[float] = []

    def grow(self) -> bool:
        """Add a state to the computed ones if the space is large enough. Collective."""
        states = len(self.states) + 1
        if self.problem.space.dofmap.index_map.size_global < LEAST_UNKNOWNS * states:
            return False
        self.states.append(smooth_guess(self.problem, self._metric, states - 1))
        return True

    def solve(self, residual: float) -> None:
        """Compute the pairs to residuals of about ``residual`` or smaller. Collective."""
        discrete = self.problem.discretisation
        found = self._lowest(self.states, residual, self._deflate)
        self.values, self.states, self.residuals = found.values, found.vectors, []
        x, y = self._matrix.createVecRight(), self._matrix.createVecLeft()
        for value, state in zip(found.values, found.vectors, strict=True):
            x.array[:] = state
            self._matrix.mult(x, y)
            load = owned_values(y) - value * discrete.apply_mass(state)
            load[discrete.constrained] = 0.0
            self.residuals.append(dual_norm(self.problem, load))

    def another(self, residual: float, number: int) -> States:
        """The lowest state orthogonal to the known ones, from another start. Collective."""
        start = smooth_guess(self.problem, self._metric, number)
        return self._lowest([start], residual, [*self._deflate, *self.states])

    def _lowest(self, start: list[Array], residual: float, deflate: list[Array]) -> States:
        euclidean = residual * float(np.sqrt(self.problem.discretisation.mean_mass))
        return lowest_states(
            *(self._matrix, self._mass, self._metric.apply, start),
            tolerance=euclidean,
            deflate=deflate,
        )

    def error(self, k: int) -> float:
        """A bound on the error of the k-th value (Weinstein, or Kato and Temple)."""
        values, residuals = self.values, self.residuals
        error = residuals[k]
        if k + 1 < len(values):
            separation = values[k + 1] - residuals[k + 1] - values[k]
            if separation > 0.0:
                error = min(error, residuals[k] ** 2 / separation)
        return error

    def lowest_error(self) -> tuple[float, int]:
        """A bound on the error of λ₀, and the number of states in its cluster.

        The first j Ritz values are exact up to the sum of their squared residuals divided by their
        distance from the rest of the spectrum (Kato and Temple for j = 1; Parlett 1998, ch. 11),
        which is at least θ_j minus its own residual (Weinstein). The best j is used.
        """
        best = np.inf, 1
        for j in range(1, len(self.values)):
            separation = self.values[j] - self.residuals[j] - self.values[j - 1]
            if separation > 0:
                best = min(best, (sum(r**2 for r in self.residuals[:j]) / separation, j))
        return float(best[0]), best[1]


def _aij_mass(problem: Problem) -> PETSc.Mat:
    """The mass matrix in the format that SLEPc needs, even if it is diagonal. Collective."""
    if not problem.lumped:
        return problem.mass_matrix
    sizes: Any = problem.mass_matrix.getSizes()
    matrix = PETSc.Mat().createAIJ(sizes, nnz=1, comm=problem.comm)
    matrix.setDiagonal(problem.mass_matrix.getDiagonal())
    matrix.assemble()
    return matrix


def smooth_guess(problem: Problem, metric: Metric, number: int) -> Array:
    """P⁻¹ of a smooth asymmetric function, which overlaps with every low state. Collective.

    It covers the mesh and does not depend on ψ, which may be negligible where a state is located.
    """
    discrete, dim = problem.discretisation, problem.dim
    x = discrete.owned_nodes[:dim]
    low = np.array([discrete.min(row) for row in x])
    high = np.array([-discrete.min(-row) for row in x])
    phase = _DIRECTION[:dim] @ ((x.T - low) / (high - low)).T
    wave = 1.0 + np.cos(3.1 * number * phase + 0.4) + np.sin(7.3 * number * phase + 1.7 * number)
    return metric.solve(discrete.apply_mass(wave))


def kinetic_rounding(density: Density) -> float:
    """Rounding error of σ²⟨ψ, Aψ⟩, where sums cancel on fine meshes. Collective."""
    problem, psi = density.problem, density.amplitude()
    diagonal = owned_values(problem.stiffness.getDiagonal())
    sums = problem.sigma**2 * problem.discretisation.dot(diagonal * psi, psi)
    return float(np.finfo(float).eps * sums)


def prepare(problem: Problem, density: Density, tolerance: float) -> tuple[FirstOrder, Metric]:
    """The first-order condition and a metric, needed for every eigenvalue. Collective."""
    positive("tolerance", tolerance)
    condition = first_order(problem, density)
    metric = Metric(problem)
    metric.rebuild(condition.potential, condition.eigenvalue)
    return condition, metric


def gap(problem: Problem, density: Density, *, tolerance: float = 1e-12) -> float:
    """The gap (C1), ⟨ψ, H[m]ψ⟩ − λ₀(H[m]) ≥ F^σ(m) − min F^σ for convex F. Collective.

    It bounds the distance to the minimum over the *discrete* densities of this problem. The caller
    must know whether F is convex (see :func:`fem_mf.functionals.probe_convexity`).

    Args:
        problem: the problem.
        density: m.
        tolerance: tolerance of λ₀; its error bound is added to the result.

    Raises:
        ConvergenceError: if the eigensolver fails, or its lowest state is not positive.
    """
    condition, metric = prepare(problem, density, tolerance)
    return certify_gap(problem, density, condition, metric, tolerance)
