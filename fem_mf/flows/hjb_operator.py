"""The Hamilton–Jacobi–Bellman operator on its own: its value and implicit steps (D3, W2).

    operator = HJBOperator(problem)
    u, V = density.u(), functional.derivative(density)
    rate = operator.rate(u, V)              # (σ²/2)Δu − (σ²/4)|∇u|² + V
    later = operator.step(u, V, dt=0.1)     # (ū − u)/dt = rate(ū), with V frozen

If v is given, it is the operator for w = u − v, with the drift term −(σ²/2)∇v·∇w. The boundary is
an outflow: the drift (σ²/2)∇(v + w) points outward where m decays, and the flux (σ²/2)∂_nw of w
itself is kept in the equation instead of being prescribed. For elements of degree k this "no
boundary condition" acts as if the (k + 1)-th derivative vanished there (Papanastasiou, Malamataris,
Ellwood 1992; Griffiths 1997), so quadratic solutions are exact for k ≥ 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem
from dolfinx.fem import petsc as fem_petsc

from fem_mf import equations
from fem_mf.mpi import positive
from fem_mf.observables import check_problem
from fem_mf.petsc import NewtonSolver, Options, mumps
from fem_mf.problem import Problem
from fem_mf.spaces import assemble_owned, exact_measure, set_owned
from fem_mf.typing import Array

__all__ = ["HJBOperator"]

_POWER_ITERATIONS = 60
_TOLERANCE = 1e-11
# The annotations of assemble_matrix cover only one of the signatures that it accepts.
_assemble_matrix: Any = fem_petsc.assemble_matrix


class HJBOperator:
    """w ↦ (σ²/2)Δw − (σ²/2)∇v·∇w − (σ²/4)|∇w|² + V; forms and solver are set up once.

    Args:
        problem: the problem, with natural boundary and degree at least 2.
        v: the drift, a function of the problem's space, up to a constant; None means 0.
        petsc_options: PETSc options of Newton's method, without prefix (``snes_atol`` bounds the L²
            norm of the residual times dt/(1 + dt), 1e-11 by default); ``-fem_mf_hjb_...`` on the
            command line overrides them.

    Attributes:
        drift: v; its values may be changed.

    Raises:
        ValueError: if the degree or the boundary of the problem does not suit u.
    """

    def __init__(
        self,
        problem: Problem,
        v: fem.Function | None = None,
        *,
        petsc_options: Options | None = None,
    ) -> None:
        check_problem(problem)
        if problem.degree < 2:
            raise ValueError("u grows like |x|²: the HJB equation needs degree 2 or more")
        if problem.boundary != "natural":
            raise ValueError("u is infinite where ψ = 0: it needs boundary='natural'")
        self.problem = problem
        self._discrete = problem.discretisation
        self.drift: fem.Function = self._discrete.new_amplitude()
        self._w: fem.Function = self._discrete.new_amplitude()
        self._start: fem.Function = self._discrete.new_amplitude()
        self._work: fem.Function = self._discrete.new_amplitude()
        self._potential: fem.Function = problem.new_potential()
        one: Any = default_scalar_type(1.0)
        self._inertia, self._weight, self._shift = (
            fem.Constant(problem.mesh, one) for _ in range(3)
        )
        self._build_forms()
        self._matrix = fem_petsc.create_matrix(self._jacobian)
        self._solution = self._matrix.createVecRight()
        self._solver = NewtonSolver(
            self._assemble_residual,
            self._assemble_jacobian,
            self._matrix,
            "fem_mf_hjb_",
            {"ksp_type": "preonly", "pc_type": "lu", **mumps(problem.dim)},
            petsc_options,
        )
        self.set_drift(np.zeros(self._discrete.num_owned) if v is None else self._owned(v))

    def _build_forms(self) -> None:
        problem = self.problem
        degree = max(
            3 * problem.degree - 2, problem.degree + problem.discretisation.potential_degree
        )
        dx, ds = exact_measure(problem.mesh, degree), ufl.ds(domain=problem.mesh)
        chi, delta = ufl.TestFunction(problem.space), ufl.TrialFunction(problem.space)
        # The equation is multiplied by a/(1 + a), which balances its parts for all step lengths.
        w, inertia, a = self._w, self._inertia, self._weight
        value: Any = default_scalar_type(problem.sigma)
        sigma, potential = fem.Constant(problem.mesh, value), self._potential - self._shift
        residual = equations.mass(inertia * (w - self._start), chi, dx)
        residual += a * equations.hjb(w, chi, potential, sigma, dx, ds, self.drift)
        self._residual = fem.form(residual)
        self._jacobian: Any = fem.form(ufl.derivative(residual, w, delta))

    def _load(self, x: PETSc.Vec) -> None:
        set_owned(self._w, np.asarray(x.array_r, dtype=np.float64))

    def _assemble_residual(self, x: PETSc.Vec, f: PETSc.Vec) -> None:
        self._load(x)
        f.array[:] = assemble_owned(self._residual, self._work)

    def _assemble_jacobian(self, x: PETSc.Vec, matrix: PETSc.Mat) -> None:
        self._load(x)
        matrix.zeroEntries()
        _assemble_matrix(matrix, self._jacobian)
        matrix.assemble()

    # -- on functions -----------------------------------------------------------------------------

    def rate(self, w: fem.Function, V: fem.Function) -> fem.Function:
        """Apply the operator to w, which gives ∂_tw up to a constant. Collective.

        Args:
            w: a function of the problem's space.
            V: the potential, such as ``functional.derivative(density)``.

        Returns:
            A function of the problem's space, represented in L².
        """
        potential = self.problem.on_potential_space(V)
        return self._function(self.rate_of(self._owned(w), potential))

    def step(self, w: fem.Function, V: fem.Function, dt: float) -> fem.Function:
        """Take a backward Euler step, (w̄ − w)/dt = rate(w̄, V), with V frozen. Collective.

        Args:
            w: a function of the problem's space.
            V: the potential.
            dt: length of the step, > 0.

        Raises:
            ConvergenceError: if Newton's method fails.
        """
        positive("dt", dt)
        values, potential = self._owned(w), self.problem.on_potential_space(V)
        later, _ = self.solve(values, values, potential, float(dt), 0.0)
        return self._function(later)

    def longest_explicit_step(self, w: fem.Function) -> float:
        """2 over the largest modulus of an eigenvalue of the linearised operator at w. Collective.

        Longer explicit Euler steps amplify the shortest waves of the mesh. The bound is computed by
        power iteration, to about 1 %; it is proportional to the square of the mesh size.
        """
        apply = self.linearised(self._owned(w))
        # Rough, hence rich in the stiffest mode, and independent of the number of ranks.
        x = self._discrete.owned_nodes
        mode = np.cos(1e4 * (x[0] + np.sqrt(2.0) * x[1] + np.sqrt(3.0) * x[2]))
        for _ in range(_POWER_ITERATIONS):
            mode = apply(mode / self._discrete.norm(mode))
        return 2.0 / self._discrete.norm(mode)

    def _owned(self, function: fem.Function) -> Array:
        if function.function_space.mesh is not self.problem.mesh:
            raise ValueError("a function of another mesh; it must be one of the problem's space")
        return np.array(function.x.array[: self._discrete.num_owned], dtype=np.float64)

    def _function(self, values: Array) -> fem.Function:
        function: fem.Function = self._discrete.new_amplitude()
        function.name = "w"
        set_owned(function, values)
        return function

    # -- on owned values --------------------------------------------------------------------------

    def set_drift(self, v: Array) -> None:
        """Set v by its owned values. Collective."""
        set_owned(self.drift, v)

    def rate_of(self, w: Array, potential: Array) -> Array:
        """Apply the operator to owned values w; V includes ghosts. Collective."""
        self._set(inertia=0.0, weight=1.0, shift=0.0)
        self._potential.x.array[:] = potential
        self._solution.array[:] = w
        load = self._solution.duplicate()
        self._assemble_residual(self._solution, load)
        return -self._discrete.solve_mass(np.array(load.array_r, dtype=np.float64))

    def linearised(self, w: Array) -> Callable[[Array], Array]:
        """The derivative of the operator at w, as a map of owned values. Collective."""
        self._set(inertia=0.0, weight=1.0, shift=0.0)
        self._solution.array[:] = w
        self._assemble_jacobian(self._solution, self._matrix)
        return lambda delta: (
            -self._discrete.solve_mass(self._discrete.multiply(self._matrix, delta))
        )

    def solve(
        self, start: Array, guess: Array, potential: Array, a: float, shift: float
    ) -> tuple[Array, int]:
        """Solve (w − r)/a = the operator at w, minus s, for w. Collective.

        Args:
            start: owned values of r.
            guess: owned values of the initial w.
            potential: V on the potential space, owned and ghosts.
            a: the length of the step, > 0.
            shift: s.

        Returns:
            Owned values of w, and the number of Newton steps.

        Raises:
            ConvergenceError: if Newton's method fails.
        """
        set_owned(self._start, start)
        self._set(inertia=1.0 / (1.0 + a), weight=a / (1.0 + a), shift=shift)
        self._potential.x.array[:] = potential
        self._solution.array[:] = guess
        scale = float(np.sqrt(self._discrete.mean_mass))
        steps = self._solver.solve(self._solution, _TOLERANCE, scale=scale)
        return np.array(self._solution.array_r, dtype=np.float64), steps

    def _set(self, inertia: float, weight: float, shift: float) -> None:
        for constant, value in (
            (self._inertia, inertia),
            (self._weight, weight),
            (self._shift, shift),
        ):
            constant.value = np.asarray(value)
