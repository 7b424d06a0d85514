"""Fixed-point iterations y = T(y) of the mean field: accelerators, stop test and safeguard.

    stop = StopTest(tolerance=1e-10)
    record = solve(evaluate, y, accelerator=Anderson(), stop=stop, unknown=mean_field)
    record.y, record.iterations

For a convex functional y ↦ T(y) − y is, in the metric of ∇²F, minus the gradient of a convex
function of the potential; its slope along a step s is ⟨T(y) − y, c(y + s) − c(y)⟩, where c(y) are
the potential's coefficients. The safeguard uses this slope: a step that overshoots (the slope at
its end is large and negative) is shortened by the secant rule, so that the iteration converges
even if the plain iteration y ← T(y) diverges.

``InnerTolerance`` determines how accurate the linear solves inside need to be:

    tolerance = InnerTolerance(rtol=1e-12, stop=StopTest())
    rtol = tolerance(previous=1e-3, size=1.0)
    tolerance.learn(record, contraction=0.1)

It learns from the record of each stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fem_mf.mpi import ConvergenceError
from fem_mf.petsc import event
from fem_mf.typing import Array

__all__ = [
    "Accelerator",
    "Anderson",
    "FixedPoint",
    "FixedPointRecord",
    "InnerTolerance",
    "Picard",
    "StopTest",
    "solve",
]

_LEAST = 1e-12  # smaller contraction factors are not meaningful
_ROUNDING = 1e-13  # residuals below this multiple of ‖y‖ do not measure a contraction


class Unknown(Protocol):
    """The space of y: its inner product, and the potential's coefficients c(y) dual to it."""

    def dot(self, a: Array, b: Array) -> float:
        """⟨a, b⟩ over all ranks."""

    def coefficients(self, y: Array) -> Array:
        """c(y), of the shape of y."""


class Accelerator(Protocol):
    """Proposes a step from the history of iterates y and residuals T(y) − y.

    Attributes:
        trusted_ratio: a step that reduces the residual to this fraction is accepted without the
            safeguard.
    """

    trusted_ratio: float

    def reset(self) -> None:
        """Forget the history, before a new fixed-point problem."""

    def record(self, y: Array, residual: Array) -> None:
        """Record one evaluated pair."""

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """The step to take from the current y."""


class Picard:
    """The plain iteration y ← T(y)."""

    # A slowly converging plain iteration overshoots slightly less each time; shortening helps.
    trusted_ratio = 0.5

    def reset(self) -> None:
        """Do nothing: there is no history."""

    def record(self, y: Array, residual: Array) -> None:
        """Do nothing: there is no history."""

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """T(y) − y."""
        return residual


class Anderson:
    """Anderson acceleration (Anderson 1965; type II of Fang and Saad 2009) with mixing 1.

    Args:
        depth: number of earlier iterates that are combined.
    """

    trusted_ratio = 0.9

    def __init__(self, depth: int = 5) -> None:
        if depth < 1:
            raise ValueError(f"the depth of Anderson acceleration must be at least 1, not {depth}")
        self.depth = depth
        self._pairs: list[tuple[Array, Array]] = []

    def reset(self) -> None:
        """Forget the history."""
        self._pairs.clear()

    def record(self, y: Array, residual: Array) -> None:
        """Record one pair; pairs beyond the depth are dropped."""
        self._pairs.append((y.copy(), residual.copy()))
        del self._pairs[: -self.depth - 1]

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """The step to the combination of iterates whose linearised residual is smallest."""
        pairs = [(a - y, r - residual) for a, r in self._pairs]
        pairs = [(dy, dr) for dy, dr in pairs if dot(dr, dr) > 0.0]
        if not pairs:
            return residual
        # Scaling the columns to norm one improves the conditioning of the normal equations.
        norms = [np.sqrt(dot(dr, dr)) for _, dr in pairs]
        pairs = [(dy / s, dr / s) for (dy, dr), s in zip(pairs, norms, strict=True)]
        gram = np.array([[dot(a, b) for _, b in pairs] for _, a in pairs])
        right = np.array([dot(dr, residual) for _, dr in pairs])
        gamma = np.linalg.lstsq(gram, right, rcond=1e-12)[0]
        step = residual.copy()
        for g, (dy, dr) in zip(gamma, pairs, strict=True):
            step -= g * (dy + dr)
        return step


@dataclass(frozen=True, kw_only=True)
class StopTest:
    """Stop when T(y) is within tolerance · max(1, ‖y‖) of the fixed point.

    Its distance is at most the residual ‖T(y) − y‖ and, if the iteration contracts by a factor
    q < 1, about q/(1 − q) times the residual, since T(y), the result, is one contraction closer.

    Attributes:
        tolerance: relative tolerance.
        max_iterations: largest number of evaluations of T.
        patience: number of evaluations of T after which an iteration is stopped if, at its average
            rate so far, it would need more than three times as many in total; None disables this.
        extrapolate: whether to use the contraction of T; otherwise the residual itself must reach
            the tolerance.
    """

    tolerance: float = 1e-10
    max_iterations: int = 100
    patience: int | None = None
    extrapolate: bool = True

    def __call__(self, residual: float, size: float, contraction: float = 1.0) -> bool:
        """Whether an iterate has converged.

        Args:
            residual: ‖T(y) − y‖.
            size: ‖y‖.
            contraction: factor by which T contracts, 1 if unknown.
        """
        factor = 2.0 * contraction if self.extrapolate and contraction < 0.5 else 1.0
        return factor * residual <= self.tolerance * max(1.0, size)

    def hopeless(self, residuals: list[float], size: float) -> bool:
        """Whether to stop without convergence after these residuals."""
        if not np.isfinite(residuals[-1]) or len(residuals) >= self.max_iterations:
            return True
        if self.patience is None or len(residuals) < self.patience:
            return False
        gained = np.log(min(residuals) / residuals[0]) / (len(residuals) - 1)
        wanted = np.log(self.tolerance * max(1.0, size) / residuals[0])
        return not gained < 0.0 or bool(wanted / gained > 3 * self.patience)

    def failure(self, residuals: list[float], last: float) -> ConvergenceError:
        """The error to raise without convergence, given the last accepted residual."""
        return ConvergenceError(
            f"the mean-field fixed point did not converge: residual {last:.1e} after "
            f"{len(residuals)} iterations (tolerance {self.tolerance:.1e}); use a smaller dt, more "
            "iterations (max_iterations), a looser fixed_point_tolerance, or the default "
            "accelerator and safeguard"
        )


@dataclass(frozen=True, kw_only=True)
class FixedPointRecord:
    """Record of a fixed-point iteration.

    Attributes:
        y: the last iterate evaluated.
        residuals: ‖T(y_k) − y_k‖ of every evaluation.
        contraction: contraction factor of T, the ratio of the first two (slow) residuals if the
            first step was plain; else NaN.
        shortened: number of steps that the safeguard shortened.
    """

    y: Array
    residuals: tuple[float, ...]
    contraction: float
    shortened: int

    @property
    def iterations(self) -> int:
        """Number of evaluations of T."""
        return len(self.residuals)


def _fraction(start: float, end: float, growth: float) -> float:
    """The fraction of a step to keep, from the slopes at its ends and the residual growth."""
    if start > 0.0 and end >= -0.5 * start and growth < 2.0:
        return 1.0
    return max(start / (start - end), 0.1) if start > 0.0 > end else 0.5


def solve(
    evaluate: Callable[[Array, float], Array],
    y: Array,
    *,
    accelerator: Accelerator,
    stop: StopTest,
    unknown: Unknown,
    safeguard: bool = True,
    contraction: float = 1.0,
    slow: Callable[[Array], float] | None = None,
) -> FixedPointRecord:
    """Solve y = T(y). Collective if ``evaluate`` and ``unknown.dot`` are.

    Args:
        evaluate: ``(y, previous residual norm) -> T(y)``; the norm (inf at first) lets an inexact
            inner solver choose its tolerance.
        y: initial iterate.
        accelerator: how the iteration is accelerated; it is reset.
        stop: when to stop iterating.
        unknown: inner product and dual coefficients of y.
        safeguard: whether to shorten steps that overshoot.
        contraction: known contraction factor of the plain iteration, used for the first iterate.
        slow: norm of the part of a residual whose contraction is measured, if another part
            contracts much faster; the default is the whole norm.

    Returns:
        The record.

    Raises:
        ConvergenceError: if the iteration does not converge.
    """
    accelerator.reset()
    norms: list[float] = []

    def norm_of(z: Array) -> float:
        return float(np.sqrt(unknown.dot(z, z)))

    def residual_at(point: Array) -> tuple[Array, float, float]:
        found = evaluate(point, norms[-1] if norms else np.inf) - point
        norms.append(norm_of(found))
        accelerator.record(point, found)
        return found, norms[-1], norms[-1] if slow is None else slow(found)

    (residual, norm, part), size = residual_at(y), norm_of(y)
    damping, factor, shortened = 1.0, contraction, 0
    measured: float | None = None
    while not stop(norm, size, factor):
        coefficients = unknown.coefficients(y)
        step = accelerator.step(y, residual, unknown.dot)
        rejections = 0
        while True:
            plain = step is residual
            undamped = plain and damping == 1.0
            if plain:
                step = damping * residual
            if stop.hopeless(norms, size):
                raise stop.failure(norms, norm)
            trial, trial_norm, trial_part = residual_at(y + step)
            # Only a plain step T(y) − y measures the contraction of T; others contract better.
            factor = contraction
            if undamped and part > 0.0:
                factor = trial_part / part
                contraction = max(3.0 * factor, _LEAST)
            enough = trial_norm < accelerator.trusted_ratio * norm
            if not safeguard or enough or stop(trial_norm, size, factor):
                break
            moved = unknown.coefficients(y + step) - coefficients
            slopes = unknown.dot(residual, moved), unknown.dot(trial, moved)
            fraction = _fraction(*slopes, growth=trial_norm / norm)
            if fraction == 1.0:
                break
            rejections, shortened = rejections + 1, shortened + 1
            if plain:
                damping *= fraction
                step = accelerator.step(y, residual, unknown.dot)
            else:
                step = fraction * step if rejections < 4 else residual
        if measured is None:  # later factors reflect the accelerator or rounding
            seen = undamped and min(part, trial_part) > _ROUNDING * max(1.0, size)
            measured = trial_part / part if seen else np.nan
        if plain and trial_norm < 0.5 * norm:
            damping = min(1.0, 2.0 * damping)
        y = y + step
        residual, norm, part, size = trial, trial_norm, trial_part, norm_of(y)
    return FixedPointRecord(
        y=y,
        residuals=tuple(norms),
        contraction=np.nan if measured is None else measured,
        shortened=shortened,
    )


class FixedPoint:
    """Settings of the fixed-point iteration of one solver, which has its own accelerator.

    Args:
        accelerator: how the iteration is accelerated; it is copied.
        stop: when to stop iterating.
        safeguard: whether steps that overshoot are shortened.
    """

    def __init__(self, accelerator: Accelerator, stop: StopTest, safeguard: bool = True) -> None:
        self.accelerator, self.stop = copy.deepcopy(accelerator), stop
        self._safeguard = safeguard

    def solve(
        self,
        evaluate: Callable[[Array, float], Array],
        y: Array,
        unknown: Unknown,
        *,
        stop: StopTest | None = None,
        contraction: float = 1.0,
        slow: Callable[[Array], float] | None = None,
    ) -> FixedPointRecord:
        """Solve y = T(y); see :func:`solve` for the arguments and errors."""
        with event("fixed point"):
            return solve(
                evaluate,
                y,
                accelerator=self.accelerator,
                stop=stop or self.stop,
                unknown=unknown,
                safeguard=self._safeguard,
                contraction=contraction,
                slow=slow,
            )


_MEASURE_EVERY = 10  # number of stages that may rely on an earlier contraction factor


class InnerTolerance:
    """Tolerance of the linear solves inside a fixed point, learnt from stage to stage.

    Unless it is the last, an evaluation of T need be no more accurate than a tenth of the residual
    expected after it. The gain, the error in y of a solve divided by its relative tolerance, is
    measured at the end of each stage.

    Attributes:
        contraction: the last measured contraction factor of T; NaN if there is none.
        floor: a lower bound of the gain, from exact norms of the features.
    """

    def __init__(self, rtol: float, stop: StopTest) -> None:
        self._rtol, self._stop = rtol, stop
        self.contraction, self._first_residual, self._gain = np.nan, 0.0, np.inf
        self._since_measured = 0
        self.floor = 0.0

    def __call__(self, previous: float, size: float) -> float:
        """Relative tolerance after a residual norm (inf at the first evaluation)."""
        if np.isinf(self._gain):
            return self._rtol
        ratio = 0.01 if np.isnan(self.contraction) else float(np.clip(self.contraction, 1e-6, 0.1))
        residual = ratio * previous if np.isfinite(previous) else self._first_residual
        factor = ratio if np.isfinite(previous) else self.expected_contraction
        if self._stop(residual, size, factor):
            return self._rtol
        return float(np.clip(0.1 * ratio * residual / max(self._gain, 1e-300), self._rtol, 1e-3))

    def measure(self, change: float, rtol: float) -> None:
        """Record the error in y of a solve with tolerance ``rtol``."""
        gain = change / rtol
        gain = gain if np.isinf(self._gain) else max(gain, 0.5 * self._gain)
        self._gain = max(gain, self.floor)

    def learn(self, record: FixedPointRecord, contraction: float) -> None:
        """Record residuals of a stage and the contraction factor of T, NaN if not measured."""
        self._first_residual = record.residuals[0]
        self._since_measured = 0 if record.iterations > 1 else self._since_measured + 1
        if np.isfinite(contraction):
            self.contraction = contraction

    @property
    def expected_contraction(self) -> float:
        """A cautious contraction factor for the next stage; 1 if it must be measured again."""
        if np.isnan(self.contraction) or self._since_measured >= _MEASURE_EVERY:
            return 1.0
        return max(3.0 * self.contraction, 1e-12)
