"""The response of the moments of m to the potential: the linear algebra of a Newton step.

With (2/a + H − s)ψ = (2/a) r and m = ψ²/‖ψ‖², a change Σ_j δw_j Q_j of V changes the moments by
−R δw, R_ij = 2⟨Q_iψ, z_j⟩ − 2 y_i ⟨ψ, z_j⟩ with (2/a + H − s) z_j = Q_jψ and ψ normalised.
"""

from __future__ import annotations

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from fem_mf.closure import MomentClosure
from fem_mf.density import Density
from fem_mf.features import Array
from fem_mf.operators import PotentialOperator
from fem_mf.parallel import global_sum
from fem_mf.problem import Problem
from fem_mf.solvers import SpdSolver
from fem_mf.spaces import owned_values

__all__ = ["response"]

_STRONG = 0.01  # contraction factor of one feature that is worth a Newton correction


def response(
    problem: Problem,
    closure: MomentClosure,
    operator: PotentialOperator,
    density: Density,
    solver: SpdSolver,
    vectors: tuple[PETSc.Vec, PETSc.Vec],
    *,
    y: Array,
    a: float,
) -> Array:
    """R, ``(r, r)``; columns of features too weak to matter are left zero. Collective.

    Args:
        problem: the problem.
        closure: the moments.
        operator: assembled at y.
        density: ψ at y, normalised.
        solver: of the operator.
        vectors: a work vector for right-hand sides, and one to make the solutions' like.
        y: the mean field.
        a: the stage's step.
    """
    right, z = vectors[0], vectors[1].duplicate()
    psi = density.amplitude()
    loads = operator.basis_loads(psi)
    mass, moments = problem.apply_mass(psi), operator.order(density)
    columns = np.zeros((len(loads), len(loads)))
    for j in _strong(closure, density, y, a):
        right.array[:] = loads[j]
        z.set(0.0)
        solver.solve(right, z, 1e-3, typical=False)
        values = owned_values(z)
        columns[:, j] = [values @ load for load in loads]
        columns[:, j] -= moments * (values @ mass)
    z.destroy()
    return 2.0 * global_sum(problem.comm, columns)


def _strong(closure: MomentClosure, density: Density, y: Array, a: float) -> npt.NDArray[np.intp]:
    """Features whose potential a step can feel: the others contract without Newton's help."""
    # R_jj is at most 2a ∫Q_j² dm, since the operator is at least 1/a.
    bound = 2.0 * a * closure.second_moments(density)
    return np.flatnonzero(bound * np.abs(np.diag(closure.stiffness(y))) > _STRONG)
