"""How accurate the linear solves inside a fixed point need to be.

A stage asks for the tolerance of its next solve and, at its end, reports its fixed point:

    tolerance = InnerTolerance(rtol=1e-12, stop=StopTest())
    rtol = tolerance(previous=1e-3, size=1.0)
    tolerance.learn(record, contraction=0.1)
"""

from __future__ import annotations

import numpy as np

from fem_mf.fixed_point import FixedPointRecord, StopTest

__all__ = ["InnerTolerance"]

_MEASURE_EVERY = 10  # stages that may rely on a contraction factor measured before


class InnerTolerance:
    """Tolerance of the linear solves inside a fixed point, learnt from stage to stage.

    An evaluation of T need be no more accurate than a tenth of the residual it will leave, unless
    it will be the last; the error in y of a solve of relative tolerance 1 (``gain``) is measured
    at the end of each stage.
    """

    def __init__(self, rtol: float, stop: StopTest) -> None:
        self._rtol, self._stop = rtol, stop
        self.contraction, self._first_residual, self._gain = np.nan, 0.0, np.inf
        self._since_measured = 0
        self.floor = 0.0  # of the gain: what exact norms of the features say

    def __call__(self, previous: float, size: float) -> float:
        """Relative tolerance after a residual norm (inf: the first evaluation)."""
        if np.isinf(self._gain):
            return self._rtol
        ratio = 0.01 if np.isnan(self.contraction) else float(np.clip(self.contraction, 1e-6, 0.1))
        residual = ratio * previous if np.isfinite(previous) else self._first_residual
        factor = ratio if np.isfinite(previous) else self.expected_contraction
        if self._stop(residual, size, factor):
            return self._rtol
        return float(np.clip(0.1 * ratio * residual / max(self._gain, 1e-300), self._rtol, 1e-3))

    def measure(self, change: float, rtol: float) -> None:
        """Learn how far a solve of tolerance ``rtol`` was off in y."""
        gain = change / rtol
        gain = gain if np.isinf(self._gain) else max(gain, 0.5 * self._gain)
        self._gain = max(gain, self.floor)

    def learn(self, record: FixedPointRecord, contraction: float) -> None:
        """Learn the residuals of a stage and the contraction factor of T, NaN if not measured."""
        self._first_residual = record.residuals[0]
        self._since_measured += 1
        if record.iterations > 1:
            self._since_measured = 0
        if np.isfinite(contraction):
            self.contraction = contraction

    @property
    def expected_contraction(self) -> float:
        """A cautious contraction factor for the next stage; 1 when it is time to look again."""
        if np.isnan(self.contraction) or self._since_measured >= _MEASURE_EVERY:
            return 1.0
        return max(3.0 * self.contraction, 1e-12)
