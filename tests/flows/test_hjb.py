"""The Hamilton–Jacobi–Bellman flow: whole, decomposed and weighted, against exact solutions,
against one another and against the Schrödinger flow."""

from itertools import pairwise

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy.integrate import solve_ivp

import fem_mf as mf
from fem_mf.flows.classical_part import Quadratic, convexity_bound
from fem_mf.observables import Regularity
from tests.exact import X1, moving_gaussian, rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
EXACT = {"fixed_point_tolerance": 1e-11}
SCHEMES = {"backward-euler": 1, "sdirk2": 2}
FORMS = {
    "whole": {},
    "decomposed": {"decomposed": True},
    "weighted": {"decomposed": True, "weighted": True},
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_form = pytest.mark.parametrize("form", FORMS)

# -- problems ----------------------------------------------------------------------------------

MESHES = {
    "interval": (lambda: mf.interval(COMM, 8.0, 0.5), 2, "consistent"),
    "triangles": (lambda: mf.box(COMM, 6.5, 0.9), 2, "consistent"),
    "quadrilaterals": (lambda: mf.box(COMM, 6.5, 0.9, cell="quadrilateral"), 2, "consistent"),
    "lumped": (lambda: mf.box(COMM, 6.0, 0.9, cell="quadrilateral"), 3, "lumped"),
    "tetrahedra": (lambda: mf.box(COMM, 5.5, 2.75, cell="tetrahedron"), 2, "consistent"),
}
SIGMA, KAPPA = 0.6, 0.6
Z = np.linspace(-2.0, 2.0, 9)


def squared(x, mean):
    return sum((x[i] - mean[i]) ** 2 for i in range(len(mean)))


def trap(kappa):
    return mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2))


def network():
    return mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))


def problem_on(name, functional, sigma):
    make, degree, mass = MESHES[name]
    return mf.Problem(make(), functional, sigma, degree, mass=mass)


def quadratic_start(problem, hessian, slope):
    start = Quadratic(np.asarray(hessian), np.asarray(slope), 0.0)
    return mf.LogDensity.from_function(problem, start.evaluate)


_MADE = {}


def tanh_network(dim, h):
    """The tanh network and an off-centre Gaussian start, made once."""
    if (dim, h) not in _MADE:
        mesh = mf.interval(COMM, 4.5, h) if dim == 1 else mf.disk(COMM, 4.5, h)
        problem = mf.Problem(mesh, trap(KAPPA) + network(), SIGMA, 2)
        mean = [0.8, -0.5][:dim]
        start = mf.LogDensity.from_function(problem, lambda x: squared(x, mean))
        _MADE[dim, h] = problem, start
    return _MADE[dim, h]


def stationary(dim, kappa=KAPPA, sigma=SIGMA):
    """v that solves (W1) without moving, up to its constant."""
    return Quadratic(np.sqrt(2 * kappa) / sigma * np.eye(dim), np.zeros(dim), 0.0)


def run(problem, start, t_end, dt, scheme="backward-euler", **options):
    v_start = options.pop("v_start", None)
    flow = mf.HJBFlow(problem, dt, scheme, **EXACT | options)
    return list(flow.run(start, t_end, v_start=v_start))


def u_of(state):
    return state.density.log_values()


def fitted(problem, values):
    """Hessian and slope of the nearest quadratic, and how far the values are from it."""
    points = problem.discretisation.owned_nodes
    found = Quadratic.fit(problem, values, points, nearest=True)
    return found.hessian, found.slope, np.abs(values - found.evaluate(points)).max()


def l1(here, there):
    """∫|m − m'| dx of two amplitudes or logarithms, whatever a density is known by."""

    def m(density):
        return ufl.exp(-density.u()) if isinstance(density, mf.LogDensity) else density.psi**2

    dx = ufl.dx(metadata={"quadrature_degree": 8})
    return fem.assemble_scalar(fem.form(abs(m(here) - m(there)) * dx))


# -- quadratics are exact in space -------------------------------------------------------------


def implicit_hessian(theta, q, dt, sigma):
    """Θ⁺ with Θ⁺ = Θ + dt (Q − (σ²/2)Θ⁺²): a function of the matrix Θ + dt Q."""
    eigenvalues, frame = np.linalg.eigh(theta + dt * q)
    roots = (np.sqrt(1 + 2 * dt * sigma**2 * eigenvalues) - 1) / (dt * sigma**2)
    return (frame * roots) @ frame.T


def moving_step(theta, slope, dt):
    """One backward Euler step of (X1): precision and slope −θμ, mean field implicit."""
    sigma, kappa, strength, target = X1.values()
    theta = float(implicit_hessian(np.array([[theta]]), np.array([[kappa]]), dt, sigma)[0, 0])
    denominator = 1 + 0.5 * dt * sigma**2 * theta + dt * strength / theta
    return theta, (slope - dt * strength * target) / denominator


def moving(name):
    problem = problem_on(
        name, trap(X1["kappa"]) + mf.MeanInteraction(X1["strength"], X1["target"]), X1["sigma"]
    )
    mean = np.array([-0.8, 0.4, 0.1])[: problem.dim]
    return problem, mean, mf.LogDensity.from_function(problem, lambda x: 0.6 * squared(x, mean))


@pytest.mark.parametrize(
    ("name", "dt"), [("interval", 0.1), ("triangles", 10.0), ("quadrilaterals", 0.1)]
)
def test_moving_gaussian_of_backward_euler_is_exact_in_space(name, dt):
    problem, mean, start = moving(name)
    theta, slope = 1.2, -1.2 * mean
    states = run(problem, start, 3 * dt, dt)
    for state in states[1:]:
        theta, slope = moving_step(theta, slope, dt)
        hessian, b, deviation = fitted(problem, u_of(state))
        np.testing.assert_allclose(hessian, theta * np.eye(problem.dim), rtol=0, atol=1e-12)
        np.testing.assert_allclose(b, slope, rtol=0, atol=1e-9)  # by quadrature of the mean
        assert deviation < 1e-9
        np.testing.assert_allclose(state.density.mean(), -slope / theta, rtol=0, atol=1e-9)
        assert state.hessian_u == pytest.approx(theta, abs=1e-9)
        assert state.newton_most <= 6


@pytest.mark.parametrize("dt", [0.1, 10.0])
def test_decomposed_moving_gaussian_has_an_error_in_time_of_w_alone(dt):
    problem, mean, start = moving("triangles")
    sigma, kappa, strength, target = X1.values()
    w = np.zeros(2)
    for k, state in enumerate(run(problem, start, 3 * dt, dt, decomposed=True)[1:], 1):
        # v as without interaction, in closed form; w = p·x by backward Euler
        v_mean, theta = moving_gaussian(
            k * dt, mean, 1.2, sigma=sigma, kappa=kappa, strength=0.0, target=0.0
        )
        w = w + dt * strength * (v_mean - target)
        w /= 1 + 0.5 * dt * sigma**2 * theta + dt * strength / theta
        hessian, b, _ = fitted(problem, u_of(state))
        np.testing.assert_allclose(hessian, theta * np.eye(2), rtol=0, atol=1e-10)
        np.testing.assert_allclose(b, w - theta * v_mean, rtol=0, atol=1e-9)
        assert state.theta_v == pytest.approx(theta, abs=1e-9)
        assert state.lipschitz_w == pytest.approx(np.linalg.norm(w), abs=1e-9)
        assert np.ptp(u_of(state) - state.v.x.array - state.w.x.array) < 1e-12


ANISOTROPIC = {
    "Q": np.array([[1.2, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 1.0]]),
    "q": np.array([-0.4, 0.3, 0.2]),
    # commutes with Q in no dimension
    "theta": np.array([[2.0, -0.4, 0.3], [-0.4, 1.5, 0.2], [0.3, 0.2, 1.1]]),
    "slope": np.array([0.5, -0.2, 0.1]),
}


def anisotropic(name):
    dim = {"interval": 1, "tetrahedra": 3}.get(name, 2)
    parts = [array[tuple([slice(dim)] * array.ndim)] for array in ANISOTROPIC.values()]
    q, slope_q, theta, slope = parts
    problem = problem_on(name, mf.Potential(Quadratic(q, slope_q, 0.0).evaluate), SIGMA)
    return problem, quadratic_start(problem, theta, slope), parts


@pytest.mark.parametrize(
    ("name", "dt"),
    [
        ("interval", 10.0),
        ("triangles", 0.1),
        ("triangles", 10.0),
        ("quadrilaterals", 1.0),
        ("lumped", 0.1),
        ("tetrahedra", 1.0),
    ],
)
def test_anisotropic_gaussian_of_backward_euler_is_exact_in_space(name, dt):
    problem, start, (q, slope_q, theta, slope) = anisotropic(name)
    for state in run(problem, start, 3 * dt, dt)[1:]:
        theta = implicit_hessian(theta, q, dt, SIGMA)
        inverse = np.linalg.inv(np.eye(len(q)) + 0.5 * dt * SIGMA**2 * theta)
        slope = inverse @ (slope + dt * slope_q)
        hessian, b, deviation = fitted(problem, u_of(state))
        np.testing.assert_allclose(hessian, theta, rtol=0, atol=1e-11)
        np.testing.assert_allclose(b, slope, rtol=0, atol=1e-11)
        assert deviation < 1e-10
        assert state.mass == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dt", [0.1, 1.0])
def test_anisotropic_gaussian_of_sdirk2_is_exact_in_space(dt):
    # Alexander's scheme on Θ' = Q − (σ²/2)Θ², b' = q − (σ²/2)Θb
    gamma = 1.0 - 1.0 / np.sqrt(2.0)
    problem, start, (q, slope_q, theta, slope) = anisotropic("triangles")

    def stage(theta, slope):
        theta = implicit_hessian(theta, q, gamma * dt, SIGMA)
        implicit = np.eye(2) + 0.5 * gamma * dt * SIGMA**2 * theta
        return theta, np.linalg.solve(implicit, slope + gamma * dt * slope_q)

    for state in run(problem, start, 3 * dt, dt, "sdirk2")[1:]:
        first = stage(theta, slope)
        weight = (1.0 - gamma) / gamma
        theta, slope = stage(
            theta + weight * (first[0] - theta), slope + weight * (first[1] - slope)
        )
        hessian, b, deviation = fitted(problem, u_of(state))
        np.testing.assert_allclose(hessian, theta, rtol=0, atol=1e-10)
        np.testing.assert_allclose(b, slope, rtol=0, atol=1e-10)
        assert deviation < 1e-9


def test_v_begins_at_the_stationary_quadratic_where_u_is_none():
    # (σ²/2)Θ² = Q and (σ²/2)Θb = q: where (W1) does not move v
    problem, _, (q, slope_q, *_) = anisotropic("triangles")
    start = mf.LogDensity.from_function(
        problem, lambda x: squared(x, [0.3, -0.2]) + 0.5 * np.cos(x[0])
    )
    half = 0.5 * SIGMA**2
    for state in run(problem, start, 1.0, 0.5, decomposed=True):
        hessian, slope, deviation = fitted(
            problem, state.v.x.array[: problem.discretisation.num_owned]
        )
        assert deviation < 1e-9
        np.testing.assert_allclose(half * hessian @ hessian, q, rtol=0, atol=1e-9)
        np.testing.assert_allclose(half * hessian @ slope, slope_q, rtol=0, atol=1e-9)
        assert state.lipschitz_w > 0.1


@pytest.mark.parametrize("form", ["decomposed", "weighted"])  # "whole" has an error in time
def test_decomposed_anisotropic_gaussian_is_exact_in_time_too(form):
    problem, start, (q, slope_q, theta, slope) = anisotropic("triangles")

    def riccati(_, packed):
        theta, b = packed[:4].reshape(2, 2), packed[4:]
        half = 0.5 * SIGMA**2
        return np.concatenate([(q - half * theta @ theta).ravel(), slope_q - half * theta @ b])

    packed = np.concatenate([theta.ravel(), slope])
    end = solve_ivp(riccati, (0, 1.5), packed, rtol=1e-12, atol=1e-13).y[:, -1]
    *_, last = run(problem, start, 1.5, 0.5, **FORMS[form])
    hessian, b, _ = fitted(problem, u_of(last))
    np.testing.assert_allclose(hessian, end[:4].reshape(2, 2), rtol=0, atol=1e-9)
    np.testing.assert_allclose(b, end[4:], rtol=0, atol=1e-9)
    assert last.theta_v == pytest.approx(np.linalg.eigvalsh(end[:4].reshape(2, 2))[0], abs=1e-9)
    assert last.lipschitz_w < 1e-8


@pytest.mark.parametrize("h", [0.5, 0.25])
def test_the_linear_form_has_no_boundary_layer(h):
    """(X1) with v_0 ≠ u_0: ∇²u = θ_t, and ∇w = θ_t(x − μ_t) − ϑ_t x is largest at the boundary."""
    radius, sigma, kappa = 5.0, 0.6, 0.5
    mesh = mf.interval(COMM, radius, h)
    problem = mf.Problem(mesh, trap(kappa) + mf.MeanInteraction(1.0, [0.5]), sigma, 4)
    start = quadratic_start(problem, [[2.0]], [-1.6])
    v = Quadratic(np.array([[1 / 0.6]]), np.zeros(1), 0.0)
    flow = mf.HJBFlow(problem, 0.05, "sdirk2", **FORMS["weighted"])
    *_, last = flow.run(start, 1.0, v_start=v)
    mean, theta = moving_gaussian(1.0, 0.8, 2.0, sigma=sigma, kappa=kappa, strength=1.0, target=0.5)
    limit = np.sqrt(2 * kappa) / sigma  # v is stationary
    slopes = [theta * (x - mean[0]) - limit * x for x in (-radius, radius)]
    assert last.hessian_u == pytest.approx(theta, rel=1e-4)
    assert last.lipschitz_w == pytest.approx(np.abs(slopes).max(), rel=1e-3)


def test_the_linear_form_says_when_its_exponentials_underflow():
    mesh = mf.interval(COMM, 5.0, 0.1)
    problem = mf.Problem(mesh, trap(1.0) + mf.MeanInteraction(1.0, [0.5]), 0.5, 2)
    start = quadratic_start(problem, [[50.0]], [-150.0])
    flow = mf.HJBFlow(problem, 0.01, **FORMS["weighted"])
    with pytest.raises(mf.ConvergenceError, match=r"v varies by 1506 on this mesh.*weighted=False"):
        list(flow.run(start, 0.1))
    v = Quadratic(np.array([[2.0]]), np.zeros(1), 0.0)
    with pytest.raises(mf.ConvergenceError, match=r"w varies by \d+ on this mesh.*weighted=False"):
        list(flow.run(start, 0.1, v_start=v))
    *_, last = mf.HJBFlow(problem, 0.01, **FORMS["decomposed"]).run(start, 0.1)
    assert last.mass == pytest.approx(1.0, abs=1e-12)


# -- the formulations agree --------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("dim", [1, 2])
def test_whole_is_decomposed_when_v_stays(dim, scheme):
    # (D3) minus (W1) is (W2) line by line: with a v that does not move nothing else is left
    problem, start = tanh_network(dim, 0.9)
    whole = run(problem, start, 0.8, 0.2, scheme)
    parts = run(problem, start, 0.8, 0.2, scheme, decomposed=True, v_start=stationary(dim))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(u_of(a), u_of(b), rtol=0, atol=1e-8)
        assert a.energy == pytest.approx(b.energy, abs=1e-11)
        assert a.residual == pytest.approx(b.residual, rel=1e-6)
    assert whole[-1].energy < whole[0].energy - 1e-2


@every_scheme
def test_whole_meets_decomposed_at_the_order_of_the_scheme(scheme):
    # v_t in closed form: the difference is an error in time, whatever the mesh
    problem, start = tanh_network(1, 0.45)
    steps, differences = [0.2, 0.1, 0.05], []
    for dt in steps:
        ends = [run(problem, start, 0.4, dt, scheme, **FORMS[f])[-1] for f in FORMS][:2]
        differences.append(l1(ends[0].density, ends[1].density))
    assert abs(rate(steps, differences) - SCHEMES[scheme]) < 0.3, differences


@pytest.mark.parametrize(("dim", "sizes"), [(1, [0.8, 0.4, 0.2]), (2, [0.9, 0.6, 0.4])])
def test_schroedinger_and_every_form_meet_at_the_spatial_order(dim, sizes):
    errors = {form: [] for form in [*FORMS, "weighted against decomposed"]}
    for h in sizes:
        problem, start = tanh_network(dim, h)
        psi = mf.Density(problem, start.amplitude())
        *_, other = mf.SchrodingerFlow(problem, 0.05, "sdirk2").run(psi, 0.15)
        ends = {f: run(problem, start, 0.15, 0.05, "sdirk2", **o)[-1] for f, o in FORMS.items()}
        for form, end in ends.items():
            errors[form].append(l1(end.density, other.density))
        between = l1(ends["weighted"].density, ends["decomposed"].density)
        errors["weighted against decomposed"].append(between)
    for form in FORMS:
        assert rate(sizes, errors[form]) >= 2.5, (form, errors[form])
        assert errors[form][-1] < {1: 1e-4, 2: 1e-3}[dim]
    between = errors["weighted against decomposed"]
    assert rate(sizes, between) >= 2.0, between
    assert between[-1] < 2e-5


def test_w_is_minus_twice_the_logarithm_of_phi():
    # φ = ψ e^{v/2}: what the Schrödinger flow says of w, where there is mass
    problem, start = tanh_network(2, 0.4)
    *_, state = run(problem, start, 0.2, 0.1, "sdirk2", decomposed=True)
    psi = mf.Density(problem, start.amplitude())
    *_, other = mf.SchrodingerFlow(problem, 0.1, "sdirk2").run(psi, 0.2)
    own = slice(problem.discretisation.num_owned)
    phi = other.density.amplitude() * np.exp(0.5 * state.v.x.array[own])
    inside = np.linalg.norm(problem.discretisation.nodes[:, own], axis=0) < 2.0
    w = state.w.x.array[own]
    assert np.ptp(w[inside]) > 0.2
    difference = w[inside] + 2.0 * np.log(phi[inside])
    assert np.abs(difference - difference.mean()).max() < 2e-2


# -- nonlinear solves --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["whole", "decomposed"])
@pytest.mark.parametrize("h", [0.9, 0.225])
def test_newton_needs_few_iterations_at_any_mesh_and_step(h, form):
    problem, start = tanh_network(1, h)
    counts = []
    for dt in (0.01, 0.1, 1.0, 10.0):
        states = run(problem, start, 3 * dt, dt, **FORMS[form])
        counts += [s.newton_most for s in states[1:]]
        for state in states[1:]:
            assert state.newton_most <= state.newton_iterations
            assert state.newton_iterations <= 6 * state.fixed_point_iterations
    assert 2 <= max(counts) <= 6


def test_newton_needs_few_iterations_in_the_plane():
    problem, start = tanh_network(2, 0.45)
    states = run(problem, start, 30.0, 10.0, fixed_point_tolerance=1e-8)
    assert 2 <= max(s.newton_most for s in states) <= 6
    assert states[0].newton_most == states[0].newton_iterations == 0


def test_newton_from_a_start_far_away():
    problem = problem_on("interval", trap(1.0), 0.3)
    start = mf.LogDensity.from_function(problem, lambda x: 20.0 * (x[0] - 4.0) ** 2)
    states = run(problem, start, 30.0, 10.0)
    assert max(s.newton_most for s in states) <= 6
    limit = np.sqrt(2.0) / 0.3
    assert 1 / states[-1].density.covariance()[0, 0] == pytest.approx(limit, rel=1e-1)


# -- bounds along the flow ---------------------------------------------------------------------

GENERAL = {
    "quartic": (lambda x: 0.25 * KAPPA * 2 * squared(x, [0, 0]) + 0.25 * squared(x, [0, 0]) ** 2),
    "anisotropic quartic": lambda x: 0.5 * KAPPA * x[0] ** 2 + x[1] ** 2 + 0.1 * x[1] ** 4,
}


@every_scheme
def test_without_mean_field_u_is_v_for_any_potential(scheme):
    # v by implicit stages, since g is no quadratic: it takes the steps of u
    functional = mf.Potential(GENERAL["anisotropic quartic"])
    problem = mf.Problem(mf.box(COMM, 2.5, 0.8), functional, SIGMA, 2, potential_degree=4)
    start = quadratic_start(problem, 0.8 * np.eye(2), [0.3, -0.2])
    whole, parts = (run(problem, start, 0.6, 0.2, scheme, **FORMS[f]) for f in list(FORMS)[:2])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(u_of(a), u_of(b), rtol=0, atol=1e-8)
        assert b.lipschitz_w < 1e-8
    assert np.abs(u_of(whole[-1]) - u_of(whole[0])).max() > 0.1


@pytest.mark.parametrize("name", GENERAL)
def test_v_stays_as_convex_as_the_theory_says(name):
    mesh = mf.box(COMM, 2.5, 0.5)
    problem = mf.Problem(mesh, mf.Potential(GENERAL[name]), SIGMA, 2, potential_degree=4)
    start = quadratic_start(problem, 0.8 * np.eye(2), np.zeros(2))
    states = run(problem, start, 4.0, 0.4, "sdirk2", decomposed=True)
    assert states[0].theta_v == pytest.approx(0.8, abs=1e-9)
    for state in states:
        bound = convexity_bound(state.t, 0.8, KAPPA, SIGMA)
        assert state.theta_v >= bound - 0.15  # ∇² of quadratics by cells: first order in h
    assert states[-1].theta_v > 1.5


@every_scheme
def test_the_bound_is_attained_by_isotropic_quadratics(scheme):
    problem, start = tanh_network(2, 0.9)
    for state in run(problem, start, 2.0, 0.5, scheme, decomposed=True):
        bound = convexity_bound(state.t, 2.0, KAPPA, SIGMA)
        assert state.theta_v == pytest.approx(bound, abs=1e-9)
        hessian, slope, _ = fitted(problem, state.v.x.array[: problem.discretisation.num_owned])
        x = problem.discretisation.nodes[:2, : problem.discretisation.num_owned]
        slopes = np.linalg.norm(hessian @ x + slope[:, None], axis=0)
        growth = slopes / (1 + np.linalg.norm(x, axis=0))
        assert state.growth_v == pytest.approx(growth.max(), rel=1e-8)


def test_the_bound_holds_strictly_for_an_anisotropic_quadratic():
    problem, start, (q, _, theta, _) = anisotropic("triangles")
    kappa, lowest = np.linalg.eigvalsh(q)[0], np.linalg.eigvalsh(theta)[0]
    for state in run(problem, start, 3.0, 0.5, decomposed=True):
        assert state.theta_v >= convexity_bound(state.t, lowest, kappa, SIGMA) - 1e-9


@pytest.mark.parametrize("form", ["decomposed", "weighted"])
def test_derivatives_and_moments_stay_bounded_over_a_long_run(form):
    problem, start = tanh_network(2, 0.9)
    states = run(problem, start, 50.0, 2.5, fixed_point_tolerance=1e-8, **FORMS[form])
    # ‖∇G‖ ≤ L and the drift −(σ²/2)∇v contracts at rate (σ²/2)θ_t, θ_t ≥ θ∞ = 1.83
    slopes = 4.0 * np.abs(Z).max()  # 2 |1 + max|sin|| |∇N|, far from sharp
    limit = slopes / (0.5 * SIGMA**2 * np.sqrt(2 * KAPPA) / SIGMA)
    lipschitz = [s.lipschitz_w for s in states]
    assert lipschitz[0] < 1e-9 < 0.3 < lipschitz[-1] < limit
    assert np.ptp(lipschitz[len(states) // 2 :]) < 2e-3
    assert max(lipschitz) < 1.0
    assert max(s.second_moment for s in states) < 2.0
    assert max(s.fourth_moment for s in states) < 8.0
    assert max(s.hessian_u for s in states) < 4.0
    assert max(s.growth_u for s in states) < 4.0


# -- derivatives by cells ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MESHES)
def test_regularity_of_a_quadratic(name):
    problem, start, (_, _, theta, _) = anisotropic(name)
    del start
    bounds, points = (
        Regularity(problem),
        problem.discretisation.owned_nodes,
    )
    values = Quadratic(theta, np.zeros(len(theta)), 1.0).evaluate(points)
    eigenvalues = np.linalg.eigvalsh(theta)
    lowest, largest = bounds.hessian(values)
    assert (lowest, largest) == pytest.approx((eigenvalues[0], eigenvalues[-1]), abs=1e-9)
    assert bounds.hessian(-values) == pytest.approx((-eigenvalues[-1], eigenvalues[-1]), abs=1e-9)
    slopes = np.linalg.norm(theta @ points[: len(theta)], axis=0)
    assert bounds.gradient(values) == pytest.approx(slopes.max(), rel=1e-9)
    growth = slopes / (1 + np.linalg.norm(points, axis=0))
    assert bounds.growth(values) == pytest.approx(growth.max(), rel=1e-9)


# -- what a state says -------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.01, 1.0, 1e3])
@pytest.mark.parametrize("functional", ["network", "contact"])
def test_backward_euler_decreases_the_energy(functional, dt):
    # On coarser meshes the energy of ψ's space and the equation of u end at minimisers that differ
    # enough to see.
    problem, start = tanh_network(1, 0.225)
    if functional == "contact":
        problem = mf.Problem(problem.mesh, trap(KAPPA) + mf.Contact(5.0), SIGMA, 2)
        start = mf.LogDensity(problem, start.log_values())
    states = run(problem, start, 6 * dt, dt, fixed_point_tolerance=1e-11)
    for before, after in pairwise(states):
        assert after.energy <= before.energy + 1e-12
        assert after.fixed_point_iterations >= 1
    assert states[-1].energy < states[0].energy - 1e-4


@every_form
@every_scheme
def test_scalars_of_a_state_are_those_of_its_density(scheme, form):
    problem, start = tanh_network(2, 0.6)
    for state in run(problem, start, 0.2, 0.1, scheme, **FORMS[form]):
        assert state.mass == pytest.approx(1.0, abs=1e-12)
        assert state.density.mass() == pytest.approx(1.0, abs=1e-12)
        assert state.energy == pytest.approx(mf.energy(problem, state.density), rel=1e-12)
        assert state.dissipation == pytest.approx(state.residual**2, rel=1e-12)
        assert state.boundary_mass == pytest.approx(
            mf.boundary_mass(problem, state.density), rel=1e-12
        )
        # of ψ, another discretisation
        assert state.eigenvalue == pytest.approx(mf.eigenvalue(problem, state.density), rel=1e-2)
        assert state.residual == pytest.approx(mf.residual(problem, state.density), rel=0.1)
        assert state.second_moment == pytest.approx(state.density.moment(2.0), rel=1e-12)
        assert state.fourth_moment == pytest.approx(state.density.moment(4.0), rel=1e-12)


@every_form
@every_scheme
def test_residual_and_eigenvalue_of_a_gaussian_in_closed_form(scheme, form):
    # whatever the scheme made of θ and μ: δF^σ/δm of N(μ, 1/θ) is, up to a constant and with
    # y = x − μ, ½(κ − (σ²/2)θ²)y² + (κμ + λ_c(μ − a))y
    sigma, kappa, strength, target = X1.values()
    functional = trap(kappa) + mf.MeanInteraction(strength, target)
    problem = mf.Problem(mf.interval(COMM, 6.0, 0.2), functional, sigma, 2)
    start = mf.LogDensity.from_function(problem, lambda x: 0.6 * squared(x, [-0.8]))
    for state in run(problem, start, 0.2, 0.05, scheme, **FORMS[form]):
        mean, theta = state.density.mean()[0], 1.0 / state.density.covariance()[0, 0]
        bend = kappa - 0.5 * sigma**2 * theta**2
        pull = kappa * mean + strength * (mean - target)
        exact = np.sqrt(0.5 * (bend / theta) ** 2 + pull**2 / theta)
        eigenvalue = 0.5 * kappa * (1 / theta + mean**2) + 0.25 * sigma**2 * theta
        eigenvalue += strength * (mean - target) * mean
        assert state.residual == pytest.approx(exact, rel=3e-5)
        assert state.eigenvalue == pytest.approx(eigenvalue, rel=1e-6)


@pytest.mark.parametrize("form", ["whole", "decomposed"])
def test_residual_of_backward_euler_is_the_change_of_u_over_the_step(form):
    # a quartic g: v is computed by implicit stages as well, and ∂_t u = ∂_t v + ∂_t w
    functional = mf.Potential(GENERAL["quartic"]) + mf.MeanInteraction(0.8, 0.5)
    problem = mf.Problem(mf.box(COMM, 2.5, 0.5), functional, SIGMA, 2, potential_degree=4)
    start = quadratic_start(problem, 0.8 * np.eye(2), [0.3, -0.2])
    dt = 0.05
    for before, after in pairwise(run(problem, start, 3 * dt, dt, **FORMS[form])):
        u = after.density.u()
        change = (u - before.density.u()) / dt
        dx = ufl.dx(metadata={"quadrature_degree": 14})
        mean, square = (
            fem.assemble_scalar(fem.form(f * ufl.exp(-u) * dx)) for f in (change, change**2)
        )
        assert after.residual == pytest.approx(np.sqrt(square - mean**2), rel=1e-5)


@every_form
def test_dissipation_is_the_descent_of_the_energy(form):
    problem, start = tanh_network(1, 0.225)
    states = run(problem, start, 0.02, 0.002, "sdirk2", **FORMS[form])
    for before, _, after in zip(states, states[1:], states[2:], strict=False):
        slope = (before.energy - after.energy) / (after.t - before.t)
        middle = states[before.step + 1].dissipation
        assert middle == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("form", ["whole", "decomposed"])
def test_ends_at_the_minimiser(form):
    problem, start = tanh_network(1, 0.225)
    flow = mf.HJBFlow(problem, 10.0, **FORMS[form])
    *_, last = flow.run(start, 1e4, steady_residual=1e-9)
    minimum = mf.minimise(problem, mf.Density(problem, start.amplitude()))
    assert last.residual <= 1e-9
    assert last.t < 1e4
    assert last.eigenvalue == pytest.approx(minimum.eigenvalue, abs=1e-4)
    assert last.energy == pytest.approx(minimum.energy, abs=1e-4)
    assert l1(last.density, minimum.density) < 2e-4


@every_form
@every_scheme
def test_the_residual_of_an_almost_steady_state_is_right_after_short_steps(scheme, form):
    """N(μ∞, 1/θ) with θ near θ∞: ‖∂_tu‖ = ½|θ'| sd((x − μ)²) = |θ'|/(√2 θ), θ' = κ − ½σ²θ²."""
    sigma, kappa, strength, target = 0.7, 1.0, 1.0, 0.5
    mesh = mf.interval(COMM, 6.0, 0.125)
    functional = trap(kappa) + mf.MeanInteraction(strength, [target])
    problem = mf.Problem(mesh, functional, sigma, 4)
    theta = np.sqrt(2 * kappa) / sigma * (1 + 1e-7)
    mean = strength * target / (kappa + strength)
    start = quadratic_start(problem, [[theta]], [-theta * mean])
    *_, last = mf.HJBFlow(problem, 1e-4, scheme, **FORMS[form]).run(start, 3e-4)
    exact = abs(kappa - 0.5 * sigma**2 * theta**2) / (np.sqrt(2.0) * theta)
    assert last.residual == pytest.approx(exact, abs=1e-9)
    assert exact > 4e-8


def test_a_start_known_by_its_amplitude():
    problem, start = tanh_network(1, 0.45)
    psi = mf.Density(problem, start.amplitude())
    a, b = (run(problem, m, 0.2, 0.1)[-1] for m in (start, psi))
    np.testing.assert_allclose(u_of(a), u_of(b), rtol=0, atol=1e-9)


def test_functions_of_a_state():
    problem, start = tanh_network(1, 0.45)
    whole = run(problem, start, 0.2, 0.1)[-1]
    assert whole.v is None and whole.w is None
    for name in ("theta_v", "growth_v", "lipschitz_w"):
        assert np.isnan(getattr(whole, name))
    states = run(problem, start, 0.2, 0.1, decomposed=True)
    for state in states:
        np.testing.assert_allclose(
            state.u.x.array, state.v.x.array + state.w.x.array, rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(state.u.x.array, state.density.u().x.array, rtol=0, atol=1e-14)
        dx = ufl.dx(metadata={"quadrature_degree": 14})
        mean = fem.assemble_scalar(fem.form(state.w * ufl.exp(-state.u) * dx))
        assert mean == pytest.approx(0.0, abs=1e-9)
    assert len({id(s.v) for s in states}) == len({id(s.density) for s in states}) == 3
    assert np.abs(states[1].v.x.array - states[2].v.x.array).max() > 1e-3


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0.1, "crank-nicolson"), {}, "unknown scheme 'crank-nicolson'; choose one of .*sdirk2"),
        ((0.1,), {"weighted": True}, "weighted=True needs decomposed=True"),
    ],
)
def test_bad_arguments(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        mf.HJBFlow(tanh_network(1, 0.9)[0], *arguments, **options)


@pytest.mark.parametrize(
    ("degree", "boundary", "text"),
    [(1, "natural", "degree 2 or more"), (2, "dirichlet", "needs boundary='natural'")],
)
def test_bad_problems(degree, boundary, text):
    mesh = mf.interval(COMM, 3.0, 0.5)
    problem = mf.Problem(mesh, trap(1.0), 0.5, degree, boundary)
    with pytest.raises(ValueError, match=text):
        mf.HJBFlow(problem, 0.1)


@rows(("form", "alias"), [("u", "whole"), ("v+w", "decomposed"), ("hopf-cole", "weighted")])
def test_forms_by_name_are_their_aliases(form, alias):
    problem, start = tanh_network(1, 0.6)
    energies = [
        [state.energy for state in mf.HJBFlow(problem, 0.1, **options).run(start, 0.3)]
        for options in ({"form": form}, FORMS[alias])
    ]
    assert energies[0] == energies[1]


@rows(
    ("options", "text"),
    [
        ({"form": "w"}, "form must be 'u', 'v\\+w' or 'hopf-cole', not 'w'"),
        ({"form": "u", "decomposed": True}, "form='u' contradicts decomposed"),
        ({"form": "v+w", "decomposed": True, "weighted": True}, "form='v\\+w' contradicts"),
    ],
)
def test_bad_forms(options, text):
    with pytest.raises(ValueError, match=text):
        mf.HJBFlow(tanh_network(1, 0.6)[0], 0.1, **options)
