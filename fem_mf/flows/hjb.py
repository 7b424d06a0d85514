"""The mean-field Hamilton–Jacobi–Bellman flow (D3), whole or decomposed (W1, W2).

    flow = HJBFlow(problem, dt=0.05, scheme="sdirk2", form="v+w")
    for state in flow.run(start, t_end=10.0):
        print(state.t, state.energy, state.lipschitz_w)

The unknown is u = −log m, an independent discretisation of the curve m_t that
:class:`fem_mf.SchrodingerFlow` computes in ψ = √m. In the decomposition u = v + w, v solves the
classical equation (W1) with the part g of V that does not depend on m, in closed form if g and v_0
are quadratic, and w is the remainder, which stays Lipschitz uniformly in time. After each step the
additive constant is set so that the mass is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fem_mf.density import Density, LogDensity, log_density
from fem_mf.flows.classical_part import ClassicalPart, Quadratic
from fem_mf.flows.flow import Clock, Flow, HJBState, Trajectory, counts
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.flows.hjb_stage import HJBResult, HJBStage
from fem_mf.flows.hopf_cole import WeightedStage
from fem_mf.flows.tableau import SCHEMES, solve_stages
from fem_mf.mean_field.fixed_point import Accelerator
from fem_mf.mean_field.newton import Newton
from fem_mf.observables import Regularity, energy
from fem_mf.petsc import Options
from fem_mf.problem import Problem
from fem_mf.spaces import set_owned
from fem_mf.typing import Array

__all__ = ["HJBFlow"]


class HJBFlow(Flow[HJBState]):
    """∂_t u = (σ²/2)Δu − (σ²/4)|∇u|² + V[m_t] − λ_t, m = e^{−u} (D3).

    Args:
        problem: the problem, with natural boundary and degree at least 2 (a quadratic u is then
            exact in space). The mesh represents all of R^d: its boundary is an outflow.
        dt: time step, > 0.
        scheme: ``"backward-euler"`` (order 1) or ``"sdirk2"`` (order 2).
        form: ``"u"``, ``"v+w"`` (v and w instead of u), or ``"hopf-cole"`` (v, and w from the
            linear equation for φ = e^{−w/2}, W3).
        decomposed: equivalent to ``form="v+w"``.
        weighted: with ``decomposed=True`` equivalent to ``form="hopf-cole"``.
        accelerator: how the fixed-point iteration is accelerated: ``Picard()`` or ``Anderson()``
            (default).
        fixed_point_tolerance: relative tolerance of the moments (or of m).
        max_iterations: most evaluations of one fixed point.
        safeguard: whether fixed-point steps that overshoot are shortened.
        petsc_options: PETSc options, without prefix, of Newton's method (``snes_atol`` bounds the
            L² norm of the residual, 1e-11 by default) and, with ``"hopf-cole"``, of the linear
            solver; command-line ``-fem_mf_hjb_...``, ``-fem_mf_weighted_...`` override them.

    Raises:
        ValueError: if an argument is invalid; the message names it.
    """

    _kind = HJBState

    def __init__(
        self,
        problem: Problem,
        dt: float,
        scheme: str = "backward-euler",
        *,
        form: str | None = None,
        decomposed: bool = False,
        weighted: bool = False,
        accelerator: Accelerator | None = None,
        fixed_point_tolerance: float = 1e-10,
        max_iterations: int = 100,
        safeguard: bool = True,
        petsc_options: Options | None = None,
    ) -> None:
        # A scheme that starts from the rate of u would not damp components unresolved by dt.
        names = [name for name, tableau in SCHEMES.items() if not tableau.explicit]
        super().__init__(
            problem,
            dt,
            accelerator,
            fixed_point_tolerance,
            max_iterations,
            safeguard,
            schemes=sorted(names),
            scheme=scheme,
        )
        if isinstance(accelerator, Newton):
            raise ValueError("accelerator: HJBFlow takes Picard() or Anderson(), not Newton()")
        self.form, self.scheme = _form(form, decomposed, weighted), scheme
        self.decomposed = self.form != "u"
        options, linear = petsc_options or {}, self.form == "hopf-cole"
        self._options = {k: v for k, v in options.items() if k.startswith("snes_") or not linear}
        self._operator = HJBOperator(problem, petsc_options=self._options)
        self._stage: HJBStage | WeightedStage
        if self.form == "hopf-cole":
            others = {k: v for k, v in options.items() if not k.startswith("snes_")}
            self._stage = WeightedStage(problem, self.mean_field, self._fixed_point, others)
        else:
            self._stage = HJBStage(
                self._operator, self.mean_field, self._fixed_point, whole=not self.decomposed
            )
        self._bounds = Regularity(problem)

    def run(
        self,
        start: Density | HJBState,
        t_end: float,
        *,
        steady_residual: float | None = None,
        v_start: Quadratic | None = None,
    ) -> Iterator[HJBState]:
        """Integrate from t = 0; the start is yielded too. Collective at every step.

        Args:
            start: m_0, on the same problem (a ``LogDensity`` if ψ would be too small); or a state
                of this flow, to resume from with its v.
            t_end: final time, reached exactly (the last step is shortened).
            steady_residual: stop early once ‖∂_t u‖ in L²(m) is at most this value.
            v_start: v_0 of the decomposition; the default is u_0 if it is quadratic, else the
                stationary v of a quadratic fit to g.

        Returns:
            An iterator of states; each owns its density.

        Raises:
            TypeError: if start is a state of another flow.
            ValueError: if start is on another problem or too small for its logarithm to be
                meaningful, or t_end is not a non-negative number.
            ConvergenceError: if a step fails; states already yielded remain valid.
        """
        return self._run(start, t_end, steady_residual, v_start=v_start)

    def _begin(self, start: Density | HJBState, **options: Any) -> _Trajectory:
        return _Trajectory(self, start, **options)

    def _step(
        self, now: LogDensity, classical: ClassicalPart | None, y: Array, t: float, dt: float
    ) -> list[HJBResult]:
        stage, scheme = self._stage, SCHEMES[self.scheme]
        w, shift = stage.encode(_remainder(now, classical)), self._shift(now, y)
        drifts = [] if classical is None else classical.advance(t, dt, scheme)

        def solve(start: Array, a: float, before: list[HJBResult]) -> HJBResult:
            if drifts:
                stage.set_drift(drifts[len(before)])
            guess, known = (before[-1].value, before[-1].y) if before else (w, y)
            return stage.solve(start, guess, known, a, shift)

        return solve_stages(scheme, w, None, dt, solve)

    def _shift(self, now: LogDensity, y: Array) -> float:
        """λ or its mean-field part; any constant is valid, but this one keeps u and w bounded."""
        potential = self.mean_field.potential(y)
        if self.decomposed:
            potential = potential - self.mean_field.base
        return self._discrete.dot(potential[: self._discrete.num_potential_owned], now.measure())

    def _state(
        self,
        density: LogDensity,
        classical: ClassicalPart | None,
        y: Array,
        results: list[HJBResult],
        **numbers: float | int,
    ) -> HJBState:
        problem, u = self.problem, density.log_values()
        discrete = problem.discretisation
        kinetic = 0.25 * problem.sigma**2 * density.fisher_information()
        dissipation = density.variance(self._rate(density, classical, y, results))
        hessian = self._bounds.hessian(u)[1]
        state = {
            "density": density,
            "energy": energy(problem, density),
            "eigenvalue": kinetic
            + discrete.dot(
                self.mean_field.potential(y)[: discrete.num_potential_owned], density.measure()
            ),
            "residual": float(np.sqrt(dissipation)),
            "dissipation": dissipation,
            "mass": density.mass(),
            "boundary_mass": discrete.boundary_mass(density.amplitude()),
            **counts(results),
            "newton_iterations": sum(r.newton_iterations for r in results),
            "newton_most": max((r.newton_most for r in results), default=0),
            "hessian_u": hessian,
            "growth_u": self._bounds.growth(u),
            "second_moment": density.moment(2.0),
            "fourth_moment": density.moment(4.0),
        }
        return HJBState(u=density.u(), **state, **self._parts(density, u, classical), **numbers)  # type: ignore[arg-type]

    def _rate(
        self,
        density: LogDensity,
        classical: ClassicalPart | None,
        y: Array,
        results: list[HJBResult],
    ) -> Array:
        """∂_t u at the end of the step, up to a constant."""
        if not results:
            potential = self.mean_field.potential(y)
            self._operator.set_drift(np.zeros(self._discrete.num_owned))
            return self._operator.rate_of(density.log_values(), potential)
        rate = self._stage.rate_of_w(results[-1])
        return rate if classical is None else rate + classical.rate

    def _parts(
        self, density: LogDensity, u: Array, classical: ClassicalPart | None
    ) -> dict[str, object]:
        if classical is None:
            return {}
        bounds, w = self._bounds, _remainder(density, classical)
        v = u - w
        parts: dict[str, object] = {}
        for name, values in (("v", v), ("w", w)):
            function = self._discrete.new_amplitude()
            function.name = name
            set_owned(function, values)
            parts[name] = function
        return {
            **parts,
            "theta_v": bounds.hessian(v)[0],
            "growth_v": bounds.growth(v),
            "lipschitz_w": bounds.gradient(w),
        }


class _Trajectory(Trajectory[HJBState]):
    """One run: m, its mean field y, and v."""

    def __init__(
        self,
        flow: HJBFlow,
        start: Density | HJBState,
        v_start: Quadratic | Array | None = None,
    ) -> None:
        self._flow, self.dt = flow, flow.dt
        known = start if isinstance(start, HJBState) else None
        self._density = log_density(start.density if isinstance(start, HJBState) else start)
        if known is not None and known.v is not None:
            v_start = known.v.x.array[: flow.problem.discretisation.num_owned].copy()
        self._v = None
        if flow.decomposed:
            self._v = ClassicalPart(
                flow.problem,
                flow.mean_field.base,
                self._density,
                v_start,
                flow._options,
            )
        self._y = flow.mean_field.evaluate(self._density)
        self.state = known or flow._state(
            self._density, self._v, self._y, [], t=0.0, dt=0.0, next_dt=flow.dt, step=0
        )
        self._origin = self.state.t

    def advance(self, clock: Clock) -> HJBState:
        """Take one step that the clock accepts. Collective."""
        flow = self._flow
        elapsed = clock.t - self._origin
        results = flow._step(self._density, self._v, self._y, elapsed, clock.next_step())
        clock.accept()
        self._density, self._y = results[-1].density, results[-1].y
        self.state = flow._state(self._density, self._v, self._y, results, **clock.numbers)
        return self.state


def _form(form: str | None, decomposed: bool, weighted: bool) -> str:
    """The form selected by ``form`` or by the flags ``decomposed`` and ``weighted``."""
    if weighted and not decomposed and form is None:
        raise ValueError("weighted=True needs decomposed=True: its weight is e^{−v}")
    named = "hopf-cole" if weighted else "v+w" if decomposed else "u"
    if form is None:
        return named
    if form not in ("u", "v+w", "hopf-cole"):
        raise ValueError(f"form must be 'u', 'v+w' or 'hopf-cole', not {form!r}")
    if named not in ("u", form):
        raise ValueError(f"form={form!r} contradicts decomposed and weighted: give form alone")
    return form


def _remainder(density: LogDensity, classical: ClassicalPart | None) -> Array:
    """w = u − v, with ∫w dm = 0 if decomposed, since v's constant grows as λ_v t. Collective."""
    if classical is None:
        return density.log_values()
    w = density.log_values() - classical.values
    return w - density.expectation(w)
