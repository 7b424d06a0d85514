"""Certificate, spectral gap and decay rate: closed forms, dense eigenvalues, observed decay."""

from mpi4py import MPI

import numpy as np
import pytest
from scipy.linalg import eigh

import fem_mf as mf
from fem_mf.observables import first_order
from fem_mf.petsc import lowest_states, shell_matrix
from fem_mf.stationary.hessian import Hamiltonian, Hessian
from tests.exact import gaussian, gaussian_energy
from tests.rows import rows

COMM = MPI.COMM_WORLD
Z = np.linspace(-2.0, 2.0, 9)
SIGMA, KAPPA = 0.6, 0.8
SPACING = SIGMA * np.sqrt(2.0 * KAPPA)  # of the harmonic oscillator's eigenvalues
ZERO = mf.Potential(lambda x: 0.0 * x[0])


def trap(x):
    return 0.1 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def half_square(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def network():
    return mf.Potential(trap) + mf.NetworkLoss(
        Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1])
    )


def plane(functional, sigma=0.5, radius=7.0, cells=10, degree=5, **options):
    mesh = mf.box(COMM, radius, 2.0 * radius / cells, cell="quadrilateral")
    return mf.Problem(mesh, functional, sigma, degree, mass="lumped", **options)


def line(functional, sigma=0.5):
    return mf.Problem(mf.interval(COMM, 7.0, 1.0), functional, sigma, 6, mass="lumped")


def tilted(sigma=0.3):
    """A potential of several wells without any symmetry."""
    centres = np.array([[-2.0, 0.5], [1.0, 1.5], [0.5, -2.0]])
    depths = np.array([1.8, 2.0, 1.5])

    def wells(x):
        squares = (x[0] - centres[:, :1]) ** 2 + (x[1] - centres[:, 1:]) ** 2
        return 0.05 * (x[0] ** 2 + x[1] ** 2) - depths @ np.exp(-squares)

    return plane(mf.Potential(wells), sigma, 5.0, 10, 3)


def dense(matrix):
    every = np.arange(matrix.getSize()[0], dtype=np.int32)
    return matrix.getValues(every, every)


def dense_mass(problem):
    return (
        np.diag(problem.discretisation.mass_diagonal)
        if problem.lumped
        else dense(problem.mass_matrix)
    )


def dense_spectrum(problem, density):
    """The three lowest eigenvalues of the frozen H[m]; without walls."""
    operator = Hamiltonian(problem)
    operator.update(first_order(problem, density).potential)
    lowest = {"eigvals_only": True, "subset_by_index": [0, 2]}
    return eigh(dense(operator.matrix), dense_mass(problem), **lowest)


def dense_rates(problem, density):
    """All eigenvalues of J on the tangent space; without walls."""
    hessian = Hessian(problem)
    hessian.update(density, first_order(problem, density))
    columns = np.column_stack([hessian.apply(e) for e in np.eye(problem.discretisation.num_owned)])
    psi, mass_psi = density.amplitude(), density.mass_amplitude()
    project = np.eye(psi.size) - np.outer(mass_psi, psi)
    far_away = 1e3 * np.outer(mass_psi, mass_psi)  # where ψ's own eigenvalue goes
    matrix = project @ columns @ project.T + far_away
    return eigh(0.5 * (matrix + matrix.T), dense_mass(problem), eigvals_only=True)


# -- the certificate ---------------------------------------------------------------------------


FUNCTIONALS = {
    "network": network,
    "contact": lambda: mf.Potential(trap) + mf.Contact(20.0),
    "interaction": lambda: mf.Potential(trap) + mf.MeanInteraction(0.7, 0.5),
}
DENSITIES = [([0.0, 0.0], 1.0), ([1.5, -1.0], 2.0), ([-2.0, 2.0], 0.7), ([0.0, 3.0], 5.0)]


@pytest.fixture(scope="module", params=FUNCTIONALS)
def solved(request):
    problem = plane(FUNCTIONALS[request.param]())
    return problem, mf.minimise(problem, tol=1e-12)


@rows(("mean", "precision"), DENSITIES)
def test_the_gap_bounds_the_error_of_any_density(solved, mean, precision):
    problem, best = solved
    density = mf.Density.from_function(problem, gaussian(mean, precision))
    error = mf.energy(problem, density) - best.energy
    bound = mf.gap(problem, density)
    assert error > 1e-2
    assert error <= bound <= 6 * error


def test_the_gap_vanishes_at_the_minimiser(solved):
    problem, best = solved
    assert 0.0 <= mf.gap(problem, best.density) <= 1e-12


def test_the_gap_grows_as_the_square_of_the_distance(solved):
    problem, best = solved
    x, y = problem.discretisation.nodes[:2, : problem.discretisation.num_owned]
    bounds, errors = [], []
    for size in (1e-3, 2e-3, 4e-3):
        moved = mf.Density(problem, best.density.amplitude() * (1 + size * np.sin(x - 0.4 * y)))
        bounds.append(mf.gap(problem, moved))
        errors.append(mf.energy(problem, moved) - best.energy)
    assert (np.array(bounds) > errors).all()
    np.testing.assert_allclose(np.divide(bounds[1:], bounds[:-1]), 4.0, rtol=0.02)
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 4.0, rtol=0.02)


@rows(("mean", "precision"), [(0.8, 1.0), (-1.5, 3.0)])
@rows("strength", [0.0, 0.5, 1.0])
def test_the_gap_of_a_gaussian(mean, precision, strength):
    # V = ½κx² + λ_c(μ − a)x is an oscillator around −λ_c(μ − a)/κ
    target = 0.3
    problem = line(mf.Potential(half_square) + mf.MeanInteraction(strength, target), SIGMA)
    density = mf.Density.from_function(problem, gaussian(mean, precision))
    force = strength * (mean - target)
    trapped = gaussian_energy(mean, precision, sigma=SIGMA, kappa=KAPPA)
    ground = SIGMA * np.sqrt(KAPPA / 2) - force**2 / (2 * KAPPA)
    assert mf.gap(problem, density) == pytest.approx(trapped + force * mean - ground, rel=1e-6)


def test_the_gap_of_a_linear_functional_is_the_error_itself():
    problem = tilted()
    best = mf.minimise(problem)
    for mean, precision in DENSITIES:
        density = mf.Density.from_function(problem, gaussian(mean, precision))
        error = mf.energy(problem, density) - best.energy
        assert mf.gap(problem, density) == pytest.approx(error, rel=1e-10)


@rows("tolerance", [1e-4, 1e-8, 1e-12])
def test_the_tolerance_of_the_gap_is_on_the_safe_side(tolerance):
    problem = plane(network(), degree=3)
    density = mf.Density.from_function(problem, gaussian([0.5, -0.3], 1.0))
    exact = mf.eigenvalue(problem, density) - dense_spectrum(problem, density)[0]
    bound = mf.gap(problem, density, tolerance=tolerance)
    assert exact - 1e-12 <= bound <= exact + 2 * tolerance + 1e-12


@pytest.mark.parametrize("start", ["centred", "constant"])
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_the_gap_where_two_states_are_almost_degenerate(scale, start):
    """A network's V has two wells: λ₁ − λ₀ is 3e-9 and less, far below what separates states."""
    z = np.linspace(-np.pi, np.pi, 40)
    functional = mf.Potential(lambda x: 0.05 * x[0] ** 2) + mf.NetworkLoss(
        z, np.sin(z), lambda x, z: scale * np.tanh(x[0] * z + 1.0)
    )
    problem = mf.Problem(mf.interval(COMM, 7.0, 0.1), functional, 0.5, 4, mass="lumped")
    density = gaussian(0.0, 1.0) if start == "centred" else (lambda x: np.ones(x.shape[1]))
    best = mf.minimise(problem, mf.Density.from_function(problem, density))
    lowest, second, third = dense_spectrum(problem, best.density)
    assert second - lowest < 1e-8 and third - second > 0.1
    rounding = 1e-12 * abs(best.eigenvalue)
    assert best.eigenvalue - lowest - rounding <= best.gap <= 1e-10
    # And away from the minimiser, where λ₀ is far below λ.
    rough = mf.Density.from_function(problem, gaussian(0.5, 2.0))
    exact = mf.eigenvalue(problem, rough) - dense_spectrum(problem, rough)[0]
    assert mf.gap(problem, rough) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("degree", [2, 3])
def test_the_gap_against_dense_eigenvalues_on_triangles(degree):
    problem = mf.Problem(mf.box(COMM, 6.0, 1.2), network(), 0.6, degree)
    density = mf.Density.from_function(problem, gaussian([0.4, 0.2], 0.8))
    exact = mf.eigenvalue(problem, density) - dense_spectrum(problem, density)[0]
    assert mf.gap(problem, density) == pytest.approx(exact, rel=1e-9)


def test_a_lowest_state_that_changes_sign_certifies_nothing():
    mesh = mf.interval(COMM, 5.0, 1.5)
    problem = mf.Problem(mesh, mf.Potential(lambda x: 0.5 * (x[0] - 0.4) ** 2), 0.03, 2)
    density = mf.Density.from_function(problem, gaussian(0.4, 1.0))
    with pytest.raises(mf.ConvergenceError, match="changes sign: the mesh is too coarse"):
        mf.gap(problem, density)


# -- the spectral gap --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "degree", "mass", "tolerance"),
    [
        (lambda: mf.interval(COMM, 6.0, 0.5), 6, "lumped", 1e-9),
        (lambda: mf.box(COMM, 6.0, 1.2, cell="quadrilateral"), 7, "lumped", 1e-8),
        (lambda: mf.box(COMM, 6.0, 0.75), 3, "consistent", 1e-4),
        (lambda: mf.box(COMM, 5.0, 2.5, cell="hexahedron"), 4, "lumped", 3e-2),
    ],
    ids=["interval", "quadrilaterals", "triangles", "hexahedra"],
)
def test_harmonic_oscillator(mesh, degree, mass, tolerance):
    problem = mf.Problem(mesh(), mf.Potential(half_square), SIGMA, degree, mass=mass)
    best = mf.minimise(problem, tol=1e-6)
    anywhere = gaussian([1.0, -0.5, 0.3][: problem.dim], 2.0)
    for density in (best.density, mf.Density.from_function(problem, anywhere)):
        assert mf.spectral_gap(problem, density) == pytest.approx(SPACING, rel=tolerance)
    assert mf.decay_rate(problem, best.density) == pytest.approx(SPACING, rel=tolerance)


@rows(
    ("mesh", "degree", "mass", "tolerance"),
    [
        (lambda: mf.interval(COMM, 1.5, 0.5), 8, "lumped", 1e-9),
        (lambda: mf.box(COMM, 1.5, 0.5), 4, "consistent", 1e-5),
        (lambda: mf.box(COMM, 1.5, 1.0, cell="quadrilateral"), 7, "lumped", 1e-7),
        (lambda: mf.box(COMM, 1.5, 1.5, cell="hexahedron"), 5, "lumped", 1e-4),
    ],
)
def test_particle_in_a_box(mesh, degree, mass, tolerance):
    problem = mf.Problem(mesh(), ZERO, SIGMA, degree, "dirichlet", mass)
    best = mf.minimise(problem)
    # σ²(π/2R)² (4 − 1)
    exact = 3 * SIGMA**2 * np.pi**2 / (4 * 1.5**2)
    assert mf.spectral_gap(problem, best.density) == pytest.approx(exact, rel=tolerance)
    assert mf.decay_rate(problem, best.density) == pytest.approx(exact, rel=tolerance)


@rows("mean", [[0.0, 0.0], [1.5, -1.0]])
@rows("sigma", [0.2, 0.5])
def test_spectral_gap_against_dense_eigenvalues(mean, sigma):
    problem = tilted(sigma)
    density = mf.Density.from_function(problem, gaussian(mean, 1.0))
    lowest, second, _ = dense_spectrum(problem, density)
    assert mf.spectral_gap(problem, density) == pytest.approx(second - lowest, rel=1e-7)


def test_states_that_are_nearly_degenerate():
    problem = plane(mf.Potential(lambda x: 0.2 * (x[0] ** 2 - 4) ** 2 + x[1] ** 2), 0.6, 5.0, 14, 3)
    best = mf.minimise(problem, tol=1e-8)
    lowest, second, third = dense_spectrum(problem, best.density)
    assert second - lowest < 0.01 * (third - lowest)
    assert mf.spectral_gap(problem, best.density) == pytest.approx(second - lowest, rel=1e-6)
    assert mf.decay_rate(problem, best.density) == pytest.approx(second - lowest, rel=1e-6)


def ring(x):
    """A well at the origin inside a well along a circle: the first excited state is even."""
    square = x[0] ** 2 + x[1] ** 2
    return 0.02 * square - 3 * np.exp(-4 * square) - 1.8 * np.exp(-3 * (np.sqrt(square) - 3) ** 2)


@pytest.mark.parametrize("quantity", [mf.spectral_gap, mf.decay_rate])
def test_an_excited_state_that_is_even(quantity):
    problem = plane(mf.Potential(ring), 0.3, 5.0, 13, 3)
    best = mf.minimise(problem, tol=1e-8)
    lowest, second, _ = dense_spectrum(problem, best.density)
    assert quantity(problem, best.density) == pytest.approx(second - lowest, rel=1e-6)


# -- the decay rate ----------------------------------------------------------------------------


@rows("make", [line, plane])
@rows(
    "strength",
    [
        0.1,
        0.6,
        2.0,
    ],
)
def test_decay_rate_of_the_moving_gaussian(make, strength):
    problem = make(mf.Potential(half_square) + mf.MeanInteraction(strength, 0.4), SIGMA)
    best = mf.minimise(problem)
    # twice the slower of the rates of the precision and of the mean
    rate = 2 * min(SPACING, (KAPPA + strength) * SIGMA / np.sqrt(2 * KAPPA))
    assert mf.decay_rate(problem, best.density) == pytest.approx(rate, rel=1e-4)
    assert mf.spectral_gap(problem, best.density) == pytest.approx(SPACING, rel=1e-4)


@rows(
    "functional",
    [
        lambda: mf.Potential(trap) + mf.NetworkLoss(Z, np.sin(2 * Z), one_neuron),
        lambda: mf.Potential(trap) + mf.Contact(20.0),
        lambda: (
            mf.Potential(lambda x: trap(x) + 0.2 * x[0])
            + mf.Contact(5.0)
            + mf.NetworkLoss(Z, np.cos(Z), one_neuron)
        ),
    ],
)
def test_decay_rate_against_dense_eigenvalues(functional):
    problem = line(functional())
    best = mf.minimise(problem)
    rate = mf.decay_rate(problem, best.density)
    assert rate == pytest.approx(dense_rates(problem, best.density)[0], rel=1e-6)
    # convexity adds to the frozen operator
    assert rate >= mf.spectral_gap(problem, best.density)


def one_neuron(x, z):
    return np.tanh(x[0] * z + 0.5)


@rows(("tilt", "sigma"), [(0.02, 0.05), (0.05, 0.04), (0.02, 0.1)])
def test_a_mode_that_sits_where_the_density_does_not(tilt, sigma):
    """Two wells: ψ fills the left one, the slow mode the right one. F is linear: rate = gap."""
    functional = mf.Potential(lambda x: 0.5 * (x[0] ** 2 - 1.0) ** 2 + tilt * x[0])
    problem = mf.Problem(mf.interval(COMM, 3.0, 0.03), functional, sigma, 4)
    density = mf.minimise(problem).density
    lowest, second, _ = dense_spectrum(problem, density)
    assert mf.spectral_gap(problem, density) == pytest.approx(second - lowest, rel=1e-9)
    assert mf.decay_rate(problem, density) == pytest.approx(second - lowest, rel=1e-8)
    if (tilt, sigma) == (0.02, 0.05):
        assert second - lowest == pytest.approx(0.0388773, abs=2e-6)


def test_modes_that_cannot_be_separated_are_reported(caplog):
    """Without a tilt the splitting of the two wells is 1e-8: a number, with its error."""
    functional = mf.Potential(lambda x: 0.5 * (x[0] ** 2 - 1.0) ** 2)
    problem = mf.Problem(mf.interval(COMM, 3.0, 0.03), functional, 0.05, 4)
    density = mf.minimise(problem).density
    lowest, second, _ = dense_spectrum(problem, density)
    for quantity in (mf.spectral_gap, mf.decay_rate):
        caplog.clear()
        value = quantity(problem, density)
        (warning,) = [r for r in caplog.records if "cannot be separated" in r.getMessage()]
        error = float(warning.getMessage().split("up to ")[1].split(":")[0])
        assert abs(value - (second - lowest)) <= 3 * error < 1e-11


def test_decay_rate_with_walls_and_consistent_mass():
    functional = mf.Potential(lambda x: 0.3 * np.sin(x[0] + 0.4)) + mf.Contact(2.0)
    rates = []
    for mass, degree in (("lumped", 7), ("consistent", 5)):
        mesh = mf.interval(COMM, 2.0, 0.4)
        problem = mf.Problem(mesh, functional, 0.5, degree, "dirichlet", mass)
        rates.append(mf.decay_rate(problem, mf.minimise(problem).density))
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    free = 3 * 0.5**2 * np.pi**2 / 16
    assert rates[0] > free


@pytest.mark.parametrize(
    ("scheme", "mean", "precision"), [("sdirk2", 0.0, 0.5), ("crank-nicolson", -0.5, 3.0)]
)
def test_the_flow_decays_at_this_rate(scheme, mean, precision):
    problem = line(mf.Potential(trap) + mf.NetworkLoss(Z, np.sin(2 * Z), one_neuron))
    best = mf.minimise(problem, tol=1e-13)
    rate = mf.decay_rate(problem, best.density)
    flow = mf.SchrodingerFlow(problem, 0.1, scheme, fixed_point_tolerance=1e-13)
    start = mf.Density.from_function(problem, gaussian(mean, precision))
    states = list(flow.run(start, 40.0, steady_residual=1e-6))
    times = np.array([s.t for s in states])
    gaps = np.array([s.energy for s in states]) - best.energy
    tail = (gaps > 1e-11) & (gaps < 1e-8)
    assert tail.sum() > 50
    observed = -np.polyfit(times[tail], np.log(gaps[tail]), 1)[0]
    assert observed == pytest.approx(rate, rel=2e-3)


def test_a_users_functional_decays_as_the_packages_own():
    class Contact:
        def value(self, density):
            return mf.Contact(20.0).value(density)

        def derivative(self, density):
            return mf.Contact(20.0).derivative(density)

    rates = []
    for term in (mf.Contact(20.0), Contact()):
        problem = line(mf.Potential(trap) + term)
        rates.append(mf.decay_rate(problem, mf.minimise(problem).density))
    assert rates[1] == pytest.approx(rates[0], rel=1e-5)


# -- the eigensolver ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pencil():
    """Stiffness and mass of a small problem, and their dense eigenvalues."""
    problem = mf.Problem(mf.box(COMM, 1.0, 0.4), ZERO, 1.0, 2)
    matrix = problem.stiffness.copy()
    matrix.axpy(1.0, problem.mass_matrix)
    values, vectors = eigh(dense(matrix), dense_mass(problem))
    return problem, matrix, values, vectors


def identity(right, solution):
    right.copy(solution)


def starts(problem, count):
    return list(np.random.default_rng(3).normal(size=(count, problem.discretisation.num_owned)))


@rows("count", [1, 2, 4])
def test_lowest_states(pencil, count):
    problem, matrix, values, _ = pencil
    states = lowest_states(
        matrix, problem.mass_matrix, identity, starts(problem, count), tolerance=1e-8
    )
    np.testing.assert_allclose(states.values, values[:count], rtol=1e-10)
    assert 1 <= states.iterations < 500
    for i, x in enumerate(states.vectors):
        load = problem.discretisation.multiply(matrix, x) - states.values[
            i
        ] * problem.discretisation.apply_mass(x)
        assert np.linalg.norm(load) < 1e-7
        products = [
            problem.discretisation.dot(y, problem.discretisation.apply_mass(x))
            for y in states.vectors
        ]
        np.testing.assert_allclose(products, np.eye(count)[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("deflated", [0, 1])
def test_deflation_leaves_one_state_out(pencil, deflated):
    problem, matrix, values, vectors = pencil
    states = lowest_states(
        matrix,
        problem.mass_matrix,
        identity,
        starts(problem, 1),
        tolerance=1e-8,
        deflate=[vectors[:, deflated]],
    )
    assert states.values[0] == pytest.approx(values[1 - deflated], rel=1e-10)
    assert (
        abs(
            problem.discretisation.dot(
                vectors[:, deflated], problem.discretisation.apply_mass(states.vectors[0])
            )
        )
        < 1e-9
    )


def test_a_good_start_costs_nothing(pencil):
    problem, matrix, values, vectors = pencil
    states = lowest_states(
        matrix, problem.mass_matrix, identity, list(vectors[:, :2].T), tolerance=1e-6
    )
    assert states.iterations <= 1
    np.testing.assert_allclose(states.values, values[:2], rtol=1e-12)


def test_a_matrix_known_by_its_action(pencil):
    problem, matrix, values, _ = pencil
    shell = shell_matrix(matrix, lambda x, y: matrix.mult(x, y))
    assert shell.getSizes() == matrix.getSizes()
    states = lowest_states(shell, problem.mass_matrix, identity, starts(problem, 2), tolerance=1e-8)
    np.testing.assert_allclose(states.values, values[:2], rtol=1e-10)


def test_an_eigensolver_that_fails_says_what_to_try(pencil):
    problem, matrix, _, _ = pencil
    with pytest.raises(mf.ConvergenceError, match=r"found 0 of 1 .*pc_type cholesky"):
        lowest_states(matrix, problem.mass_matrix, identity, starts(problem, 1), tolerance=1e-30)


@pytest.mark.parametrize("quantity", [mf.gap, mf.spectral_gap])
def test_a_handful_of_nodes_is_too_few(quantity):
    mesh = mf.interval(COMM, 3.0, 1.0)
    problem = mf.Problem(mesh, mf.Potential(half_square), 0.7, 1)
    density = mf.Density.from_function(problem, gaussian(0.0, 1.0))
    with pytest.raises(ValueError, match=r"7 degrees of freedom are too few .* refine the mesh"):
        quantity(problem, density)
