"""Point values and random samples of a distributed finite-element function.

Both give the same answer on every rank and at any number of ranks.
"""

from __future__ import annotations

import itertools

from mpi4py import MPI

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import fem, geometry
from dolfinx import mesh as dmesh

from fem_mf.mpi import all_ranks_agree, global_sum, integer
from fem_mf.typing import Array, SpaceFunction

__all__ = ["evaluate", "evaluate_at", "interpolate_between", "sample_exponential", "sample_square"]

# Coordinates are projected on this direction to give cells an order that depends neither on the
# partition nor on the numbering; its irrational ratios make ties improbable.
_DIRECTION = np.array([1.0, np.sqrt(2.0) - 1.0, np.sqrt(3.0) - 1.0])
_MAX_ROUNDS = 1000
_MAX_BOXES = {1: 64, 2: 24, 3: 10}  # per axis of a cell
_FOLD = {2: 2.0 * np.cos(np.pi / 5.0), 3: 2.0 * np.cos(np.pi / 7.0)}  # norm of the map to a simplex
_EXPONENTIAL_DEGREE = {1: 40, 2: 20, 3: 12}  # of the quadrature of e^{−u} over a cell


def evaluate(comm: MPI.Comm, function: SpaceFunction, points: Array, name: str) -> Array:
    """Values of a user's function of space at points, checked. Collective.

    Args:
        comm: the communicator of the mesh.
        function: callable of ``x``, shape ``(3, n)``, returning ``(n,)``.
        points: ``(3, n)``, this rank's nodes.
        name: what the function is, for the error message.

    Returns:
        ``(n,)`` values.

    Raises:
        ValueError: on every rank, when on any rank the shape is wrong, a value is not finite, or
            the function itself raises.
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
        ValueError: the points have not the dimension of the mesh.
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
        source: with up-to-date ghosts.
        target: overwritten; points just outside the source's mesh get the value of the nearest
            cell's polynomial, points far outside get 0.

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
    """Points of density proportional to the square of a function. Collective.

    A cell is drawn by its share of the integral, then a point of it by rejection; the random
    numbers of sample i are row i of arrays that every rank draws alike.

    Args:
        function: a scalar Lagrange function with up-to-date ghosts.
        n: number of points.
        seed: of NumPy's default generator.

    Returns:
        ``(n, d)`` points, the same on every rank.
    """
    return _sample(_SquareSampler(function), function, n, seed)


def sample_exponential(u: fem.Function, n: int, seed: int) -> Array:
    """Points of density proportional to e^{−u}; see :func:`sample_square`. Collective."""
    return _sample(_ExponentialSampler(u), u, n, seed)


def _sample(sampler: _CellSampler, function: fem.Function, n: int, seed: int) -> Array:
    if integer("n", n) < 1:
        raise ValueError(f"the number of samples is at least 1, not {n}")
    mesh = function.function_space.mesh
    rng = np.random.default_rng(seed)
    mine, cells = _draw_cells(mesh, sampler.masses(), rng.random(n))
    samples = np.zeros((n, mesh.geometry.dim))
    pending = np.arange(len(mine))
    for _ in range(_MAX_ROUNDS):
        uniform = rng.random((n, mesh.topology.dim + 2))
        if pending.size:
            points, accepted = sampler.propose(cells[pending], uniform[mine[pending]])
            samples[mine[pending[accepted]]] = points[accepted]
            pending = pending[~accepted]
        if mesh.comm.allreduce(pending.size) == 0:
            return global_sum(mesh.comm, samples)
    raise RuntimeError("sampling did not finish: the density varies too much inside one cell")


def _draw_cells(
    mesh: dmesh.Mesh, masses: Array, uniform: Array
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Invert the distribution of cell masses: indices of this rank's samples, and their cells."""
    comm = mesh.comm
    x, dofs = mesh.geometry.x, mesh.geometry.dofmaps[0][: len(masses)]
    key = (x[dofs] @ _DIRECTION).mean(axis=1)
    keys, weights = comm.allgather(key), comm.allgather(masses)
    order = np.argsort(np.concatenate(keys), kind="stable")
    cumulative = np.cumsum(np.concatenate(weights)[order])
    position = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    chosen = order[np.minimum(position, len(order) - 1)]
    first = sum(len(k) for k in keys[: comm.rank])
    mine = np.flatnonzero((chosen >= first) & (chosen < first + len(masses)))
    return mine, chosen[mine] - first


class _CellSampler:
    """Integrals of a density cell by cell, and rejection sampling inside a cell.

    Proposals have the density of the largest corner values on a grid of boxes, times a factor that
    covers what lies between the corners. The grid is one of the unit cube, which :func:`_fold` maps
    onto a simplex with its volume. Members of the family say what the density of a function is.
    """

    def __init__(self, function: fem.Function) -> None:
        space = function.function_space
        mesh = space.mesh
        self.element = space.element.basix_element
        self.cell_type = self.element.cell_type
        num_cells = mesh.topology.index_map(mesh.topology.dim).size_local
        self.geometry = mesh.geometry.x[mesh.geometry.dofmaps[0][:num_cells], : mesh.geometry.dim]
        self.cmap = basix.create_element(
            basix.ElementFamily.P,
            self.cell_type,
            mesh.geometry.cmaps[0].degree,
            basix.LagrangeVariant(mesh.geometry.cmaps[0].variant),
        )
        self.values = _reference_values(function, num_cells)
        self.dim = mesh.topology.dim
        self._simplex = self.cell_type in (basix.CellType.triangle, basix.CellType.tetrahedron)
        self.boxes = min(2 * self.element.degree + 2, _MAX_BOXES[self.dim])
        self.quadrature_degree = 2 * self.element.degree + 2

    def density(self, values: Array) -> Array:
        """The density where the function has these values."""
        raise NotImplementedError

    def cover(self, cells: npt.NDArray[np.intp], bounds: Array) -> Array:
        """Bounds in the boxes of cells.

        Args:
            cells: the cells.
            bounds: largest density at the corners of each box, ``(cells, boxes^d)``.
        """
        raise NotImplementedError

    def masses(self) -> Array:
        """The integral over each cell."""
        points, weights = basix.make_quadrature(self.cell_type, self.quadrature_degree)
        values = self.values @ _tabulate(self.element, points, 0)[0].T
        every = np.arange(len(self.values))
        local: Array = self.density(values) * self._jacobian(every, points)
        return np.asarray(local @ np.asarray(weights))

    def propose(
        self, cells: npt.NDArray[np.intp], uniform: Array
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Points of the given cells, and which of them to accept; uniform is ``(n, d + 2)``."""
        unique, inverse = np.unique(cells, return_inverse=True)
        bounds = self._bounds(unique)
        cumulative = np.cumsum(bounds, axis=1)
        targets = uniform[:, 0] * cumulative[inverse, -1]
        box = np.empty(len(cells), dtype=np.intp)
        # Sorted by cell, the samples of one cell are one slice: a search for each cell.
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        for i, (first, last) in enumerate(itertools.pairwise(starts)):
            box[order[first:last]] = np.searchsorted(cumulative[i], targets[order[first:last]])
        box = np.minimum(box, bounds.shape[1] - 1)
        corner = np.stack(np.unravel_index(box, (self.boxes,) * self.dim), axis=1)
        reference = self._reference((corner + uniform[:, 2:]) / self.boxes)
        density, x = self._evaluate(cells, reference)
        return x, uniform[:, 1] * bounds[inverse, box] <= density

    def _bounds(self, cells: npt.NDArray[np.intp]) -> Array:
        """Upper estimate of the density times |det J| in each box, ``(cells, boxes^d)``."""
        axes = [np.linspace(0.0, 1.0, self.boxes + 1)] * self.dim
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim)
        points = self._reference(grid)
        values = self.values[cells] @ _tabulate(self.element, points, 0)[0].T
        shape = (-1, *(len(a) for a in axes))
        density = (self.density(values) * self._jacobian(cells, points)).reshape(shape)
        for axis in range(1, self.dim + 1):
            upper, lower = np.arange(1, self.boxes + 1), np.arange(self.boxes)
            density = np.maximum(density.take(upper, axis), density.take(lower, axis))
        return self.cover(cells, density.reshape(len(cells), -1))

    def _reference(self, cube: Array) -> Array:
        return _fold(cube) if self._simplex else cube

    def _evaluate(self, cells: npt.NDArray[np.intp], points: Array) -> tuple[Array, Array]:
        """The density times |det J|, and x, cell i at reference point i."""
        values = np.einsum("ij,ij->i", self.values[cells], _tabulate(self.element, points, 0)[0])
        tables = _tabulate(self.cmap, points, 1)
        x = np.einsum("ij,ijk->ik", tables[0], self.geometry[cells])
        jacobian = np.einsum("cvk,gcv->ckg", self.geometry[cells], tables[1:])
        return self.density(values) * np.abs(np.asarray(np.linalg.det(jacobian))), x

    def _jacobian(self, cells: npt.NDArray[np.intp], points: npt.ArrayLike) -> Array:
        gradients = _tabulate(self.cmap, points, 1)[1:]
        jacobian = np.einsum("cvk,gqv->cqkg", self.geometry[cells], gradients)
        return np.abs(np.asarray(np.linalg.det(jacobian)))


class _SquareSampler(_CellSampler):
    """The density ψ² of a function ψ."""

    def density(self, values: Array) -> Array:
        """ψ²."""
        return values**2

    def cover(self, cells: npt.NDArray[np.intp], bounds: Array) -> Array:
        """A margin for a polynomial of degree k between the corners."""
        # A box between zeros of ψ has small corners; the cell's size keeps it reachable.
        margin = (1.0 + self.element.degree / self.boxes) ** 2
        return np.asarray(margin * (bounds + 1e-3 * bounds.max(axis=1, keepdims=True)))


class _ExponentialSampler(_CellSampler):
    """The density e^{−u} of a function u."""

    def __init__(self, function: fem.Function) -> None:
        super().__init__(function)
        self.quadrature_degree = _EXPONENTIAL_DEGREE[self.dim]
        points, _ = basix.make_quadrature(self.cell_type, 2 * self.element.degree)
        seconds = [
            self.values @ _tabulate(self.element, points, 2)[basix.index(*pair)].T
            for pair in _second_derivatives(self.dim)
        ]
        self._curvatures: Array = np.sqrt(sum(s**2 for s in seconds)).max(axis=1, initial=0.0)

    def density(self, values: Array) -> Array:
        """e^{−u}."""
        return np.exp(-values)

    def cover(self, cells: npt.NDArray[np.intp], bounds: Array) -> Array:
        """A factor e^δ, δ a bound of how far u falls below its values at the corners of a box.

        In the convex hull of points of a ball of radius ρ a function falls below its smallest value
        there by ½ρ²‖∇²u‖ at most. The map of the cube onto a simplex is linear on the simplices
        that the corners of each box span, and stretches by ``_FOLD[d]``.
        """
        stretch = _FOLD[self.dim] if self._simplex else 1.0
        squared_radius = 0.25 * self.dim * (stretch / self.boxes) ** 2
        curvature = self._curvatures[cells] * (1.0 + self.element.degree / self.boxes)
        return np.asarray(bounds * np.exp(0.5 * squared_radius * curvature)[:, None])


def _second_derivatives(dim: int) -> list[tuple[int, ...]]:
    """Multi-indices of all second derivatives, the mixed ones twice."""
    rows = np.eye(dim, dtype=int)
    return [tuple(int(n) for n in rows[a] + rows[b]) for a in range(dim) for b in range(dim)]


def _tabulate(
    element: basix.finite_element.FiniteElement, points: npt.ArrayLike, order: int
) -> Array:
    """Shape functions and derivatives up to an order, ``(derivatives, points, dofs)``."""
    tables: Array = np.asarray(element.tabulate(order, np.asarray(points)))
    return tables[:, :, :, 0]


def _reference_values(function: fem.Function, num_cells: int) -> Array:
    """Nodal values cell by cell in the reference ordering, ``(num_cells, dofs)``."""
    space = function.function_space
    space.mesh.topology.create_entity_permutations()
    values: Array = function.x.array[space.dofmap.list[:num_cells]].copy()
    element = space.element
    if element.needs_dof_transformations:
        permutations = space.mesh.topology.get_cell_permutation_info()[:num_cells]
        element.T_apply(values.reshape(-1), permutations, 1)
    return values


def _fold(uniform: Array) -> Array:
    """Uniform points of the unit square or cube to uniform points of the reference simplex.

    Spacings of the sorted coordinates are uniform on the simplex.
    """
    ordered = np.sort(uniform, axis=1)
    return np.diff(ordered, axis=1, prepend=0.0)
