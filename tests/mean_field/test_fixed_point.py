"""Fixed points: on maps whose solution is known, and inside steps of the flow."""

from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
from scipy.optimize import brentq

import fem_mf as mf
from fem_mf.flows.schrodinger_stage import Guess
from fem_mf.mean_field.fixed_point import StopTest, solve
from fem_mf.stationary.newton_cg import Anchor
from tests.exact import gaussian, rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
DATA = Path(__file__).resolve().parents[2] / "demos" / "data" / "motorcycle.csv"
RNG = np.random.default_rng(1)


# -- maps of a few numbers ---------------------------------------------------------------------


@dataclass
class Affine:
    """T(y) = t − R c(y), c(y) = S y, as in a step with a quadratic F: response R, curvature S."""

    response: np.ndarray
    curvature: np.ndarray
    target: np.ndarray

    def __call__(self, y, previous):
        return self.target - self.response @ self.coefficients(y)

    def coefficients(self, y):
        return self.curvature @ y

    def dot(self, a, b):
        return float(a @ b)

    @property
    def solution(self):
        n = self.target.size
        return np.linalg.solve(np.eye(n) + self.response @ self.curvature, self.target)


def affine(size, strength, seed=3):
    """Symmetric positive R and S with ‖R S‖ of the size of ``strength``."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(size, size)) for _ in range(2))
    a, b = a @ a.T / size, b @ b.T / size
    factor = strength / np.linalg.norm(a @ b, 2)
    return Affine(a, factor * b, rng.normal(size=size))


def newton(toy):
    accelerator = mf.mean_field.Newton()
    accelerator.bind(lambda y: toy.response, lambda y: toy.curvature)
    return accelerator


ACCELERATORS = {
    "picard": lambda toy: mf.mean_field.Picard(),
    "anderson": lambda toy: mf.mean_field.Anderson(),
    "anderson 1": lambda toy: mf.mean_field.Anderson(depth=1),
    "newton": newton,
}
every_accelerator = pytest.mark.parametrize("name", ACCELERATORS)


def run(toy, accelerator, safeguard=True, tolerance=1e-11, **options):
    stop = StopTest(tolerance=tolerance, **options)
    y = np.zeros_like(toy.target)
    return solve(toy, y, accelerator=accelerator, stop=stop, unknown=toy, safeguard=safeguard)


@every_accelerator
@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_contractions_are_solved_by_everything(name, strength):
    toy = affine(6, strength)
    record = run(toy, ACCELERATORS[name](toy))
    # what is returned is the last y; the answer of the loop is T(y)
    np.testing.assert_allclose(toy(record.y, 0.0), toy.solution, rtol=0, atol=5e-11)
    assert record.iterations == len(record.residuals)


@rows("name", ["picard", "anderson", "newton"])
@rows("strength", [3.0, 30.0])
def test_safeguard_makes_expansions_converge(name, strength):
    toy = affine(4, strength)
    record = run(toy, ACCELERATORS[name](toy), max_iterations=2000)
    np.testing.assert_allclose(toy(record.y, 0.0), toy.solution, rtol=0, atol=1e-9)
    if name == "picard":  # which diverges otherwise; the others may do without
        assert record.shortened > 0


def test_plain_picard_diverges_without_the_safeguard():
    toy = affine(4, 3.0)
    with pytest.raises(mf.ConvergenceError, match=r"after 40 iterations .*smaller dt"):
        run(toy, mf.mean_field.Picard(), safeguard=False, max_iterations=40)


def test_picard_contracts_by_the_spectral_radius():
    toy = affine(1, 0.25)
    record = run(toy, mf.mean_field.Picard())
    ratios = np.array(record.residuals[1:]) / record.residuals[:-1]
    np.testing.assert_allclose(ratios, 0.25, rtol=1e-5)
    assert record.contraction == pytest.approx(0.25, rel=1e-12)
    assert record.shortened == 0


def test_newton_solves_affine_maps_at_once():
    toy = affine(8, 50.0)
    record = run(toy, newton(toy), safeguard=False)
    # the plain step it begins with, the step with the response, and its check
    assert record.iterations <= 4
    np.testing.assert_allclose(toy(record.y, 0.0), toy.solution, rtol=0, atol=1e-9)


def test_newton_computes_no_response_for_fast_contractions_and_keeps_it_otherwise():
    calls = []

    def counted(toy):
        accelerator = mf.mean_field.Newton()
        accelerator.bind(lambda y: calls.append(1) or toy.response, lambda y: toy.curvature)
        return accelerator

    weak, strong = affine(3, 0.01), affine(3, 5.0)
    run(weak, counted(weak))
    assert not calls
    accelerator = counted(strong)
    accelerator.rescale(0.1)
    run(strong, accelerator)
    assert len(calls) == 1
    accelerator.rescale(0.11)
    assert run(strong, accelerator).iterations <= 3 and len(calls) == 1
    accelerator.rescale(1.0)  # a very different step: begin again
    run(strong, accelerator)
    assert len(calls) == 2


def test_anderson_is_gmres_on_affine_maps():
    # n + 1 evaluations span the space, however strong the map
    toy = affine(4, 8.0)
    record = run(toy, mf.mean_field.Anderson(depth=6), safeguard=False)
    assert record.iterations <= 7
    picard = run(affine(4, 0.8), mf.mean_field.Picard())
    assert run(affine(4, 0.8), mf.mean_field.Anderson()).iterations < 0.5 * picard.iterations


def test_accelerators_forget_between_fixed_points():
    toy, other = affine(5, 0.8), affine(5, 0.8, seed=9)
    accelerator = mf.mean_field.Anderson()
    first = run(toy, accelerator)
    run(other, accelerator)
    assert run(toy, accelerator).residuals == first.residuals


def test_nonlinear_scalar_map():
    # y = 1 − 3 tanh(y): the plain iteration ends in a cycle
    class Saturating(Affine):
        def coefficients(self, y):
            return np.tanh(y)

    toy = Saturating(3 * np.eye(1), np.eye(1), np.ones(1))
    root = brentq(lambda y: y - 1 + 3 * np.tanh(y), 0, 1, xtol=1e-15)
    for accelerator in (mf.mean_field.Picard(), mf.mean_field.Anderson()):
        y = run(toy, accelerator, max_iterations=200).y
        assert y[0] == pytest.approx(root, abs=1e-9)
    with pytest.raises(mf.ConvergenceError):
        run(toy, mf.mean_field.Picard(), safeguard=False)


def test_a_hopeless_iteration_is_given_up_early():
    slow = affine(3, 2.5)  # converges, but only because steps are shortened
    patient = run(slow, mf.mean_field.Picard(), max_iterations=1000)
    assert patient.iterations > 15
    with pytest.raises(mf.ConvergenceError, match="after 5 iterations"):
        run(slow, mf.mean_field.Picard(), max_iterations=1000, patience=5)
    quick = affine(3, 0.02)
    assert (
        run(quick, mf.mean_field.Picard(), patience=5).iterations
        == run(quick, mf.mean_field.Picard()).iterations
    )


def test_the_contraction_is_that_of_the_slow_part():
    # The first component contracts by 1e-4, the second by 0.4: what is left is the second's.
    factors, target = np.array([1e-4, 0.4]), np.array([1.0, 1e-4])

    class Toy(Affine):
        def __call__(self, y, previous):
            return target + factors * (y - target)

    toy = Toy(np.eye(2), np.eye(2), target)
    stop = StopTest(tolerance=1e-6)

    def error(**options):
        record = solve(
            toy, np.zeros(2), accelerator=mf.mean_field.Picard(), stop=stop, unknown=toy, **options
        )
        return np.abs(toy(record.y, np.inf) - target).max()

    assert error() > 1e-6
    assert error(slow=lambda residual: abs(float(residual[1]))) <= 1e-6


@rows("name", ACCELERATORS)
def test_not_a_number_is_an_error(name):
    toy = affine(2, 0.5)
    toy.target = np.array([np.nan, 1.0])
    with pytest.raises(mf.ConvergenceError, match="did not converge"):
        run(toy, ACCELERATORS[name](toy))


def test_stop_test():
    stop = StopTest(tolerance=1e-6)
    assert stop(0.9e-6, 0.1) and not stop(1.1e-6, 0.1)
    assert stop(0.9e-4, 100.0) and not stop(1.1e-4, 100.0)
    # after a contraction by 1e-3, T(y) is a thousand times closer than y
    assert stop(1e-5, 1.0, contraction=1e-3)
    assert not stop(1e-5, 1.0, contraction=0.9)
    assert not StopTest(tolerance=1e-6, extrapolate=False)(1e-5, 1.0, contraction=1e-3)


def test_bad_accelerators():
    with pytest.raises(ValueError, match="depth of Anderson acceleration must be at least 1"):
        mf.mean_field.Anderson(depth=0)
    for slow in (0.0, 1.0):
        with pytest.raises(ValueError, match="contraction factor between 0 and 1"):
            mf.mean_field.Newton(slow)
    with pytest.raises(ValueError, match="every term is cylindrical"):
        run(affine(2, 0.5), mf.mean_field.Newton())


# -- inside the flow ---------------------------------------------------------------------------


def network_problem(scale=1.0):
    z = np.linspace(-2.0, 2.0, 12)
    functional = mf.Potential(lambda x: 0.1 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, np.sin(2 * z), lambda x, z: scale * np.tanh(x[0] * z + x[1])
    )
    mesh = mf.box(COMM, 7.0, 1.4, cell="quadrilateral")
    return mf.Problem(mesh, functional, sigma=0.5, degree=5, mass="lumped")


@pytest.fixture(scope="module")
def problem():
    return network_problem()


@pytest.fixture(scope="module")
def start(problem):
    return mf.Density.from_function(problem, gaussian([1.0, -0.5], 1.0))


@pytest.mark.parametrize("scheme", ["backward-euler", "crank-nicolson", "sdirk2"])
def test_contraction_is_proportional_to_the_step(problem, start, scheme):
    steps = [0.02, 0.01, 0.005, 0.0025]
    factors = []
    for dt in steps:
        flow = mf.SchrodingerFlow(problem, dt, scheme, accelerator=mf.mean_field.Picard())
        *_, last = flow.run(start, dt)
        factors.append(last.contraction)
    assert abs(rate(steps, factors) - 1.0) < 0.15
    assert factors[0] < 0.1


@rows("dt", [0.02, 0.1, 0.3, 1.0, 10.0])
def test_anderson_never_needs_more_iterations_than_picard(problem, start, dt):
    counts = {}
    for accelerator in (mf.mean_field.Picard(), mf.mean_field.Anderson()):
        flow = mf.SchrodingerFlow(problem, dt, accelerator=accelerator)
        counts[type(accelerator)] = [
            s.fixed_point_iterations for s in flow.run(start, 10 * dt) if s.step
        ]
    pairs = list(zip(counts[mf.mean_field.Anderson], counts[mf.mean_field.Picard], strict=True))
    assert all(anderson <= picard for anderson, picard in pairs), pairs
    if dt >= 1.0:
        assert sum(counts[mf.mean_field.Anderson]) < 0.6 * sum(counts[mf.mean_field.Picard])


def test_safeguarded_loops_converge_where_plain_picard_does_not(problem):
    narrow = mf.Density.from_function(problem, gaussian([3.0, 3.0], 16.0))

    def last(**options):
        *_, state = mf.SchrodingerFlow(problem, 100.0, **options).run(
            narrow, 2e4, steady_residual=1e-9
        )
        return state

    flow = mf.SchrodingerFlow(problem, 100.0, accelerator=mf.mean_field.Picard(), safeguard=False)
    now = flow._start(narrow)
    anchor, guess = Anchor(now.value), Guess(now.psi, now.y, now.eigenvalue)
    with pytest.raises(mf.ConvergenceError, match=r"did not converge|not positive"):
        flow._stage.by_fixed_point(anchor, guess, 100.0)
    # In a flow Newton's method takes over.
    plain = last(accelerator=mf.mean_field.Picard(), safeguard=False)
    states = [
        last(accelerator=mf.mean_field.Picard()),
        last(accelerator=mf.mean_field.Anderson()),
        last(),
        plain,
    ]
    for state in states:
        assert state.residual < 1e-9
        assert state.energy == pytest.approx(states[0].energy, abs=1e-8)
        psi = states[0].density.psi.x.array
        np.testing.assert_allclose(state.density.psi.x.array, psi, rtol=0, atol=1e-8)


def test_tight_tolerance_gives_the_same_trajectory(problem, start):
    ends = []
    for tolerance in (1e-8, 1e-12):
        for accelerator in (
            mf.mean_field.Picard(),
            mf.mean_field.Anderson(),
            mf.mean_field.Newton(),
        ):
            flow = mf.SchrodingerFlow(
                problem, 0.25, accelerator=accelerator, fixed_point_tolerance=tolerance
            )
            *_, state = flow.run(start, 1.0)
            ends.append(state.density.psi.x.array)
    for psi in ends[:3]:
        np.testing.assert_allclose(psi, ends[-1], rtol=0, atol=1e-7)
    for psi in ends[3:]:
        np.testing.assert_allclose(psi, ends[-1], rtol=0, atol=1e-11)


def test_strong_coupling_on_the_motorcycle_data():
    z, y = np.loadtxt(DATA, delimiter=",", skiprows=1).T
    z, y = 1.5 * (z - z.mean()) / z.std(), (y - y.mean()) / y.std()
    functional = mf.Potential(lambda x: 0.05 * (x[0] ** 2 + x[1] ** 2)) + mf.NetworkLoss(
        z, y, lambda x, z: 30.0 * np.tanh(x[0] * z + x[1])
    )
    mesh = mf.box(COMM, 8.0, 1.0, cell="quadrilateral")
    problem = mf.Problem(mesh, functional, sigma=0.5, degree=6, mass="lumped")
    start = mf.Density.from_function(problem, gaussian([1.0, 0.0], 1.0))
    states = list(mf.SchrodingerFlow(problem, dt=0.2).run(start, 2.0))
    assert max(s.fixed_point_iterations for s in states) <= 15  # of Newton's method
    energies = [s.energy for s in states]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.05 * energies[0]
