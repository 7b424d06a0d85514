"""Base classes of the flows: runs, states, checks of arguments, time and extrapolation.

A flow defines how a trajectory begins and how it advances by one step; all flows share the run
itself. A trajectory asks the clock for each step and reports whether it is accepted:

    clock = Clock(dt, t_end)
    while not clock.done:
        step = clock.next_step()
        clock.accept()    # or clock.reject(0.5), to retry with half the step

The mean field of the next step is extrapolated, to the order that the past values support:

    past = Extrapolation(order=4, norm=np.linalg.norm)
    past.add(t, y)
    guess = past.predict(t + dt)     # None if no value has been added

Newton's form: with divided differences D_k, p_k(t) = p_{k-1}(t) + (t − t_n)...(t − t_{n-k+1}) D_k.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from dolfinx import fem

from fem_mf.boundary import warn_if_truncated
from fem_mf.density import Density
from fem_mf.flows.tableau import StageResult
from fem_mf.mean_field.fixed_point import Accelerator, Anderson, FixedPoint, StopTest
from fem_mf.mean_field.moments import mean_field_of
from fem_mf.mpi import all_ranks_agree, integer, number, positive, same_on_all_ranks
from fem_mf.observables import check_problem
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = [
    "Clock",
    "Extrapolation",
    "Flow",
    "HJBState",
    "State",
    "Trajectory",
    "check_run",
    "check_scheme",
    "check_step",
    "check_tolerances",
    "counts",
]


@dataclass(frozen=True, kw_only=True, repr=False)
class State:
    """The state of a flow at one time; any run of that flow can resume from it.

    Attributes:
        t: time.
        dt: length of the step that ended here (0 at the start).
        next_dt: length of the next step, unless the final time shortens it.
        step: number of accepted steps so far.
        density: m_t.
        energy: F^σ(m_t) (E1); for ``LangevinFlow`` F + (σ²/2)∫m log m.
        eigenvalue: λ_t = ⟨ψ, H[m_t]ψ⟩.
        residual: ‖H[m_t]ψ − λ_tψ‖.
        dissipation: −dF^σ/dt = residual² (D4).
        mass: ∫m_t dx.
        boundary_mass: mass in the cells that touch the boundary.
        fixed_point_iterations: number of iterations of the step, summed over its stages.
        linear_iterations: number of linear iterations of the step, summed over its solves.
        contraction: ratio of the first two fixed-point residuals of a stage, as last measured
            (a step whose first iterate is converged measures none); NaN before that.
        rejected: number of steps rejected by the error control before this one.
        replaced: number of minimising movements (D7), with the same total length, that replaced
            a step too long for its scheme; 0 if the step was computed by the scheme.
    """

    t: float
    dt: float
    next_dt: float
    step: int
    density: Density
    energy: float
    eigenvalue: float
    residual: float
    dissipation: float
    mass: float
    boundary_mass: float
    fixed_point_iterations: int = 0
    linear_iterations: int = 0
    contraction: float = float("nan")
    rejected: int = 0
    replaced: int = 0

    def __repr__(self) -> str:
        """One line with the time, the step, the energy and the residual."""
        return (
            f"{type(self).__name__}(t = {self.t:.6g}, step {self.step}, "
            f"energy {self.energy:.12g}, residual {self.residual:.3g})"
        )

    def scalars(self) -> dict[str, float | int]:
        """The numbers in the order of the attributes, as one row of a history."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, (int, float))}


@dataclass(frozen=True, kw_only=True, repr=False)
class HJBState(State):
    """The state of an HJB flow at one time; see :class:`State` for the other attributes.

    ``linear_iterations``, ``rejected`` and ``replaced`` are not used and are 0.

    Attributes:
        residual: ‖∂_t u‖ in L²(m), up to a constant; ``dissipation`` is its square.
        u: −log m.
        v: u − w, None without decomposition; its additive constant is fixed by that of w.
        w: u − v with ∫w dm = 0, None without decomposition.
        newton_iterations: number of Newton iterations of the step, summed over its solves.
        newton_most: largest number of Newton iterations of one solve of the step.
        hessian_u: ‖∇²u‖∞.
        growth_u: sup |∇u|/(1 + |x|).
        theta_v: smallest eigenvalue of ∇²v; NaN without decomposition.
        growth_v: sup |∇v|/(1 + |x|); NaN without decomposition.
        lipschitz_w: ‖∇w‖∞; NaN without decomposition.
        second_moment: ∫|x|² dm.
        fourth_moment: ∫|x|⁴ dm.
    """

    u: fem.Function
    v: fem.Function | None = None
    w: fem.Function | None = None
    newton_iterations: int = 0
    newton_most: int = 0
    hessian_u: float = float("nan")
    growth_u: float = float("nan")
    theta_v: float = float("nan")
    growth_v: float = float("nan")
    lipschitz_w: float = float("nan")
    second_moment: float = float("nan")
    fourth_moment: float = float("nan")


class Trajectory[S: State](ABC):
    """One run of a flow: its current state and its memory.

    Attributes:
        state: the latest state.
        dt: length of the first step to try.
    """

    state: S
    dt: float

    @abstractmethod
    def advance(self, clock: Clock) -> S:
        """Take one step that the clock accepts. Collective."""


class Flow[S: State](ABC):
    """A gradient flow m_t (D1, or L1), computed step by step by implicit stages.

    Every stage solves for the mean field by a fixed-point iteration. All flows take its settings
    as the same arguments, which are checked here.

    Attributes:
        problem: the problem.
        dt: the time step.
        mean_field: how V depends on m; it defines the unknown of the fixed-point iteration.
    """

    _kind: type[S]

    def __init__(
        self,
        problem: Problem,
        dt: float,
        accelerator: Accelerator | None,
        fixed_point_tolerance: float,
        max_iterations: int,
        safeguard: bool,
        *,
        schemes: Sequence[str] = (),
        scheme: str = "",
        **tolerances: float | None,
    ) -> None:
        self._check_problem(problem)
        check_step(problem, dt)
        if schemes:
            check_scheme(problem, scheme, schemes)
        tolerances["fixed_point_tolerance"] = fixed_point_tolerance
        check_tolerances(problem, max_iterations, **tolerances)
        # The features are evaluated only once all of this is right.
        self.problem, self.dt = problem, float(dt)
        self._discrete = problem.discretisation
        self.mean_field = mean_field_of(problem)
        self._fixed_point = FixedPoint(
            self._default_accelerator() if accelerator is None else accelerator,
            StopTest(tolerance=fixed_point_tolerance, max_iterations=max_iterations),
            safeguard,
        )

    def _check_problem(self, problem: Problem) -> None:
        """Raise an error if the problem does not suit the flow."""
        check_problem(problem)

    def _default_accelerator(self) -> Accelerator:
        return Anderson(depth=10)

    def run(
        self, start: Density | S, t_end: float, *, steady_residual: float | None = None
    ) -> Iterator[S]:
        """Integrate from t = 0; the start is yielded too. Collective at every step.

        Args:
            start: m_0, on the same problem; or a state of this flow, to resume from.
            t_end: final time, reached exactly (the last step is shortened).
            steady_residual: stop early once the ``residual`` of a state is at most this value.

        Returns:
            An iterator of states; each owns its density.

        Raises:
            TypeError: if start is a state of another flow.
            ValueError: if start is on another problem, or t_end is not a non-negative number.
            ConvergenceError: if a step fails; states already yielded remain valid.
        """
        return self._run(start, t_end, steady_residual)

    def _run(
        self, start: Density | S, t_end: float, steady: float | None, **options: Any
    ) -> Iterator[S]:
        """A run with flow-specific options; errors are raised here, not at the first step."""
        check_run(self.problem, start, t_end, self._kind)
        return self._states(self._begin(start, **options), float(t_end), steady)

    @abstractmethod
    def _begin(self, start: Density | S, **options: Any) -> Trajectory[S]:
        """A run from a density, or resumed from a state. Collective."""

    def _states(self, trajectory: Trajectory[S], t_end: float, steady: float | None) -> Iterator[S]:
        state = trajectory.state
        outside = warn_if_truncated(self.problem, state.density)
        yield state
        clock = Clock(trajectory.dt, t_end, state.t, state.step)
        while not clock.done and (steady is None or not state.residual <= steady):
            state = trajectory.advance(clock)
            yield state
        warn_if_truncated(self.problem, state.density, outside)


def counts(stages: Sequence[StageResult]) -> dict[str, Any]:
    """The counters that a state takes from the stages of its step."""
    return {
        "fixed_point_iterations": sum(stage.iterations for stage in stages),
        "linear_iterations": sum(stage.linear_iterations for stage in stages),
        "contraction": stages[-1].contraction if stages else float("nan"),
    }


def check_step(problem: Problem, dt: float) -> None:
    """Check that dt is positive and equal on all ranks. Collective."""
    error: Exception | None = None
    try:
        positive("dt", dt)
    except (TypeError, ValueError) as caught:
        error = caught
    all_ranks_agree(problem.comm, error)
    same_on_all_ranks(problem.comm, dt=float(dt))


def check_scheme(problem: Problem, scheme: str, schemes: Sequence[str]) -> None:
    """Check that the scheme is a known one, the same on every rank. Collective."""
    error = None
    if scheme not in schemes:
        error = ValueError(f"unknown scheme {scheme!r}; choose one of {list(schemes)}")
    all_ranks_agree(problem.comm, error)
    same_on_all_ranks(problem.comm, scheme=scheme)


def check_tolerances(problem: Problem, max_iterations: int, **tolerances: float | None) -> None:
    """Check tolerances, in (0, 1) or None, and iterations; the same on every rank. Collective."""
    error: Exception | None = None
    try:
        for name, value in tolerances.items():
            if value is not None and not 0 < number(name, value) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")
        if integer("max_iterations", max_iterations) < 1:
            raise ValueError(f"max_iterations must be at least 1, not {max_iterations}")
    except (TypeError, ValueError) as caught:
        error = caught
    all_ranks_agree(problem.comm, error)
    same_on_all_ranks(problem.comm, max_iterations=max_iterations, **tolerances)


def check_run(
    problem: Problem, start: Density | State, t_end: float, kind: type[State] = State
) -> None:
    """Check that the start is on the flow's problem and that t_end is not before it.

    Args:
        problem: the problem.
        start: a density, or a state of the flow.
        t_end: the final time.
        kind: type of the states of the flow; the HJB flow has its own.

    Raises:
        TypeError: if the state is that of another flow, whose numbers have another meaning.
        ValueError: if the problem is another one, or t_end is not a valid final time.
    """
    if isinstance(start, State) and not (
        type(start) is State if kind is State else isinstance(start, kind)
    ):
        raise TypeError(
            f"this flow can resume only from its own {kind.__name__}, not from a "
            f"{type(start).__name__} of another flow; start from its density: "
            "run(state.density, ...)"
        )
    density = start.density if isinstance(start, State) else start
    if not isinstance(density, Density):
        raise TypeError(
            "start must be a Density, such as Density.from_function(problem, m), or a state of the "
            f"flow, not {type(start).__name__}"
        )
    if density.problem is not problem:
        raise ValueError("the start belongs to another problem; build it on the flow's own")
    if not (np.isfinite(number("t_end", t_end)) and t_end >= 0):
        raise ValueError(f"t_end must be a non-negative number, not {t_end}")
    same_on_all_ranks(problem.comm, t_end=float(t_end))
    if isinstance(start, State) and t_end < start.t:
        raise ValueError(f"t_end = {t_end} is before the start, at t = {start.t}; take a later one")


_SMALLEST_STEP = 1e-12  # smallest step, relative to the time span


class Clock:
    """Time, counted as an integer number of steps while they are equal; t_end is exact."""

    def __init__(self, dt: float, t_end: float, t: float = 0.0, step: int = 0) -> None:
        self.t, self.step, self.last = t, step, 0.0
        self._dt, self._t_end = dt, t_end
        self._origin, self._steps_from_origin = t, 0

    @property
    def dt(self) -> float:
        """Length of the next step, unless the final time shortens it."""
        return self._dt

    @property
    def done(self) -> bool:
        """Whether the final time has been reached."""
        return self.t >= self._t_end

    @property
    def numbers(self) -> dict[str, Any]:
        """Time, last step, next step and number of steps, named as in a state."""
        return {"t": self.t, "dt": self.last, "next_dt": self.dt, "step": self.step}

    @property
    def may_shrink(self) -> bool:
        """Whether the step may still be reduced."""
        return self._dt > _SMALLEST_STEP * max(self._t_end, 1e-300)

    def next_step(self) -> float:
        """The step to try: dt, or the time that remains if it is shorter."""
        left = self._t_end - self.t
        # A last step longer by rounding is better than an additional step of length 1e-16.
        self.last = left if self._dt >= left * (1.0 - 1e-9) else self._dt
        return self.last

    def accept(self, factor: float = 1.0) -> None:
        """Advance by the step just tried; the next dt is ``factor`` times this one."""
        self.step += 1
        self._steps_from_origin += 1
        if self.last != self._dt:
            self.t = self._t_end
        else:
            self.t = self._origin + self._steps_from_origin * self._dt
            if self._t_end - self.t < 1e-9 * self._dt:
                self.t = self._t_end
        if factor != 1.0:
            self._rescale(factor)

    def reject(self, factor: float) -> None:
        """Do not advance; the next step to try is ``factor`` times the last one."""
        if self.last < self._dt:
            self._dt = self.last
        self._rescale(factor)

    def _rescale(self, factor: float) -> None:
        self._dt *= factor
        self._origin, self._steps_from_origin = self.t, 0


# A first-order prediction that differs by more than this fraction of the value is not used.
_TRUST = 0.1


class Extrapolation:
    """Polynomial extrapolation of values at increasing times.

    Args:
        order: highest polynomial degree used.
        norm: norm of a value; collective if the values are distributed.
    """

    def __init__(self, order: int, norm: Callable[[Array], float]) -> None:
        self._order, self._norm = order, norm
        self._times: list[float] = []
        self._differences: list[Array] = []  # D_0, D_1, ... of the newest value

    def add(self, t: float, value: Array) -> None:
        """Append a value; values that the order does not need are forgotten."""
        differences = [value]
        for k, old in enumerate(self._differences[: self._order]):
            differences.append((differences[k] - old) / (t - self._times[-1 - k]))
        self._differences = differences
        self._times = [*self._times[-self._order :], t]

    def predict(self, t: float) -> Array | None:
        """The value predicted for a later time; None without a past. Collective if the norm is.

        The degree is raised from 0 while the prediction changes less each time: if the past is not
        smooth, or is at rounding level, higher degrees only amplify its noise.
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
