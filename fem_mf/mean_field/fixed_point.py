"""Fixed points y = T(y) of the mean field: accelerator, stop test, safeguard, record.

    stop = StopTest(tolerance=1e-10)
    record = solve(evaluate, y, accelerator=Anderson(), stop=stop, unknown=mean_field)
    record.y, record.iterations

For a convex functional y ↦ T(y) − y is, in the metric of ∇²F, minus the gradient of a convex
function of the potential: its slope along a step is ⟨T(y) − y, c(y + s) − c(y)⟩ with
c(y) the potential's coefficients. The safeguard needs only that sign: a step that overshoots (the
slope at its end is large and negative) is shortened by the secant rule, so that the loop converges
also where the plain iteration y ← T(y) diverges.

``InnerTolerance`` says how accurate the linear solves inside need to be:

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

_LEAST = 1e-12  # contraction factors below mean nothing
_ROUNDING = 1e-13  # residuals below this multiple of ‖y‖ say nothing of a contraction


class Unknown(Protocol):
    """The space of y: its inner product, and the potential's coefficients c(y) dual to it."""

    def dot(self, a: Array, b: Array) -> float:
        """⟨a, b⟩ over all ranks."""

    def coefficients(self, y: Array) -> Array:
        """c(y), of the shape of y."""


class Accelerator(Protocol):
    """Proposes a step from the history of iterates y and residuals T(y) − y.

    Attributes:
        trusted_ratio: a step that reduces the residual to this fraction is good without further
            questions from the safeguard.
    """

    trusted_ratio: float

    def reset(self) -> None:
        """Forget the history: a new fixed point begins."""

    def record(self, y: Array, residual: Array) -> None:
        """Learn one evaluated pair."""

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """The step to take from the current y."""


class Picard:
    """The plain iteration y ← T(y)."""

    # A slow plain iteration is one that overshoots a little less each time: shortening helps.
    trusted_ratio = 0.5

    def reset(self) -> None:
        """Nothing to forget."""

    def record(self, y: Array, residual: Array) -> None:
        """Nothing to learn."""

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """T(y) − y."""
        return residual


class Anderson:
    """Anderson acceleration (Anderson 1965; type II of Fang and Saad 2009), mixing 1.

    Args:
        depth: number of earlier iterates it combines.
    """

    trusted_ratio = 0.9

    def __init__(self, depth: int = 5) -> None:
        if depth < 1:
            raise ValueError(f"the depth of Anderson acceleration is at least 1, not {depth}")
        self.depth = depth
        self._pairs: list[tuple[Array, Array]] = []

    def reset(self) -> None:
        """Forget the history."""
        self._pairs.clear()

    def record(self, y: Array, residual: Array) -> None:
        """Learn one pair; the oldest beyond the depth is dropped."""
        self._pairs.append((y.copy(), residual.copy()))
        del self._pairs[: -self.depth - 1]

    def step(self, y: Array, residual: Array, dot: Callable[[Array, Array], float]) -> Array:
        """The step to the combination of iterates whose linearised residual is smallest."""
        pairs = [(a - y, r - residual) for a, r in self._pairs]
        pairs = [(dy, dr) for dy, dr in pairs if dot(dr, dr) > 0.0]
        if not pairs:
            return residual
        # Columns scaled to norm one keep the normal equations as well conditioned as they can be.
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

    Its distance is at most the residual ‖T(y) − y‖ and, when the iteration contracts by a factor
    q < 1, about q/(1 − q) times it: what is returned is T(y), one contraction better than y.

    Attributes:
        tolerance: relative tolerance.
        max_iterations: evaluations of T before giving up.
        patience: evaluations of T after which an iteration is given up if, at its average rate so
            far, it would need more than three times as many in all; None to wait.
        extrapolate: whether to count on the contraction of T; else the residual itself must reach
            the tolerance.
    """

    tolerance: float = 1e-10
    max_iterations: int = 100
    patience: int | None = None
    extrapolate: bool = True

    def __call__(self, residual: float, size: float, contraction: float = 1.0) -> bool:
        """Whether an iterate is converged.

        Args:
            residual: ‖T(y) − y‖.
            size: ‖y‖.
            contraction: factor by which T contracts, 1 where it is not known.
        """
        factor = 2.0 * contraction if self.extrapolate and contraction < 0.5 else 1.0
        return factor * residual <= self.tolerance * max(1.0, size)

    def hopeless(self, residuals: list[float], size: float) -> bool:
        """Whether to give up, after these residuals."""
        if not np.isfinite(residuals[-1]) or len(residuals) >= self.max_iterations:
            return True
        if self.patience is None or len(residuals) < self.patience:
            return False
        gained = np.log(min(residuals) / residuals[0]) / (len(residuals) - 1)
        wanted = np.log(self.tolerance * max(1.0, size) / residuals[0])
        return not gained < 0.0 or bool(wanted / gained > 3 * self.patience)

    def failure(self, residuals: list[float], last: float) -> ConvergenceError:
        """The error of an iteration that was given up, its last accepted residual being given."""
        return ConvergenceError(
            f"the mean-field fixed point did not converge: residual {last:.1e} after "
            f"{len(residuals)} iterations (tolerance {self.tolerance:.1e}); use a smaller dt, more "
            "iterations (max_iterations), a looser fixed_point_tolerance, or the default "
            "accelerator and safeguard"
        )


@dataclass(frozen=True, kw_only=True)
class FixedPointRecord:
    """How a fixed point was reached.

    Attributes:
        y: the last iterate evaluated.
        residuals: ‖T(y_k) − y_k‖ of every evaluation.
        contraction: that of T, the ratio of the first two (slow) residuals when the first step was
            plain; else NaN.
        shortened: steps that the safeguard shortened.
    """

    y: Array
    residuals: tuple[float, ...]
    contraction: float
    shortened: int

    @property
    def iterations(self) -> int:
        """Evaluations of T."""
        return len(self.residuals)


def _fraction(start: float, end: float, growth: float) -> float:
    """How much of a step to keep, from the slopes at its ends and the growth of the residual."""
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
    """Solve y = T(y). Collective when ``evaluate`` and ``unknown.dot`` are.

    Args:
        evaluate: ``(y, previous residual norm) -> T(y)``; the norm (inf at first) lets an inexact
            inner solver choose its tolerance.
        y: first iterate.
        accelerator: proposes the steps; it is reset.
        stop: the stop test.
        unknown: inner product and dual coefficients of y.
        safeguard: shorten steps that overshoot.
        contraction: known factor of the plain iteration, by which the first iterate is judged.
        slow: norm of the part of a residual whose contraction is measured, where another part
            contracts much faster; the default is the whole norm.

    Returns:
        The record.

    Raises:
        ConvergenceError: no convergence in ``stop.max_iterations`` evaluations.
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
            # Only a plain step T(y) − y shows how T contracts: the others contract better than T.
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
        if measured is None:  # later factors are the accelerator's, or of rounding size
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
    """How one solver iterates; it has an accelerator of its own, which remembers.

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


_MEASURE_EVERY = 10  # stages that may rely on a contraction factor measured before


class InnerTolerance:
    """Tolerance of the linear solves inside a fixed point, learnt from stage to stage.

    An evaluation of T need be no more accurate than a tenth of the residual it will leave, unless
    it will be the last; the error in y of a solve of relative tolerance 1 (the gain) is measured at
    the end of each stage.

    Attributes:
        contraction: the last measured factor of T; NaN without one.
        floor: a lower bound of the gain, which exact norms of the features give.
    """

    def __init__(self, rtol: float, stop: StopTest) -> None:
        self._rtol, self._stop = rtol, stop
        self.contraction, self._first_residual, self._gain = np.nan, 0.0, np.inf
        self._since_measured = 0
        self.floor = 0.0

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
        self._since_measured = 0 if record.iterations > 1 else self._since_measured + 1
        if np.isfinite(contraction):
            self.contraction = contraction

    @property
    def expected_contraction(self) -> float:
        """A cautious contraction factor for the next stage; 1 when it is time to look again."""
        if np.isnan(self.contraction) or self._since_measured >= _MEASURE_EVERY:
            return 1.0
        return max(3.0 * self.contraction, 1e-12)
