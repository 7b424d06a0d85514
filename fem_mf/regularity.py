"""Sup norms of derivatives: what the theory bounds along the flow (theory §4).

    bounds = Regularity(problem)
    bounds.gradient(w)          # ‖∇w‖∞
    bounds.growth(v)            # sup |∇v| / (1 + |x|)
    bounds.hessian(u)           # smallest eigenvalue and largest modulus of ∇²u

Derivatives are taken cell by cell, at the nodes of the element.
"""

from __future__ import annotations

import numpy as np
import ufl
from dolfinx import fem

from fem_mf.features import Array
from fem_mf.problem import Problem
from fem_mf.spaces import set_owned

__all__ = ["Regularity"]


class Regularity:
    """Bounds of functions of the problem's space; forms are compiled once.

    Args:
        problem: the problem, of degree 2 at least.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        mesh = problem.mesh
        self._f: fem.Function = problem.new_amplitude()
        points = problem.space.element.interpolation_points
        x = ufl.SpatialCoordinate(mesh)
        self._gradient = fem.Expression(ufl.grad(self._f), points)
        self._hessian = fem.Expression(ufl.grad(ufl.grad(self._f)), points)
        self._cells = np.arange(
            mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32
        )
        radius = fem.Expression(ufl.sqrt(ufl.inner(x, x)), points).eval(mesh, self._cells)
        self._radius = radius.reshape(-1)

    def _evaluate(self, expression: fem.Expression, values: Array) -> Array:
        problem = self.problem
        set_owned(self._f, values)
        return np.asarray(expression.eval(problem.mesh, self._cells))

    def _slopes(self, values: Array) -> Array:
        return np.linalg.norm(
            self._evaluate(self._gradient, values).reshape(-1, self.problem.dim), axis=1
        )

    def gradient(self, values: Array) -> float:
        """‖∇f‖∞ of a function by its owned values. Collective."""
        return self.problem.max(float(self._slopes(values).max(initial=0.0)))

    def growth(self, values: Array) -> float:
        """sup |∇f|/(1 + |x|) of a function by its owned values. Collective."""
        ratio = self._slopes(values) / (1.0 + self._radius)
        return self.problem.max(float(ratio.max(initial=0.0)))

    def hessian(self, values: Array) -> tuple[float, float]:
        """Smallest eigenvalue of ∇²f, and the largest modulus of any. Collective."""
        dim = self.problem.dim
        matrices = self._evaluate(self._hessian, values).reshape(-1, dim, dim)
        eigenvalues = np.linalg.eigvalsh(0.5 * (matrices + matrices.transpose(0, 2, 1)))
        largest = self.problem.max(float(np.abs(eigenvalues).max(initial=0.0)))
        return self.problem.min(eigenvalues), largest
