"""The first-order condition three times, and the Bregman divergence of F^σ."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem

import fem_mf as mf
from fem_mf.bregman import bregman
from fem_mf.first_variation import first_order_forms
from fem_mf.flows.classical_part import Quadratic
from tests.exact import rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
SIGMA, KAPPA = 0.6, 0.6
STRENGTH, TARGET = 0.8, 0.5
Z = np.linspace(-2.0, 2.0, 9)
_MADE = {}


def trap(x):
    return 0.5 * KAPPA * (x[0] ** 2 + x[1] ** 2)


TERMS = {
    "network": lambda: mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1])),
    "mean": lambda: mf.MeanInteraction(STRENGTH, TARGET),
    "contact": lambda: mf.Contact(2.0),
}


def made(name, dim, h):
    if (name, dim, h) not in _MADE:
        mesh = mf.interval(COMM, 6.0, h) if dim == 1 else mf.disk(COMM, 5.5, h)
        functional = mf.Potential(trap) + TERMS[name]()
        _MADE[name, dim, h] = mf.Problem(mesh, functional, SIGMA, 2)
    return _MADE[name, dim, h]


def gaussian(problem, precision, mean):
    d = problem.dim
    mean = np.asarray(mean)[:d]
    u = Quadratic(precision * np.eye(d), -precision * mean, 0.0)
    return mf.LogDensity.from_function(problem, u.evaluate)


def wavy(problem):
    """No Gaussian: u with a bump."""
    return mf.LogDensity.from_function(
        problem, lambda x: 0.9 * (x[0] ** 2 + x[1] ** 2) + 0.4 * np.cos(1.5 * x[0] + x[1])
    )


# -- the three forms ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2])
def test_forms_of_a_gaussian_in_closed_form(dim):
    # δF^σ/δm = ½(κ − (σ²/2)θ²)|x|² + (λ_c(μ − a) + (σ²/2)θ²μ)·x + const is a polynomial: (F3) is
    # its deviation under N(μ, θ⁻¹ Id)
    problem = made("mean", dim, 0.25 if dim == 1 else 0.8)
    theta, mean = 1.5, np.array([0.6, -0.4])[:dim]
    forms = first_order_forms(problem, gaussian(problem, theta, mean))
    square = 0.5 * SIGMA**2 * theta**2
    bend = KAPPA - square
    slope = STRENGTH * (mean - TARGET) + square * mean + bend * mean  # in y = x − μ
    exact = np.sqrt(0.5 * dim * (bend / theta) ** 2 + slope @ slope / theta)
    eigenvalue = 0.5 * KAPPA * (dim / theta + mean @ mean) + 0.25 * SIGMA**2 * dim * theta
    eigenvalue += STRENGTH * (mean - TARGET) @ mean
    assert exact > 0.1
    accuracy = {1: 1e-6, 2: 1e-4}[dim]
    assert forms.hjb == pytest.approx(exact, abs=accuracy)
    assert forms.flat == pytest.approx(exact, abs=accuracy)
    assert forms.schrodinger == pytest.approx(exact, rel=5e-2)  # ψ is no polynomial
    assert forms.eigenvalues[0] == pytest.approx(eigenvalue, abs=accuracy)
    assert forms.eigenvalues[1] == pytest.approx(eigenvalue, rel=1e-2)
    assert forms.eigenvalues[2] == pytest.approx(eigenvalue, abs=accuracy)


@rows("name", TERMS)
def test_forms_tend_to_one_another(name):
    sizes, spreads, lambdas = [0.5, 0.25, 0.125], [], []
    for h in sizes:
        problem = made(name, 1, h)
        forms = first_order_forms(problem, wavy(problem))
        three = np.array([forms.flat, forms.schrodinger, forms.hjb])
        assert three.min() > 0.05
        spreads.append(np.ptp(three))
        lambdas.append(np.ptp(forms.eigenvalues))
    assert rate(sizes, spreads) > 1.5, spreads
    assert rate(sizes, lambdas) > 2.5, lambdas
    assert spreads[-1] < 1e-2 and lambdas[-1] < 1e-4


def test_forms_tend_to_one_another_in_the_plane():
    spreads = []
    for h in (0.9, 0.45):
        problem = made("network", 2, h)
        forms = first_order_forms(problem, wavy(problem))
        spreads.append(np.ptp([forms.flat, forms.schrodinger, forms.hjb]))
        assert np.ptp(forms.eigenvalues) < 2e-2
    assert spreads[1] < 0.5 * spreads[0]
    assert spreads[1] < 0.05


@rows("name", TERMS)
def test_forms_vanish_at_the_minimiser(name):
    sizes, rows = [0.5, 0.25, 0.125], []
    for h in sizes:
        problem = made(name, 1, h)
        start = mf.Density(problem, wavy(problem).amplitude())
        minimum = mf.minimise(problem, start)
        forms = first_order_forms(problem, minimum.density)
        assert forms.schrodinger < 1e-6  # its own equation
        np.testing.assert_allclose(forms.eigenvalues, minimum.eigenvalue, rtol=0, atol=0.05 * h)
        rows.append([forms.flat, forms.hjb])
    for column in np.array(rows).T:
        assert rate(sizes, column) > 0.9, rows
        assert column[-1] < 2e-2


def test_the_steady_state_of_the_flow_satisfies_its_own_form():
    problem = made("network", 1, 0.25)
    *_, last = mf.HJBFlow(problem, 10.0).run(wavy(problem), 1e4, steady_residual=1e-10)
    forms = first_order_forms(problem, last.density)
    assert forms.hjb < 1e-9
    assert forms.schrodinger < 5e-2
    assert forms.flat < 5e-2


# -- Bregman -----------------------------------------------------------------------------------

PAIRS = {
    "network": [(1.5, [0.6, -0.4], 1.1, [-0.2, 0.3]), (1.0, [0.0, 0.0], 2.5, [0.5, 0.5])],
    "mean": [(1.5, [0.6, -0.4], 1.1, [-0.2, 0.3])],
    "contact": [(1.5, [0.6, -0.4], 1.1, [-0.2, 0.3]), (2.5, [0.5, 0.0], 1.2, [0.0, 0.0])],
}


@rows("dim", [1, 2])
@rows("name", TERMS)
def test_both_parts_are_positive_for_convex_functionals(name, dim):
    problem = made(name, dim, 0.25 if dim == 1 else 0.8)
    for theta, mean, other_theta, other_mean in PAIRS[name]:
        pair = gaussian(problem, theta, mean), gaussian(problem, other_theta, other_mean)
        for new, old in (pair, pair[::-1]):
            gap = bregman(problem, new, old)
            assert gap.functional > 1e-4
            assert gap.fisher > 1e-4
            assert gap.total == gap.functional + gap.fisher
    same = bregman(problem, pair[0], pair[0])
    assert same.functional == pytest.approx(0.0, abs=1e-13)
    assert same.fisher == 0.0


@pytest.mark.parametrize("dim", [1, 2])
def test_bregman_of_gaussians_in_closed_form(dim):
    # (λ_c/2)|μ' − μ|²; and ∇log(m'/m) = (θ − θ')y + θ(μ' − μ), y = x − μ' of N(0, θ'⁻¹)
    problem = made("mean", dim, 0.25 if dim == 1 else 0.8)
    for theta, mean, new_theta, new_mean in [
        (1.5, [0.6, -0.4], 1.1, [-0.2, 0.3]),
        (1.1, [-0.2, 0.3], 1.9, [0.6, -0.4]),
    ]:
        old, new = gaussian(problem, theta, mean), gaussian(problem, new_theta, new_mean)
        gap = bregman(problem, new, old)
        shift = np.array(new_mean)[:dim] - np.array(mean)[:dim]
        accuracy = {1: 1e-8, 2: 1e-5}[dim]
        functional = 0.5 * STRENGTH * shift @ shift
        fisher = (theta - new_theta) ** 2 * dim / new_theta + theta**2 * shift @ shift
        assert gap.functional == pytest.approx(functional, abs=accuracy)
        moved = new.mean() - old.mean()
        assert gap.functional == pytest.approx(0.5 * STRENGTH * moved @ moved, abs=1e-12)
        assert gap.fisher == pytest.approx(0.25 * SIGMA**2 * fisher, abs=accuracy)


def test_a_functional_that_is_not_convex_is_found_out():
    mesh = mf.interval(COMM, 6.0, 0.5)
    problem = mf.Problem(mesh, mf.Potential(trap) + mf.MeanInteraction(-0.8, 0.5), SIGMA, 2)
    gap = bregman(problem, gaussian(problem, 1.5, [0.6]), gaussian(problem, 1.5, [-0.4]))
    assert gap.functional == pytest.approx(-0.4, abs=1e-6)
    assert gap.fisher > 0


@rows("name", TERMS)
def test_total_is_what_linearising_leaves(name):
    # F^σ(m') − F^σ(m) − ∫δF^σ/δm d(m' − m), with δF^σ/δm by the operator of the flow
    errors, sizes = [], [0.5, 0.25]
    for h in sizes:
        problem = made(name, 1, h)
        old, new = wavy(problem), gaussian(problem, 1.3, [0.3])
        rate = mf.HJBOperator(problem).rate(old.u(), problem.functional.derivative(old))
        slope = rate.x.array[: problem.discretisation.num_owned]
        linear = new.expectation(slope) - old.expectation(slope)
        total = mf.energy(problem, new) - mf.energy(problem, old) - linear
        assert total > 1e-2
        errors.append(abs(bregman(problem, new, old).total - total))
    assert errors[1] < 0.3 * errors[0] or errors[1] < 1e-8
    assert errors[1] < 1e-3


def test_densities_known_by_their_amplitudes():
    problem = made("mean", 1, 0.25)
    old, new = gaussian(problem, 1.5, [0.3]), gaussian(problem, 1.1, [0.0])
    psi = [mf.Density(problem, m.amplitude()) for m in (new, old)]
    a, b = bregman(problem, new, old), bregman(problem, *psi)
    assert a.functional == pytest.approx(b.functional, abs=1e-6)
    assert a.fisher == pytest.approx(b.fisher, abs=1e-6)


def test_relative_fisher_information_is_the_integral():
    problem = made("mean", 1, 0.25)
    old, new = wavy(problem), gaussian(problem, 1.3, [0.3])
    difference = ufl.grad(old.u() - new.u())
    dx = ufl.dx(metadata={"quadrature_degree": 12})
    form = fem.form(ufl.inner(difference, difference) * ufl.exp(-new.u()) * dx)
    exact = 0.25 * SIGMA**2 * fem.assemble_scalar(form)
    assert bregman(problem, new, old).fisher == pytest.approx(exact, rel=1e-8)


def test_amplitudes_too_small_for_a_logarithm():
    problem = made("mean", 1, 0.25)
    narrow = mf.Density(problem, gaussian(problem, 30.0, [0.0]).amplitude())
    with pytest.raises(ValueError, match="too far for ψ to determine u"):
        first_order_forms(problem, narrow)
    with pytest.raises(ValueError, match="too far for ψ to determine u"):
        bregman(problem, narrow, narrow)
