"""Checks that the flows share, each a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fem_mf.density import Density
from fem_mf.errors import integer, number, positive
from fem_mf.observables import check_problem
from fem_mf.parallel import all_ranks_agree, same_on_all_ranks
from fem_mf.problem import Problem
from fem_mf.state import State

__all__ = ["check_run", "check_scheme", "check_step", "check_tolerances"]


def check_step(problem: Problem, dt: float) -> None:
    """A problem, and a positive step that is the same on every rank. Collective."""
    check_problem(problem)
    error: Exception | None = None
    try:
        positive("dt", dt)
    except (TypeError, ValueError) as caught:
        error = caught
    all_ranks_agree(problem.comm, error)
    same_on_all_ranks(problem.comm, dt=float(dt))


def check_scheme(scheme: str, schemes: Sequence[str]) -> None:
    """A known scheme."""
    if scheme not in schemes:
        raise ValueError(f"unknown scheme {scheme!r}; choose one of {list(schemes)}")


def check_tolerances(max_iterations: int, **tolerances: float | None) -> None:
    """Tolerances between 0 and 1, None for none, and at least one iteration."""
    for name, value in tolerances.items():
        if value is not None and not 0 < number(name, value) < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    if integer("max_iterations", max_iterations) < 1:
        raise ValueError(f"max_iterations is at least 1, not {max_iterations}")


def check_run(
    problem: Problem, start: Density | State, t_end: float, kind: type[State] = State
) -> None:
    """A start of the flow's own problem and a final time that is not before it.

    Args:
        problem: the problem.
        start: a density, or a state of the flow.
        t_end: the final time.
        kind: what the flow yields; those of the HJB flow have a family of their own.

    Raises:
        TypeError: the state is that of another flow, whose numbers mean something else.
        ValueError: another problem, or a time that is none.
    """
    if isinstance(start, State) and not (
        type(start) is State if kind is State else isinstance(start, kind)
    ):
        raise TypeError(
            f"this flow goes on from a {kind.__name__} of its own, not from a "
            f"{type(start).__name__} of another flow; start from its density: "
            "run(state.density, ...)"
        )
    density = start.density if isinstance(start, State) else start
    if not isinstance(density, Density):
        raise TypeError(
            "the start is a Density, such as Density.from_function(problem, m), or a state of the "
            f"flow, not {type(start).__name__}"
        )
    if density.problem is not problem:
        raise ValueError("the start belongs to another problem; build it on the flow's own")
    if not (np.isfinite(number("t_end", t_end)) and t_end >= 0):
        raise ValueError(f"t_end must be a non-negative number, not {t_end}")
    same_on_all_ranks(problem.comm, t_end=float(t_end))
    if isinstance(start, State) and t_end < start.t:
        raise ValueError(f"t_end = {t_end} is before the start, at t = {start.t}; take a later one")
