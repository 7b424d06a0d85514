"""The exceptions of the package: each names what to change."""

from __future__ import annotations

__all__ = ["ConvergenceError", "LinearSolverError", "StagnationError"]


class ConvergenceError(RuntimeError):
    """An iteration did not converge, or produced values that are not finite.

    Raised on every rank. Whatever was yielded or written before it stays valid. Bad input is a
    plain ``ValueError`` instead.
    """


class LinearSolverError(ConvergenceError):
    """A linear solver gave up on a matrix that may well be positive definite."""


class StagnationError(ConvergenceError):
    """Rounding hides all further progress: the tolerance is too small, not the step too long."""
