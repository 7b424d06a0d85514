"""The Langevin flow: positivity, mass, energy and equilibria for every step size; orders (X5)."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.flows.edge_averaged import EdgeOperator
from fem_mf.flows.langevin import LangevinState
from tests.exact import gaussian, rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
Z = np.linspace(-2.0, 2.0, 9)
PREFIX = "fem_mf_langevin_"
STEPS = [1e-4, 1e-2, 1.0, 1e2, 1e4]


def trap(x):
    return 0.15 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2) + 0.3 * np.sin(2.0 * x[0])


def network(strength=1.0):
    loss = mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))
    return mf.Potential(trap) + strength * loss


def contact(beta=20.0):
    return mf.Potential(trap) + mf.Contact(beta)


def lumped(mesh, functional, sigma=0.5, **options):
    return mf.Problem(mesh, functional, sigma, 1, mass="lumped", **options)


MESHES = {
    "interval": lambda: mf.interval(COMM, 6.0, 0.2),
    "triangles": lambda: mf.box(COMM, 6.0, 0.7),
    "disk": lambda: mf.disk(COMM, 6.0, 0.7),
    "graded quadrilaterals": lambda: mf.box(COMM, 6.0, 0.6, cell="quadrilateral", grading=3.0),
    "quadrilaterals of a disk": lambda: mf.disk(COMM, 6.0, 0.7, cell="quadrilateral"),
    "hexahedra": lambda: mf.box(COMM, 5.0, 1.25, cell="hexahedron", grading=1.5),
    "tetrahedra": lambda: mf.box(COMM, 5.0, 1.25, dim=3),
}
WITH_NEGATIVE_COUPLINGS = {"quadrilaterals of a disk", "tetrahedra"}
_MESHES: dict = {}
PROBLEMS = {
    "linear": lambda: lumped(mesh("triangles"), mf.Potential(trap)),
    "network": lambda: lumped(mesh("triangles"), network()),
    "strong network": lambda: lumped(mesh("disk"), network(10.0)),
    "cold network": lambda: lumped(mesh("triangles"), network(), 0.2),
    "contact": lambda: lumped(mesh("triangles"), contact()),
    "strong contact": lambda: lumped(mesh("graded quadrilaterals"), contact(200.0)),
    "network and contact": lambda: lumped(mesh("triangles"), network() + mf.Contact(5.0)),
    "one dimension": lambda: lumped(mesh("interval"), contact() + mf.MeanInteraction(1.0, 0.5)),
    "three dimensions": lambda: lumped(mesh("hexahedra"), network() + mf.Contact(2.0)),
}
each_problem = pytest.mark.parametrize("name", PROBLEMS)
_MADE: dict = {}


def mesh(name):
    if name not in _MESHES:
        _MESHES[name] = MESHES[name]()
    return _MESHES[name]


def made(name):
    """A problem and a start that is narrower than a cell, made once."""
    if name not in _MADE:
        problem = PROBLEMS[name]()
        _MADE[name] = problem, bump(problem, 40.0)
    return _MADE[name]


def bump(problem, precision):
    return mf.Density.from_function(problem, gaussian([1.2, -1.2, 0.0][: problem.dim], precision))


def final(problem, start, t_end, dt, **options):
    *_, last = mf.LangevinFlow(problem, dt, **options).run(start, t_end)
    return last


def m_of(state):
    return state.density.psi.x.array**2


# -- every step size ---------------------------------------------------------------------------


@each_problem
def test_mass_sign_and_energy_for_every_step(name):
    problem, start = made(name)
    for dt in STEPS:
        states = list(mf.LangevinFlow(problem, dt).run(start, 5 * dt))
        assert len(states) == 6
        for state in states:
            assert state.mass == pytest.approx(1.0, abs=1e-13)
            assert state.density.mass() == pytest.approx(1.0, abs=1e-13)
            assert m_of(state).min() > 0
            assert 0 <= state.clipped < 1e-9
            assert state.dissipation >= 0
            assert state.residual == pytest.approx(np.sqrt(state.dissipation), rel=1e-12)
        for before, after in pairwise(states):
            # what convexity proves, to the tolerance of the fixed point
            rounding = 1e-12 * max(1.0, abs(before.energy)) + 1e-8 * dt * after.dissipation
            assert after.energy + after.dt * after.dissipation <= before.energy + rounding
            assert after.fixed_point_iterations >= 1
        assert states[-1].energy < states[0].energy


@pytest.mark.parametrize("name", ["network", "contact"])
def test_a_narrow_bump_has_no_tail_to_begin_with_and_a_true_one_after_a_step(name):
    problem, _ = made(name)
    start = bump(problem, 4000.0)
    tail = m_of(next(mf.LangevinFlow(problem, 1.0).run(start, 0.0)))
    assert np.median(tail) < 1e-30 * tail.max()
    for dt in STEPS:
        state = final(problem, start, dt, dt)
        assert m_of(state).min() > 0
        assert state.mass == pytest.approx(1.0, abs=1e-13)
    best = m_of(mf.minimise_entropic(problem))
    np.testing.assert_allclose(m_of(state), best, rtol=0.02, atol=1e-3 * best.max())
    np.testing.assert_allclose(np.log(m_of(state)), np.log(best), rtol=0, atol=0.3)


# -- equilibria --------------------------------------------------------------------------------


@rows("name", MESHES)
def test_equilibria_of_a_given_potential_are_exact_at_the_nodes(name):
    problem = lumped(mesh(name), mf.Potential(trap))
    exact = np.exp(-2.0 * trap(problem.discretisation.nodes) / problem.sigma**2)[
        : problem.discretisation.num_owned
    ]
    exact /= problem.discretisation.dot(exact, problem.discretisation.mass_diagonal)
    start = mf.Density(problem, np.sqrt(exact), normalised=True)
    for dt in STEPS:
        at_rest = final(problem, start, 2 * dt, dt)
        np.testing.assert_allclose(
            m_of(at_rest)[: problem.discretisation.num_owned], exact, rtol=1e-10
        )
        assert at_rest.residual < 1e-10
    arrived = final(problem, bump(problem, 2.0), 4e5, 1e5)
    np.testing.assert_allclose(m_of(arrived)[: problem.discretisation.num_owned], exact, rtol=1e-4)
    best = mf.minimise_entropic(problem)
    np.testing.assert_allclose(m_of(best)[: problem.discretisation.num_owned], exact, rtol=1e-12)


@rows("name", ["network", "contact", "strong contact", "one dimension"])
def test_a_steady_state_is_the_minimiser(name):
    problem, start = made(name)
    options = {"fixed_point_tolerance": 1e-12}
    states = list(mf.LangevinFlow(problem, 50.0, **options).run(start, 1e4, steady_residual=1e-9))
    best = mf.minimise_entropic(problem, tol=1e-12)
    assert states[-1].residual <= 1e-9 < states[-2].residual
    assert states[-1].t < 1e4
    assert states[-1].energy == pytest.approx(best.energy, abs=1e-12)
    assert states[-1].eigenvalue == pytest.approx(best.eigenvalue, abs=1e-8)
    np.testing.assert_allclose(m_of(states[-1]), m_of(best), rtol=0, atol=1e-8)
    for state in states:
        assert state.gap >= state.energy - best.energy - 1e-12


@rows("name", PROBLEMS)
def test_the_minimiser_proves_itself(name):
    problem, start = made(name)
    best = mf.minimise_entropic(problem)
    assert isinstance(best, LangevinState)
    assert best.t == np.inf
    assert abs(best.gap) < 1e-11
    assert best.residual < 1e-7
    assert best.mass == pytest.approx(1.0, abs=1e-13)
    other = mf.minimise_entropic(problem, start)
    assert other.energy == pytest.approx(best.energy, abs=1e-11)
    np.testing.assert_allclose(m_of(other), m_of(best), rtol=1e-5, atol=1e-12)
    potential = problem.functional.derivative(best.density).x.array
    mu = potential + 0.5 * problem.sigma**2 * np.log(m_of(best))
    np.testing.assert_allclose(mu, best.eigenvalue, rtol=0, atol=1e-7)


def test_no_density_near_the_minimiser_is_better():
    problem, _ = made("network and contact")
    best = mf.minimise_entropic(problem)
    rng = np.random.default_rng(7)
    for size in (0.3, 0.03):
        noise = np.exp(size * rng.standard_normal(problem.discretisation.num_owned))
        other = mf.Density(problem, best.density.amplitude() * noise)
        (state,) = mf.LangevinFlow(problem, 1.0).run(other, 0.0)
        assert state.energy > best.energy
        assert state.gap >= state.energy - best.energy
    elsewhere = mf.Density(made("linear")[0], np.ones(made("linear")[0].discretisation.num_owned))
    again = mf.minimise_entropic(problem, elsewhere)
    assert again.energy == pytest.approx(best.energy, abs=1e-11)


# -- orders ------------------------------------------------------------------------------------

KAPPA, SIGMA, STRENGTH, TARGET = 1.0, 1.0, 0.5, 0.6
MEAN, VARIANCE = np.array([1.0, -0.5, 0.3]), 0.5


def ornstein_uhlenbeck(mesh):
    def g(x):
        return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)

    problem = lumped(mesh, mf.Potential(g) + mf.MeanInteraction(STRENGTH, TARGET), SIGMA)
    return problem, mf.Density.from_function(problem, gaussian(MEAN[: problem.dim], 1 / VARIANCE))


@rows("dt", [1e-3, 0.1, 10.0])
def test_a_step_against_a_dense_solve(dt):
    """(M/dt + L) m = M mⁿ/dt on an interval, L by Scharfetter and Gummel written out."""
    sigma = 0.7
    problem = lumped(mesh("interval"), mf.Potential(trap), sigma)
    x = problem.discretisation.nodes[0]
    order = np.argsort(x)
    v, mass, matrix = (
        trap(problem.discretisation.nodes),
        np.zeros(x.size),
        np.zeros((x.size, x.size)),
    )

    def bernoulli(s):
        return s / np.expm1(s)

    for i, j in pairwise(order):
        h = x[j] - x[i]
        rise = 2.0 * (v[j] - v[i]) / sigma**2
        leave, enter = (0.5 * sigma**2 / h * bernoulli(s) for s in (rise, -rise))
        matrix[i, i] += leave
        matrix[i, j] -= enter
        matrix[j, j] += enter
        matrix[j, i] -= leave
        mass[[i, j]] += 0.5 * h
    start = mf.Density.from_function(problem, gaussian(0.8, 3.0))
    m = start.amplitude() ** 2
    for state in list(mf.LangevinFlow(problem, dt).run(start, 3 * dt))[1:]:
        m = np.linalg.solve(np.diag(mass / dt) + matrix, mass * m / dt)
        np.testing.assert_allclose(m_of(state), m, rtol=1e-9, atol=1e-13)


def test_dissipation_is_what_the_energy_loses_to_first_order():
    problem, start = made("network")
    start = bump(problem, 2.0)
    steps = [0.04, 0.02, 0.01, 0.005]
    found = []
    for dt in steps:
        before, after = mf.LangevinFlow(problem, dt).run(start, dt)
        found.append((before.energy - after.energy) / dt - after.dissipation)
    assert min(found) > 0  # E(m⁺) + dt D(m⁺) ≤ E(m)
    assert rate(steps, found) == pytest.approx(1.0, abs=0.1)
    assert found[-1] < 0.02 * after.dissipation
    assert before.dissipation == pytest.approx(after.dissipation, rel=0.02)


def test_dissipation_and_energy_of_a_gaussian():
    wide, moved = 0.8, 0.7
    found = []
    for h in (0.1, 0.05):
        problem, _ = ornstein_uhlenbeck(mf.interval(COMM, 8.0, h))
        start = mf.Density.from_function(problem, gaussian(moved, 1 / wide))
        (state,) = mf.LangevinFlow(problem, 1.0).run(start, 0.0)
        # ∇μ = (κ − σ²/2s)(x − mean) + κ mean + λ_c (mean − a)
        slope, drift = KAPPA - 0.5 * SIGMA**2 / wide, KAPPA * moved + STRENGTH * (moved - TARGET)
        energy = 0.5 * KAPPA * (wide + moved**2) + 0.5 * STRENGTH * (moved - TARGET) ** 2
        energy -= 0.25 * SIGMA**2 * (1 + np.log(2 * np.pi * wide))
        assert state.energy == pytest.approx(energy, abs=1e-10)
        found.append(abs(state.dissipation - slope**2 * wide - drift**2))
    assert found[1] < 2e-3
    assert rate([0.1, 0.05], found) == pytest.approx(2.0, abs=0.1)


# -- the edges ---------------------------------------------------------------------------------


@rows("name", MESHES)
def test_columns_conserve_mass_and_couplings_are_counted(name):
    problem = lumped(mesh(name), mf.Potential(trap))
    edges = EdgeOperator(problem)
    edges.set_potential(
        1e3 * trap(problem.discretisation.nodes)[: problem.discretisation.num_owned]
    )  # steep: e^1000s
    edges.assemble(np.zeros(problem.discretisation.num_owned))
    offsets, columns, values = edges.matrix.getValuesCSR()
    assert np.isfinite(values).all()
    total = np.bincount(columns, weights=values)
    np.testing.assert_allclose(total, 0.0, atol=1e-12 * np.abs(values).max())
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if name in WITH_NEGATIVE_COUPLINGS:
        assert 0 < edges.negative < 0.3 * edges.edges
    else:
        assert edges.negative == 0
        assert values[rows != columns].max() <= 0
    assert 2 * edges.edges + problem.discretisation.num_owned == values.size


def test_the_mobility_is_the_derivative_of_the_flux():
    problem = lumped(mesh("disk"), mf.Potential(trap))
    edges = EdgeOperator(problem)
    rng = np.random.default_rng(3)
    potential, direction, m = rng.random((3, problem.discretisation.num_owned))
    potential[: problem.discretisation.num_owned // 2] *= 1e-3  # both formulas of B′

    def outflow(step):
        edges.set_potential(potential + step * direction)
        edges.assemble(np.zeros(problem.discretisation.num_owned))
        return problem.discretisation.multiply(edges.matrix, m)

    difference = (outflow(1e-5) - outflow(-1e-5)) / 2e-5
    edges.set_potential(potential)
    derivative = -edges.sum(edges.mobility(m) * edges.rise(direction))
    np.testing.assert_allclose(derivative, difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MESHES)
def test_negative_couplings_are_one_warning_that_names_the_remedy(log, name):
    problem = lumped(mesh(name), mf.Potential(trap))
    flow = mf.LangevinFlow(problem, 0.1)
    for _ in range(2):
        list(flow.run(bump(problem, 2.0), 0.1))
    messages = {r.getMessage() for r in log.records if "negative coupling" in r.getMessage()}
    assert len(messages) == (name in WITH_NEGATIVE_COUPLINGS)
    for message in messages:
        remedy = "hexahedra along the axes" if name == "tetrahedra" else "Delaunay triangles"
        assert message.endswith(f"use {remedy}")
        assert message.startswith(f"warning: {EdgeOperator(problem).negative} of ")


# -- runs --------------------------------------------------------------------------------------


def test_scalars_of_a_state_are_those_of_its_density():
    problem, start = made("network and contact")
    for state in mf.LangevinFlow(problem, 0.3).run(start, 0.9):
        density, half = state.density, 0.5 * problem.sigma**2
        energy = problem.functional.value(density) + half * density.entropy()
        potential = problem.functional.derivative(density).x.array[
            : problem.discretisation.num_owned
        ]
        work = problem.discretisation.dot(density.measure(), potential)
        assert state.energy == pytest.approx(energy, rel=1e-12)
        assert state.eigenvalue == pytest.approx(work + half * density.entropy(), rel=1e-12)
        gibbs = np.exp((potential.min() - potential) / half)
        gibbs /= problem.discretisation.dot(gibbs, problem.discretisation.mass_diagonal)
        gibbs = mf.Density(problem, np.sqrt(gibbs), normalised=True)
        assert state.gap == pytest.approx(half * density.relative_entropy(gibbs), rel=1e-9)
        assert state.boundary_mass == pytest.approx(mf.boundary_mass(problem, density), rel=1e-9)
        assert list(state.scalars())[:5] == ["t", "dt", "next_dt", "step", "energy"]
        assert {"gap", "clipped"} < set(state.scalars())


def test_a_given_potential_is_factorised_once():
    problem, start = made("linear")
    flow = mf.LangevinFlow(problem, 0.1)
    updates = []
    assemble = flow._stage.edges.assemble
    flow._stage.edges.assemble = lambda *given: updates.append(given) or assemble(*given)
    states = list(flow.run(start, 1.05))
    assert len(states) == 12
    assert len(updates) == 2  # the last step is shorter
    assert all(s.fixed_point_iterations == 1 for s in states[1:])


class OwnContact:
    """A user's contact term, of which the package knows nothing."""

    def __init__(self, beta):
        self.beta = beta

    def value(self, density):
        return (
            0.5
            * self.beta
            * density.problem.discretisation.dot(density.measure(), density.m().x.array)
        )

    def derivative(self, density):
        v = density.problem.new_potential()
        v.x.array[:] = self.beta * density.m().x.array
        return v


@pytest.mark.parametrize("dt", [0.02, 0.2])
def test_a_functional_of_the_user_s_own(dt):
    problems = [
        lumped(mesh("triangles"), mf.Potential(trap) + term)
        for term in (mf.Contact(2.0), OwnContact(2.0))
    ]
    states = [final(p, bump(p, 2.0), 4 * dt, dt) for p in problems]
    assert states[0].energy == pytest.approx(states[1].energy, abs=1e-9)
    np.testing.assert_allclose(*map(m_of, states), rtol=0, atol=1e-8)


@rows("accelerator", [mf.mean_field.Picard, mf.mean_field.Anderson, mf.mean_field.Newton])
@rows("dt", [0.05, 2.0])
def test_every_accelerator_finds_the_same_step(accelerator, dt):
    problem, start = made("network")
    options = {"fixed_point_tolerance": 1e-12, "max_iterations": 400}
    reference = final(problem, start, 3 * dt, dt, **options)
    other = final(problem, start, 3 * dt, dt, accelerator=accelerator(), **options)
    np.testing.assert_allclose(m_of(other), m_of(reference), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dt", [1.0, np.inf])
def test_newtons_response_is_the_derivative_of_an_evaluation(dt):
    """T′ = −R S on the moments, by central differences; dt = ∞ is the minimiser."""
    functional = mf.Potential(trap) + mf.MeanInteraction(2.0, 0.5)
    problem = lumped(mesh("triangles"), functional)
    stage = mf.LangevinFlow(problem, 1.0, accelerator=mf.mean_field.Newton())._stage
    start = bump(problem, 2.0)
    y = stage.solve(start.amplitude() ** 2, stage.mean_field.evaluate(start), dt).y
    derivative = np.column_stack(
        [
            (stage._evaluate(y + h, np.inf) - stage._evaluate(y - h, np.inf)) / 2e-4
            for h in 1e-4 * np.eye(y.size)
        ]
    )
    product = stage._response(y) @ stage.mean_field.stiffness(y)
    assert np.abs(derivative).max() > 0.1
    np.testing.assert_allclose(-product, derivative, rtol=0, atol=5e-3 * np.abs(derivative).max())


def test_newton_takes_few_iterations():
    problem, start = made("strong network")
    states = list(mf.LangevinFlow(problem, 10.0).run(start, 100.0))
    assert max(s.fixed_point_iterations for s in states) < 25
    assert np.mean([s.fixed_point_iterations for s in states[1:]]) < 10


# -- arguments ---------------------------------------------------------------------------------


@rows(
    ("degree", "options", "text"),
    [
        (1, {}, "degree=1, mass='lumped'.*; this problem has degree=1, mass='consistent'"),
        (2, {}, "this problem has degree=2, mass='consistent'"),
        (2, {"mass": "lumped"}, "this problem has degree=2, mass='lumped'"),
        (1, {"mass": "lumped", "boundary": "dirichlet"}, "supports only boundary='natural'"),
    ],
)
def test_problems_of_another_kind(degree, options, text):
    domain = mesh("graded quadrilaterals" if degree == 2 else "triangles")
    problem = mf.Problem(domain, mf.Potential(trap), 0.5, degree, **options)
    for action in (lambda: mf.LangevinFlow(problem, 0.1), lambda: mf.minimise_entropic(problem)):
        with pytest.raises(ValueError, match=text):
            action()


def test_bad_runs():
    problem, _ = made("linear")
    for tol in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match="tol must lie between 0 and 1"):
            mf.minimise_entropic(problem, tol=tol)
    contact_problem, bump = made("contact")
    with pytest.raises(ValueError, match=r"Newton needs .*cylindrical"):
        final(contact_problem, bump, 1.0, 1.0, accelerator=mf.mean_field.Newton())


def test_a_step_that_fails_is_an_error_and_the_start_stays():
    problem, start = made("strong network")
    flow = mf.LangevinFlow(
        problem, 1.0, accelerator=mf.mean_field.Picard(), max_iterations=2, safeguard=False
    )
    states = []
    with pytest.raises(mf.ConvergenceError, match="did not converge"):
        for state in flow.run(start, 3.0):
            states.append(state)
    (state,) = states
    np.testing.assert_allclose(m_of(state), start.amplitude() ** 2, rtol=1e-12)
    with pytest.raises(mf.ConvergenceError, match="did not converge"):
        mf.minimise_entropic(problem, max_iterations=2)


# -- PETSc options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("contact", {"pc_type": "jacobi"}),
        ("network", {"pc_type": "bjacobi"}),
        ("network", {"ksp_type": "gmres", "pc_type": "jacobi"}),
        ("contact", {"ksp_type": "preonly", "pc_type": "lu"}),
    ],
)
def test_any_solver_gives_the_same_result(database, name, chosen):
    problem, start = made(name)
    before = database.getAll()
    for dt in (0.1, 50.0):
        options = {"fixed_point_tolerance": 1e-11}
        default = final(problem, start, 3 * dt, dt, **options)
        other = final(problem, start, 3 * dt, dt, petsc_options=chosen, **options)
        np.testing.assert_allclose(m_of(other), m_of(default), rtol=0, atol=1e-8)
        assert other.energy == pytest.approx(default.energy, abs=1e-10)
        assert m_of(other).min() > 0
        assert 0 <= other.clipped < 1e-10
    assert database.getAll() == before


def test_no_preconditioner_passes_for_a_solver():
    problem, start = made("linear")
    with pytest.raises(mf.ConvergenceError, match=r"left a residual of .* choose another solver"):
        final(problem, start, 10.0, 10.0, petsc_options={"ksp_type": "preonly", "pc_type": "ilu"})


def test_the_command_line_goes_before_the_argument(database):
    problem, start = made("linear")
    assert final(problem, start, 0.1, 0.1).linear_iterations == 1
    database[PREFIX + "pc_type"] = "jacobi"
    assert final(problem, start, 0.1, 0.1).linear_iterations > 2
    lu = {"ksp_type": "preonly", "pc_type": "lu"}
    database[PREFIX + "ksp_type"] = "gmres"
    assert final(problem, start, 0.1, 0.1, petsc_options=lu).linear_iterations > 2
    assert database.getAll()[PREFIX + "pc_type"] == "jacobi"  # the user's own stays


# -- drift against diffusion -------------------------------------------------------------------


def test_a_mesh_too_coarse_for_the_drift_is_named(caplog):
    """(X5), σ = 0.05: at a cell Péclet number of 4 the variance came out twice as large."""
    sigma, kappa = 0.05, 1.0
    functional = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2)
    mean, variance, t = 0.8, 0.002, 0.5
    exact = sigma**2 / (2 * kappa) + (variance - sigma**2 / (2 * kappa)) * np.exp(-2 * kappa * t)
    errors, numbers = [], []
    for h in (0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625):
        caplog.clear()
        problem = mf.Problem(mf.interval(COMM, 1.2, h), functional, sigma, 1, mass="lumped")
        start = mf.Density.from_function(
            problem, lambda x: np.exp(-0.5 * (x[0] - mean) ** 2 / variance)
        )
        # Richardson's extrapolation in dt leaves the error in space.
        values = [
            list(mf.LangevinFlow(problem, dt).run(start, t))[-1].density.covariance()[0, 0]
            for dt in (0.004, 0.002)
        ]
        errors.append(abs(2 * values[1] - values[0] - exact))
        first = next(iter(mf.LangevinFlow(problem, 0.01).run(start, 0.0)))
        assert first.peclet == pytest.approx(mean * h / sigma**2, rel=0.05)
        numbers.append(first.peclet)
        warned = [r.getMessage() for r in caplog.records if "Péclet" in r.getMessage()]
        assert bool(warned) == (first.peclet > 1.0)
        if warned:
            factor = float(warned[0].split("about ")[1].split()[0])
            assert factor == pytest.approx(2 * first.peclet, rel=0.05)
    assert errors[0] > 0.5 * exact  # what the warning is about
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert numbers[2] > 3 > 1 > numbers[5]
    assert orders[0] < 1.6 < 1.8 < orders[-1] < 2.3, orders
