"""What a flow yields at every step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fem_mf.density import Density

__all__ = ["State"]


@dataclass(frozen=True, kw_only=True)
class State:
    """One instant of a flow.

    Attributes:
        t: time.
        dt: the step that led here (0 at the start).
        step: number of accepted steps so far.
        density: m_t.
        energy: F^σ(m_t) (E1).
        eigenvalue: λ_t = ⟨ψ, H[m_t]ψ⟩.
        residual: ‖H[m_t]ψ − λ_tψ‖.
        dissipation: −dF^σ/dt = residual² (D4).
        mass: ∫m_t dx.
        boundary_mass: mass of the cells that touch the boundary.
        fixed_point_iterations: of the step, all stages together.
        linear_iterations: of the step, all solves together.
        contraction: ratio of the first two fixed-point residuals of a stage, the last measured
            (steps whose first iterate is converged measure none); NaN before that.
        rejected: steps rejected by the error control before this one.
    """

    t: float
    dt: float
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

    def scalars(self) -> dict[str, float | int]:
        """The numbers, in the order of the attributes: one row of a history."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, (int, float))}
