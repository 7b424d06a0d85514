"""Polynomial extrapolation of a short past, of the order that the past itself supports.

    past = Extrapolation(order=4, norm=np.linalg.norm)
    past.add(t, y)
    guess = past.predict(t + dt)     # None while there is nothing to go by

Newton's form: with divided differences D_k, p_k(t) = p_{k-1}(t) + (t − t_n)...(t − t_{n-k+1}) D_k.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fem_mf.features import Array

__all__ = ["Extrapolation"]

# A first-order prediction that moves by more than this part of the value is no prediction.
_TRUST = 0.1


class Extrapolation:
    """Values at increasing times, and what they predict.

    Args:
        order: highest polynomial degree used.
        norm: of a value; collective for distributed ones.
    """

    def __init__(self, order: int, norm: Callable[[Array], float]) -> None:
        self._order, self._norm = order, norm
        self._times: list[float] = []
        self._differences: list[Array] = []  # D_0, D_1, ... of the newest value

    def add(self, t: float, value: Array) -> None:
        """Append a value; those beyond the order are forgotten."""
        differences = [value]
        for k, old in enumerate(self._differences[: self._order]):
            differences.append((differences[k] - old) / (t - self._times[-1 - k]))
        self._differences = differences
        self._times = [*self._times[-self._order :], t]

    def predict(self, t: float) -> Array | None:
        """The value at a later time, None without a past. Collective when the norm is.

        Of the degrees 0, 1, ..., the one whose prediction moved least from the one before: where
        the past is not smooth, or at rounding level, higher degrees only amplify its noise.
        """
        if not self._differences:
            return None
        prediction = self._differences[0]
        smallest = _TRUST * self._norm(prediction)
        factor = 1.0
        for k, difference in enumerate(self._differences[1:]):
            factor *= t - self._times[-1 - k]
            moved = abs(factor) * self._norm(difference)
            if not moved < smallest:
                break
            prediction, smallest = prediction + factor * difference, moved
        return np.array(prediction)
