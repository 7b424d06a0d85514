"""Chord Newton steps for the moments of the mean field.

If T(y) denotes the moments after a linear solve at mean field y, then T′ = −R S, where S = ∂w/∂y is
the curvature of F and R the response of the moments to the potential; both are r × r, where r is
the rank of the features. For strong couplings y ← T(y) diverges for all useful step sizes, whereas
y ← y + (Id + R S)⁻¹(T(y) − y) converges in a few iterations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fem_mf.typing import Array

__all__ = ["Newton"]


class Newton:
    """Newton's method with a response matrix that is reused while it remains effective.

    The plain step is taken as long as it contracts by ``slow`` or better, without computing a
    response. Once computed (r approximate linear solves), the response is kept from step to step
    and recomputed when the contraction is worse than ``slow`` again.

    Every term of the functional must be cylindrical; use :class:`Anderson` for others.

    Args:
        slow: ratio of two residuals above which the response is (re)computed.

    Attributes:
        radius: spectral radius of T′ = −R S, the contraction factor of the plain iteration, when R
            was last computed; NaN if it never was.
    """

    trusted_ratio = 0.9

    def __init__(self, slow: float = 0.1) -> None:
        if not 0 < slow < 1:
            raise ValueError(f"slow must be a contraction factor between 0 and 1, not {slow}")
        self.slow = slow
        self._response: Array | None = None
        self._scale = 0.0
        self.radius = float("nan")
        self._norms: list[float] = []
        self._stale = False
        self._source: Callable[[Array], Array] | None = None
        self._curvature: Callable[[Array], Array] | None = None

    def bind(self, source: Callable[[Array], Array], curvature: Callable[[Array], Array]) -> None:
        """Set the functions that compute R(y) and S(y); called by the flow."""
        self._source, self._curvature = source, curvature

    def rescale(self, step: float) -> None:
        """Forget a response that was computed for a very different time step."""
        if self._response is not None and not 0.5 < step / self._scale < 2.0:
            self._response, self.radius = None, float("nan")
        self._scale = step

    def reset(self) -> None:
        """Prepare for a new fixed-point problem; the response is kept."""
        self._norms.clear()
        self._stale = False

    def record(self, y: Array, residual: Array) -> None:
        """Record one residual."""
        self._norms.append(float(np.linalg.norm(residual)))
        if len(self._norms) > 1 and self._norms[-1] > self.slow * self._norms[-2]:
            self._stale = True

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """(Id + R S)⁻¹(T(y) − y), or T(y) − y if there is no response yet."""
        if self._source is None or self._curvature is None:
            raise ValueError("Newton needs a functional whose every term is cylindrical")
        if self._stale:
            self._response, self._stale = self._source(y), False
            product = self._response @ self._curvature(y)
            self.radius = float(np.abs(np.linalg.eigvals(product)).max(initial=0.0))
        if self._response is None:
            return residual
        matrix = np.eye(y.size) + self._response @ self._curvature(y)
        return np.linalg.solve(matrix, residual)
