"""The mean-field Langevin flow (L1): the W₂ gradient flow of E(m) = F(m) + (σ²/2)∫m log m.

    problem = Problem(mesh, functional, sigma=0.5, degree=1, mass="lumped")
    start = Density.from_function(problem, lambda x: np.exp(-(x[0] ** 2)))
    for state in LangevinFlow(problem, dt=0.05).run(start, t_end=1.0):
        print(state.t, state.energy, state.gap)
    best = minimise_entropic(problem)

The unknowns are the values of m at the vertices. Space is discretised by edge-averaged finite
elements with couplings w_ij and flows J_ij (:mod:`fem_mf.flows.edge_averaged`), time by backward
Euler with V at the new m. With μ = V[m] + (σ²/2) log m and D(m) = Σ J_ij (μ_i − μ_j) over edges:

* proved for every mesh: a step conserves mass, and m ∝ e^{−(2/σ²)V} is stationary, at the nodes;
* proved if no coupling is negative, for every dt: M/dt + L(V) is an M-matrix, so m > 0; each term
  of D is ≥ 0; a step exists (Brouwer); and for convex F the energy decreases,
  E(m⁺) + dt D(m⁺) ≤ E(m), since E(m) ≥ E(m⁺) + ∫μ⁺d(m − m⁺) and ∫μ⁺d(m⁺ − m) = −dt D(m⁺);
* observed: mean and variance converge with order 2 in h if the cell Péclet number |∇V|h/σ² is below
  1 and with order 1 above (a warning is logged), and with order 1 in dt; the fixed-point iteration
  converges from dt = 1e-4 to 1e4, for networks and contact terms.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from fem_mf.boundary import warn_if_truncated
from fem_mf.density import Density
from fem_mf.flows.flow import (
    Clock,
    Extrapolation,
    Flow,
    State,
    Trajectory,
    check_tolerances,
    counts,
)
from fem_mf.flows.langevin_stage import LangevinStage, default_accelerator
from fem_mf.flows.tableau import StageResult
from fem_mf.mean_field.fixed_point import Accelerator
from fem_mf.mpi import warn
from fem_mf.observables import check_problem
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.typing import Array

__all__ = ["LangevinFlow", "LangevinState", "minimise_entropic"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class LangevinState(State):
    """The flow at one time; see :class:`fem_mf.flows.State` for the other attributes.

    Integrals are sums over the vertices, as in the scheme.

    Attributes:
        energy: E(m) = F(m) + (σ²/2)∫m log m.
        eigenvalue: ∫μ dm, the chemical potential: at the minimiser μ is this constant.
        residual: speed of m_t in W₂, the square root of the dissipation.
        dissipation: D(m), the discrete ∫|∇μ|² dm: −dE/dt of the scheme in the limit dt → 0.
        mass: ∫m dx. Every step rescales m, which removes rounding errors of the mass.
        gap: (σ²/2) H(m | m̂), m̂ ∝ e^{−(2/σ²)V} with V = V[m] frozen; E(m) − min E ≤ gap if F
            is convex (as C1 for F^σ).
        clipped: mass added in the step to keep m above what would remain of the previous m without
            inflow: 0 up to rounding and the tolerances of iterations, unless couplings are
            negative.
        peclet: |∇V|h/σ², averaged over m. Above 1 numerical diffusion spreads m as it moves; the
            equilibrium itself is exact at the vertices.
    """

    gap: float
    clipped: float = 0.0
    peclet: float = float("nan")


class LangevinFlow(Flow[LangevinState]):
    """∂_t m = ∇·(m∇V[m_t]) + (σ²/2)Δm, with no flux through the boundary (L1).

    No coupling is negative on intervals, Delaunay triangulations, and axis-aligned quadrilaterals
    and hexahedra. Most tetrahedral meshes have negative couplings; a warning counts them.

    Args:
        problem: the problem, with ``degree=1``, ``mass="lumped"`` and the natural boundary.
        dt: time step, > 0.
        accelerator: how the fixed-point iteration is accelerated: ``Picard()``, ``Anderson()`` or
            ``Newton()``. With any of them, the contribution of ``Contact`` terms to V is linearised
            in every evaluation. The default is Newton if every term of F is cylindrical, Picard if
            V depends on m through contact terms only, else Anderson.
        fixed_point_tolerance: relative tolerance of the moments (or of m).
        max_iterations: most evaluations of one fixed point.
        safeguard: whether fixed-point steps that overshoot are shortened.
        petsc_options: PETSc options of the linear solver, without prefix (``ksp_rtol`` is 1e-12 by
            default); ``-fem_mf_langevin_...`` on the command line overrides them. The default is LU
            if affordable, which gives m relative precision even where it is tiny, and otherwise
            BiCGStab with ILU on each rank.

    Raises:
        ValueError: if an argument is invalid; the message names it.
    """

    _kind = LangevinState

    def __init__(
        self,
        problem: Problem,
        dt: float,
        *,
        accelerator: Accelerator | None = None,
        fixed_point_tolerance: float = 1e-10,
        max_iterations: int = 100,
        safeguard: bool = True,
        petsc_options: Options | None = None,
    ) -> None:
        super().__init__(problem, dt, accelerator, fixed_point_tolerance, max_iterations, safeguard)
        self._stage = LangevinStage(problem, self.mean_field, self._fixed_point, petsc_options)
        self._warned = False

    def _check_problem(self, problem: Problem) -> None:
        super()._check_problem(problem)
        if problem.degree != 1 or not problem.lumped:
            raise ValueError(
                "LangevinFlow needs Problem(..., degree=1, mass='lumped'); this problem has "
                f"degree={problem.degree}, mass={problem.mass!r}"
            )
        if problem.boundary != "natural":
            raise ValueError("LangevinFlow supports only boundary='natural' (no flux)")

    def _default_accelerator(self) -> Accelerator:
        return default_accelerator(self.problem, self.mean_field)

    def _begin(self, start: Density | LangevinState, **options: Any) -> _Trajectory:
        if not self._warned:
            _warn_of_negative_couplings(self._stage)
            self._warned = True
        return _Trajectory(self, start, **options)

    def _limit(self, start: Density) -> LangevinState:
        """The limit of the flow, computed as one infinite step."""
        m, y = start.amplitude() ** 2, self.mean_field.evaluate(start)
        result = self._stage.solve(m, y, np.inf)
        state = self._state(result.value, [result], t=np.inf, dt=np.inf, next_dt=np.inf, step=1)
        warn_if_truncated(self.problem, state.density)
        return state

    def _state(self, m: Array, stages: list[StageResult], **numbers: Any) -> LangevinState:
        problem, edges = self.problem, self._stage.edges
        discrete = problem.discretisation
        temperature = edges.temperature
        density = Density(problem, np.sqrt(m), normalised=True)
        potential = problem.on_potential_space(problem.functional.derivative(density))
        potential = potential[: discrete.num_owned]
        edges.set_potential(potential)
        dissipation = edges.dissipation(m, potential + temperature * np.log(m))
        entropic = temperature * density.entropy()
        eigenvalue = discrete.dot(density.measure(), potential) + entropic
        # (σ²/2) H(m | m̂) = ∫μ dm + (σ²/2) log ∫e^{−(2/σ²)V}, shifted by min V against overflow.
        lowest = discrete.min(potential)
        partition = discrete.dot(discrete.mass_diagonal, np.exp((lowest - potential) / temperature))
        return LangevinState(
            density=density,
            energy=float(problem.functional.value(density)) + entropic,
            eigenvalue=eigenvalue,
            residual=float(np.sqrt(max(dissipation, 0.0))),
            dissipation=dissipation,
            mass=density.mass(),
            boundary_mass=discrete.boundary_mass(density.amplitude()),
            gap=eigenvalue - lowest + temperature * float(np.log(partition)),
            clipped=self._stage.clipped if stages else 0.0,
            peclet=edges.peclet(m),
            **counts(stages),
            **numbers,
        )


class _Trajectory(Trajectory[LangevinState]):
    """One run: m at the vertices, its mean field y, and past values of y."""

    def __init__(self, flow: LangevinFlow, start: Density | LangevinState) -> None:
        self._flow, self.dt = flow, flow.dt
        density = start.density if isinstance(start, LangevinState) else start
        self._m, self._y = density.amplitude() ** 2, flow.mean_field.evaluate(density)
        known = start if isinstance(start, LangevinState) else None
        self.state = known or flow._state(self._m, [], t=0.0, dt=0.0, next_dt=flow.dt, step=0)
        self._past = Extrapolation(2, lambda y: float(np.sqrt(flow.mean_field.dot(y, y))))
        self._warned = _warn_of_diffusion(self.state)

    def advance(self, clock: Clock) -> LangevinState:
        """Take one step that the clock accepts. Collective."""
        flow, guess = self._flow, self._past.predict(clock.t + clock.next_step())
        result = flow._stage.solve(self._m, self._y if guess is None else guess, clock.last)
        clock.accept()
        self._m, self._y = result.value, result.y
        self._past.add(clock.t, self._y)
        self.state = flow._state(self._m, [result], **clock.numbers)
        self._warned = self._warned or _warn_of_diffusion(self.state)
        return self.state


def minimise_entropic(
    problem: Problem,
    start: Density | None = None,
    *,
    tol: float = 1e-10,
    accelerator: Accelerator | None = None,
    max_iterations: int = 100,
) -> LangevinState:
    """Minimise F(m) + (σ²/2)∫m log m by a fixed point on m ∝ e^{−(2/σ²)V[m]} (L1). Collective.

    No time stepping is involved, so metastable wells of V do not slow it down.

    Args:
        problem: the problem, as for :class:`LangevinFlow`.
        start: initial density, on any problem; the default is uniform.
        tol: relative tolerance of the moments (or of m) in the fixed-point iteration.
        accelerator: how the fixed-point iteration is accelerated, see :class:`LangevinFlow`.
        max_iterations: most evaluations of the fixed point.

    Returns:
        The limit of the flow, at t = inf. If F is convex, its ``gap`` bounds E(m) − min E.

    Raises:
        ValueError: if an argument is out of range, or the problem does not suit the flow.
        ConvergenceError: without convergence; try more iterations, or start from a later state.
    """
    check_problem(problem)
    check_tolerances(problem, max_iterations, tol=tol)
    flow = LangevinFlow(
        problem,
        1.0,
        accelerator=accelerator,
        fixed_point_tolerance=tol,
        max_iterations=max_iterations,
    )
    uniform = Density(problem, np.ones(problem.discretisation.num_owned))
    return flow._limit(uniform if start is None else start.on(problem))


def _warn_of_diffusion(state: LangevinState) -> bool:
    """Warn if the mesh is too coarse for the drift; return whether a warning was logged."""
    if not state.peclet > 1.0:
        return False
    warn(
        state.density.problem.comm,
        _LOG,
        "t = %.6g: the cell Péclet number |∇V|h/σ² is %.2g: numerical diffusion spreads m as it "
        "moves, and the scheme is of order 1 in h; refine the mesh by a factor of about %.2g",
        *(state.t, state.peclet, 2.0 * state.peclet),
    )
    return True


def _warn_of_negative_couplings(stage: LangevinStage) -> None:
    edges = stage.edges
    if edges.negative:
        warn(
            stage.problem.comm,
            _LOG,
            "%d of %d edges have a negative coupling (a positive off-diagonal stiffness entry): "
            "m > 0 and the decay of energy are not guaranteed; use %s",
            edges.negative,
            edges.edges,
            "hexahedra along the axes" if stage.problem.dim == 3 else "Delaunay triangles",
        )
