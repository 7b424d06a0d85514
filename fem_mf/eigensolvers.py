"""Lowest eigenpairs of symmetric operators: the only module that touches SLEPc's EPS.

    start = np.random.default_rng(0).standard_normal((2, problem.num_owned))
    states = lowest_states(
        matrix, problem.mass_matrix, preconditioner.apply, start, tolerance=1e-6
    )
    states.values, states.vectors

LOBPCG (Knyazev 2001) with the caller's preconditioner and start: a block that contains a good
approximation of the ground state costs a few applications of each operator, and no factorisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from petsc4py import PETSc
from slepc4py import SLEPc

import numpy as np

from fem_mf.errors import ConvergenceError

__all__ = ["LEAST_UNKNOWNS", "States", "lowest_states", "shell_matrix"]

_MAX_ITERATIONS = 2000
LEAST_UNKNOWNS = 5  # per eigenpair; SLEPc's bound


@dataclass(frozen=True)
class States:
    """Eigenpairs Ax = μBx in increasing order.

    Attributes:
        values: Rayleigh quotients μ, each above the eigenvalue that it approximates.
        vectors: owned values of x, normalised to ⟨x, Bx⟩ = 1.
        iterations: of LOBPCG.
    """

    values: list[float]
    vectors: list[Any]
    iterations: int


class _Shell:
    """A Python function as a PETSc matrix or preconditioner."""

    def __init__(self, apply: Callable[[PETSc.Vec, PETSc.Vec], None]) -> None:
        self._apply = apply

    def mult(self, matrix: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self._apply(x, y)

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self._apply(x, y)


def shell_matrix(like: PETSc.Mat, apply: Callable[[PETSc.Vec, PETSc.Vec], None]) -> PETSc.Mat:
    """A symmetric matrix known by its action, with the layout of another. Collective."""
    sizes: Any = like.getSizes()
    shell = PETSc.Mat().createPython(sizes, context=_Shell(apply), comm=like.comm)
    symmetric: Any = PETSc.Mat.Option.SYMMETRIC
    shell.setOption(symmetric, True)
    shell.setUp()
    return shell


def lowest_states(
    matrix: PETSc.Mat,
    mass: PETSc.Mat,
    precondition: Callable[[PETSc.Vec, PETSc.Vec], None],
    start: Sequence[Any],
    *,
    tolerance: float,
    deflate: Sequence[Any] = (),
) -> States:
    """The lowest eigenpairs of Ax = μBx. Collective.

    Args:
        matrix: A, symmetric.
        mass: B, symmetric and positive definite on the span of the start vectors.
        precondition: ``(r, z)``, overwrites z with an approximation of (A − s)⁻¹r.
        start: owned values of one start vector per wanted pair; what they are orthogonal to is not
            found, so they should be generic.
        tolerance: absolute, of the Euclidean norm of the load vector Ax − μBx.
        deflate: owned values of vectors to whose B-orthogonal complement the search is confined.

    Returns:
        As many pairs as start vectors.

    Raises:
        ValueError: a handful of unknowns, fewer than LOBPCG's own work space.
        ConvergenceError: LOBPCG did not reach the tolerance.
    """
    size = matrix.getSize()[0]
    if size < LEAST_UNKNOWNS * len(start):
        raise ValueError(
            f"{size} degrees of freedom are too few for {len(start)} eigenpairs: refine the mesh"
        )
    vectors = [_vector(matrix, values) for values in start]
    others = [_vector(matrix, values) for values in deflate]
    iterations = 0
    # LOBPCG is the faster; where its block becomes singular, Davidson's method goes on without it.
    for method in (SLEPc.EPS.Type.LOBPCG, SLEPc.EPS.Type.GD):
        eps = _solver(matrix, mass, precondition, method, len(start), tolerance)
        eps.setInitialSpace(vectors)
        if others:
            eps.setDeflationSpace(others)
        try:
            eps.solve()
            found, iterations = int(eps.getConverged()), int(eps.getIterationNumber())
        except (PETSc.Error, SystemError):
            found = 0
        if found >= len(start):
            break
        eps.destroy()
    else:
        raise ConvergenceError(
            f"LOBPCG and Davidson's method found {found} of {len(start)} eigenpairs to "
            f"{tolerance:.1e} in {iterations} iterations; a stronger preconditioner helps "
            "(-fem_mf_stationary_pc_type cholesky "
            "-fem_mf_stationary_pc_factor_mat_solver_type mumps)"
        )
    values, states = [], []
    x = matrix.createVecRight()
    for i in range(len(start)):
        values.append(float(np.real(eps.getEigenpair(i, x))))
        states.append(np.array(x.array, dtype=np.float64))
    for item in (eps, x, *vectors, *others):
        item.destroy()
    return States(values, states, iterations)


def _solver(
    matrix: PETSc.Mat,
    mass: PETSc.Mat,
    precondition: Callable[[PETSc.Vec, PETSc.Vec], None],
    method: str,
    count: int,
    tolerance: float,
) -> SLEPc.EPS:
    eps = SLEPc.EPS().create(matrix.comm)
    eps.setOperators(matrix, mass)
    eps.setProblemType(SLEPc.EPS.ProblemType.GHEP)
    eps.setType(method)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.SMALLEST_REAL)
    eps.setDimensions(count)
    eps.setTolerances(tolerance, _MAX_ITERATIONS)
    eps.setConvergenceTest(SLEPc.EPS.Conv.ABS)
    transform = eps.getST()
    transform.setType(SLEPc.ST.Type.PRECOND)
    inner = transform.getKSP()
    inner.setType(PETSc.KSP.Type.PREONLY)
    inner.getPC().setType(PETSc.PC.Type.PYTHON)
    inner.getPC().setPythonContext(_Shell(precondition))
    return eps


def _vector(matrix: PETSc.Mat, values: Any) -> PETSc.Vec:
    vector = matrix.createVecRight()
    vector.array[:] = values
    return vector
