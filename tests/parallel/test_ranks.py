"""Every number of the package is the same at any number of ranks.

Each case makes numbers on a communicator. All ranks together make them on meshes that are divided
among them, with other numberings, other sums and ghosts; the reference is made on one rank alone.
The ranks share the references out among themselves. At three ranks only those cases run which two
do not decide: each flow and each kind of mesh once, with ranks that have two neighbours or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.bregman import bregman
from fem_mf.first_variation import first_order_forms
from fem_mf.flows.classical_part import Quadratic
from fem_mf.flows.edge_averaged import EdgeOperator
from fem_mf.observables import Regularity
from fem_mf.stationary.coarse_start import coarse_problem, from_grid
from tests.exact import gaussian

COMM = MPI.COMM_WORLD
MESH_FILE = Path(__file__).resolve().parents[2] / "meshes" / "perforated_disk.msh"
pytestmark = pytest.mark.skipif(COMM.size == 1, reason="one rank agrees with itself")

type Numbers = dict[str, Any]

# -- how well numbers agree --------------------------------------------------------------------

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
TOLERANCES: dict[str, dict[str, float]] = {
    # Derivatives cell by cell: where they are largest, differences of u over a cell cancel.
    **{
        name: {"rtol": 1e-8, "atol": 1e-8}
        for name in ("hessian_u", "growth_u", "theta_v", "growth_v", "lipschitz_w", "bounds")
    },
    # Differences of energies, and eigenvalues, to their own tolerance.
    "remainders": {"rtol": 1e-6, "atol": 1e-13},
    "convexity": {"rtol": 1e-8, "atol": 0.0},
    "rates": {"rtol": 0.0, "atol": 1e-8},
    "samples": {"rtol": 0.0, "atol": 1e-7},
    # What tells of the way to the solution: decided by residuals near rounding.
    "fixed_point_iterations": {"rtol": 0.0, "atol": 3.0},
    "iterations": {"rtol": 0.0, "atol": 2.0},
    "linear_iterations": {"rtol": 0.2, "atol": 8.0},
    "newton_most": {"rtol": 0.0, "atol": 1.0},
}
NOT_COMPARED = {"contraction", "newton_iterations"}


def of_states(states: Any, numbers: bool = True) -> Numbers:
    """Every scalar of every state, and the numbers of the last density."""
    states = list(states)
    rows = [state.scalars() for state in states]
    found = {
        name: np.array([row[name] for row in rows]) for name in rows[0] if name not in NOT_COMPARED
    }
    return found | (of_density(states[-1].density) if numbers else {})


def of_density(m: mf.Density) -> Numbers:
    """Everything a density can be asked."""
    d = m.problem.dim
    points = np.random.default_rng(4).uniform(-7.0, 7.0, size=(60, d))  # some of them outside
    values = m.evaluate(points)
    assert np.isnan(values).any() and np.isfinite(values).any()
    return {
        "mean": m.mean(),
        "covariance": m.covariance(),
        "integrals": [m.mass(), m.entropy(), m.fisher_information(), m.integrate(trap)],
        "moments": [m.moment(p) for p in (1, 2, 4)],
        "values": values,
        "samples": m.sample(100, seed=6),
    }


def of_minimum(best: Any) -> Numbers:
    """The numbers of a minimum."""
    found = {name: getattr(best, name) for name in ("energy", "eigenvalue", "gap", "iterations")}
    return found | {"mean": best.density.mean(), "covariance": best.density.covariance()}


# -- problems ----------------------------------------------------------------------------------

Z = np.linspace(-1.5, 1.5, 10)


def trap(x: Any) -> Any:
    return 0.15 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) + 0.1 * np.sin(x[0])


def bent(x: Any) -> Any:
    return 0.3 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) + 0.05 * x[0] ** 4


def tilted(x: Any) -> Any:
    return x[0] ** 2 + 0.9 * x[1] ** 2 + 0.3 * x[0] * x[1] - 0.8 * x[0] + 0.4 * x[1]


class OwnContact:
    """A functional of which only value and derivative are known."""

    def value(self, density: mf.Density) -> float:
        return mf.Contact(3.0).value(density)

    def derivative(self, density: mf.Density) -> Any:
        return mf.Contact(3.0).derivative(density)


def own_terms() -> mf.Functional:
    form = mf.FormFunctional(lambda m, dx: m**3 / 3 * dx)
    own = mf.functional(
        value=lambda m: m.expect(np.sin(m.points()[0]) + m.values()),
        derivative=lambda m: np.sin(m.points()[0]) + 2.0 * m.values(),
    )
    return mf.Potential(trap) + form + 0.5 * own


FUNCTIONALS: dict[str, Callable[[], Any]] = {
    "network": lambda: (
        mf.Potential(trap)
        + mf.NetworkLoss(Z, np.cos(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1] + 0.3))
    ),
    "contact": lambda: mf.Potential(trap) + mf.MeanInteraction(0.5, 0.3) + mf.Contact(3.0),
    "bent": lambda: mf.Potential(bent) + mf.MeanInteraction(0.5, 0.3),
    "attraction": lambda: mf.Potential(trap) + mf.MeanInteraction(-0.1, 0.2),
    "user's": lambda: mf.Potential(trap) + OwnContact(),
    "own terms": own_terms,
}
LUMPED = {"mass": "lumped"}
SPACES: dict[str, tuple[Callable[[MPI.Intracomm], Any], dict[str, Any]]] = {
    "interval": (lambda c: mf.interval(c, 5.0, 0.5), {"degree": 4, **LUMPED}),
    "interval, exact": (lambda c: mf.interval(c, 4.0, 0.4), {"degree": 2}),
    "two cells": (lambda c: mf.interval(c, 3.0, 3.0), {"degree": 2}),
    "triangles": (lambda c: mf.box(c, 5.0, 1.0), {"degree": 2}),
    "disk": (lambda c: mf.disk(c, 4.0, 1.0), {"degree": 2}),
    "vertices": (lambda c: mf.disk(c, 5.0, 0.8), {"degree": 1, **LUMPED}),
    "quadrilaterals": (
        lambda c: mf.box(c, 5.0, 1.25, cell="quadrilateral", grading=1.5),
        {"degree": 4, **LUMPED},
    ),
    "round quadrilaterals": (lambda c: mf.disk(c, 5.0, 1.2, cell="quadrilateral"), {"degree": 3}),
    "square": (lambda c: mf.box(c, 4.0, 1.0, cell="quadrilateral"), {"degree": 3, **LUMPED}),
    "tetrahedra": (lambda c: mf.ball(c, 4.0, 1.0), {"degree": 1}),
    "hexahedra": (lambda c: mf.box(c, 4.0, 2.0, cell="hexahedron"), {"degree": 2, **LUMPED}),
    "walls": (lambda c: mf.box(c, 4.0, 1.0), {"degree": 2, "boundary": "dirichlet"}),
    "lumped walls": (
        lambda c: mf.box(c, 4.0, 1.0, cell="quadrilateral"),
        {"degree": 3, "boundary": "dirichlet", **LUMPED},
    ),
    # Of degree 1, as the Langevin flow needs them.
    "line of vertices": (lambda c: mf.interval(c, 6.0, 0.25), {"degree": 1, **LUMPED}),
    "two cells, lumped": (lambda c: mf.interval(c, 3.0, 3.0), {"degree": 1, **LUMPED}),
    "graded square": (
        lambda c: mf.box(c, 5.0, 0.8, cell="quadrilateral", grading=2.0),
        {"degree": 1, **LUMPED},
    ),
    "cube": (lambda c: mf.box(c, 5.0, 1.6, cell="hexahedron"), {"degree": 1, **LUMPED}),
    "ball": (lambda c: mf.ball(c, 5.0, 1.5), {"degree": 1, **LUMPED}),
    "large cube": (lambda c: mf.box(c, 5.0, 0.85, dim=3), {"degree": 1, **LUMPED}),
}
_MADE: dict[Any, mf.Problem] = {}


def problem(comm: MPI.Intracomm, space: str, functional: str = "network") -> mf.Problem:
    """A problem, made once on each communicator. Collective."""
    key = comm == COMM, space, functional
    if key not in _MADE:
        make, options = SPACES[space]
        _MADE[key] = mf.Problem(make(comm), FUNCTIONALS[functional](), 0.6, **options)
    return _MADE[key]


def start(comm: MPI.Intracomm, space: str, functional: str = "network") -> mf.Density:
    own = problem(comm, space, functional)
    return mf.Density.from_function(own, gaussian(np.array([0.8, -0.5, 0.2])[: own.dim], 1.3))


def log_start(comm: MPI.Intracomm, space: str, functional: str = "network") -> mf.LogDensity:
    return mf.LogDensity.from_function(problem(comm, space, functional), tilted)


# -- cases -------------------------------------------------------------------------------------

CASES: dict[str, Callable[[MPI.Intracomm], Numbers]] = {}
AT_THREE: set[str] = set()  # what three ranks or more add to two


def case(name: str, make: Callable[[MPI.Intracomm], Numbers], three: bool = False) -> None:
    assert name not in CASES
    CASES[name] = make
    if three:
        AT_THREE.add(name)


def schrodinger(
    space: str, functional: str = "network", dt: float = 0.05, steps: int = 3, **options: Any
) -> Callable[[MPI.Intracomm], Numbers]:
    tight = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}}

    def numbers(comm: MPI.Intracomm) -> Numbers:
        density = start(comm, space, functional)
        flow = mf.SchrodingerFlow(density.problem, dt, **tight | options)
        return of_states(flow.run(density, steps * dt), numbers=space != "two cells")

    return numbers


for space in ("interval", "vertices", "hexahedra"):
    case(f"psi, {space}", schrodinger(space))
for space in ("triangles", "quadrilaterals", "round quadrilaterals", "tetrahedra", "two cells"):
    case(f"psi, {space}", schrodinger(space), three=True)
for space in ("walls", "lumped walls"):
    case(f"psi, {space}", schrodinger(space))
for space in ("triangles", "round quadrilaterals", "tetrahedra", "walls"):
    case(f"psi, long steps, {space}", schrodinger(space, dt=10.0), three=space == "triangles")
for space in ("triangles", "quadrilaterals"):
    case(f"psi, Crank-Nicolson, {space}", schrodinger(space, dt=0.1, scheme="crank-nicolson"))
    case(f"psi, SDIRK2, {space}", schrodinger(space, dt=0.1, scheme="sdirk2"))
for space in ("triangles", "vertices", "round quadrilaterals"):
    case(f"psi, contact, {space}", schrodinger(space, "contact", 0.2))
case(
    "psi, adaptive",
    schrodinger("triangles", dt=0.4, steps=5, scheme="sdirk2", tolerance=3e-3),
)
case(
    "psi, adaptive from a step far too long",
    schrodinger("interval", dt=1.0, steps=2, scheme="crank-nicolson", tolerance=1e-3),
)
for accelerator in (mf.mean_field.Picard, mf.mean_field.Anderson, mf.mean_field.Newton):
    case(
        f"psi, {accelerator.__name__}",
        schrodinger("quadrilaterals", dt=0.5, accelerator=accelerator()),
    )
for chosen in (
    {"pc_type": "lu"},
    {"pc_type": "gamg"},
    {"ksp_type": "preonly", "pc_type": "lu"},
    {"ksp_type": "gmres", "pc_type": "jacobi"},
):
    case(
        f"psi, {' '.join(chosen.values())}",
        schrodinger("triangles", dt=0.2, petsc_options=chosen),
    )
for space in ("triangles", "quadrilaterals"):
    case(f"psi, own terms, {space}", schrodinger(space, "own terms", dt=0.5, steps=2))


def hjb(
    space: str, functional: str = "network", dt: float = 0.1, **options: Any
) -> Callable[[MPI.Intracomm], Numbers]:
    tight = {"fixed_point_tolerance": 1e-12, "petsc_options": {"snes_atol": 1e-12}}
    v_start = options.pop("v_start", None)

    def numbers(comm: MPI.Intracomm) -> Numbers:
        density = log_start(comm, space, functional)
        flow = mf.HJBFlow(density.problem, dt, **tight | options)
        states = flow.run(density, 2 * dt, v_start=v_start)
        return of_states(states, numbers=space != "two cells")

    return numbers


V_START = Quadratic(np.diag([2.0, 1.8]), np.zeros(2), 0.0)
for form in ("u", "v+w", "hopf-cole"):
    case(f"{form}, interval", hjb("interval, exact", form=form))
    case(f"{form}, square", hjb("square", form=form))
    case(f"{form}, disk", hjb("disk", form=form), three=form == "hopf-cole")
    case(f"{form}, SDIRK2", hjb("disk", scheme="sdirk2", form=form))
    case(f"{form}, long steps", hjb("disk", dt=10.0, form=form))
    case(f"{form}, contact", hjb("disk", "contact", form=form))
for form in ("v+w", "hopf-cole"):
    case(
        f"{form}, v by implicit stages",
        hjb("disk", "bent", scheme="sdirk2", form=form, v_start=V_START),
        three=form == "v+w",
    )
case("v+w, two cells", hjb("two cells", dt=0.5, form="v+w"), three=True)


def start_that_is_no_quadratic(comm: MPI.Intracomm) -> Numbers:
    # v_0 is then that of the nearest quadratic to g, by sums over all ranks
    m = log_start(comm, "disk", "bent")
    x = m.problem.discretisation.nodes[0, : m.problem.discretisation.num_owned]
    rough = mf.LogDensity(m.problem, m.log_values() + 0.3 * np.cos(x))
    return of_states(mf.HJBFlow(m.problem, 0.1, form="v+w").run(rough, 0.2))


def steady(comm: MPI.Intracomm) -> Numbers:
    m = log_start(comm, "interval, exact")
    flow = mf.HJBFlow(m.problem, 5.0, fixed_point_tolerance=1e-12)
    found = of_states(flow.run(m, 1e3, steady_residual=1e-4))
    return found | {"fixed_point_iterations": 0}  # near the end they are decided by rounding


def descent(functional: str, h: float) -> Callable[[MPI.Intracomm], Numbers]:
    def numbers(comm: MPI.Intracomm) -> Numbers:
        m = log_start(comm, "disk", functional)
        flow = mf.RelativeEntropyDescent(m.problem, h, fixed_point_tolerance=1e-12)
        return of_states(flow.run(m, 2 * h))

    return numbers


def operator(comm: MPI.Intracomm) -> Numbers:
    m = log_start(comm, "disk")
    hjb_operator, V = mf.HJBOperator(m.problem), m.problem.functional.derivative(m)
    later = hjb_operator.step(hjb_operator.step(m.u(), V, 0.1), V, 0.1)
    rate = hjb_operator.rate(m.u(), V).x.array[: m.problem.discretisation.num_owned]
    return of_density(mf.Density.from_log(m.problem, later)) | {
        "rate": m.problem.discretisation.norm(rate)
    }


case("a start that is no quadratic", start_that_is_no_quadratic)
case("u, until it is steady", steady)
case("relative entropy, network", descent("network", 0.1), three=True)
case("relative entropy, contact", descent("contact", 100.0))
case("HJB operator", operator)


def langevin(
    space: str, functional: str = "network", dt: float = 0.05, **options: Any
) -> Callable[[MPI.Intracomm], Numbers]:
    tight = {"fixed_point_tolerance": 1e-12, "petsc_options": {"ksp_rtol": 1e-13}}

    def numbers(comm: MPI.Intracomm) -> Numbers:
        density = start(comm, space, functional)
        own = density.problem
        states = list(mf.LangevinFlow(own, dt, **tight | options).run(density, 2 * dt))
        assert all(own.discretisation.min(state.density.amplitude()) > 0 for state in states)
        edges = EdgeOperator(own)
        assert (edges.negative > 0) == (space in ("ball", "large cube"))
        # What is at the far end of an edge need not be on this rank.
        lengths = sum(
            edges.rise(x[: own.discretisation.num_owned]) ** 2
            for x in own.discretisation.nodes[: own.dim]
        )
        found = of_states(states, numbers=not space.startswith("two cells"))
        found["edges"] = [
            edges.negative,
            edges.edges,
            own.discretisation.max(lengths.max(initial=0.0)),
        ]
        if space == "large cube":  # is solved iteratively
            assert states[-1].linear_iterations > 2 * states[-1].fixed_point_iterations
        found.pop("linear_iterations")  # each rank has a preconditioner of its own
        return found

    return numbers


def entropic(space: str, functional: str = "network") -> Callable[[MPI.Intracomm], Numbers]:
    def numbers(comm: MPI.Intracomm) -> Numbers:
        density = start(comm, space, functional)
        best = mf.minimise_entropic(density.problem, density, tol=1e-12)
        return of_states([best], numbers=not space.startswith("two cells"))

    return numbers


for space in ("line of vertices", "graded square", "cube", "ball", "two cells, lumped"):
    case(f"Langevin, {space}", langevin(space), three=space in ("graded square", "ball"))
AT_THREE.add("Langevin, two cells, lumped")
case("Langevin, vertices", langevin("vertices", dt=5.0))
case("Langevin, large cube", langevin("large cube"))
case("Langevin, contact", langevin("vertices", "contact"))
case("Langevin, contact, cube", langevin("cube", "contact", 5.0))
for accelerator in (mf.mean_field.Picard, mf.mean_field.Anderson):
    case(
        f"Langevin, {accelerator.__name__}",
        langevin("vertices", dt=0.3, accelerator=accelerator()),
    )
case("Langevin, jacobi", langevin("vertices", dt=0.3, petsc_options={"pc_type": "jacobi"}))
case("Langevin, bjacobi", langevin("vertices", dt=0.3, petsc_options={"pc_type": "bjacobi"}))
case("entropic minimum, vertices", entropic("vertices"), three=True)
case("entropic minimum, contact", entropic("cube", "contact"))


# -- minima ------------------------------------------------------------------------------------

MINIMISE = {"tol": 1e-8, "residual_tol": 1e-11}


def minimum(space: str, functional: str = "network") -> Callable[[MPI.Intracomm], Numbers]:
    def numbers(comm: MPI.Intracomm) -> Numbers:
        own = problem(comm, space, functional)
        best = mf.minimise(own, **MINIMISE)
        assert best.history[-1].residual <= 1e-11
        found = of_minimum(best)
        if functional == "attraction":
            assert best.convexity is mf.functionals.Convexity.REFUTED and np.isnan(best.gap)
            return found
        assert best.gap >= 0.0
        found["rates"] = [f(own, best.density) for f in (mf.spectral_gap, mf.decay_rate)]
        # of a density that is none
        density = start(comm, space, functional)
        found["gap elsewhere"] = mf.gap(own, density)
        assert found["gap elsewhere"] >= mf.energy(own, density) - best.energy
        # and of an excited state, of whose amplitude a density keeps the absolute value
        distance = (
            own.discretisation.nodes[0, : own.discretisation.num_owned] - best.density.mean()[0]
        )
        excited = mf.Density(own, distance * best.density.amplitude())
        assert mf.gap(own, excited) >= mf.energy(own, excited) - best.energy > 0.02
        return found

    return numbers


for space in ("interval", "round quadrilaterals", "hexahedra"):
    case(f"minimum, {space}", minimum(space))
for space in ("triangles", "quadrilaterals", "walls", "lumped walls"):
    case(f"minimum, {space}", minimum(space), three=space in ("triangles", "quadrilaterals"))
for space in ("triangles", "quadrilaterals", "hexahedra"):
    case(f"minimum, contact, {space}", minimum(space, "contact"))
case("minimum, user's", minimum("quadrilaterals", "user's"))
case("minimum, attraction", minimum("triangles", "attraction"))


def iterates(comm: MPI.Intracomm) -> Numbers:
    own = problem(comm, "triangles")
    far = mf.Density.from_function(own, gaussian([2.0, -1.0], 3.0))
    history = mf.minimise(own, far, track_gap=True).history[:-1]
    return {"remainders": [[step.energy, step.gap] for step in history]}


def nested(comm: MPI.Intracomm) -> Numbers:
    problems = [problem(comm, name) for name in ("triangles", "disk", "quadrilaterals")]
    return of_minimum(mf.stationary.minimise_nested(problems, **MINIMISE))


def continuation(comm: MPI.Intracomm) -> Numbers:
    own = problem(comm, "quadrilaterals").with_sigma(0.3)
    return of_minimum(mf.minimise(own, continuation=[1.0, 0.5], residual_tol=1e-11))


def coarse_box(comm: MPI.Intracomm) -> Numbers:
    mesh = mf.interval(comm, 6.0, 0.06)
    fine = mf.Problem(mesh, FUNCTIONALS["network"](), 0.6, 4, mass="lumped")
    coarse = coarse_problem(fine)
    assert coarse.space.dofmap.index_map.size_global == 193
    moved = from_grid(mf.Density.from_function(coarse, gaussian(0.4, 1.5)), fine)
    best = mf.minimise(fine, residual_tol=1e-6)
    assert best.iterations <= 4
    return {"energy": best.energy, "mean": moved.mean(), "covariance": moved.covariance()}


def walls_by_tags(comm: MPI.Intracomm) -> Numbers:
    mesh = mf.read_mesh(MESH_FILE, comm)
    tags = mf.read_facet_tags(MESH_FILE, mesh)
    functional = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
    own = mf.Problem(mesh, functional, 0.5, 2, boundary=[2], facet_tags=tags)
    counts = comm.allreduce(own.discretisation.constrained.size), comm.allreduce(tags.indices.size)
    return {"energy": mf.minimise(own).energy, "counts": counts}


def strong_coupling(comm: MPI.Intracomm) -> Numbers:
    """N2 x 30: MUMPS' Cholesky solves were infinite on three ranks."""
    z = np.linspace(-np.pi, np.pi, 40)
    functional = mf.Potential(lambda x: 0.05 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, np.sin(z), lambda x, z: 30.0 * np.tanh(x[0] * z + x[1])
    )
    own = mf.Problem(mf.disk(comm, 7.0, 0.5), functional, 0.5, 2)
    density = mf.Density.from_function(own, gaussian([0.0, 0.0], 1.0))
    *_, state = mf.SchrodingerFlow(own, 10.0).run(density, 10.0)
    best = mf.minimise(own, density)
    assert best.gap <= 1e-10
    assert best.energy == pytest.approx(0.244396987, abs=1e-8)
    return {"numbers": [state.energy, best.energy, best.eigenvalue]}


case("every iterate", iterates)
case("nested meshes", nested, three=True)
case("continuation", continuation)
case("the coarse box", coarse_box, three=True)
case("walls by tags", walls_by_tags)
case("strong coupling", strong_coupling, three=True)


# -- densities, functionals, conditions --------------------------------------------------------


def densities(space: str, functional: str = "network") -> Callable[[MPI.Intracomm], Numbers]:
    def numbers(comm: MPI.Intracomm) -> Numbers:
        m = start(comm, space, functional)
        own = m.problem
        flat = mf.Density(own, np.ones(own.discretisation.num_owned))
        v = own.functional.derivative(m).x.array[: own.discretisation.num_potential_owned]
        observables = (mf.energy, mf.eigenvalue, mf.residual, mf.dissipation, mf.boundary_mass)
        return of_density(m) | {
            "observables": [observable(own, m) for observable in observables],
            "relative entropy": m.relative_entropy(flat),
            "functional": own.functional.value(m),
            "V": [own.discretisation.dot(v**power, m.measure()) for power in (1, 2)],
            "remainders": mf.check_derivative(own.functional, m).remainders,
            "convexity": mf.functionals.probe_convexity(own.functional, m, samples=2),
        }

    return numbers


for space in ("interval", "vertices", "hexahedra", "walls", "lumped walls"):
    case(f"density, {space}", densities(space))
for space in ("triangles", "quadrilaterals", "tetrahedra"):
    case(f"density, {space}", densities(space), three=True)
for space in ("triangles", "quadrilaterals", "round quadrilaterals"):
    case(f"density, contact, {space}", densities(space, "contact"))


def log_densities(space: str, functional: str) -> Callable[[MPI.Intracomm], Numbers]:
    def numbers(comm: MPI.Intracomm) -> Numbers:
        m = log_start(comm, space, functional)
        own, other = m.problem, mf.LogDensity.from_function(m.problem, bent)
        flat = mf.LogDensity(own, np.zeros(own.discretisation.num_owned))
        forms, gap, bounds = (
            first_order_forms(own, m),
            bregman(own, other, m),
            Regularity(own),
        )
        u = m.log_values()
        return of_density(m) | {
            "relative entropy": m.relative_entropy(flat),
            "variance": m.variance(own.discretisation.nodes[0, : own.discretisation.num_owned]),
            "forms": [forms.flat, forms.schrodinger, forms.hjb, *forms.eigenvalues],
            "bregman": [gap.functional, gap.fisher, gap.total],
            "bounds": [bounds.gradient(u), bounds.growth(u), *bounds.hessian(u)],
        }

    return numbers


case("log-density, interval", log_densities("interval, exact", "contact"))
case("log-density, disk", log_densities("disk", "network"), three=True)
case("log-density, bent", log_densities("disk", "bent"))
case("log-density, square", log_densities("square", "contact"))


def between_meshes(comm: MPI.Intracomm) -> Numbers:
    source = mf.Density.from_function(problem(comm, "triangles"), gaussian([0.7, -0.2], 0.8))
    moved = source.on(problem(comm, "quadrilaterals"))
    assert moved.mass() == pytest.approx(1.0, abs=1e-13)
    return of_density(moved)


def compressed_features(comm: MPI.Intracomm) -> Numbers:
    z = np.linspace(0.0, 0.7, 80)
    loss = mf.NetworkLoss(z, z, lambda x, z: np.tanh(x[0] * z + x[1]))
    mesh = mf.box(comm, 3.0, 0.75, cell="quadrilateral")
    own = mf.Problem(mesh, loss, 0.5, 3, mass="lumped")
    density = mf.Density.from_function(own, gaussian([0.5, 0.0], 2.0))
    assert len(set(comm.allgather(loss.matrix(own).rank))) == 1
    assert loss.matrix(own).rank < 40
    return {"predictions": [*loss.predict(density), *loss.predict(density, [0.3, -2.0])]}


case("density between meshes", between_meshes, three=True)
case("compressed features", compressed_features)


# -- the test ----------------------------------------------------------------------------------

NAMES = {1: [], 2: list(CASES)}.get(COMM.size, [name for name in CASES if name in AT_THREE])


@pytest.fixture(scope="module")
def references(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The numbers of the chosen cases on one rank, or the error of a case. Collective."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [i.callspec.params["name"] for i in items if i.module is request.module]
    own: dict[str, Any] = {}
    for name in chosen[COMM.rank :: COMM.size]:
        try:
            own[name] = CASES[name](MPI.COMM_SELF)
        except Exception as error:
            own[name] = repr(error)
    for key in [key for key in _MADE if not key[0]]:
        del _MADE[key]
    return {name: numbers for part in COMM.allgather(own) for name, numbers in part.items()}


@pytest.mark.timeout(240)  # the first one waits for all references
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_one_rank(name: str, references: dict[str, Any]) -> None:
    shared, alone = CASES[name](COMM), references[name]
    assert isinstance(alone, dict), alone
    assert list(shared) == list(alone)
    for key, value in shared.items():
        caps = TOLERANCES.get(key, TIGHT)
        np.testing.assert_allclose(value, alone[key], **caps, err_msg=f"{name}: {key}")
    everywhere = COMM.allgather(repr(shared))
    assert all(numbers == everywhere[0] for numbers in everywhere)  # to the last bit
