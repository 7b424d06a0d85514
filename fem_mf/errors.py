"""The exceptions of the package, and arguments of the wrong type: each names what to change."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = [
    "ConvergenceError",
    "LinearSolverError",
    "StagnationError",
    "integer",
    "number",
    "positive",
]


def number(name: str, value: Any) -> float:
    """A real number.

    Raises:
        TypeError: it is none, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite positive number.

    Raises:
        TypeError: it is no number, naming the argument.
        ValueError: it is not positive or not finite.
    """
    if not (math.isfinite(number(name, value)) and value > 0):
        raise ValueError(f"{name} must be a positive number, not {value}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """An integer.

    Raises:
        TypeError: it is none, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


class ConvergenceError(RuntimeError):
    """An iteration did not converge, or produced values that are not finite.

    Raised on every rank. Whatever was yielded or written before it stays valid. Bad input is a
    plain ``ValueError`` instead.
    """


class LinearSolverError(ConvergenceError):
    """A linear solver gave up on a matrix that may well be positive definite."""


class StagnationError(ConvergenceError):
    """Rounding hides all further progress: the tolerance is too small, not the step too long."""
