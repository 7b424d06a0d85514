"""Polynomial extrapolation of a short past, of the order that the past itself supports.

past = Extrapolation(order=4)
past.add(t, y)
guess = past.predict(t + dt)     # None while there is nothing to go by
"""

from __future__ import annotations

import numpy as np

from fem_mf.features import Array

__all__ = ["Extrapolation"]


class Extrapolation:
    """Values at increasing times, and what they predict.

    Args:
        order: highest polynomial degree used.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._times: list[float] = []
        self._values: list[Array] = []

    def add(self, t: float, y: Array) -> None:
        """Append a value; the oldest beyond the order is dropped."""
        self._times.append(t)
        self._values.append(y)
        del self._times[: -self._order - 1], self._values[: -self._order - 1]

    def predict(self, t: float) -> Array | None:
        """The value at a later time, None without a past.

        Of the degrees 0, 1, ..., the one whose prediction moved least from the one before: where
        the past is not smooth, or at rounding level, higher degrees only amplify its noise.
        """
        if not self._values:
            return None
        best = self._values[-1]
        smallest = np.inf
        previous = best
        for degree in range(1, len(self._values)):
            prediction = self._interpolate(t, degree)
            moved = float(np.linalg.norm(prediction - previous))
            if moved >= smallest:
                break
            best, smallest, previous = prediction, moved, prediction
        return best

    def _interpolate(self, t: float, degree: int) -> Array:
        times, values = self._times[-degree - 1 :], self._values[-degree - 1 :]
        total = np.zeros_like(values[0])
        for i, (ti, y) in enumerate(zip(times, values, strict=True)):
            weight = np.prod([(t - tj) / (ti - tj) for j, tj in enumerate(times) if j != i])
            total += weight * y
        return total
