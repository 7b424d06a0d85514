"""The problem: mesh, functional, σ and degree -> spaces, quadrature and constant operators.

    problem = Problem(mesh, functional, sigma=0.5, degree=2)
    problem.space             # of the amplitude ψ
    problem.potential_space   # of V[m] and of the features
    problem.mass, problem.stiffness

There is no time and no density in it. Arrays called *owned* hold this rank's own degrees of
freedom; arrays on the potential space hold owned values first, then ghosts.

Two discretisations of the mass and of the potential:

* ``"consistent"``: exact integration; the potential lives in a space of its own, of a degree that
  keeps the order 2k of the energy (``Functional.potential_degree``).
* ``"lumped"``: the quadrature points are the nodes (vertices for degree 1 on simplices,
  Gauss–Lobatto points on quadrilaterals and hexahedra), mass and potential are diagonal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ufl
from dolfinx import default_scalar_type, fem, la
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from fem_mf.features import Array
from fem_mf.functionals import Functional, FunctionalLike
from fem_mf.parallel import all_ranks_agree, global_sum
from fem_mf.spaces import (
    cell_family,
    drop_zeros,
    exact_measure,
    lumped_measure,
    potential_degree_of,
)

__all__ = ["Problem"]

_MAX_DEGREE = {"simplex": 6, "tensor": 8}
_DEFAULT_DEGREE = {"interval": 2, "triangle": 2, "tetrahedron": 2, "quadrilateral": 6}
_ADD = la.InsertMode.add


class Problem:
    """Minimise F(m) + (σ²/4) I(m) over densities m = ψ² on a mesh (E1). Collective.

    Args:
        mesh: any DOLFINx mesh in dimension 1, 2 or 3.
        functional: F, any object with ``value(density)`` and ``derivative(density)``.
        sigma: σ > 0.
        degree: of ψ, 1 to 6 on simplices, 1 to 8 on quadrilaterals and hexahedra. The default is
            2 on simplices and 6 on quadrilaterals and hexahedra.
        boundary: ``"natural"``, or ``"dirichlet"`` for ψ = 0 on the whole boundary.
        mass: ``"consistent"`` or ``"lumped"`` (degree 1 on simplices, any on tensor cells).
        potential_degree: of V with consistent mass; the default is chosen by the functional.

    Attributes:
        dim: dimension d.
        space: Lagrange space of ψ.
        nodes: ``(3, n)`` points of its degrees of freedom, owned first.
        potential_space: Lagrange space of V; ``space`` itself when lumped.
        potential_nodes: ``(3, n)`` points of its degrees of freedom, owned first.
        boundary_cells: owned cells that touch the boundary.
        mass_matrix: ∫ψχ; diagonal when lumped, with ``mass_diagonal`` its owned entries.
        stiffness: ∫∇ψ·∇χ (without the factor σ²).

    Raises:
        ValueError: naming the argument, on every rank.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        functional: FunctionalLike,
        sigma: float,
        degree: int | None = None,
        boundary: str = "natural",
        mass: str = "consistent",
        potential_degree: int | None = None,
    ) -> None:
        if not isinstance(mesh, dmesh.Mesh):
            raise ValueError(f"mesh must be a dolfinx.mesh.Mesh, not {type(mesh).__name__}")
        if degree is None:
            degree = _DEFAULT_DEGREE.get(mesh.topology.cell_name(), 6)
        _validate(mesh, functional, sigma, degree, boundary, mass)
        self.mesh = mesh
        self.comm = mesh.comm
        self.dim = mesh.geometry.dim
        self.functional = functional
        self.sigma = float(sigma)
        self.degree = degree
        self.boundary = boundary
        self.lumped = mass == "lumped"
        self.space = fem.functionspace(mesh, ("Lagrange", degree))
        if self.lumped:
            if potential_degree not in (None, degree):
                raise ValueError("with mass='lumped' the potential has the degree of ψ")
            self.potential_degree = degree
            self.potential_space = self.space
        else:
            self.potential_degree = potential_degree or potential_degree_of(functional, degree)
            self.potential_space = fem.functionspace(mesh, ("Lagrange", self.potential_degree))
        self._template = fem.Function(self.space)
        self.nodes = np.ascontiguousarray(self.space.tabulate_dof_coordinates().T)
        self.num_owned = self.space.dofmap.index_map.size_local
        self.num_potential_owned = self.potential_space.dofmap.index_map.size_local
        self.potential_nodes = np.ascontiguousarray(
            self.potential_space.tabulate_dof_coordinates().T
        )
        self._build_boundary()
        self._build_measures()
        self._build_operators()

    # -- set-up ---------------------------------------------------------------------------------

    def _build_boundary(self) -> None:
        self.mesh.topology.create_connectivity(self.mesh.topology.dim - 1, self.mesh.topology.dim)
        self.boundary_facets = dmesh.exterior_facet_indices(self.mesh.topology)
        dofs = fem.locate_dofs_topological(
            self.space, self.mesh.topology.dim - 1, self.boundary_facets
        )
        self.boundary_conditions: list[fem.DirichletBC] = []
        self.constrained = np.empty(0, dtype=np.int32)  # owned
        if self.boundary == "dirichlet":
            zero = default_scalar_type(0)
            self.boundary_conditions = [fem.dirichletbc(zero, dofs, self.space)]
            self.constrained = dofs[dofs < self.num_owned]
        tdim = self.mesh.topology.dim
        cells = dmesh.compute_incident_entities(
            self.mesh.topology, self.boundary_facets, tdim - 1, tdim
        )
        owned = self.mesh.topology.index_map(tdim).size_local
        self.boundary_cells = np.sort(cells[cells < owned])

    def _build_measures(self) -> None:
        if self.lumped:
            self.dx_mass = self.dx_potential = lumped_measure(self.mesh, self.degree)
            self.dx_stiffness = (
                ufl.dx(domain=self.mesh) if self.degree == 1 else self.dx_potential
            )
        else:
            degree = 2 * self.degree
            self.dx_mass = self.dx_stiffness = exact_measure(self.mesh, degree)
            self.dx_potential = exact_measure(self.mesh, degree + self.potential_degree)

    def _build_operators(self) -> None:
        psi, chi = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        self.stiffness = self._assemble(
            ufl.inner(ufl.grad(psi), ufl.grad(chi)) * self.dx_stiffness, diagonal=1.0
        )
        self._x, self._y = fem.Function(self.space), fem.Function(self.space)
        self._entropy_form: fem.Form | None = None
        self._boundary_form = fem.form(
            self._x**2
            * ufl.Measure(
                "dx",
                domain=self.mesh,
                subdomain_data=[(1, self.boundary_cells)],
                metadata=self.dx_mass.metadata(),
            )(1)
        )
        self._potential = fem.Function(self.potential_space, name="V")
        self._weights = fem.Function(self.potential_space)
        if self.lumped:
            fem.assemble_vector(self._y.x.array, fem.form(chi * self.dx_mass))
            self._y.x.scatter_reverse(_ADD)
            self.mass_diagonal = self._y.x.array[: self.num_owned].copy()
            self._y.x.array[: self.num_owned] = self.mass_diagonal
            self.mass_matrix = PETSc.Mat().createDiagonal(self._y.x.petsc_vec.copy())
            self.stiffness = drop_zeros(self.stiffness)
        else:
            self.mass_matrix = self._assemble(psi * chi * self.dx_mass, diagonal=0.0)
            theta = ufl.TestFunction(self.potential_space)
            self._measure_form = fem.form(self._x**2 * theta * self.dx_potential)
            self._action_form = fem.form(self._potential * self._x * chi * self.dx_potential)
        self.potential_form = None if self.lumped else fem.form(
            self._potential * psi * chi * self.dx_potential
        )
        self._square = (
            None
            if self.lumped
            else fem.Expression(self._x**2, self.potential_space.element.interpolation_points)
        )

    def _assemble(self, form: Any, diagonal: float) -> PETSc.Mat:
        matrix = fem_petsc.assemble_matrix(
            fem.form(form), bcs=self.boundary_conditions, diag=diagonal
        )
        matrix.assemble()
        return matrix

    # -- actions on owned arrays ----------------------------------------------------------------

    def dot(self, a: Array, b: Array) -> float:
        """Σ a_i b_i over all ranks. Collective."""
        return float(global_sum(self.comm, a @ b))

    def max(self, local: float) -> float:
        """Largest of one number per rank, NaN if any of them is. Collective."""
        return float(np.max(self.comm.allgather(float(local))))

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

    def apply_potential(self, potential: Array, psi: Array) -> Array:
        """∫Vψχ for every χ, owned. Collective.

        Args:
            potential: V on the potential space, owned and ghosts.
            psi: owned values of ψ.
        """
        if self.lumped:
            return self._free(self.mass_diagonal * potential[: self.num_owned] * psi)
        self._load(self._x, psi)
        self._potential.x.array[:] = potential
        self._y.x.array[:] = 0.0
        fem.assemble_vector(self._y.x.array, self._action_form)
        self._y.x.scatter_reverse(_ADD)
        return self._free(self._y.x.array[: self.num_owned].copy())

    def assemble_potential(self, matrix: PETSc.Mat | None, potential: Array) -> PETSc.Mat:
        """The matrix ∫Vψχ (consistent mass), into ``matrix`` or into a new one. Collective."""
        self._potential.x.array[:] = potential
        if matrix is None:
            matrix = fem_petsc.create_matrix(self.potential_form)
        matrix.zeroEntries()
        fem_petsc.assemble_matrix(
            matrix, self.potential_form, bcs=self.boundary_conditions, diag=0.0
        )
        matrix.assemble()
        return matrix

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
        self._load(self._x, psi)
        self._weights.x.array[:] = 0.0
        fem.assemble_vector(self._weights.x.array, self._measure_form)
        self._weights.x.scatter_reverse(_ADD)
        return self._weights.x.array[: self.num_potential_owned].copy()

    def integrate_square_times(self, psi: fem.Function, f: fem.Function) -> float:
        """∫ψ² f dx for two functions of ψ's space. Collective."""
        if self._entropy_form is None:
            dx = self.dx_mass if self.lumped else exact_measure(self.mesh, 3 * self.degree)
            self._entropy_form = fem.form(self._x**2 * self._y * dx)
        self._x.x.array[:] = psi.x.array
        self._y.x.array[:] = f.x.array
        return float(global_sum(self.comm, fem.assemble_scalar(self._entropy_form)))

    def boundary_mass(self, psi: Array) -> float:
        """∫ψ² dx over the cells that touch the boundary. Collective."""
        self._load(self._x, psi)
        return float(global_sum(self.comm, fem.assemble_scalar(self._boundary_form)))

    def potential_at_nodes(self, potential: Array) -> Array:
        """V, given on the potential space, at the owned nodes of ψ's space. Collective."""
        if self.lumped:
            return potential[: self.num_owned]
        self._potential.x.array[:] = potential
        self._y.interpolate(self._potential)
        return self._y.x.array[: self.num_owned].copy()

    # -- conversions ----------------------------------------------------------------------------

    def new_amplitude(self) -> fem.Function:
        """A ``fem.Function`` named psi on ψ's space, sharing its communicators with the others."""
        psi = self._template.copy()
        psi.name = "psi"
        return psi

    def new_potential(self) -> fem.Function:
        """A zero ``fem.Function`` named V on the potential space.

        It shares its communicators with every other one (``fem.Function(space)`` would not).
        """
        potential = self._potential.copy()
        potential.name = "V"
        potential.x.array[:] = 0.0
        return potential

    def on_potential_space(self, function: fem.Function) -> Array:
        """A user's or our own V as an array on the potential space, owned and ghosts. Collective.

        Raises:
            ValueError: V is not a Function on this mesh, or is not finite.
        """
        if not isinstance(function, fem.Function) or function.function_space.mesh is not self.mesh:
            raise ValueError(
                "derivative(density) must return a scalar dolfinx.fem.Function on the problem's "
                "mesh, for instance one made by problem.new_potential()"
            )
        if function.function_space is self.potential_space:
            values = function.x.array.copy()
        else:
            self._potential.interpolate(function)
            values = self._potential.x.array.copy()
        bad = not np.isfinite(values).all()
        all_ranks_agree(self.comm, ValueError("V[m] has values that are not finite") if bad else None)
        return values

    def square_on_potential_space(self, psi: fem.Function) -> Array:
        """ψ² interpolated on the potential space, owned and ghosts. Collective."""
        if self.lumped:
            return psi.x.array**2
        self._x.x.array[:] = psi.x.array
        self._potential.interpolate(self._square)
        return self._potential.x.array.copy()

    def _load(self, function: fem.Function, owned: Array) -> None:
        function.x.array[: self.num_owned] = owned
        function.x.scatter_forward()

    def _free(self, owned: Array) -> Array:
        owned[self.constrained] = 0.0
        return owned


def _validate(
    mesh: dmesh.Mesh,
    functional: FunctionalLike,
    sigma: float,
    degree: int,
    boundary: str,
    mass: str,
) -> None:
    family = cell_family(mesh)
    cell = mesh.topology.cell_name()
    if mesh.topology.dim != mesh.geometry.dim:
        raise ValueError(
            f"a {mesh.topology.dim}-dimensional mesh in {mesh.geometry.dim} dimensions is a "
            "surface; densities live on R^d: read the mesh with gdim = d"
        )
    if not isinstance(functional, FunctionalLike):
        raise ValueError("a functional is an object with value(density) and derivative(density)")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number, not {sigma}")
    if not 1 <= degree <= _MAX_DEGREE[family]:
        raise ValueError(f"degree on a {cell} mesh is 1 to {_MAX_DEGREE[family]}, not {degree}")
    if boundary not in ("natural", "dirichlet"):
        raise ValueError(f"boundary is 'natural' or 'dirichlet', not {boundary!r}")
    if mass not in ("consistent", "lumped"):
        raise ValueError(f"mass is 'consistent' or 'lumped', not {mass!r}")
    if mass == "lumped" and family == "simplex" and degree > 1:
        raise ValueError(
            f"mass='lumped' on a {cell} mesh needs degree=1 (higher degrees have weights that are "
            "not positive); use mass='consistent', or quadrilaterals/hexahedra"
        )
