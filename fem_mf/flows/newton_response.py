"""The response of a movement's fixed point to the potential: linear algebra of a Newton step.

With (c + H[y]) ψ̂ = (2/a) r, n = ‖ψ̂‖ and ψ = ψ̂/n, a change Σ_j δw_j Q_j + δc of the operator, the
constant being the feature Q_r = 1, changes ψ by −Σ_j δw_j (z_j − ⟨ψ, z_j⟩ψ), (c + H) z_j = Q_jψ.
For the unknown of :mod:`fem_mf.flows.minimising_movement` this is a change −R δw with the rows

    R_ij = 2⟨Q_iψ, z_j⟩ − 2 y_i ⟨ψ, z_j⟩,
    R_rj = ((2/a)(1 − 2/n)(⟨r, z_j⟩ − ⟨ψ, z_j⟩⟨ψ, r⟩) + Σ_i w_i R_ij)/unit.
"""

from __future__ import annotations

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt

from fem_mf.density import Density
from fem_mf.hamiltonian import MeanFieldHamiltonian
from fem_mf.mean_field.moments import Moments
from fem_mf.mpi import global_sum
from fem_mf.petsc import SpdSolver
from fem_mf.problem import Problem
from fem_mf.spaces import owned_values
from fem_mf.typing import Array

__all__ = ["response"]

_STRONG = 0.01  # contraction factor of one feature that is worth a Newton correction


def response(
    problem: Problem,
    mean_field: Moments,
    operator: MeanFieldHamiltonian,
    density: Density,
    solver: SpdSolver,
    vectors: tuple[PETSc.Vec, PETSc.Vec],
    *,
    y: Array,
    a: float,
    anchor: Array,
    norm: float,
    unit: float,
) -> Array:
    """R, ``(r + 1, r + 1)``; columns of features too weak to matter stay zero. Collective.

    Args:
        problem: the problem.
        mean_field: the moments.
        operator: assembled at y.
        density: ψ at y, normalised.
        solver: linear solver for the operator's matrix.
        vectors: a work vector for right-hand sides, and one to make the solutions' like.
        y: the mean field.
        a: the length of the stage.
        anchor: M r.
        norm: n.
        unit: scale of c, see :class:`fem_mf.flows.minimising_movement.MovementUnknown`.
    """
    right, z = vectors[0], vectors[1].duplicate()
    psi, mass = density.amplitude(), density.mass_amplitude()
    loads = [*operator.basis_loads(psi), mass]
    local = np.zeros((len(loads) + 1, len(loads)))
    for j in [*_strong(mean_field, density, y, a), len(loads) - 1]:
        right.array[:] = loads[j]
        z.set(0.0)
        solver.solve(right, z, 1e-3, typical=False)
        values = owned_values(z)
        local[:-1, j] = [values @ load for load in loads]
        local[-1, j] = values @ anchor
    z.destroy()
    products = global_sum(problem.comm, local)
    moments, along = operator.evaluate(density), products[-2]
    rows = 2.0 * (products[:-2] - np.outer(moments, along))
    across = products[-1] - along * problem.discretisation.dot(psi, anchor)
    last = 2.0 / a * (1.0 - 2.0 / norm) * across + mean_field.coefficients(y) @ rows
    return np.vstack((rows, last / unit))


def _strong(mean_field: Moments, density: Density, y: Array, a: float) -> npt.NDArray[np.intp]:
    """Features whose potential a step can feel: the others contract without Newton's help."""
    # R_jj is at most 2a ∫Q_j² dm where the operator is at least 1/a, as in resolved steps.
    bound = 2.0 * a * mean_field.second_moments(density)
    return np.flatnonzero(bound * np.abs(np.diag(mean_field.stiffness(y))) > _STRONG)
