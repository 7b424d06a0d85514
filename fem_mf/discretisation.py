"""Spaces, quadrature and constant operators of a mesh, independent of F and of time.

Arrays called *owned* hold this rank's own degrees of freedom; arrays on the potential space hold
owned values first, then ghosts.

The mass and the potential can be discretised in two ways:

* consistent: they are integrated exactly; the potential has its own space.
* lumped: the quadrature points are the nodes (vertices for degree 1 on simplices, Gauss–Lobatto
  points on intervals, quadrilaterals and hexahedra), so mass and potential are diagonal.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import default_scalar_type, fem, la
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc
from ufl.core.expr import Expr

from fem_mf import equations
from fem_mf.collocation import collocated_stiffness
from fem_mf.mpi import all_ranks_agree, global_sum
from fem_mf.petsc import SpdSolver
from fem_mf.points import evaluate
from fem_mf.spaces import (
    assemble_owned,
    exact_measure,
    exponential_measure,
    lumped_measure,
    set_owned,
)
from fem_mf.typing import Array, SpaceFunction

__all__ = ["Discretisation"]

_LOG = logging.getLogger(__name__)
_ADD = la.InsertMode.add
_SAME_PATTERN: Any = PETSc.Mat.Structure.SAME_NONZERO_PATTERN
_SAME = 1e-12  # largest relative difference between a fast path and the form that it replaces
_MASS_OPTIONS = {"ksp_type": "cg", "pc_type": "jacobi"}
# The annotations of assemble_matrix cover only one of the signatures that it accepts.
_assemble_matrix: Any = fem_petsc.assemble_matrix


class Discretisation:
    """Lagrange spaces of ψ and of V (possibly the same), and the operators between them.

    Args:
        mesh: the mesh.
        degree: degree of ψ.
        potential_degree: degree of V; ignored when lumped.
        boundary: ``"natural"``, ``"dirichlet"``, or any other name together with ``walls``.
        lumped: whether mass and potential are diagonal.
        walls: this rank's facets where ψ = 0; by default the whole boundary for
            ``"dirichlet"``, else none.

    Attributes:
        dim: dimension d.
        space: Lagrange space of ψ.
        nodes: ``(3, n)`` points of the degrees of freedom of ``space``, owned first.
        potential_space: Lagrange space of V; equal to ``space`` when lumped.
        potential_nodes: ``(3, n)`` points of the degrees of freedom of V, owned first.
        boundary_cells: owned cells that touch the boundary.
        mass_matrix: ∫ψχ; diagonal when lumped, with owned entries ``mass_diagonal``.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        degree: int,
        potential_degree: int,
        boundary: str,
        lumped: bool,
        walls: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.mesh = mesh
        self.comm: Any = mesh.comm
        self.dim: int = mesh.geometry.dim
        self.degree, self.boundary, self.lumped = degree, boundary, lumped
        self.potential_degree = degree if lumped else potential_degree
        self.space = fem.functionspace(mesh, ("Lagrange", degree))
        self.potential_space = (
            self.space if lumped else fem.functionspace(mesh, ("Lagrange", self.potential_degree))
        )
        self._template: fem.Function = fem.Function(self.space)
        self.nodes = np.ascontiguousarray(self.space.tabulate_dof_coordinates().T)
        self.potential_nodes = np.ascontiguousarray(
            self.potential_space.tabulate_dof_coordinates().T
        )
        self.num_owned: int = self.space.dofmap.index_map.size_local
        self.num_potential_owned: int = self.potential_space.dofmap.index_map.size_local
        self._build_boundary(walls)
        self._build_measures()
        self._build_operators()

    # -- set-up ---------------------------------------------------------------------------------

    def _build_boundary(self, walls: npt.NDArray[np.int32] | None) -> None:
        topology = self.mesh.topology
        tdim = topology.dim
        topology.create_connectivity(tdim - 1, tdim)
        self.boundary_facets = dmesh.exterior_facet_indices(topology)
        if self.boundary == "dirichlet":
            walls = self.boundary_facets
        self.boundary_conditions: list[fem.DirichletBC] = []
        self.constrained = self._constrained_everywhere = np.empty(0, dtype=np.int32)
        if walls is not None:
            dofs = fem.locate_dofs_topological(self.space, tdim - 1, walls)
            zero: Any = default_scalar_type(0)
            self.boundary_conditions = [fem.dirichletbc(zero, dofs, self.space)]
            self._constrained_everywhere = dofs  # ghosts too
            self.constrained = dofs[dofs < self.num_owned]
        cells = dmesh.compute_incident_entities(topology, self.boundary_facets, tdim - 1, tdim)
        owned = topology.index_map(tdim).size_local
        self.boundary_cells = np.sort(cells[cells < owned])

    def _build_measures(self) -> None:
        if self.lumped:
            self.dx_mass = self.dx_potential = lumped_measure(self.mesh, self.degree)
            usual = ufl.dx(domain=self.mesh)
            self.dx_stiffness = self.dx_mass if self.degree > 1 else usual
        else:
            degree = 2 * self.degree
            self.dx_mass = self.dx_stiffness = exact_measure(self.mesh, degree)
            self.dx_potential = exact_measure(self.mesh, degree + self.potential_degree)

    def _build_operators(self) -> None:
        psi, chi = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        self._x: fem.Function = fem.Function(self.space)
        self._y: fem.Function = fem.Function(self.space)
        one: Any = default_scalar_type(1.0)
        self._sigma = fem.Constant(self.mesh, one)
        self._entropy_form: fem.Form | None = None
        self.potential_form: Any = None
        self._square: Any = None
        self._stiffness: PETSc.Mat | None = None
        self._mass_solver: SpdSolver | None = None
        self._potential_mass: SpdSolver | None = None
        self._boundary_form = self._mass_form(self.boundary_cells)
        self._potential: fem.Function = fem.Function(self.potential_space, name="V")
        self._weights: fem.Function = fem.Function(self.potential_space)
        if self.lumped:
            diagonal = assemble_owned(fem.form(equations.mass(1.0, chi, self.dx_mass)), self._y)
            self.mass_diagonal: Array = diagonal.copy()
            self.mass_matrix = PETSc.Mat().createDiagonal(self._y.x.petsc_vec.copy())
        else:
            self.mass_matrix = self._assemble(equations.mass(psi, chi, self.dx_mass), diagonal=0.0)
            theta = ufl.TestFunction(self.potential_space)
            self._measure_form = fem.form(equations.mass(self._x**2, theta, self.dx_potential))
            self._action_form = fem.form(self._potential_part(self._x, chi))
            self.potential_form = fem.form(self._potential_part(psi, chi))
            points = self.potential_space.element.interpolation_points
            self._square = fem.Expression(self._x**2, points)

    def _kinetic_part(self, psi: Any, chi: Any) -> Any:
        """The form of H for V = 0."""
        return equations.schrodinger(psi, chi, 0, self._sigma, self.dx_stiffness)

    def _potential_part(self, psi: Any, chi: Any) -> Any:
        """The contribution ∫Vψχ of V to the form of H."""
        return equations.mass(self._potential * psi, chi, self.dx_potential)

    def check_potential_part(self, sigma: float) -> None:
        """Check on one random vector that V enters the form of H as ∫Vψχ. Collective.

        V is the derivative of F by m = ψ²; only with this term is H half the derivative of F^σ.

        Raises:
            ValueError: if V enters the form in another way.
        """
        self._sigma.value = np.asarray(sigma)
        chi, v = ufl.TestFunction(self.space), self._potential
        form = equations.schrodinger(self._x, chi, v, self._sigma, self.dx_potential)
        actions = ufl.derivative(form, v, v), self._potential_part(self._x, chi)
        signatures = [ufl.algorithms.expand_derivatives(a).signature() for a in actions]
        if signatures[0] == signatures[1]:
            return
        v.x.array[:] = 0.5 + np.abs(self.potential_nodes[0])
        self._scatter_random()
        changed, usual = (assemble_owned(fem.form(a), self._y).copy() for a in actions)
        if not self._same(changed, usual):
            raise ValueError(
                "equations.schrodinger: V must enter as ∫Vψχ, since V is the derivative of F by "
                "m = ψ²; change F instead"
            )

    def stiffness_for(self, sigma: float) -> PETSc.Mat:
        """The matrix of the form of H for V = 0, divided by σ². Collective.

        The collocated matrix, or that of an earlier σ, is used if it acts like the form.
        """
        self._sigma.value = np.asarray(sigma)
        psi, chi = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        action = self._kinetic_part(self._x, chi)
        candidate = self._stiffness
        if candidate is None and self.lumped and self.degree > 1:
            candidate = collocated_stiffness(self.space, self._constrained_everywhere)
        if candidate is not None:
            if self._acts_like(candidate, action, sigma**2):
                self._stiffness = candidate
                return candidate
            _LOG.info("equations.schrodinger is not the default form; it is assembled as written")
        matrix = self._assemble(self._kinetic_part(psi, chi), diagonal=sigma**2)
        matrix.scale(sigma**-2)
        self._stiffness = matrix
        return matrix

    def _acts_like(self, matrix: PETSc.Mat, action: Any, factor: float) -> bool:
        """Whether factor · matrix and a form agree on one random vector. Collective.

        Args:
            matrix: the matrix.
            action: the form applied to the function ``_x``.
            factor: factor by which the matrix is multiplied.
        """
        values = self._scatter_random()
        form = self._free(assemble_owned(fem.form(action), self._y).copy())
        return self._same(self._free(factor * self.multiply(matrix, values)), form)

    def _same(self, load: Array, usual: Array) -> bool:
        """Whether two load vectors are equal up to rounding. Collective."""
        largest = self.max(float(np.abs(usual).max(initial=0.0)))
        return self.max(float(np.abs(load - usual).max(initial=0.0))) <= _SAME * largest

    def _scatter_random(self) -> Array:
        """Set ``_x`` to random values, 0 where ψ is constrained; return the owned. Collective."""
        random = np.random.default_rng(self.comm.rank)
        values: Array = self._free(random.uniform(-1.0, 1.0, self.num_owned))
        set_owned(self._x, values)
        return values

    def _assemble(self, form: Any, diagonal: float) -> PETSc.Mat:
        matrix: PETSc.Mat = _assemble_matrix(
            fem.form(form), bcs=self.boundary_conditions, diag=diagonal
        )
        matrix.assemble()
        return matrix

    @cached_property
    def mean_mass(self) -> float:
        """∫1 dx divided by the number of degrees of freedom. Collective the first time."""
        ones = np.ones(self.num_owned)
        dofs: int = self.space.dofmap.index_map.size_global
        return self.dot(ones, self.apply_mass(ones)) / dofs

    @property
    def owned_nodes(self) -> Array:
        """``(3, num_owned)`` points of this rank's own degrees of freedom of ψ."""
        return self.nodes[:, : self.num_owned]

    # -- actions on owned arrays ----------------------------------------------------------------

    def dot(self, a: Array, b: Array) -> float:
        """Σ a_i b_i over all ranks. Collective."""
        return float(global_sum(self.comm, a @ b))

    def norm(self, psi: Array) -> float:
        """L² norm of a function of ψ's space, given by its owned values. Collective."""
        return float(np.sqrt(max(self.dot(psi, self.apply_mass(psi)), 0.0)))

    def max(self, local: float) -> float:
        """Largest of one number per rank, or NaN if any of them is NaN. Collective."""
        return float(np.max(self.comm.allgather(float(local))))

    def min(self, values: Array) -> float:
        """Smallest of the values on all ranks. Collective."""
        return -self.max(float(-values.min(initial=np.inf)))

    def multiply(self, matrix: PETSc.Mat, values: Array) -> Array:
        """Matrix times a vector of owned values of ψ's space. Collective."""
        self._x.x.array[: self.num_owned] = values
        matrix.mult(self._x.x.petsc_vec, self._y.x.petsc_vec)
        return self._y.x.array[: self.num_owned].copy()

    def apply_mass(self, psi: Array) -> Array:
        """Mψ, owned. Collective."""
        if self.lumped:
            return self._free(self.mass_diagonal * psi)
        return self.multiply(self.mass_matrix, psi)

    def solve_mass(self, load: Array, rtol: float = 1e-14) -> Array:
        """Apply M⁻¹ to a load vector (owned values), to a relative tolerance. Collective.

        Raises:
            ConvergenceError: if the conjugate-gradient solver fails.
        """
        if self.lumped:
            return load / self.mass_diagonal
        if self._mass_solver is None:
            matrix = self.mass_matrix.copy()
            diagonal = matrix.getDiagonal()
            diagonal.array[self.constrained] = 1.0
            matrix.setDiagonal(diagonal)
            self._mass_solver = SpdSolver(matrix, "fem_mf_mass_", _MASS_OPTIONS)
        self._y.x.array[: self.num_owned] = load
        self._x.x.array[:] = 0.0
        self._mass_solver.solve(self._y.x.petsc_vec, self._x.x.petsc_vec, rtol)
        return self._x.x.array[: self.num_owned].copy()

    def represent(self, load: Array, rtol: float = 1e-13) -> fem.Function:
        """The function V of the potential space with given products ∫Vθ. Collective.

        Args:
            load: the products with the basis functions of the potential space, owned.
            rtol: relative tolerance of the linear solve.
        """
        potential = self.new_potential()
        if self.lumped:
            set_owned(potential, load / self.mass_diagonal)
            return potential
        if self._potential_mass is None:
            v = ufl.TrialFunction(self.potential_space)
            theta = ufl.TestFunction(self.potential_space)
            matrix: PETSc.Mat = _assemble_matrix(
                fem.form(equations.mass(v, theta, self.dx_potential))
            )
            matrix.assemble()
            self._potential_mass = SpdSolver(matrix, "fem_mf_mass_", _MASS_OPTIONS)
        self._weights.x.array[: self.num_potential_owned] = load
        self._potential_mass.solve(self._weights.x.petsc_vec, potential.x.petsc_vec, rtol)
        potential.x.scatter_forward()
        return potential

    def apply_potential(self, potential: Array, psi: Array) -> Array:
        """∫Vψχ for every χ, owned. Collective.

        Args:
            potential: V on the potential space, owned and ghosts.
            psi: owned values of ψ.
        """
        if self.lumped:
            return self._free(self.mass_diagonal * potential[: self.num_owned] * psi)
        set_owned(self._x, psi)
        self._potential.x.array[:] = potential
        return self._free(assemble_owned(self._action_form, self._y).copy())

    def assemble_potential(self, matrix: PETSc.Mat | None, potential: Array) -> PETSc.Mat:
        """Assemble ∫Vψχ (consistent mass) into ``matrix`` or a new matrix. Collective."""
        self._potential.x.array[:] = potential
        if matrix is None:
            matrix = fem_petsc.create_matrix(self.potential_form)
        matrix.zeroEntries()
        _assemble_matrix(matrix, self.potential_form, bcs=self.boundary_conditions, diag=0.0)
        matrix.assemble()
        return matrix

    def add_potential(
        self, matrix: PETSc.Mat, potential: Array, work: PETSc.Mat | None = None
    ) -> PETSc.Mat | None:
        """Add ∫Vψχ to a matrix that has the pattern of the stiffness. Collective.

        Args:
            matrix: the matrix.
            potential: V on the potential space, owned and ghosts.
            work: matrix returned by an earlier call, to be reused.

        Returns:
            The matrix ∫Vψχ with consistent mass; None if it is diagonal.
        """
        if self.lumped:
            self.add_diagonal(matrix, self.apply_potential(potential, np.ones(self.num_owned)))
            return None
        work = self.assemble_potential(work, potential)
        matrix.axpy(1.0, work, structure=_SAME_PATTERN)
        return work

    @staticmethod
    def add_diagonal(matrix: PETSc.Mat, added: Array) -> None:
        """Add owned values to the diagonal of a matrix. Collective."""
        diagonal = matrix.getDiagonal()
        diagonal.array[:] += added
        matrix.setDiagonal(diagonal)

    def measure(self, psi: Array) -> Array:
        """Nodal measure b of m = ψ²: ∫f dm = Σ_i b_i f(x_i) for f in the potential space.

        Collective.

        Args:
            psi: owned values of ψ.

        Returns:
            Owned values on the potential space.
        """
        if self.lumped:
            return self.mass_diagonal * psi * psi
        set_owned(self._x, psi)
        return assemble_owned(self._measure_form, self._weights).copy()

    def entropy(self, psi: fem.Function, other: fem.Function | None = None) -> float:
        """∫ψ² log ψ² dx, or ∫ψ² log(ψ²/ψ'²) dx. Collective.

        Args:
            psi: ψ.
            other: ψ'; None means 1.
        """
        if self._entropy_form is None:
            dx = exponential_measure(self.mesh, self.degree, self.potential_degree)
            dx = self.dx_mass if self.lumped else dx
            self._entropy_form = fem.form(equations.entropy(self._x, self._y, dx))
        self._x.x.array[:] = psi.x.array
        self._y.x.array[:] = 1.0 if other is None else other.x.array
        return float(global_sum(self.comm, fem.assemble_scalar(self._entropy_form)))

    def boundary_mass(self, psi: Array) -> float:
        """∫ψ² dx over the cells that touch the boundary. Collective."""
        return self._assemble_mass(psi, self._boundary_form)

    def mass_of_cells(self, psi: Array, cells: npt.NDArray[np.int32]) -> float:
        """∫ψ² dx over cells of all ranks; each rank gives its own, sorted. Collective."""
        return self._assemble_mass(psi, self._mass_form(cells))

    def _mass_form(self, cells: npt.NDArray[np.int32]) -> fem.Form:
        """∫ψ² dx over cells; all sets of cells share one compiled kernel."""
        metadata = self.dx_mass.metadata()
        dx = ufl.Measure("dx", self.mesh, subdomain_data=[(1, cells)], metadata=metadata)
        form: fem.Form = fem.form(equations.mass(self._x, self._x, dx(1)))
        return form

    def _assemble_mass(self, psi: Array, form: fem.Form) -> float:
        set_owned(self._x, psi)
        return float(global_sum(self.comm, fem.assemble_scalar(form)))

    def potential_at_nodes(self, potential: Array) -> Array:
        """V, given on the potential space, at the owned nodes of ψ's space. Collective."""
        if self.lumped:
            return potential[: self.num_owned]
        self._potential.x.array[:] = potential
        self._y.interpolate(self._potential)
        return self._y.x.array[: self.num_owned].copy()

    # -- functions ------------------------------------------------------------------------------

    def new_amplitude(self) -> fem.Function:
        """A ``fem.Function`` named psi on ψ's space; all of them share communicators."""
        psi = self._template.copy()
        psi.name = "psi"
        return psi

    def new_potential(self) -> fem.Function:
        """A zero ``fem.Function`` named V on the potential space.

        All such functions share their communicators (``fem.Function(space)`` would not).
        """
        potential = self._potential.copy()
        potential.name = "V"
        potential.x.array[:] = 0.0
        return potential

    def potential_values(self, f: SpaceFunction | Expr, name: str) -> Array:
        """Evaluate f at the nodes of the potential space, owned and ghosts. Collective.

        Args:
            f: a callable of ``x``, shape ``(3, n)``, returning ``(n,)``; or a scalar UFL expression
                (for example a ``fem.Function``) on this mesh, which is interpolated.
            name: description of f for error messages.

        Raises:
            ValueError: on every rank, if f is on another mesh, is not a scalar or is not finite.
        """
        if not isinstance(f, Expr):
            return evaluate(self.comm, f, self.potential_nodes, name)
        domains = ufl.domain.extract_domains(f)
        if any(domain is not self.mesh.ufl_domain() for domain in domains):
            raise ValueError(
                f"{name} is a function or UFL expression on another mesh: it ties the functional "
                "to that mesh; use a numpy callable for other meshes"
            )
        if f.ufl_shape != ():
            raise ValueError(f"{name} has shape {f.ufl_shape}; a scalar is needed")
        source: Any = f
        if not isinstance(f, fem.Function):
            source = fem.Expression(f, self.potential_space.element.interpolation_points)
        values = self.interpolated(source)
        bad = not np.isfinite(values).all()
        error = ValueError(f"{name} is not finite at some nodes") if bad else None
        all_ranks_agree(self.comm, error)
        return values

    def interpolated(self, source: fem.Function | fem.Expression) -> Array:
        """A function on this mesh at the nodes of the potential space, owned and ghosts."""
        if isinstance(source, fem.Function) and source.function_space is self.potential_space:
            return np.array(source.x.array)
        self._potential.interpolate(source)
        return np.array(self._potential.x.array)

    def square_on_potential_space(self, psi: fem.Function) -> Array:
        """ψ² interpolated on the potential space, owned and ghosts. Collective."""
        if self.lumped:
            return psi.x.array**2
        self._x.x.array[:] = psi.x.array
        return self.interpolated(self._square)

    def _free(self, owned: Array) -> Array:
        owned[self.constrained] = 0.0
        return owned
