r"""A Gaussian in a trap, where everything is known: computed flow against exact solution.

Minimise over probability densities m on R^d (E1), with F = potential + mean interaction,

    F^σ(m) = ∫½ xᵀQx dm + (λ_c/2) |∫x dm − a|² + (σ²/4) ∫|∇log m|² dm,

by its gradient flow, the mean-field Schrödinger equation of ψ = √m (D2),

    ∂_tψ = (σ²/2) Δψ − ½ (V[m_t] − λ_t) ψ,   V[m](x) = ½ xᵀQx + λ_c (∫x dm − a)·x.

A Gaussian stays one. Put u = −log m_t = ½ (x−μ)ᵀΘ(x−μ) + const into the HJB equation (D3),
∂_tu = (σ²/2) Δu − (σ²/4) |∇u|² + V[m_t] − λ_t. With y = x − μ,

    ∂_tu = ½ yᵀΘ'y − yᵀΘμ' + const,   |∇u|² = yᵀΘ²y,
    V = ½ yᵀQy + yᵀ(Qμ + λ_c (μ − a)) + const,

and the terms of degree two and one in y give a matrix Riccati equation and one for the mean,

    Θ' = Q − (σ²/2) Θ²,   Θμ' = −Qμ − λ_c (μ − a):

(X4), and (X1) when Q = κ Id (``--no-anisotropic``). By default the axes of Θ_0 are those of
coordinates and the axes of Q are turned by 30 degrees: the two do not commute, the Gaussian turns.
Also exact are, with S = Θ⁻¹,

    F^σ = ½ tr(QS) + ½ μᵀQμ + (λ_c/2) |μ − a|² + (σ²/4) tr Θ,
    −dF^σ/dt = ½ tr(Θ'SΘ'S) + μ'ᵀΘμ'   (D4),

and the minimiser (F2), Θ = √2 Q^½/σ and μ = λ_c (Q + λ_c)⁻¹ a.

Boundary: R^d is cut to a box that holds all of the mass but 1e-12, with the natural condition
∂ψ/∂n = 0 there; high degrees see the cut, unless --radius is larger. Start: the Gaussian of mean
μ_0 and precision Θ_0.

The program follows the flow and compares, step by step, then measures orders of convergence:

- in time, dt halved, each scheme against the exact solution, on intervals of degree 8 or
  quadrilaterals or hexahedra of degree 6, whose error in space is small beside that in time;
- in space, h halved, --cell and --degree as given: the discrete minimiser against the exact one,
  by backward Euler with an enormous step, whose fixed point it is.

It leaves history.csv, fields.xdmf (m, psi, u, V), convergence.csv, trajectories.png, densities.png
and convergence.png in --output.

    mpirun -n 2 python demos/gaussian_trap.py --sigma 0.6 --scheme crank-nicolson
    mpirun -n 2 python demos/gaussian_trap.py --mesh meshes/disk.msh --no-anisotropic --levels 2
    mpirun -n 2 python demos/gaussian_trap.py --dim 3 --h 1.2 --dt 0.2 --t-end 1 --levels 2

Reference: J. Claisse, G. Conforti, Z. Ren, S. Wang, "Mean field optimization problem regularized by
Fisher information", arXiv:2302.05938, and their slides "Optimisation de champ moyen régularisé par
l'information de Fisher" (2022), section 3, "La dynamique".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mpi4py import MPI

import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

import fem_mf as mf
from common import (
    CONSOLE,
    Columns,
    draw_slope,
    parse,
    print_table,
    with_orders,
    write_studies,
)
from fem_mf.mpi import on_root

type Array = npt.NDArray[np.float64]

SCHEMES = {"backward-euler": 1, "crank-nicolson": 2, "sdirk2": 2}  # with their orders
TURN = np.pi / 6  # of the axes of Q against those of Θ_0
SNAPSHOTS = (0.0, 0.08, 0.25, 1.0)  # fractions of t_end at which the density is drawn

# -- the exact solution ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, precision⁻¹): ``(d,)`` and ``(d, d)``."""

    mean: Array
    precision: Array

    def __call__(self, x: Array) -> Array:
        """The density at points ``(3, n)`` or ``(d, n)``, ``(n,)``."""
        y = x[: self.mean.size] - self.mean[:, None]
        peak = np.sqrt(np.linalg.det(self.precision / (2.0 * np.pi)))
        return np.asarray(peak * np.exp(-0.5 * np.sum(y * (self.precision @ y), axis=0)))


@dataclass(frozen=True)
class Trap:
    """F of this demo, and its flow on Gaussians.

    Attributes:
        q: ``(d, d)`` Hessian of the potential, positive definite.
        sigma: σ.
        strength: λ_c of the mean interaction.
        target: ``(d,)`` the point a.
    """

    q: Array
    sigma: float
    strength: float
    target: Array

    def functional(self) -> mf.Functional:
        """Potential + mean interaction."""
        d = self.target.size

        def half_square(x: Array) -> Array:
            return np.asarray(0.5 * np.sum(x[:d] * (self.q @ x[:d]), axis=0))

        return mf.Potential(half_square) + mf.MeanInteraction(self.strength, self.target)

    def slope(self, g: Gaussian) -> Gaussian:
        """(μ', Θ') of (X4) with interaction."""
        force = self.q @ g.mean + self.strength * (g.mean - self.target)
        riccati = self.q - 0.5 * self.sigma**2 * g.precision @ g.precision
        return Gaussian(-np.linalg.solve(g.precision, force), riccati)

    def flow(self, start: Gaussian, t_end: float) -> Callable[[float], Gaussian]:
        """The exact solution from a start, as a function of t in [0, t_end]."""
        d = self.target.size

        def unpack(state: Array) -> Gaussian:
            return Gaussian(state[:d], state[d:].reshape(d, d))

        def rate(_: float, state: Array) -> Array:
            slope = self.slope(unpack(state))
            return np.concatenate([slope.mean, slope.precision.ravel()])

        first = np.concatenate([start.mean, start.precision.ravel()])
        solution = solve_ivp(
            rate, (0.0, t_end), first, "DOP853", dense_output=True, rtol=1e-12, atol=1e-13
        )
        interpolant = solution.sol
        assert interpolant is not None
        return lambda t: unpack(interpolant(t))

    def limit(self) -> Gaussian:
        """The minimiser."""
        mean = np.linalg.solve(self.q + self.strength * np.eye(len(self.q)), self.target)
        return Gaussian(self.strength * mean, np.sqrt(2.0) / self.sigma * np.real(sqrtm(self.q)))

    def energy(self, g: Gaussian) -> float:
        """F^σ(N(μ, Θ⁻¹))."""
        trap = 0.5 * np.trace(np.linalg.solve(g.precision, self.q)) + 0.5 * g.mean @ self.q @ g.mean
        interaction = 0.5 * self.strength * np.sum((g.mean - self.target) ** 2)
        return float(trap + interaction + 0.25 * self.sigma**2 * np.trace(g.precision))

    def dissipation(self, g: Gaussian) -> float:
        """−dF^σ/dt, the variance of ∂_tu under m_t."""
        slope = self.slope(g)
        relative = np.linalg.solve(g.precision, slope.precision)
        return float(0.5 * np.trace(relative @ relative) + slope.mean @ g.precision @ slope.mean)


def make_trap(
    dim: int, sigma: float, kappa: float, ratio: float, strength: float, target: tuple[float, ...]
) -> Trap:
    """Q has eigenvalues from κ to ratio κ and axes turned in each plane of neighbouring axes."""
    turn = np.eye(dim)
    for i in range(dim - 1):
        plane = np.eye(dim)
        c, s = np.cos(TURN), np.sin(TURN)
        plane[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
        turn = turn @ plane
    q = turn @ np.diag(kappa * np.geomspace(1.0, ratio, dim)) @ turn.T
    return Trap(q, sigma, strength, _first(target, dim, "target"))


def _first(values: tuple[float, ...], dim: int, name: str) -> Array:
    if len(values) < dim:
        raise ValueError(f"{name} needs {dim} numbers, one per coordinate, not {len(values)}")
    return np.array(values[:dim], dtype=float)


# -- computed against exact ------------------------------------------------------------------------


class Comparison:
    """Distances of computed densities from Gaussians.

    Args:
        problem: of the densities.
    """

    def __init__(self, problem: mf.Problem) -> None:
        mesh, d = problem.mesh, problem.dim
        self._comm = mesh.comm
        self._psi = problem.new_amplitude()
        self._mean = fem.Constant(mesh, np.zeros(d))
        self._precision = fem.Constant(mesh, np.eye(d))
        self._peak = fem.Constant(mesh, 1.0)
        y = ufl.SpatialCoordinate(mesh) - self._mean
        exact = self._peak * ufl.exp(-0.25 * ufl.dot(y, ufl.dot(self._precision, y)))
        degree = 2 * self._psi.function_space.element.basix_element.degree + 6
        self._square = fem.form((self._psi - exact) ** 2 * ufl.dx(degree=degree))

    def errors(self, density: mf.Density, exact: Gaussian) -> dict[str, float]:
        """‖ψ − ψ_exact‖ in L², errors of mean (Euclid) and precision (Frobenius). Collective."""
        self._psi.x.array[:] = density.psi.x.array
        self._mean.value[:] = exact.mean
        self._precision.value[:] = exact.precision
        self._peak.value = np.linalg.det(exact.precision / (2.0 * np.pi)) ** 0.25
        square = self._comm.allreduce(fem.assemble_scalar(self._square))
        precision = np.linalg.inv(density.covariance())
        return {
            "psi": float(np.sqrt(square)),
            "mean": float(np.linalg.norm(density.mean() - exact.mean)),
            "precision": float(np.linalg.norm(precision - exact.precision)),
        }


def follow(
    flow: mf.SchrodingerFlow, trap: Trap, start: Gaussian, t_end: float, output: Path
) -> tuple[dict[str, float], list[Snapshot]]:
    """Run once, write history and fields, and take pictures on the way. Collective.

    Returns:
        Largest errors over the run, and the snapshots.
    """
    problem, comm = flow.problem, flow.problem.comm
    exact, comparison = trap.flow(start, t_end), Comparison(problem)
    points = picture_points([exact(f * t_end) for f in SNAPSHOTS])
    errors: list[dict[str, float]] = []
    snapshots: list[Snapshot] = []
    every = max(1, round(t_end / flow.dt / 40))
    states = flow.run(mf.Density.from_function(problem, start), t_end)
    with (
        mf.History(output / "history.csv", comm) as history,
        mf.XDMFSeries(output / "fields.xdmf", problem, every=every) as fields,
    ):
        for state in mf.progress(states, t_end, comm, "flow"):
            density, here = state.density, exact(state.t)
            error = comparison.errors(density, here)
            errors.append(error | {"energy": abs(state.energy - trap.energy(here))})
            computed = Gaussian(density.mean(), np.linalg.inv(density.covariance()))
            history.append(
                dict(state.scalars())
                | {f"{name}_error": value for name, value in errors[-1].items()}
                | {"exact_energy": trap.energy(here), "exact_dissipation": trap.dissipation(here)}
                | entries("", computed)
                | entries("exact_", here)
            )
            fields.write(state.t, density, force=state.t == t_end)
            if state.t >= SNAPSHOTS[len(snapshots)] * t_end - 1e-9:
                snapshots.append(Snapshot(state.t, points, density.evaluate(points.T), here))
    return largest(errors), snapshots


def largest(errors: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each error over the steps."""
    steps = list(errors)
    return {name: max(step[name] for step in steps) for name in steps[0]}


def entries(prefix: str, g: Gaussian) -> dict[str, float]:
    """Entries of mean and precision by column of the history: mean_1, precision_12, ..."""
    d = g.mean.size
    means = {f"{prefix}mean_{i + 1}": float(g.mean[i]) for i in range(d)}
    return means | {
        f"{prefix}precision_{i + 1}{j + 1}": float(g.precision[i, j])
        for i in range(d)
        for j in range(i, d)
    }


# -- orders of convergence -------------------------------------------------------------------------


def time_study(
    trap: Trap, start: Gaussian, t_end: float, dt: float, levels: int, radius: float
) -> Iterator[tuple[str, Columns]]:
    """Largest errors of each scheme over the run, dt halved. Collective."""
    d, exact = start.mean.size, trap.flow(start, t_end)
    sharpest = max(np.linalg.eigvalsh(g.precision).max() for g in (start, exact(t_end)))
    cell = {1: "interval", 2: "quadrilateral", 3: "hexahedron"}[d]
    # In units of the width √(2/θ) of the sharpest ψ.
    h = (2.4 if d == 3 else 1.2) * np.sqrt(2.0 / sharpest)
    mesh = mf.box(MPI.COMM_WORLD, radius, h, dim=d, cell=cell)
    problem = mf.Problem(
        mesh, trap.functional(), trap.sigma, degree=8 if d == 1 else 6, mass="lumped"
    )
    comparison, first = Comparison(problem), mf.Density.from_function(problem, start)
    for scheme in SCHEMES:
        steps = [dt / 2**level for level in range(levels)]
        results = []
        for step in steps:
            states = mf.SchrodingerFlow(problem, step, scheme).run(first, t_end)
            results.append(largest(comparison.errors(s.density, exact(s.t)) for s in states))
        yield scheme, {"dt": steps} | with_orders(steps, results)


def space_study(
    trap: Trap,
    meshes: Iterable[tuple[float, dolfinx.mesh.Mesh]],
    degree: int | None,
    mass: str,
) -> Columns:
    """Errors of the discrete minimiser, h halved. Collective."""
    exact = trap.limit()
    sizes, dofs, results = [], [], []
    for h, mesh in meshes:
        problem = mf.Problem(mesh, trap.functional(), trap.sigma, degree=degree, mass=mass)
        flow = mf.SchrodingerFlow(problem, dt=1e4, fixed_point_tolerance=1e-11)
        start = mf.Density.from_function(problem, exact)
        *_, last = flow.run(start, 1e5, steady_residual=1e-9)
        sizes.append(h)
        dofs.append(float(problem.space.dofmap.index_map.size_global))
        error = Comparison(problem).errors(last.density, exact)["psi"]
        results.append({"psi": error, "energy": abs(last.energy - trap.energy(exact))})
    return {"h": sizes, "dofs": dofs} | with_orders(sizes, results)


def halved(
    mesh: dolfinx.mesh.Mesh, h: float, levels: int, radius: float | None
) -> Iterator[tuple[float, dolfinx.mesh.Mesh]]:
    """Meshes of size h, h/2, ...: simplices are cut, boxes of other cells built anew. Collective.

    A file (radius None) of other cells cannot be halved: it is the only one.
    """
    d, cell = mesh.topology.dim, mesh.topology.cell_name()
    yield h, mesh
    for level in range(1, levels):
        if cell in ("interval", "triangle", "tetrahedron"):
            mesh = mf.refine(mesh)
        elif radius is not None:
            mesh = mf.box(mesh.comm, radius, h / 2**level, dim=d, cell=cell)
        else:
            return
        yield h / 2**level, mesh


def diameter(mesh: dolfinx.mesh.Mesh) -> float:
    """The largest cell diameter. Collective."""
    cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
    local = float(mesh.h(mesh.topology.dim, cells).max(initial=0.0))
    return float(mesh.comm.allreduce(local, op=MPI.MAX))


# -- pictures, on rank 0 ---------------------------------------------------------------------------


def draw_convergence(path: Path, studies: Mapping[str, Columns], degree: int) -> None:
    """Errors against dt and against h, with slopes."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (scheme, order), marker in zip(SCHEMES.items(), "os^", strict=True):
        sizes, errors = studies[scheme]["dt"], studies[scheme]["psi"]
        left.loglog(sizes, errors, marker, linestyle="-", label=scheme)
        if scheme != "crank-nicolson":  # the slope of sdirk2
            draw_slope(left, sizes, errors, order)
    space = studies["space"]
    orders = {"psi": degree + 1, "energy": 2 * degree}
    for (name, order), marker in zip(orders.items(), "os", strict=True):
        label = r"$\Vert\psi-\psi_{exact}\Vert$" if name == "psi" else "energy of the minimiser"
        right.loglog(space["h"], space[name], marker, linestyle="-", label=label)
        draw_slope(right, space["h"], space[name], order)
    left.set(
        xlabel="dt", ylabel="largest $\\Vert\\psi-\\psi_{exact}\\Vert$ of the run", title="in time"
    )
    right.set(xlabel="h", ylabel="error", title=f"in space, degree {degree}")
    for axes, sizes in ((left, studies["sdirk2"]["dt"]), (right, space["h"])):
        axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_trajectories(path: Path, history: Mapping[str, Array], trap: Trap) -> None:
    """Energy, dissipation, mean and precision: exact curves and computed marks."""
    t, d = history["t"], trap.target.size
    some = np.unique(np.linspace(0, len(t) - 1, 26).astype(int))
    figure = Figure(figsize=(9.0, 6.2), layout="constrained")
    (energy, dissipation), (mean, precision) = figure.subplots(2, 2)

    def compare(axes: Axes, column: str, label: str, shift: float = 0.0) -> None:
        (line,) = axes.plot(t, history[f"exact_{column}"] - shift, label=label)
        marks = np.where(axes.get_yscale() == "linear", history[column], history[column] - shift)
        shown = some if axes.get_yscale() == "linear" else some[marks[some] > 0.0]
        axes.plot(t[shown], marks[shown], "o", color=line.get_color(), fillstyle="none", ms=4)

    lowest = trap.energy(trap.limit())
    energy.set(yscale="log", ylabel="energy − minimum", title=f"minimum {lowest:.6f} (exact)")
    compare(energy, "energy", r"$F^\sigma(m_t) - \min F^\sigma$", lowest)
    dissipation.set(yscale="log", ylabel=r"dissipation $-dF^\sigma/dt$")
    compare(dissipation, "dissipation", r"$\Vert H[m_t]\psi - \lambda_t\psi\Vert^2$")
    mean.set(ylabel="mean")
    for i in range(d):
        compare(mean, f"mean_{i + 1}", f"μ{'₁₂₃'[i]}")
    precision.set(ylabel="precision")
    for i in range(d):
        for j in range(i, d):
            compare(precision, f"precision_{i + 1}{j + 1}", f"Θ{'₁₂₃'[i]}{'₁₂₃'[j]}")
    limit = trap.limit()
    for axes, values in ((mean, limit.mean), (precision, limit.precision[np.triu_indices(d)])):
        for value in values:
            axes.axhline(value, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for axes in (energy, dissipation, mean, precision):
        axes.set(xlabel="t")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle("lines: exact    circles: computed    dotted: limit")
    figure.savefig(path, dpi=150)


class Snapshot(NamedTuple):
    """The density at points ``(d, n)`` of a picture, computed ``(n,)`` and exact."""

    t: float
    points: Array
    values: Array
    exact: Gaussian


def picture_points(shown: list[Gaussian]) -> Array:
    """Points of a line, or of a grid of axes 1 and 2 through x₃ = a mean, that hold them all."""
    d = shown[0].mean.size
    reach = [3.2 * np.sqrt(np.diag(np.linalg.inv(g.precision))) for g in shown]
    low = np.min([g.mean - r for g, r in zip(shown, reach, strict=True)], axis=0)
    high = np.max([g.mean + r for g, r in zip(shown, reach, strict=True)], axis=0)
    if d == 1:
        return np.linspace(low, high, 401).T
    x, y = (np.linspace(low[i], high[i], 121) for i in (0, 1))
    grid = np.stack([axis.ravel() for axis in np.meshgrid(x, y)])
    return np.vstack([grid, np.full((d - 2, grid.shape[1]), shown[-1].mean[-1])])


def draw_densities(path: Path, snapshots: list[Snapshot], mean: Array) -> None:
    """Computed densities under exact ones; ``mean`` is the exact path ``(n, d)``."""
    if snapshots[0].points.shape[0] == 1:
        figure = Figure(figsize=(6.0, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, snapshot in enumerate(snapshots):
            x, exact = snapshot.points[0], snapshot.exact(snapshot.points)
            axes.plot(x, snapshot.values, f"C{i}", label=f"t = {snapshot.t:.3g}")
            axes.plot(x[::10], exact[::10], f"C{i}o", fillstyle="none", ms=4)
        axes.set(
            xlabel="x", ylabel="m(x)", title="lines: computed    circles: exact", ylim=(0, None)
        )
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)
        return
    width, height = np.ptp(snapshots[0].points, axis=1)[:2]
    size = (2.6 * len(snapshots) + 0.5, 2.6 * height / width + 0.95)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(snapshots), sharey=True)
    for axes, snapshot in zip(panels, snapshots, strict=True):
        _contours(axes, snapshot)
        axes.plot(mean[:, 0], mean[:, 1], color="tab:red", linewidth=1.0)
        axes.plot(*snapshot.exact.mean[:2], "o", color="tab:red", markersize=4)
        axes.set(xlabel="x₁", title=f"t = {snapshot.t:.3g}", aspect="equal")
    panels[0].set_ylabel("x₂")
    plane = "" if mean.shape[1] == 2 else f"    plane x₃ = {snapshots[0].points[2, 0]:.3g}"
    figure.suptitle(f"colours: computed    lines: exact    red: path of the mean{plane}")
    figure.savefig(path, dpi=150)


def _contours(axes: Axes, snapshot: Snapshot) -> None:
    """Colours change at the computed level sets, on which the exact ones should lie."""
    n = round(np.sqrt(snapshot.values.size))
    x, y = (axis.reshape(n, n) for axis in snapshot.points[:2])
    exact = snapshot.exact(snapshot.points).reshape(n, n)
    computed = np.ma.masked_invalid(snapshot.values).reshape(n, n)
    levels = exact.max() * np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.95])
    axes.contourf(x, y, computed, [0.0, *levels, 1.1 * exact.max()], cmap="Blues")
    axes.contour(x, y, exact, levels, colors="black", linewidths=0.8)


# -- the story -------------------------------------------------------------------------------------

HELP = {
    "dim": "dimension of space; with --mesh that of the file",
    "sigma": "σ > 0",
    "kappa": "softest eigenvalue κ of Q",
    "anisotropic": "(X4): eigenvalues of Q from κ to RATIO κ; else (X1): Q = κ Id",
    "ratio": "stiffest over softest eigenvalue of Q",
    "strength": "λ_c ≥ 0 of the mean interaction",
    "target": "a of the mean interaction; the first DIM numbers are used",
    "mean": "μ_0; the first DIM numbers are used",
    "precision": "of the start: Θ_0 = PRECISION Id (X1), times √RATIO to 1 along the axes (X4)",
    "t_end": "final time",
    "dt": "time step of the run, the largest of the study in time",
    "scheme": "of the run",
    "degree": "of ψ in the run and the study in space (default: 2 on simplices, 6 on other cells)",
    "cell": "interval, triangle, quadrilateral, tetrahedron, hexahedron (default: the simplex)",
    "h": "cell size of the run, the largest of the study in space",
    "radius": "half-length of the box (default: by truncation_radius)",
    "mass": "lumped: degree 1 on simplices, any on other cells",
    "levels": "sizes in each study of convergence, at least 2",
    "mesh": "read this .msh or .xdmf file instead",
    "output": "folder of the results",
}


def main(
    dim: Literal[1, 2, 3] = 2,
    sigma: float = 0.8,
    kappa: float = 1.0,
    anisotropic: bool = True,
    ratio: float = 4.0,
    strength: float = 0.5,
    target: tuple[float, ...] = (1.5, 0.5, -0.5),
    mean: tuple[float, ...] = (-1.2, 0.9, 0.4),
    precision: float = 1.5,
    t_end: float = 3.0,
    dt: float = 0.05,
    scheme: Literal["backward-euler", "crank-nicolson", "sdirk2"] = "sdirk2",
    degree: int | None = None,
    cell: str | None = None,
    h: float = 0.5,
    radius: float | None = None,
    mass: Literal["consistent", "lumped"] = "consistent",
    levels: int = 3,
    mesh: str | None = None,
    output: str = "results/gaussian_trap",
) -> dict[str, dict[str, Any]]:
    """Compare one run with the exact solution, measure orders, write and draw. Collective.

    The keywords are the options of the command line (``HELP``).

    Returns:
        "run": largest errors over the run of psi, mean, precision and energy; one entry per scheme
        and "space": columns of sizes, errors and orders, coarse to fine.

    Raises:
        ValueError: a number is out of range.
    """
    if levels < 2:
        raise ValueError(f"an order needs two levels, not {levels}")
    for name, number in (("kappa", kappa), ("ratio", ratio), ("precision", precision), ("dt", dt)):
        if not number > 0.0:
            raise ValueError(f"{name} must be positive, not {number}")
    if not t_end >= dt:
        raise ValueError(f"t_end = {t_end} is less than one step, dt = {dt}")
    comm, folder = MPI.COMM_WORLD, Path(output)
    domain = None if mesh is None else mf.read_mesh(mesh, comm)
    d = dim if domain is None else int(domain.geometry.dim)
    ratio = ratio if anisotropic else 1.0
    trap = make_trap(d, sigma, kappa, ratio, strength, target)
    spread = np.diag(precision * np.geomspace(np.sqrt(ratio), 1.0, d))
    start = Gaussian(_first(mean, d, "mean"), spread)
    exact = trap.flow(start, t_end)
    path = [exact(t) for t in np.linspace(0.0, t_end, 201)]
    if radius is None:
        theta = min(np.linalg.eigvalsh(g.precision).min() for g in path)
        offset = max(float(np.linalg.norm(g.mean)) for g in path)
        radius = mf.truncation_radius(
            0.5 * (sigma * theta) ** 2, sigma, tol=1e-12, dim=d, offset=offset
        )
    if domain is None:
        domain = mf.box(comm, radius, h, dim=d, cell=cell)

    problem = mf.Problem(domain, trap.functional(), sigma, degree=degree, mass=mass)
    size = problem.space.dofmap.index_map.size_global
    CONSOLE.print(
        f"d = {d}, {size:,} dofs, box [−{radius:.3g}, {radius:.3g}]^{d}, {comm.size} ranks"
    )
    worst, snapshots = follow(mf.SchrodingerFlow(problem, dt, scheme), trap, start, t_end, folder)
    print_table(f"largest errors, {scheme}, dt = {dt:g}", {k: [e] for k, e in worst.items()})

    studies: dict[str, Columns] = {}
    for name, columns in time_study(trap, start, t_end, dt, levels, radius):
        studies[name] = columns
        print_table(f"largest errors, {name}", columns)
    grids = (
        halved(domain, h, levels, radius)
        if mesh is None
        else halved(domain, diameter(domain), levels, None)
    )
    studies["space"] = space_study(trap, grids, degree, mass)
    print_table("discrete minimiser", studies["space"])

    def publish() -> None:
        element = problem.space.element.basix_element
        write_studies(folder / "convergence.csv", studies)
        draw_convergence(folder / "convergence.png", studies, element.degree)
        history = mf.History.read(folder / "history.csv")
        draw_trajectories(folder / "trajectories.png", history, trap)
        draw_densities(folder / "densities.png", snapshots, np.array([g.mean for g in path]))

    on_root(comm, publish)
    CONSOLE.print(f"results in {folder}", soft_wrap=True)
    return {"run": worst, **studies}


if __name__ == "__main__":
    mf.setup_logging(MPI.COMM_WORLD)
    main(**parse(main, __doc__, HELP))
