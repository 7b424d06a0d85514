"""The minimising movement (D7) as a fixed-point problem for z = (y, c).

A stage of length a from an anchor r minimises F^σ(ψ²) + (2/a)‖ψ − r‖² on the sphere ‖ψ‖ = 1:

    (2/a)(ψ − r) + (H[m] − s)ψ = 0,   m = ψ²,   where s is the multiplier of ‖ψ‖ = 1.

An evaluation at a mean field y and at c = 2/a − s solves (c + H[y]) ψ̂ = (2/a) r. With n = ‖ψ̂‖ and
ψ = ψ̂/n, both follow from ψ without another solve:

    y ← the mean field of ψ,   c ← (2/a)⟨ψ, r⟩ − ⟨ψ, H[y]ψ⟩ = c + (2/a)⟨ψ, r⟩(1 − 1/n).

c changes whenever V changes by a constant. The last component of z is therefore c + ∫(V − V_0) dm
minus its initial value, which converges faster than c, in units of 2/a + λ − min V (for the initial
density of the run): an error of z is then comparable to an error of ψ.
"""

from __future__ import annotations

import numpy as np

from fem_mf.mean_field.moments import MeanField
from fem_mf.typing import Array

__all__ = ["MovementUnknown"]


class MovementUnknown:
    """z = (y, c) of one stage, with an inner product and dual coefficients.

    Args:
        mean_field: the mean field.

    Attributes:
        unit: scale of the last component of z.
    """

    def __init__(self, mean_field: MeanField) -> None:
        self._mean_field = mean_field
        self.unit, self._origin = 1.0, 0.0

    def begin(self, y: Array, c: float, unit: float) -> Array:
        """The initial guess of a stage, as z. Collective."""
        self.unit, self._origin = unit, c + self._mean_field.gauge(y, y)
        return np.append(y, 0.0)

    def split(self, z: Array) -> tuple[Array, float]:
        """The pair (y, c) that z represents. Collective."""
        y = z[:-1]
        return y, self._origin + self.unit * float(z[-1]) - self._mean_field.gauge(y, y)

    def join(self, y: Array, c: float, before: Array) -> Array:
        """z from a mean field y and the c computed with the mean field ``before``. Collective."""
        rise = c + self._mean_field.gauge(before, y) - self._origin
        return np.append(y, rise / self.unit)

    def dot(self, a: Array, b: Array) -> float:
        """Inner product of mean fields, plus the product of last components. Collective."""
        return self._mean_field.dot(a[:-1], b[:-1]) + float(a[-1] * b[-1])

    def slow(self, residual: Array) -> float:
        """The norm of the mean-field part, or of the multiplier if that is zero. Collective.

        The multiplier depends on ψ at second order, so its convergence does not indicate that of y.
        """
        part = self._mean_field.dot(residual[:-1], residual[:-1])
        return float(np.sqrt(part)) if part > 0.0 else abs(float(residual[-1]))

    def coefficients(self, z: Array) -> Array:
        """The coefficients of V and of the constant that is added to it. Collective."""
        return np.append(self._mean_field.coefficients(z[:-1]), self.unit * z[-1])

    def curvature(self, z: Array, stiffness: Array) -> Array:
        """∂(w, c)/∂z, ``(r + 1, r + 1)``, for moments y with potential coefficients w(y).

        Args:
            z: the unknown.
            stiffness: ∂w/∂y.
        """
        y, size = z[:-1], z.size
        matrix = np.zeros((size, size))
        matrix[:-1, :-1] = stiffness
        matrix[-1, :-1] = -(self._mean_field.coefficients(y) + stiffness.T @ y)
        matrix[-1, -1] = self.unit
        return matrix
