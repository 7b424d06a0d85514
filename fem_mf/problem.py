"""The problem: a functional F, σ, and the discretisation in which F^σ is minimised.

    problem = Problem(mesh, functional, sigma=0.5, degree=2)
    problem.space             # space of the amplitude ψ
    problem.potential_space   # space of V[m] and of the features
    problem.mass_matrix, problem.stiffness
    problem.with_sigma(0.25)  # the same discretisation

A problem holds neither time nor density. With ``mass="consistent"`` the potential has its own
space, whose degree preserves the order 2k of the energy (``Functional.potential_degree``); with
``mass="lumped"`` mass and potential are diagonal; see :mod:`fem_mf.discretisation`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from petsc4py import PETSc

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx import mesh as dmesh

from fem_mf.discretisation import Discretisation
from fem_mf.mpi import all_ranks_agree, integer, positive, same_on_all_ranks
from fem_mf.spaces import cell_family
from fem_mf.typing import Array

__all__ = ["FunctionalLike", "Problem", "potential_degree_of", "usual_potential_degree"]

_MAX_DEGREE = {"simplex": 6, "tensor": 8}
_DEFAULT_DEGREE = {"interval": 2, "triangle": 2, "tetrahedron": 2, "quadrilateral": 6}


@runtime_checkable
class FunctionalLike(Protocol):
    """Interface of F; a user-defined functional may be any object with these methods.

    It may also have ``potential_degree(degree)``, the degree of V for a given degree of ψ.
    """

    def value(self, density: Any) -> float:
        """F(m)."""

    def derivative(self, density: Any) -> fem.Function:
        """V[m] = δF/δm(m, ·), up to a constant."""


def usual_potential_degree(degree: int) -> int:
    """Degree of V that preserves the order 2k of the energy, or k + 2 if that is too expensive."""
    return min(2 * degree - 1, degree + 2)


def potential_degree_of(functional: FunctionalLike, degree: int) -> int:
    """Degree of the potential space that a functional requests, else the usual one."""
    return int(getattr(functional, "potential_degree", usual_potential_degree)(degree))


class Problem:
    """Minimise F(m) + (σ²/4) I(m) over densities m = ψ² on a mesh (E1). Collective.

    Args:
        mesh: any DOLFINx mesh in dimension 1, 2 or 3.
        functional: F, any object with ``value(density)`` and ``derivative(density)``.
        sigma: σ > 0.
        degree: degree of ψ, 1 to 6 on triangles and tetrahedra, 1 to 8 on intervals, quadrilaterals
            and hexahedra. The default is 6 on quadrilaterals and hexahedra, else 2.
        boundary: ``"natural"``, ``"dirichlet"`` for ψ = 0 on the whole boundary, or the tags of the
            facets where ψ = 0 (for example the walls of holes).
        mass: ``"consistent"`` or ``"lumped"`` (degree 1 on simplices, any on tensor cells).
        potential_degree: degree of V with consistent mass; by default the functional chooses it.
        facet_tags: the facet tags of the mesh, for ``boundary``; see ``read_facet_tags``.

    Attributes:
        functional: F.
        sigma: σ.
        discretisation: spaces, quadrature and constant operators, independent of F and σ
            (:class:`fem_mf.discretisation.Discretisation`).
        stiffness: matrix of the form of H for V = 0, divided by σ²: ∫∇ψ·∇χ.

    Raises:
        TypeError: if an argument has the wrong type; the message, on every rank, names it.
        ValueError: if an argument has an invalid value; the message, on every rank, names it.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        functional: FunctionalLike,
        sigma: float,
        degree: int | None = None,
        boundary: str | Sequence[int] = "natural",
        mass: str = "consistent",
        potential_degree: int | None = None,
        facet_tags: dmesh.MeshTags | None = None,
    ) -> None:
        if not isinstance(mesh, dmesh.Mesh):
            raise ValueError(f"mesh must be a dolfinx.mesh.Mesh, not {type(mesh).__name__}")
        if degree is None:
            degree = _DEFAULT_DEGREE.get(mesh.topology.cell_name(), 6)
        error: Exception | None = None
        walls, condition = None, ""
        try:
            walls, condition = _walls(mesh, boundary, facet_tags)
            _validate(mesh, functional, sigma, degree, condition, mass, walls)
            if mass == "lumped" and potential_degree not in (None, degree):
                raise ValueError("with mass='lumped' the potential has the degree of ψ")
        except (TypeError, ValueError) as caught:
            error = caught
        all_ranks_agree(mesh.comm, error)
        same_on_all_ranks(
            mesh.comm,
            sigma=float(sigma),
            degree=degree,
            boundary=condition,
            mass=mass,
            potential_degree=potential_degree,
        )
        self.functional = functional
        self.sigma = float(sigma)
        self.discretisation = Discretisation(
            mesh,
            int(degree),
            int(potential_degree or potential_degree_of(functional, degree)),
            condition,
            lumped=mass == "lumped",
            walls=walls,
        )
        self.discretisation.check_potential_part(self.sigma)
        self.stiffness: PETSc.Mat = self.discretisation.stiffness_for(self.sigma)

    def __repr__(self) -> str:
        """One line: F, σ, the mesh and the space."""
        cells = self.mesh.topology.index_map(self.dim).size_global
        return (
            f"Problem(F = {self.functional!r}, σ = {self.sigma:.12g}, "
            f"{cells} cells ({self.mesh.topology.cell_name()}), degree {self.degree}, "
            f"{self.space.dofmap.index_map.size_global} dofs, {self.mass} mass, {self.boundary})"
        )

    @property
    def mesh(self) -> dmesh.Mesh:
        """The mesh."""
        return self.discretisation.mesh

    @property
    def comm(self) -> Any:
        """The communicator of the mesh."""
        return self.discretisation.comm

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.discretisation.dim

    @property
    def degree(self) -> int:
        """The polynomial degree of ψ."""
        return self.discretisation.degree

    @property
    def lumped(self) -> bool:
        """Whether mass and potential are diagonal."""
        return self.discretisation.lumped

    @property
    def mass(self) -> str:
        """The mass of the discretisation: consistent or lumped."""
        return "lumped" if self.lumped else "consistent"

    @property
    def boundary(self) -> str:
        """The boundary condition of ψ: natural, dirichlet, or dirichlet on the facets of tags."""
        return self.discretisation.boundary

    @property
    def space(self) -> fem.FunctionSpace:
        """The Lagrange space of ψ."""
        return self.discretisation.space

    @property
    def potential_space(self) -> fem.FunctionSpace:
        """The Lagrange space of V[m] and of the features."""
        return self.discretisation.potential_space

    @property
    def mass_matrix(self) -> PETSc.Mat:
        """∫ψχ dx, diagonal with ``mass="lumped"``."""
        return self.discretisation.mass_matrix

    def new_potential(self) -> fem.Function:
        """A zero ``fem.Function`` named V on the potential space. Collective."""
        return self.discretisation.new_potential()

    def with_sigma(self, sigma: float) -> Problem:
        """The same problem with another σ, on the same discretisation. Collective."""
        if sigma == self.sigma:
            return self
        positive("sigma", sigma)
        other = copy.copy(self)
        other.sigma = float(sigma)
        other.stiffness = self.discretisation.stiffness_for(other.sigma)
        return other

    def hamiltonian(self, density: Any) -> PETSc.Mat:
        """H[m] = −σ²Δ + V[m] as a new matrix: ⟨χ, Hψ⟩ = ∫(σ²∇ψ·∇χ + Vψχ) dx (F2). Collective.

        Rows and columns where ψ is constrained have σ² on the diagonal. With ``mass_matrix`` it
        forms the pencil whose lowest eigenvalue the certificate (C1) needs.

        Args:
            density: m, a ``Density`` on this problem.
        """
        potential = self.on_potential_space(self.functional.derivative(density))
        matrix: PETSc.Mat = self.stiffness.copy()
        matrix.scale(self.sigma**2)
        if (term := self.discretisation.add_potential(matrix, potential)) is not None:
            term.destroy()
        return matrix

    def on_potential_space(self, function: fem.Function) -> Array:
        """The potential V as an array on the potential space, owned and ghosts. Collective.

        Raises:
            ValueError: if V is not a Function on this mesh, or is not finite.
        """
        if not isinstance(function, fem.Function) or function.function_space.mesh is not self.mesh:
            raise ValueError(
                "derivative(density) must return a scalar dolfinx.fem.Function on the problem's "
                "mesh, for instance one made by problem.new_potential()"
            )
        values = self.discretisation.interpolated(function)
        bad = not np.isfinite(values).all()
        all_ranks_agree(
            self.comm, ValueError("V[m] has values that are not finite") if bad else None
        )
        return values


def _walls(
    mesh: dmesh.Mesh, boundary: str | Sequence[int], tags: dmesh.MeshTags | None
) -> tuple[npt.NDArray[np.int32] | None, str]:
    """This rank's facets where ψ = 0 (None for all or none), and a name of the condition."""
    if isinstance(boundary, str):
        return None, boundary
    wanted = sorted({integer("each tag of boundary", tag) for tag in boundary})
    if tags is None:
        raise ValueError("boundary is a list of tags: give facet_tags=read_facet_tags(...) as well")
    if tags.dim != mesh.topology.dim - 1:
        raise ValueError(f"facet_tags are tags of dimension {tags.dim}, not of facets")
    return tags.indices[np.isin(tags.values, wanted)], f"dirichlet on {wanted}"


def _validate(
    mesh: dmesh.Mesh,
    functional: FunctionalLike,
    sigma: float,
    degree: int,
    boundary: str,
    mass: str,
    walls: npt.NDArray[np.int32] | None,
) -> None:
    family = cell_family(mesh)
    cell = mesh.topology.cell_name()
    if mesh.topology.dim != mesh.geometry.dim:
        raise ValueError(
            f"a {mesh.topology.dim}-dimensional mesh in {mesh.geometry.dim} dimensions is a "
            "surface; densities are defined on R^d: read the mesh with gdim = d"
        )
    if not isinstance(functional, FunctionalLike):
        raise ValueError("functional must be an object with value(density) and derivative(density)")
    positive("sigma", sigma)
    if not 1 <= integer("degree", degree) <= _MAX_DEGREE[family]:
        raise ValueError(f"degree on a {cell} mesh is 1 to {_MAX_DEGREE[family]}, not {degree}")
    if walls is None and boundary not in ("natural", "dirichlet"):
        raise ValueError(
            f"boundary must be 'natural', 'dirichlet' or a list of facet tags, not {boundary!r}"
        )
    if mass not in ("consistent", "lumped"):
        raise ValueError(f"mass must be 'consistent' or 'lumped', not {mass!r}")
    if mass == "lumped" and family == "simplex" and degree > 1:
        raise ValueError(
            f"mass='lumped' on a {cell} mesh needs degree=1 (higher degrees have weights that are "
            "not positive); use mass='consistent', or quadrilaterals/hexahedra"
        )
