"""What goes into an implicit stage and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from fem_mf.features import Array
from fem_mf.problem import Problem

__all__ = ["Anchor", "Guess", "StageResult"]


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """r, from which a minimising movement starts (D7); all arrays are owned values.

    Attributes:
        base: r, of any norm.
        load: M r.
    """

    base: Array
    load: Array

    def squared_distance(self, problem: Problem, psi: Array, mass_psi: Array) -> float:
        """‖ψ − r‖², without the cancellation of 2 − 2⟨ψ, r⟩. Collective."""
        return problem.dot(psi - self.base, mass_psi - self.load)


@dataclass(frozen=True)
class Guess:
    """Initial guess of a stage.

    Attributes:
        psi: owned values of ψ, of any norm.
        y: the mean field.
        shift: the multiplier s.
        predicted: whether s comes from stages before.
    """

    psi: Array
    y: Array
    shift: float
    predicted: bool = False


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A solved stage.

    Attributes:
        psi: ψ, owned values, of norm one; negative where the mesh does not resolve it.
        mass_psi: Mψ.
        anchor: r.
        length: a.
        overlap: ⟨ψ, r⟩.
        shift: s, the multiplier of ‖ψ‖ = 1.
        y: the mean field of ψ.
        iterations: evaluations of the mean field in the fixed point, or Newton steps.
        linear_iterations: conjugate gradient iterations of all linear solves.
    """

    psi: Array
    mass_psi: Array
    anchor: Anchor
    length: float
    overlap: float
    shift: float
    y: Array
    iterations: int
    linear_iterations: int
