"""Point values and random samples of a distributed finite-element function.

Both give the same result on every rank and for any number of ranks.
"""

from __future__ import annotations

import itertools
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import fem, geometry
from dolfinx import mesh as dmesh

from fem_mf.mpi import all_ranks_agree, global_sum, integer
from fem_mf.typing import Array, SpaceFunction

__all__ = ["evaluate", "evaluate_at", "interpolate_between", "sample_exponential", "sample_square"]

type Indices = npt.NDArray[np.intp]

# Projecting coordinates on this direction orders the cells independently of the partition and of
# the numbering; its irrational ratios make ties improbable.
_DIRECTION = np.array([1.0, np.sqrt(2.0) - 1.0, np.sqrt(3.0) - 1.0])
_MAX_ROUNDS = 1000
_MAX_BOXES = {1: 64, 2: 24, 3: 10}  # largest number of boxes per axis of a cell
_FOLD = {2: 2.0 * np.cos(np.pi / 5.0), 3: 2.0 * np.cos(np.pi / 7.0)}  # norm of the map to a simplex
_EXPONENTIAL_DEGREE = {1: 40, 2: 20, 3: 12}  # quadrature degree for e^{−u} over a cell


def evaluate(comm: MPI.Comm, function: SpaceFunction, points: Array, name: str) -> Array:
    """Evaluate and check a user's function of space at points. Collective.

    Args:
        comm: the communicator of the mesh.
        function: callable of ``x``, shape ``(3, n)``, returning ``(n,)``.
        points: ``(3, n)``, this rank's nodes.
        name: description of the function for error messages.

    Returns:
        ``(n,)`` values.

    Raises:
        ValueError: on every rank, if on any rank the shape is wrong, a value is not finite, or
            the function itself raises an exception.
    """
    error: Exception | None = None
    values = np.empty(0)
    try:
        values = np.asarray(function(points), dtype=np.float64)
        if values.shape != (points.shape[1],):
            error = ValueError(
                f"{name} returned shape {values.shape} for x of shape {points.shape}; it must "
                f"return one value per point, shape ({points.shape[1]},)"
            )
        elif not np.isfinite(values).all():
            bad = points[:, int(np.argmin(np.isfinite(values)))]
            error = ValueError(f"{name} is not finite at x = {bad.tolist()}")
    except Exception as caught:
        error = ValueError(f"{name} failed: {type(caught).__name__}: {caught}")
    all_ranks_agree(comm, error)
    return values


def evaluate_at(function: fem.Function, points: Array) -> Array:
    """Values of a scalar function at points. Collective.

    Args:
        function: a scalar function with up-to-date ghosts.
        points: ``(n, d)``, the same on every rank.

    Returns:
        ``(n,)`` values, NaN outside the mesh.

    Raises:
        ValueError: if the points do not have the dimension of the mesh.
    """
    mesh = function.function_space.mesh
    dim = mesh.geometry.dim
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"points must have shape (n, {dim}), not {points.shape}")
    x = np.zeros((len(points), 3))
    x[:, :dim] = points
    scale = float(np.abs(mesh.geometry.x).max(initial=0.0))
    tree = geometry.bb_tree(mesh, mesh.topology.dim, padding=1e-10 * scale)
    candidates = geometry.compute_collisions_points(tree, x)
    colliding = geometry.compute_colliding_cells(mesh, candidates, x)
    offsets = colliding.offsets
    found = np.flatnonzero(np.diff(offsets))
    values = np.full(len(points), -np.inf)
    if found.size:
        cells = colliding.array[offsets[found]]
        values[found] = function.eval(x[found], cells).reshape(-1)
    total = np.empty_like(values)
    mesh.comm.Allreduce(values, total, op=MPI.MAX)
    return np.where(np.isneginf(total), np.nan, total)


def interpolate_between(source: fem.Function, target: fem.Function) -> Array:
    """Interpolate a scalar function on another mesh. Collective.

    Args:
        source: the function, with up-to-date ghosts.
        target: overwritten; at points just outside the source's mesh the polynomial of the nearest
            cell is used, and points far outside get 0.

    Returns:
        Owned values of the target.
    """
    mesh = source.function_space.mesh
    padding = 1e-8 * float(np.abs(mesh.geometry.x).max(initial=0.0))
    space = target.function_space
    imap = space.mesh.topology.index_map(space.mesh.topology.dim)
    everywhere = np.arange(imap.size_local + imap.num_ghosts, dtype=np.int32)
    data = fem.create_interpolation_data(space, source.function_space, everywhere, padding)
    target.interpolate_nonmatching(source, everywhere, data)
    target.x.scatter_forward()
    return np.array(target.x.array[: space.dofmap.index_map.size_local])


def sample_square(function: fem.Function, n: int, seed: int) -> Array:
    """Random points with density proportional to the square of a function. Collective.

    A cell is drawn by its share of the integral, then a point in it by rejection; the random
    numbers of sample i are row i of arrays that are the same on every rank.

    Args:
        function: a scalar Lagrange function with up-to-date ghosts.
        n: number of points.
        seed: seed of NumPy's default generator.

    Returns:
        ``(n, d)`` points, the same on every rank.
    """
    return _sample(_SquareCells(function), n, seed)


def sample_exponential(u: fem.Function, n: int, seed: int) -> Array:
    """Random points with density proportional to e^{−u}; see :func:`sample_square`. Collective."""
    return _sample(_ExponentialCells(u), n, seed)


def _sample(cells: _Cells, n: int, seed: int) -> Array:
    if integer("n", n) < 1:
        raise ValueError(f"the number of samples must be at least 1, not {n}")
    mesh = cells.mesh
    rng = np.random.default_rng(seed)
    pending, drawn = _draw_cells(mesh, cells.masses(), rng.random(n))
    samples = np.zeros((n, mesh.geometry.dim))
    for _ in range(_MAX_ROUNDS):
        uniform = rng.random((n, mesh.topology.dim + 2))
        if pending.size:
            points, accepted = cells.propose(drawn, uniform[pending])
            samples[pending[accepted]] = points[accepted]
            pending, drawn = pending[~accepted], drawn[~accepted]
        if mesh.comm.allreduce(pending.size) == 0:
            return global_sum(mesh.comm, samples)
    raise RuntimeError("sampling did not finish: the density varies too much inside one cell")


def _draw_cells(mesh: dmesh.Mesh, masses: Array, uniform: Array) -> tuple[Indices, Indices]:
    """Draw cells by mass; return the indices of this rank's samples, and their cells."""
    comm = mesh.comm
    x, dofs = mesh.geometry.x, mesh.geometry.dofmaps[0][: len(masses)]
    keys = comm.allgather((x[dofs] @ _DIRECTION).mean(axis=1))
    order = np.argsort(np.concatenate(keys), kind="stable")
    cumulative = np.cumsum(np.concatenate(comm.allgather(masses))[order])
    position = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    chosen = order[np.minimum(position, len(order) - 1)]
    first = sum(len(k) for k in keys[: comm.rank])
    mine = np.flatnonzero((chosen >= first) & (chosen < first + len(masses)))
    return mine, chosen[mine] - first


class _Cells:
    """Integrals of a density cell by cell, and rejection sampling inside a cell.

    The density of proposals is the largest corner value in each box of a grid, times a factor that
    accounts for values between the corners. The grid is that of the unit cube, mapped onto a
    simplex with its volume. The two subclasses define the density of a function and the factor.
    """

    def __init__(self, function: fem.Function) -> None:
        space, self.mesh = function.function_space, function.function_space.mesh
        self.dim = self.mesh.topology.dim
        self.element = space.element.basix_element
        self.cell_type = self.element.cell_type
        owned = self.mesh.topology.index_map(self.dim).size_local
        geometry = self.mesh.geometry
        self.geometry = geometry.x[geometry.dofmaps[0][:owned], : geometry.dim]
        self.cmap = basix.create_element(
            basix.ElementFamily.P,
            self.cell_type,
            geometry.cmaps[0].degree,
            basix.LagrangeVariant(geometry.cmaps[0].variant),
        )
        # Nodal values cell by cell, in the ordering of the reference cell.
        self.mesh.topology.create_entity_permutations()
        self.values: Array = function.x.array[space.dofmap.list[:owned]].copy()
        if space.element.needs_dof_transformations:
            permutations = self.mesh.topology.get_cell_permutation_info()[:owned]
            space.element.T_apply(self.values.reshape(-1), permutations, 1)
        self.simplex = self.cell_type in (basix.CellType.triangle, basix.CellType.tetrahedron)
        self.boxes = min(2 * self.element.degree + 2, _MAX_BOXES[self.dim])
        self.quadrature_degree = 2 * self.element.degree + 2

    def density(self, values: Array) -> Array:
        """The density at points where the function has these values."""
        raise NotImplementedError

    def cover(self, cells: Indices, bounds: Array) -> Array:
        """Bounds in the boxes of cells, from the largest corner values ``(cells, boxes^d)``."""
        raise NotImplementedError

    def masses(self) -> Array:
        """The integral over each cell."""
        rule: Any = basix.make_quadrature(self.cell_type, self.quadrature_degree)
        points, weights = rule
        return np.asarray(self._on_all(slice(None), points) @ weights)

    def propose(self, cells: Indices, uniform: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Points in the given cells, and whether to accept them; uniform is ``(n, d + 2)``."""
        unique, inverse = np.unique(cells, return_inverse=True)
        bounds = self._bounds(unique)
        cumulative = np.cumsum(bounds, axis=1)
        targets = uniform[:, 0] * cumulative[inverse, -1]
        box = np.empty(len(cells), dtype=np.intp)
        # Sorted by cell, the samples of one cell form one slice, so one search per cell suffices.
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        for i, (first, last) in enumerate(itertools.pairwise(starts)):
            box[order[first:last]] = np.searchsorted(cumulative[i], targets[order[first:last]])
        box = np.minimum(box, bounds.shape[1] - 1)
        corner = np.stack(np.unravel_index(box, (self.boxes,) * self.dim), axis=1)
        points = self._reference((corner + uniform[:, 2:]) / self.boxes)
        values = np.einsum("ij,ij->i", self.values[cells], _tabulate(self.element, points)[0])
        tables, corners = _tabulate(self.cmap, points, 1), self.geometry[cells]
        x = np.einsum("ij,ijk->ik", tables[0], corners)
        jacobian = np.einsum("cvk,gcv->ckg", corners, tables[1:])
        density = self.density(values) * np.abs(np.linalg.det(jacobian))
        return x, uniform[:, 1] * bounds[inverse, box] <= density

    def _bounds(self, cells: Indices) -> Array:
        """Upper estimate of the density times |det J| in each box, ``(cells, boxes^d)``."""
        axes = [np.linspace(0.0, 1.0, self.boxes + 1)] * self.dim
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim)
        density = self._on_all(cells, self._reference(grid))
        density = density.reshape(-1, *(len(axis) for axis in axes))
        for axis in range(1, self.dim + 1):
            upper, lower = np.arange(1, self.boxes + 1), np.arange(self.boxes)
            density = np.maximum(density.take(upper, axis), density.take(lower, axis))
        return self.cover(cells, density.reshape(len(cells), -1))

    def _on_all(self, cells: Indices | slice, points: Array) -> Array:
        """The density times |det J| at the same reference points of each cell."""
        gradients = _tabulate(self.cmap, points, 1)[1:]
        jacobian = np.einsum("cvk,gqv->cqkg", self.geometry[cells], gradients)
        values = self.values[cells] @ _tabulate(self.element, points)[0].T
        return self.density(values) * np.abs(np.asarray(np.linalg.det(jacobian)))

    def _reference(self, cube: Array) -> Array:
        """Uniform points in the reference cell from uniform points in the unit cube."""
        # Spacings of the sorted coordinates are uniform on the simplex.
        return np.diff(np.sort(cube, axis=1), axis=1, prepend=0.0) if self.simplex else cube


class _SquareCells(_Cells):
    """The density ψ² of a function ψ."""

    def density(self, values: Array) -> Array:
        """ψ²."""
        return values**2

    def cover(self, cells: Indices, bounds: Array) -> Array:
        """A margin for a polynomial of degree k between the corners."""
        # A box between zeros of ψ has small corner values; the term of the cell keeps it reachable.
        margin = (1.0 + self.element.degree / self.boxes) ** 2
        return np.asarray(margin * (bounds + 1e-3 * bounds.max(axis=1, keepdims=True)))


class _ExponentialCells(_Cells):
    """The density e^{−u} of a function u."""

    def __init__(self, function: fem.Function) -> None:
        super().__init__(function)
        self.quadrature_degree = _EXPONENTIAL_DEGREE[self.dim]
        points: Any = basix.make_quadrature(self.cell_type, 2 * self.element.degree)[0]
        table, axes = _tabulate(self.element, points, 2), np.eye(self.dim, dtype=int)
        pairs = (basix.index(*(a + b).tolist()) for a in axes for b in axes)
        squares = sum((self.values @ table[pair].T) ** 2 for pair in pairs)
        self._curvatures: Array = np.sqrt(squares).max(axis=1, initial=0.0)

    def density(self, values: Array) -> Array:
        """e^{−u}."""
        return np.exp(-values)

    def cover(self, cells: Indices, bounds: Array) -> Array:
        """A factor e^δ, where δ bounds how far u falls below its corner values in a box.

        In the convex hull of points in a ball of radius ρ a function falls below its smallest value
        at these points by at most ½ρ²‖∇²u‖. The map of the cube onto a simplex is linear on the
        simplices spanned by the corners of each box, and its norm is ``_FOLD[d]``.
        """
        stretch = _FOLD[self.dim] if self.simplex else 1.0
        squared_radius = 0.25 * self.dim * (stretch / self.boxes) ** 2
        curvature = self._curvatures[cells] * (1.0 + self.element.degree / self.boxes)
        return np.asarray(bounds * np.exp(0.5 * squared_radius * curvature)[:, None])


def _tabulate(element: basix.finite_element.FiniteElement, points: Array, order: int = 0) -> Array:
    """Shape functions and derivatives up to an order, ``(derivatives, points, dofs)``."""
    return np.asarray(element.tabulate(order, points))[:, :, :, 0]
