"""What goes into an implicit stage and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from fem_mf.features import Array
from fem_mf.fixed_point import FixedPointRecord

__all__ = ["Guess", "StageResult", "StageStart"]


@dataclass(frozen=True)
class Guess:
    """What a stage starts from: owned values of ψ, of any norm, and the mean field y."""

    psi: Array
    y: Array


@dataclass(frozen=True, kw_only=True)
class StageStart:
    """r, what a stage starts from.

    Attributes:
        base: owned values of r.
        load: M r.
    """

    base: Array
    load: Array


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A solved stage.

    Attributes:
        psi: ψ, owned values, not normalised.
        unit: ψ made positive and normalised.
        mass_unit: M times it.
        norm: of ψ.
        positivity: ⟨ψ, |ψ|⟩/‖ψ‖², 1 where ψ ≥ 0.
        rate: f = (ψ − r)/a = −½(H − s)ψ.
        shift: s.
        y: the mean field of ψ.
        record: of the fixed point.
        linear_iterations: of all its linear solves.
    """

    psi: Array
    unit: Array
    mass_unit: Array
    norm: float
    positivity: float
    rate: Array
    shift: float
    y: Array
    record: FixedPointRecord
    linear_iterations: int
