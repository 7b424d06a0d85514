"""Bad input is a clear error on every rank, also when only one rank sees it."""

from __future__ import annotations

import logging
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.density import log_density

COMM = MPI.COMM_WORLD
TRAP = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
_MADE: dict[str, mf.Problem] = {}


def problem(kind: str = "consistent", functional=TRAP) -> mf.Problem:
    if functional is not TRAP:
        return mf.Problem(mf.box(COMM, 3.0, 1.0), functional, 0.5)
    if kind not in _MADE:
        degree = 2 if kind == "consistent" else 1
        _MADE[kind] = mf.Problem(mf.box(COMM, 3.0, 1.0), TRAP, 0.5, degree, mass=kind)
    return _MADE[kind]


def start(kind: str = "consistent") -> mf.Density:
    return mf.Density.from_function(problem(kind), lambda x: np.exp(-2 * (x[0] ** 2 + x[1] ** 2)))


def fails(action, text: str, kind: type[Exception] = ValueError) -> None:
    """The action raises on every rank, and leaves nobody in a collective call."""
    with pytest.raises(kind, match=text):
        action()
    assert COMM.allreduce(1) == COMM.size


def in_the_corner(x):
    return (x[0] > 2.5) & (x[1] > 2.5)


def corner(value: float):
    """A function that is bad only in one corner, which is not on every rank."""
    return lambda x: np.where(in_the_corner(x), value, 1.0)


def test_the_corner_is_not_on_every_rank() -> None:
    seen = COMM.allgather(bool(in_the_corner(problem().discretisation.nodes).any()))
    assert any(seen) and (COMM.size == 1 or not all(seen))


# -- numbers and words -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, -0.5, np.nan, np.inf])
def test_sigma(sigma: float) -> None:
    mesh = problem().mesh
    fails(lambda: mf.Problem(mesh, TRAP, sigma), "sigma must be a positive number, not")


@pytest.mark.parametrize("dt", [0.0, -0.1, np.nan, np.inf])
def test_dt(dt: float) -> None:
    fails(lambda: mf.SchrodingerFlow(problem(), dt), "dt must be a positive number, not")


def test_end_of_the_run() -> None:
    flow = mf.SchrodingerFlow(problem(), 0.1)
    fails(lambda: flow.run(start(), -1.0), "t_end must be a non-negative number, not -1")
    fails(lambda: flow.run(start("lumped"), 1.0), "the start belongs to another problem")


def test_scheme() -> None:
    text = r"unknown scheme 'rk4'; choose one of \['backward-euler', 'crank-nicolson', 'sdirk2'\]"
    fails(lambda: mf.SchrodingerFlow(problem(), 0.1, "rk4"), text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"degree": 0}, "degree on a triangle mesh is 1 to 6, not 0"),
        ({"degree": 7}, "degree on a triangle mesh is 1 to 6, not 7"),
        ({"boundary": "neumann"}, "or a list of facet tags, not 'neumann'"),
        ({"mass": "full"}, "mass must be 'consistent' or 'lumped', not 'full'"),
        ({"mass": "lumped", "degree": 2}, "mass='lumped' on a triangle mesh needs degree=1"),
    ],
)
def test_options_of_the_problem(options: dict, text: str) -> None:
    fails(lambda: mf.Problem(problem().mesh, TRAP, 0.5, **options), text)


def test_unknown_keywords() -> None:
    fails(lambda: mf.Problem(problem().mesh, TRAP, 0.5, order=2), "'order'", TypeError)
    fails(lambda: mf.SchrodingerFlow(problem(), 0.1, tol=1e-3), "'tol'", TypeError)
    fails(lambda: mf.Potential(TRAP, scale=2), "'scale'", TypeError)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pc_tpye": "lu"}, r"PETSc does not know the options \['pc_tpye'\]"),
        ({"pc_type": "hypre"}, "PETSc rejected the solver options"),
        ({"ksp_type": "cgg"}, "PETSc rejected the solver options"),
    ],
)
def test_options_of_petsc(options: dict, text: str) -> None:
    before = PETSc.Options().getAll()
    flow = mf.SchrodingerFlow(problem(), 0.1, petsc_options=options)
    fails(lambda: list(flow.run(start(), 0.1)), text)
    assert PETSc.Options().getAll() == before


# -- data --------------------------------------------------------------------------------------


def neuron(x, z):
    return np.tanh(x[0] * z + x[1])


@pytest.mark.parametrize(
    ("z", "y", "text"),
    [
        ([], [], "at least one datum; z and y are empty"),
        ([1.0, 2.0], [1.0], "2 inputs z but 1 outputs y"),
        ([1.0, np.nan], [1.0, 2.0], "contain NaN or infinite values; remove those rows"),
        ([1.0, 2.0], [np.inf, 2.0], "contain NaN or infinite values"),
        ([[[1.0]]], [1.0], r"z must be \(K,\) or \(K, k\) and y \(K,\)"),
        ([1.0], [[1.0]], r"z must be \(K,\) or \(K, k\) and y \(K,\)"),
    ],
)
def test_data(z: list, y: list, text: str) -> None:
    fails(lambda: mf.NetworkLoss(z, y, neuron), text)


# -- functions of space ------------------------------------------------------------------------

BAD_FUNCTIONS = [
    (corner(np.nan), "is not finite at x = "),
    (corner(np.inf), "is not finite at x = "),
    (lambda x: 1.0, r"returned shape \(\) for x of shape"),
    (lambda x: x, "returned shape .*; it must return one value per point"),
    (lambda x: x[5], "failed: IndexError"),
    (lambda x: np.ones(7), r"returned shape \(7,\)"),
]


@pytest.mark.parametrize(("function", "text"), BAD_FUNCTIONS)
def test_potentials(function, text: str) -> None:
    functional = TRAP + mf.Potential(function)
    fails(lambda: mf.SchrodingerFlow(problem(functional=functional), 0.1), text)
    density = mf.Density.from_function(problem(), lambda x: np.ones_like(x[0]))
    fails(lambda: mf.Potential(function).value(density), f"the potential g, .*{text}")


@pytest.mark.parametrize(("function", "text"), BAD_FUNCTIONS)
def test_neurons_and_features(function, text: str) -> None:
    network = mf.NetworkLoss([1.0, 2.0], [0.0, 0.0], lambda x, z: function(x))
    fails(lambda: network.value(start()), f"the neuron at datum number 0 {text}")
    features = mf.Cylindrical([lambda x: x[0], function], np.sum, np.ones_like)
    fails(lambda: features.value(start()), f"feature number 1 {text}")
    fails(lambda: start().integrate(function), f"the integrand {text}")


def test_an_error_of_one_rank_reaches_all() -> None:
    def unlucky(x):
        if COMM.rank == COMM.size - 1:
            raise KeyError("only here")
        return np.ones_like(x[0])

    fails(lambda: mf.Potential(unlucky).value(start()), "failed: KeyError: 'only here'")
    fails(lambda: mf.Density.from_function(problem(), unlucky), "failed: KeyError")


# -- densities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["consistent", "lumped"])
@pytest.mark.parametrize(
    ("m", "text"),
    [
        (lambda x: 0.0 * x[0], "the density is zero everywhere on the mesh"),
        (corner(-1.0), "the density m is negative: its minimum is -1"),
        (lambda x: x[0], "the density m is negative: its minimum is -"),
        (corner(np.nan), "the density m is not finite at x = "),
        (corner(np.inf), "the density m is not finite at x = "),
        (lambda x: np.ones(7), r"the density m returned shape \(7,\)"),
    ],
)
def test_densities(kind: str, m, text: str) -> None:
    fails(lambda: mf.Density.from_function(problem(kind), m), text)


@pytest.mark.parametrize(("value", "text"), [(np.nan, "not finite"), (0.0, "zero everywhere")])
def test_amplitudes(value: float, text: str) -> None:
    psi = np.full(problem().discretisation.num_owned, value)
    if np.isnan(value):  # on one rank only
        psi = np.ones(problem().discretisation.num_owned)
        psi[:1] = value if COMM.rank == COMM.size - 1 else 1.0
    fails(lambda: mf.Density(problem(), psi), text)


def test_logarithms() -> None:
    values = mf.LogDensity.from_function(problem(), lambda x: x[0] ** 2).log_values()
    if COMM.rank == COMM.size - 1:
        values[0] = np.nan
    fails(lambda: mf.LogDensity(problem(), values), "not finite")
    x = problem().discretisation.nodes[0, : problem().discretisation.num_owned]
    narrow = mf.Density(problem(), np.exp(-20.0 * x**2))
    fails(lambda: log_density(narrow), "too far for ψ to determine u")


def test_a_density_on_one_rank_only_is_no_error() -> None:
    most = mf.Density.from_function(problem(), corner(0.0))
    peak = mf.Density.from_function(problem(), lambda x: np.where(in_the_corner(x), 1.0, 0.0))
    assert most.mass() == pytest.approx(1.0, abs=1e-13)
    assert peak.mass() == pytest.approx(1.0, abs=1e-13)
    assert peak.mean().min() > 2.0


# -- functionals of the user -------------------------------------------------------------------


class Custom:
    def __init__(self, derivative) -> None:
        self.derivative = derivative

    def value(self, density) -> float:
        return 0.0


def not_finite_on_one_rank(density):
    v = density.problem.new_potential()
    if COMM.rank == 0:
        v.x.array[:1] = np.nan
    return v


@pytest.mark.parametrize(
    ("derivative", "text"),
    [
        (not_finite_on_one_rank, "values that are not finite"),
        (lambda m: np.zeros(3), "must return a scalar dolfinx.fem.Function on the problem's mesh"),
        (lambda m: start().psi, "must return a scalar dolfinx.fem.Function on the problem's mesh"),
    ],
)
def test_derivatives(derivative, text: str) -> None:
    own = problem(functional=Custom(derivative))
    density = mf.Density.from_function(own, lambda x: np.ones_like(x[0]))
    fails(lambda: mf.residual(own, density), text)
    fails(lambda: next(mf.SchrodingerFlow(own, 0.1).run(density, 1.0)), text)


def test_gradients_of_the_wrong_shape() -> None:
    wrong = mf.Cylindrical([lambda x: x[0]], lambda y: y[0], lambda y: np.ones(2))
    fails(lambda: wrong.derivative(start()), r"gradient returned shape \(2,\), expected \(1,\)")


def test_not_a_functional() -> None:
    fails(lambda: mf.Problem(problem().mesh, np.sum, 0.5), r"value\(density\)")
    fails(lambda: mf.Problem("mesh.msh", TRAP, 0.5), "must be a dolfinx.mesh.Mesh, not str")


# -- meshes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.msh", "empty.msh", "text.msh", "text.xdmf", "mesh.stl"])
def test_unreadable_meshes(name: str, shared_tmp_path: Path) -> None:
    file = shared_tmp_path / name
    if COMM.rank == 0 and name != "missing.msh":
        file.write_text("" if name == "empty.msh" else "this is not a mesh")
    COMM.barrier()
    fails(lambda: mf.read_mesh(file, COMM), f"cannot read the mesh .*{name}")


def test_a_mesh_too_small_is_a_warning_on_rank_0(caplog) -> None:
    own = problem()
    wide = mf.Density.from_function(own, lambda x: np.exp(-0.2 * (x[0] ** 2 + x[1] ** 2)))
    logger = logging.getLogger("fem_mf")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.WARNING, logger="fem_mf"):
            state = next(mf.SchrodingerFlow(own, 0.1).run(wide, 1.0))
    finally:
        logger.propagate = propagate
    # The form compiler may log too, when its cache is cold; and pytest captures a record twice when
    # the logger did not propagate at first.
    messages = {r.getMessage() for r in caplog.records if r.name.startswith("fem_mf")}
    if COMM.rank > 0:
        assert not messages
        return
    (message,) = messages
    assert message.startswith(
        f"warning: the mesh is too small: boundary mass {state.boundary_mass:.1e}, at distance "
    )
    assert float(message.split("reaches about ")[1].split()[0]) > 3.0


@pytest.mark.skipif(COMM.size > 2, reason="many messages, and three ranks decide nothing new")
def test_a_failed_step_is_one_error_on_every_rank() -> None:
    network = TRAP + 50.0 * mf.NetworkLoss([1.0, -1.0], [3.0, -2.0], neuron)
    own = problem(functional=network)
    density = mf.Density.from_function(own, lambda x: np.exp(-((x[0] - 1) ** 2) - x[1] ** 2))
    flow = mf.SchrodingerFlow(
        own, 5.0, accelerator=mf.mean_field.Picard(), max_iterations=3, safeguard=False
    )
    fails(lambda: list(flow.run(density, 10.0)), "smaller dt", mf.ConvergenceError)


def test_failures_of_the_minimiser_and_of_langevin_are_errors_on_every_rank() -> None:
    for options, text, kind in (
        ({"tol": 0.0}, "tol must be a positive number", ValueError),
        ({"continuation": [-1.0]}, "each sigma of the continuation", ValueError),
        ({"petsc_options": {"pc_type": "nonsense"}}, "PETSc rejected", ValueError),
        ({"max_iterations": 1}, "after 1 iterations", mf.ConvergenceError),
        ({"tol": 1e-20}, "choose a larger tol", mf.ConvergenceError),
    ):
        fails(lambda options=options: mf.minimise(problem(), **options), text, kind)
    own = mf.Problem(
        problem().mesh, TRAP + mf.NetworkLoss([1.0], [3.0], neuron), 0.5, 1, mass="lumped"
    )
    density = mf.Density.from_function(own, lambda x: np.exp(-((x[0] - 1) ** 2) - x[1] ** 2))
    for options, text, kind in (
        ({"petsc_options": {"pc_type": "hypre"}}, "PETSc rejected", ValueError),
        ({"max_iterations": 1}, "did not converge", mf.ConvergenceError),
    ):
        flow = mf.LangevinFlow(own, 5.0, **options)
        fails(lambda flow=flow: list(flow.run(density, 5.0)), text, kind)


def test_negative_couplings_are_one_warning_on_rank_0(log) -> None:
    own = mf.Problem(mf.ball(COMM, 5.0, 1.5), TRAP, 0.6, 1, mass="lumped")
    density = mf.Density.from_function(own, lambda x: np.exp(-np.sum(x**2, axis=0)))
    list(mf.LangevinFlow(own, 0.1).run(density, 0.1))
    messages = {r.getMessage() for r in log.records if "coupling" in r.getMessage()}
    assert len(messages) == (1 if COMM.rank == 0 else 0)


# -- what must be the same on every rank -------------------------------------------------------


@pytest.mark.skipif(COMM.size == 1, reason="one rank agrees with itself")
def test_arguments_that_differ_between_ranks() -> None:
    """Without a check a run with two values of σ ends in numbers that belong to neither."""
    own = 0.1 * (1 + COMM.rank)
    mesh, z = problem().mesh, np.linspace(0.0, 1.0, 5)
    different = "is not the same on every rank"
    fails(lambda: mf.Problem(mesh, TRAP, own), rf"sigma {different} \(0.1 on rank 0, 0.2 on rank 1")
    fails(lambda: mf.Problem(mesh, TRAP, 0.5, 1 + COMM.rank % 2), f"degree {different}")
    fails(lambda: mf.Problem(mesh, TRAP, 0.5 if COMM.rank else -1.0), "sigma must be a positive")
    fails(lambda: mf.SchrodingerFlow(problem(), own), f"dt {different}")
    fails(lambda: mf.HJBFlow(problem(), own), f"dt {different}")
    fails(lambda: mf.LangevinFlow(problem("lumped"), own), f"dt {different}")
    fails(
        lambda: mf.SchrodingerFlow(problem(), 0.1 if COMM.rank else -0.1), "dt must be a positive"
    )
    flow = mf.SchrodingerFlow(problem(), 0.1)
    fails(lambda: flow.run(start(), own), f"t_end {different}")
    fails(lambda: mf.SchrodingerFlow(problem(), 0.1, tolerance=own / 100), f"tolerance {different}")
    name, words = "fixed_point_tolerance", {"fixed_point_tolerance": own / 100}
    fails(lambda: mf.HJBFlow(problem(), 0.1, **words), f"{name} {different}")
    fails(lambda: mf.LangevinFlow(problem("lumped"), 0.1, **words), f"{name} {different}")
    scheme = "sdirk2" if COMM.rank else "backward-euler"
    fails(lambda: mf.HJBFlow(problem(), 0.1, scheme), f"scheme {different}")

    def value(term):
        return lambda: term.value(start())

    noisy = z + np.random.default_rng(COMM.rank).normal(size=5)
    loss = mf.NetworkLoss(z, noisy, lambda x, z: np.tanh(x[0] * z + x[1]))
    fails(value(loss), rf"y {different} .*use the same random seed on every rank")
    fails(value(mf.MeanInteraction(own)), f"strength {different}")
    fails(lambda: start().evaluate([[own, 0.0]]), f"points {different}")


def test_points_outside_the_mesh() -> None:
    points = [[0.0, 0.0], [9.0, 9.0]]
    for density in (start(), mf.LogDensity.from_function(problem(), lambda x: x[0] ** 2)):
        inside, outside = density.evaluate(points)
        assert inside > 0 and np.isnan(outside)
        np.testing.assert_array_equal(density.evaluate(points, fill=0.0), [inside, 0.0])
