"""What a flow yields at every step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dolfinx import fem

from fem_mf.density import Density

__all__ = ["HJBState", "State"]


@dataclass(frozen=True, kw_only=True)
class State:
    """One instant of a flow, from which any run of that flow can go on.

    Attributes:
        t: time.
        dt: the step that led here (0 at the start).
        next_dt: the step to come, if the end leaves room for it.
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
        replaced: minimising movements (D7), of the same length together, that took the place of
            a step too long for its scheme; 0 when the step is the scheme's own.
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

    def scalars(self) -> dict[str, float | int]:
        """The numbers, in the order of the attributes: one row of a history."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, (int, float))}


@dataclass(frozen=True, kw_only=True)
class HJBState(State):
    """One instant of the flow; see :class:`State` for what is not listed.

    Attributes:
        u: −log m.
        v: of the decomposition, None without; its constant is that of w.
        w: u − v with ∫w dm = 0, None without.
        newton_iterations: of the step, all nonlinear solves together.
        newton_most: of the hardest nonlinear solve of the step.
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
