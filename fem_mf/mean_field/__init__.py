"""The mean field as an unknown: moments, fixed-point iterations, Newton's method on moments."""

from __future__ import annotations

from fem_mf.mean_field.fixed_point import Anderson, Picard
from fem_mf.mean_field.moments import Moments, NodalDensity, mean_field_of
from fem_mf.mean_field.newton import Newton

__all__ = [
    "Anderson",
    "Moments",
    "Newton",
    "NodalDensity",
    "Picard",
    "mean_field_of",
]
