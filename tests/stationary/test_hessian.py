"""The second derivative on the sphere, and the Newton step that solves with it."""

from itertools import pairwise

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.mean_field.moments import mean_field_of
from fem_mf.observables import first_order, hamiltonian
from fem_mf.petsc import Preconditioner, default_preconditioner
from fem_mf.stationary.certificate import Metric
from fem_mf.stationary.hessian import Hamiltonian, Hessian
from fem_mf.stationary.newton_cg import Descent, NotPositiveError, newton_direction
from tests.exact import gaussian
from tests.rows import rows

COMM = MPI.COMM_WORLD
PREFIX = "fem_mf_test_"
Z = np.linspace(-2.0, 2.0, 40)
SIGMA, KAPPA = 0.6, 0.8
SPREAD = np.sqrt(2.0 * KAPPA) / SIGMA


def trap(x):
    return 0.1 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def half_square(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def network():
    return mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))


def classifier():
    labels = np.where(np.cos(3 * Z) > 0, 1.0, -1.0)
    return mf.NetworkLoss(Z, labels, lambda x, z: 4 * np.tanh(x[0] * z + x[1]), loss="logistic")


def quartic():
    """A cylindrical functional whose curvature changes with the moments."""
    return mf.Cylindrical(
        [lambda x: np.tanh(x[0]), lambda x: x[1], lambda x: np.ones_like(x[0])],
        lambda y: y[0] ** 4 + np.exp(y[0] * y[1]) + y[2] ** 2,
        lambda y: np.array(
            [4 * y[0] ** 3 + y[1] * np.exp(y[0] * y[1]), y[0] * np.exp(y[0] * y[1]), 2 * y[2]]
        ),
    )


class Users:
    """½λ|∫x dm|² + (γ/3)(∫x₀² dm)³ as a user would write it."""

    strength, cubic = 0.8, 0.3

    def value(self, density):
        third = self.cubic / 3 * density.integrate(lambda x: x[0] ** 2) ** 3
        return 0.5 * self.strength * float(density.mean() @ density.mean()) + third

    def derivative(self, density):
        force = self.strength * density.mean()
        slope = self.cubic * density.integrate(lambda x: x[0] ** 2) ** 2
        v = density.problem.new_potential()
        v.interpolate(lambda x: force @ x[: len(force)] + slope * x[0] ** 2)
        return v


FUNCTIONALS = {
    "linear": lambda: mf.Potential(trap),
    "network": lambda: mf.Potential(trap) + network(),
    "classifier": lambda: mf.Potential(trap) + classifier(),
    "quartic": quartic,
    "contact": lambda: mf.Potential(trap) + mf.Contact(20.0),
    "attractive contact": lambda: mf.Contact(-4.0) + mf.Potential(trap),
    "user's": Users,
    "mixed": lambda: (
        mf.Potential(trap) + 2 * network() + 0.5 * (mf.Contact(6.0) + Users()) + quartic()
    ),
}
MESHES = {
    "quadrilaterals": (lambda: mf.box(COMM, 4.0, 1.6, cell="quadrilateral"), 4, "lumped"),
    "quadrilaterals, exact": (
        lambda: mf.box(COMM, 4.0, 2.0, cell="quadrilateral"),
        3,
        "consistent",
    ),
    "disk": (lambda: mf.disk(COMM, 4.0, 1.5, cell="quadrilateral"), 3, "lumped"),
    "triangles": (lambda: mf.box(COMM, 4.0, 1.2), 2, "consistent"),
    "triangles, lumped": (lambda: mf.box(COMM, 4.0, 0.8), 1, "lumped"),
}
_MADE = {}


def linearised(functional, mesh="quadrilaterals", boundary="natural"):
    """A density, its first-order data and the Hessian there, made once."""
    key = functional, mesh, boundary
    if key not in _MADE:
        make, degree, mass = MESHES[mesh]
        problem = mf.Problem(make(), FUNCTIONALS[functional](), SIGMA, degree, boundary, mass)
        density = mf.Density.from_function(problem, gaussian([0.5, -0.3], 1.0))
        condition = first_order(problem, density)
        hessian = Hessian(problem)
        hessian.update(density, condition)
        _MADE[key] = density, condition, hessian
    return _MADE[key]


def tangents(density, count=3):
    """Smooth directions v ⊥ ψ of norm one."""
    problem, psi = density.problem, density.amplitude()
    x, y = problem.discretisation.nodes[:2, : problem.discretisation.num_owned]
    for i in range(count):
        v = psi * np.sin((i + 1) * x - 0.7 * y + i) + 0.1 * psi * y
        v -= psi * problem.discretisation.dot(density.mass_amplitude(), v)
        yield v / problem.discretisation.norm(v)


def without(density, load):
    """The part of a load vector that the tangent space sees."""
    return load - density.mass_amplitude() * density.problem.discretisation.dot(
        density.amplitude(), load
    )


def difference(density, v, step=1e-4):
    """The derivative of the load H[m]ψ along the great circle through ψ in the direction v."""
    problem, psi = density.problem, density.amplitude()
    loads = []
    for sign in (1.0, -1.0):
        moved = np.cos(step) * psi + sign * np.sin(step) * v
        loads.append(hamiltonian(problem, mf.Density(problem, moved, normalised=True)))
    return (loads[0] - loads[1]) / (2.0 * step)


def check_differences(density, condition, hessian):
    problem = density.problem
    for v in tangents(density):
        expected = difference(
            density, v
        ) - condition.eigenvalue * problem.discretisation.apply_mass(v)
        result = without(density, hessian.apply(v))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, without(density, expected), rtol=0, atol=1e-6 * scale)
        assert np.abs(result[problem.discretisation.constrained]).max(initial=0.0) == 0.0


@rows("boundary", ["natural", "dirichlet"])
@rows("functional", FUNCTIONALS)
def test_hessian_is_the_derivative_of_the_load(functional, boundary):
    check_differences(*linearised(functional, boundary=boundary))


@rows("boundary", ["natural", "dirichlet"])
@rows("mesh", list(MESHES)[1:])
def test_hessian_on_every_mesh(mesh, boundary):
    check_differences(*linearised("mixed", mesh, boundary))


@rows("functional", FUNCTIONALS)
def test_hessian_is_symmetric_and_linear(functional):
    mesh = "triangles" if functional in ("network", "mixed") else "quadrilaterals"
    density, _, hessian = linearised(functional, mesh)
    tolerance = 1e-7 if "'" in functional or functional == "mixed" else 1e-12
    v, w, _ = tangents(density)
    jv, jw = hessian.apply(v), hessian.apply(w)
    scale = np.abs(jv).max()
    assert w @ jv == pytest.approx(v @ jw, abs=tolerance)
    both = without(density, hessian.apply(3.0 * v - w) - 3.0 * jv + jw)
    assert np.abs(both).max() < 10 * tolerance * scale
    assert np.abs(hessian.apply(0.0 * v)).max() == 0.0


@rows("functional", ["network", "contact", "user's"])
def test_second_derivative_of_the_energy(functional):
    # along a great circle, d²F^σ/ds² = 2⟨v, Jv⟩
    density, _, hessian = linearised(functional)
    problem, psi, h = density.problem, density.amplitude(), 1e-3
    for v in tangents(density):
        energies = [
            mf.energy(
                problem, mf.Density(problem, np.cos(s) * psi + np.sin(s) * v, normalised=True)
            )
            for s in (-h, 0.0, h)
        ]
        second = (energies[0] - 2 * energies[1] + energies[2]) / h**2
        assert 2 * (v @ hessian.apply(v)) == pytest.approx(second, rel=1e-4)


@rows("strength", [-0.5, 0.0, 2.0])
def test_eigenvectors_at_the_moving_gaussian(strength):
    mesh = mf.interval(COMM, 7.0, 0.5)
    functional = mf.Potential(half_square) + mf.MeanInteraction(strength)
    problem = mf.Problem(mesh, functional, SIGMA, 6, mass="lumped")
    density = mf.Density.from_function(problem, gaussian(0.0, SPREAD))
    hessian = Hessian(problem)
    hessian.update(density, first_order(problem, density))
    x, psi = (
        problem.discretisation.nodes[0, : problem.discretisation.num_owned],
        density.amplitude(),
    )
    spacing = SIGMA * np.sqrt(2 * KAPPA)
    # the modes of the mean and of the precision
    for v, rate in (
        (x * psi, 2 * (KAPPA + strength) * SIGMA / np.sqrt(2 * KAPPA)),
        ((SPREAD * x**2 - 1) * psi, 2 * spacing),
    ):
        load = hessian.apply(v)
        np.testing.assert_allclose(
            load, rate * problem.discretisation.apply_mass(v), rtol=0, atol=1e-7
        )


def test_curvatures_are_those_of_the_outer_function():
    problem = linearised("linear")[0].problem
    density = mf.Density.from_function(problem, gaussian([0.5, -0.3], 2.0))
    variances = np.linalg.eigvalsh(density.covariance())
    for strength in (-1.5, 0.7):
        functional = mf.Potential(trap) + mf.MeanInteraction(strength, 1.0)
        other = mf.Problem(problem.mesh, functional, SIGMA, 4, mass="lumped")
        curvatures = Hessian(other).curvatures_at(density.on(other))
        np.testing.assert_allclose(np.sort(curvatures), np.sort(strength * variances), rtol=1e-6)
    assert Hessian(linearised("contact")[0].problem).curvatures_at(density).size == 0


def test_negligible_directions_are_left_out():
    density, condition, exact = linearised("network")
    rough = Hessian(density.problem, negligible=1e-2)
    rough.update(density, condition)
    assert 1 <= rough.directions < exact.directions
    for v in tangents(density):
        expected, result = without(density, exact.apply(v)), without(density, rough.apply(v))
        assert 0 < np.abs(result - expected).max() < 1e-2 * np.abs(expected).max()


@rows("functional", ["network", "quartic"])
@rows("mesh", ["quadrilaterals", "triangles"])
def test_covariance_of_the_moments(functional, mesh):
    density = linearised(functional, mesh)[0]
    mean_field = mean_field_of(density.problem)
    basis = mean_field.basis[: density.problem.discretisation.num_potential_owned]
    centred = basis - density.measure() @ basis
    exact = (centred.T * density.measure()) @ centred
    np.testing.assert_allclose(mean_field.covariance(density), exact, rtol=0, atol=1e-12)
    second = mean_field.covariance(density) + np.outer(*2 * [mean_field.evaluate(density)])
    np.testing.assert_allclose(np.diag(second), mean_field.second_moments(density), rtol=1e-10)


# -- operators ---------------------------------------------------------------------------------


@rows("boundary", ["natural", "dirichlet"])
@rows("mesh", MESHES)
def test_frozen_operator(mesh, boundary):
    density, condition, _ = linearised("linear", mesh, boundary)
    problem = density.problem
    operator = Hamiltonian(problem)
    handle = operator.matrix.handle
    for factor in (1.0, 2.0, -0.5):
        operator.update(factor * condition.potential)
        for v in tangents(density, 2):
            expected = SIGMA**2 * problem.discretisation.multiply(problem.stiffness, v)
            expected += problem.discretisation.apply_potential(factor * condition.potential, v)
            result = problem.discretisation.multiply(operator.matrix, v)
            free = np.delete(result - expected, problem.discretisation.constrained)
            assert np.abs(free).max() < 1e-13
    assert operator.matrix.handle == handle


def metric_load(density, condition, v, margin):
    """P v for the metric of a margin."""
    problem = density.problem
    lowest = problem.discretisation.min(condition.potential)
    load = SIGMA**2 * problem.discretisation.multiply(problem.stiffness, v)
    load += problem.discretisation.apply_potential(condition.potential, v)
    shift = lowest - margin * (condition.eigenvalue - lowest)
    load -= shift * problem.discretisation.apply_mass(v)
    load[problem.discretisation.constrained] = 0.0
    return load


@rows(
    ("mesh", "boundary", "margin"),
    [
        ("quadrilaterals", "natural", 0.1),
        ("quadrilaterals", "dirichlet", 10.0),
        ("triangles", "natural", 10.0),
        ("triangles", "dirichlet", 0.1),
    ],
)
def test_the_metric_is_positive_and_solved_exactly(mesh, boundary, margin):
    density, condition, _ = linearised("network", mesh, boundary)
    metric = Metric(density.problem)
    assert metric.applications == 0
    metric.rebuild(condition.potential, condition.eigenvalue, margin)
    spread = condition.eigenvalue - density.problem.discretisation.min(condition.potential)
    for v in tangents(density, 2):
        load = metric_load(density, condition, v, margin)
        assert v @ load >= margin * spread
        v[density.problem.discretisation.constrained] = 0.0
        np.testing.assert_allclose(metric.solve(load), v, rtol=0, atol=1e-12)
    assert metric.applications == 2


@pytest.mark.parametrize("mesh", ["quadrilaterals", "triangles"])
def test_the_metric_is_rebuilt(mesh):
    density, condition, _ = linearised("network", mesh)
    metric = Metric(density.problem)
    (v,) = tangents(density, 1)
    for margin in (0.1, 10.0, 0.1):
        metric.rebuild(condition.potential, condition.eigenvalue, margin)
        load = metric_load(density, condition, v, margin)
        np.testing.assert_allclose(metric.solve(load), v, rtol=0, atol=1e-12)


@pytest.fixture
def shifted():
    """Stiffness plus mass, a preconditioner of it and a right-hand side."""
    problem = linearised("linear", "triangles")[0].problem
    matrix = problem.stiffness.copy()
    matrix.axpy(1.0, problem.mass_matrix, PETSc.Mat.Structure.SAME_NONZERO_PATTERN)
    options = default_preconditioner(problem.discretisation.num_owned, 2)
    right = matrix.createVecLeft()
    right.array[:] = np.cos(np.arange(problem.discretisation.num_owned))
    return matrix, Preconditioner(matrix, PREFIX, options), right


def applied(preconditioner, right):
    solution = right.duplicate()
    preconditioner.apply(right, solution)
    return solution.array.copy()


def test_a_preconditioner_is_kept_while_the_matrix_changes(shifted):
    matrix, preconditioner, right = shifted
    before = applied(preconditioner, right)
    product = right.duplicate()
    matrix.mult(PETSc.Vec().createWithArray(before, comm=COMM), product)
    np.testing.assert_allclose(product.array, right.array, rtol=0, atol=1e-12)
    matrix.scale(2.0)
    np.testing.assert_array_equal(applied(preconditioner, right), before)
    assert preconditioner.applications == 2


def test_a_preconditioner_is_rebuilt_when_asked(shifted):
    matrix, preconditioner, right = shifted
    before = applied(preconditioner, right)
    for factor in (2.0, 4.0):
        matrix.scale(2.0)
        preconditioner.rebuild()
        np.testing.assert_allclose(applied(preconditioner, right), before / factor, rtol=1e-10)


def test_preconditioners_leave_no_options_behind(shifted):
    options = default_preconditioner(10, 2)
    with pytest.raises(ValueError, match="rejected the solver options"):
        Preconditioner(shifted[0], PREFIX, options, {"pc_type": "nonsense"})
    assert not any(PREFIX in key for key in PETSc.Options().getAll())


def test_default_preconditioners():
    kinds = [
        default_preconditioner(dofs, dim)["pc_type"]
        for dofs, dim in ((10**6, 1), (10**5, 2), (10**6, 2), (10**4, 3), (10**5, 3), (10**6, 3))
    ]
    assert kinds == ["cholesky", "cholesky", "gamg", "cholesky", "bjacobi", "gamg"]


# -- the Newton step ---------------------------------------------------------------------------


def small(functional, mean=0.4):
    """A density near a minimiser, its first-order data and the Hessian, on twenty nodes."""
    problem = mf.Problem(mf.interval(COMM, 4.0, 2.0), functional, 0.8, 5, mass="lumped")
    density = mf.Density.from_function(problem, gaussian(mean, 1.0))
    hessian = Hessian(problem)
    condition = first_order(problem, density)
    hessian.update(density, condition)
    return density, condition, hessian


def solve(density, condition, hessian, precondition=None, **options):
    if precondition is None:
        metric = Metric(density.problem)
        metric.rebuild(condition.potential, condition.eigenvalue)
        precondition = metric.solve
    return newton_direction(
        density,
        condition.gradient,
        hessian.apply,
        precondition,
        **({"tolerance": 1e-5} | options),
    )


CONVEX = {
    "trap": lambda: mf.Potential(half_square),
    "interaction": lambda: mf.Potential(half_square) + mf.MeanInteraction(2.0, 1.0),
    "contact": lambda: mf.Potential(half_square) + mf.Contact(3.0),
}


@rows("name", CONVEX)
def test_newton_direction_against_a_dense_solve(name):
    density, condition, hessian = small(CONVEX[name]())
    n, mass_psi = density.problem.discretisation.num_owned, density.mass_amplitude()
    bordered = np.zeros((n + 1, n + 1))
    bordered[:n, :n] = np.column_stack([hessian.apply(e) for e in np.eye(n)])
    bordered[:n, n] = bordered[n, :n] = mass_psi
    exact = np.linalg.solve(bordered, np.append(-condition.gradient, 0.0))[:n]
    step = solve(density, condition, hessian)
    assert not step.truncated
    assert 2 <= step.iterations <= n
    np.testing.assert_allclose(step.direction, exact, rtol=0, atol=1e-5)
    assert abs(step.direction @ mass_psi) < 1e-12


def test_newton_direction_with_another_preconditioner():
    density, condition, hessian = small(CONVEX["contact"]())
    diagonal = density.problem.discretisation.mass_diagonal
    usual = solve(density, condition, hessian)
    plain = solve(density, condition, hessian, precondition=lambda load: load / diagonal)
    assert plain.iterations > usual.iterations
    np.testing.assert_allclose(plain.direction, usual.direction, rtol=0, atol=1e-5)


@rows("name", CONVEX)
def test_newton_direction_to_a_tight_tolerance(name):
    density, condition, hessian = small(CONVEX[name]())
    step = solve(density, condition, hessian, tolerance=1e-11)
    assert not step.truncated


def test_looser_tolerances_take_fewer_iterations():
    density, condition, hessian = small(CONVEX["contact"]())
    counts = [solve(density, condition, hessian, tolerance=t).iterations for t in (0.5, 1e-2, 1e-5)]
    assert 1 <= counts[0] < counts[1] < counts[2]
    cut = solve(density, condition, hessian, max_iterations=2)
    assert cut.truncated and cut.iterations == 2
    assert condition.gradient @ cut.direction < 0


def test_negative_curvature_gives_a_direction_of_descent():
    density, condition, hessian = small(
        mf.Potential(half_square) + mf.MeanInteraction(-6.0), mean=0.05
    )
    step = solve(density, condition, hessian)
    assert step.truncated
    assert condition.gradient @ step.direction < 0
    assert abs(step.direction @ density.mass_amplitude()) < 1e-12
    problem, psi = density.problem, density.amplitude()
    v = step.direction / problem.discretisation.norm(step.direction)
    energies = [
        mf.energy(problem, mf.Density(problem, np.cos(s) * psi + np.sin(s) * v))
        for s in (0.0, 1e-3, 1e-2)
    ]
    assert energies[0] > energies[1] > energies[2]


def test_preconditioners_that_are_not_positive():
    density, condition, hessian = small(CONVEX["trap"]())
    mass_psi = density.mass_amplitude()

    def positive_along_the_amplitude(load):
        return 3.0 * mass_psi * (mass_psi @ load) / (mass_psi @ mass_psi) - load

    for precondition in (lambda load: -load, positive_along_the_amplitude, lambda load: 0.0 * load):
        with pytest.raises(NotPositiveError):
            solve(density, condition, hessian, precondition)


def test_descent_yields_iterates_from_the_start_on():
    density, condition, _ = small(CONVEX["contact"]())
    problem = density.problem
    iterates = list(Descent(problem).run(density, residual=1e-9, max_iterations=20))
    first, last = iterates[0], iterates[-1]
    assert first.energy == pytest.approx(mf.energy(problem, density), rel=1e-13)
    assert first.residual == pytest.approx(condition.residual, rel=1e-10)
    assert last.residual <= 1e-9 < iterates[-2].residual
    for before, after in pairwise(iterates):
        assert after.energy <= before.energy + 1e-13
    # quadratic convergence at the end
    ratio = np.log(iterates[-1].residual) / np.log(iterates[-2].residual)
    assert ratio > 1.3
    with pytest.raises(mf.ConvergenceError, match="after 2 iterations"):
        list(Descent(problem).run(density, residual=1e-9, max_iterations=2))
