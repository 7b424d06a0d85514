"""The weak forms: what they say, and that the package solves what stands there."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc
from scipy import linalg

import fem_mf as mf
from fem_mf import equations
from tests.exact import gaussian

COMM = MPI.COMM_WORLD
SIGMA = 0.6


def stretch(x):
    """K(x), a factor of the gradient part."""
    return 1.0 + 0.5 * ufl.sin(x[0]) ** 2


def schrodinger_with_coefficient(psi, chi, V, sigma, dx):
    x = ufl.SpatialCoordinate(ufl.domain.extract_unique_domain(chi))
    flux = ufl.inner(stretch(x) * ufl.grad(psi), ufl.grad(chi))
    return sigma**2 * flux * dx + V * psi * chi * dx


def schrodinger_with_a_field_for_sigma(psi, chi, V, sigma, dx):
    x = ufl.SpatialCoordinate(ufl.domain.extract_unique_domain(chi))
    field = sigma * (1.0 + 0.3 * ufl.cos(x[0]))
    return field**2 * ufl.inner(ufl.grad(psi), ufl.grad(chi)) * dx + V * psi * chi * dx


def schrodinger_linear_in_sigma(psi, chi, V, sigma, dx):
    return sigma * ufl.inner(ufl.grad(psi), ufl.grad(chi)) * dx + V * psi * chi * dx


CHANGES = {
    "coefficient": (schrodinger_with_coefficient, lambda x: SIGMA**2 * (1 + 0.5 * np.sin(x) ** 2)),
    "field": (
        schrodinger_with_a_field_for_sigma,
        lambda x: SIGMA**2 * (1.0 + 0.3 * np.cos(x)) ** 2,
    ),
    "linear in sigma": (schrodinger_linear_in_sigma, lambda x: SIGMA * np.ones_like(x)),
}
MESHES = {
    "degree 2": {"degree": 2},
    "degree 4 collocated": {"degree": 4, "mass": "lumped"},
    "degree 1 lumped": {"degree": 1, "mass": "lumped"},
}


def line(options, h=0.1):
    functional = mf.Potential(lambda x: 0.5 * x[0] ** 2) + mf.MeanInteraction(0.5, 1.0)
    return mf.Problem(mf.interval(COMM, 4.0, h), functional, SIGMA, **options)


def finite_differences(diffusion, potential, n=4001):
    """Ground state of −(D ψ')' + Vψ on [−4, 4] without flux, order two in 8/n."""
    x = np.linspace(-4.0, 4.0, n)
    h = x[1] - x[0]
    between = diffusion(0.5 * (x[1:] + x[:-1])) / h**2
    diagonal = potential(x)
    diagonal[:-1] += between
    diagonal[1:] += between
    weights = np.full(n, 1.0)
    weights[[0, -1]] = 0.5
    root = np.sqrt(weights)
    off = -between / (root[1:] * root[:-1])
    diagonal = (diagonal - potential(x)) / weights + potential(x)
    values, vectors = linalg.eigh_tridiagonal(diagonal, off, select="i", select_range=(0, 0))
    psi = np.abs(vectors[:, 0]) / root
    return values[0], x, psi / np.sqrt(h * np.sum(weights * psi**2)), h * weights


def stationary_by_finite_differences(diffusion):
    """Minimum and λ of F + (gradient part) by iterating on the mean, without the package."""
    mean = 0.0
    for _ in range(200):
        force = 0.5 * (mean - 1.0)
        eigenvalue, x, psi, weights = finite_differences(
            diffusion, lambda x, force=force: 0.5 * x**2 + force * x
        )
        new = weights @ (x * psi**2)
        if abs(new - mean) < 1e-12:
            break
        mean = new
    value = eigenvalue - 0.5 * (mean - 1.0) * mean + 0.25 * (mean - 1.0) ** 2
    return value, eigenvalue


@pytest.mark.parametrize(("change", "options"), list(zip(CHANGES, MESHES, strict=True)))
def test_a_changed_form_changes_what_is_solved(monkeypatch, change, options):
    form, diffusion = CHANGES[change]
    usual = mf.minimise(line(MESHES[options]))
    monkeypatch.setattr(equations, "schrodinger", form)
    problem = line(MESHES[options])
    best = mf.minimise(problem)
    value, eigenvalue = stationary_by_finite_differences(diffusion)
    accuracy = 2e-3 if options == "degree 1 lumped" else 2e-6
    assert best.energy == pytest.approx(value, abs=accuracy)
    assert best.eigenvalue == pytest.approx(eigenvalue, abs=accuracy)
    assert abs(best.energy - usual.energy) > 20 * accuracy
    # The certificate is that of the changed equation: above the true error, at any density.
    rough = mf.Density.from_function(problem, gaussian(0.3, 1.0))
    assert mf.gap(problem, rough) >= mf.energy(problem, rough) - best.energy > 1e-3
    # And the flow goes there.
    *_, last = mf.SchrodingerFlow(problem, 1e3).run(rough, 5e3)
    assert last.energy == pytest.approx(best.energy, abs=1e-10)
    assert last.residual == pytest.approx(mf.residual(problem, last.density), abs=1e-7)


def test_another_sigma_is_assembled_where_the_form_does_not_scale(monkeypatch):
    monkeypatch.setattr(equations, "schrodinger", schrodinger_linear_in_sigma)
    problem = line(MESHES["degree 4 collocated"])
    other = problem.with_sigma(0.3)
    fresh = mf.Problem(problem.mesh, problem.functional, 0.3, 4, mass="lumped")
    density = mf.Density.from_function(other, gaussian(0.3, 1.0))
    assert mf.energy(other, density) == pytest.approx(
        mf.energy(fresh, mf.Density(fresh, density.amplitude())), rel=1e-12
    )


def test_a_usual_form_takes_the_fast_path(caplog):
    with caplog.at_level("INFO", logger="fem_mf"):
        problem = line(MESHES["degree 4 collocated"])
        assert problem.with_sigma(0.2).stiffness is problem.stiffness
    assert not [r for r in caplog.records if "assembled as written" in r.getMessage()]


def test_a_fast_path_that_is_wrong_is_not_taken(monkeypatch, caplog):
    from fem_mf import discretisation

    original = discretisation.collocated_stiffness

    def wrong(space, constrained):
        matrix = original(space, constrained)
        matrix.scale(1.0 + 1e-9)
        return matrix

    monkeypatch.setattr(discretisation, "collocated_stiffness", wrong)
    with caplog.at_level("INFO", logger="fem_mf"):
        problem = line(MESHES["degree 4 collocated"])
    assert [r for r in caplog.records if "assembled as written" in r.getMessage()]
    ones = problem.discretisation.nodes[0, : problem.discretisation.num_owned]
    assert problem.discretisation.dot(
        ones, problem.discretisation.multiply(problem.stiffness, ones)
    ) == pytest.approx(8.0, rel=1e-11)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda psi, chi, V, sigma: V * (psi + 0.1 * ufl.grad(psi)[0]) * chi, "degree 2"),
        (lambda psi, chi, V, sigma: 2.0 * V * psi * chi, "degree 4 collocated"),
        (lambda psi, chi, V, sigma: 2.0 * V * psi * chi, "degree 1 lumped"),
        (lambda psi, chi, V, sigma: sigma * V * psi * chi, "degree 2"),
    ],
    ids=["not multiplied", "doubled", "doubled, lumped", "times sigma"],
)
def test_v_must_enter_as_the_derivative_of_the_functional(monkeypatch, change, options):
    """With another V-part H would not be half the derivative of F^σ, nor the gap a bound."""

    def changed(psi, chi, V, sigma, dx):
        return equations.fisher(psi, chi, sigma) * dx + change(psi, chi, V, sigma) * dx

    monkeypatch.setattr(equations, "schrodinger", changed)
    with pytest.raises(ValueError, match="V must enter as ∫Vψχ"):
        line(MESHES[options])


def test_the_same_form_written_in_another_way_is_accepted(monkeypatch):
    def reordered(psi, chi, V, sigma, dx):
        return chi * (V * psi) * dx + sigma * ufl.inner(ufl.grad(chi), sigma * ufl.grad(psi)) * dx

    usual = mf.minimise(line(MESHES["degree 4 collocated"]))
    monkeypatch.setattr(equations, "schrodinger", reordered)
    assert mf.minimise(line(MESHES["degree 4 collocated"])).energy == pytest.approx(
        usual.energy, rel=1e-12
    )


# -- the forms themselves ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane():
    mesh = mf.box(COMM, 2.0, 0.5)
    space = fem.functionspace(mesh, ("Lagrange", 4))
    x = ufl.SpatialCoordinate(mesh)
    return mesh, space, x, ufl.Measure("dx", mesh, metadata={"quadrature_degree": 12})


def bump(x):
    """A function that vanishes at the boundary, and its gradient too."""
    return (4.0 - x[0] ** 2) ** 2 * (4.0 - x[1] ** 2) ** 2


def vector(form):
    return fem_petsc.assemble_vector(fem.form(form)).array.copy()


def number(form):
    return fem.assemble_scalar(fem.form(form))


def test_the_schrodinger_form_is_half_the_derivative_of_the_energy(plane):
    _, space, x, dx = plane
    psi, chi = fem.Function(space), ufl.TestFunction(space)
    psi.interpolate(lambda x: np.exp(-(x[0] ** 2) - 0.5 * x[1] ** 2 + 0.3 * x[0]))
    g = x[0] ** 2 + x[1]
    total = equations.energy(psi, 0.7, dx) + g * psi**2 * dx
    derivative = 0.5 * vector(ufl.derivative(total, psi, chi))
    np.testing.assert_allclose(
        derivative, vector(equations.schrodinger(psi, chi, g, 0.7, dx)), atol=1e-14
    )


def test_the_energy_in_psi_and_in_u_is_the_same(plane):
    *_, x, dx = plane
    u = x[0] ** 2 + 0.5 * x[1] ** 2 + 0.2 * x[0] * x[1]
    psi = ufl.exp(-u / 2)
    assert number(equations.energy(psi, 0.7, dx)) == pytest.approx(
        number(equations.log_energy(u, 0.7, dx)), rel=1e-12
    )


def test_the_hjb_form_is_minus_the_right_hand_side(plane):
    mesh, space, x, dx = plane
    ds = ufl.Measure("ds", mesh, metadata={"quadrature_degree": 12})
    chi, sigma = ufl.TestFunction(space), 0.7
    u, v = x[0] ** 3 + x[1] ** 2, x[0] ** 2 - x[1]
    V = ufl.cos(x[0])
    right = sigma**2 / 2 * ufl.div(ufl.grad(u)) - sigma**2 / 4 * ufl.inner(ufl.grad(u), ufl.grad(u))
    form = equations.hjb(u, chi, V, sigma, dx, ds)
    np.testing.assert_allclose(vector(form), vector(-(right + V) * chi * dx), atol=2e-13)
    drift = sigma**2 / 2 * ufl.inner(ufl.grad(v), ufl.grad(u))
    form = equations.hjb(u, chi, V, sigma, dx, ds, v)
    np.testing.assert_allclose(vector(form), vector(-(right - drift + V) * chi * dx), atol=2e-13)


def test_hopf_cole_is_the_schrodinger_operator_divided_by_two(plane):
    """With ψ = √ρφ and H of v's own potential, ½⟨χ√ρ, (H − V_v)ψ⟩ is the form of (W3)."""
    *_, x, dx = plane
    sigma, v, G = 0.7, 0.5 * x[0] ** 2 + x[1] ** 2, ufl.sin(x[1])
    root = ufl.exp(-v / 2)
    phi, chi = 1.0 + 0.3 * x[0], bump(x) * (1.0 + x[1])
    # the potential of which √ρ is a solution: V_v = σ²Δ√ρ/√ρ
    own = sigma**2 * (0.25 * ufl.inner(ufl.grad(v), ufl.grad(v)) - 0.5 * ufl.div(ufl.grad(v)))
    left = number(equations.schrodinger(root * phi, root * chi, own + G, sigma, dx))
    assert number(equations.hopf_cole(phi, chi, v, G, sigma, dx)) == pytest.approx(
        0.5 * left, rel=1e-8
    )


def test_hopf_cole_with_its_boundary_term_is_the_equation_of_phi(plane):
    _, space, x, dx = plane
    ds = ufl.ds(domain=space.mesh, metadata=dx.metadata())
    chi, sigma = ufl.TestFunction(space), 0.7
    v, G, phi = 0.3 * x[0] ** 2 - 0.2 * x[1], ufl.cos(x[0]), 2.0 + x[0] ** 2 + 0.5 * x[1]
    drift = ufl.inner(ufl.grad(v), ufl.grad(phi))
    right = sigma**2 / 2 * (ufl.div(ufl.grad(phi)) - drift) - 0.5 * G * phi
    form = equations.hopf_cole(phi, chi, v, G, sigma, dx, ds)
    np.testing.assert_allclose(vector(form), vector(-right * chi * ufl.exp(-v) * dx), atol=1e-12)


def test_the_first_variation_is_the_hjb_operator_against_m(plane):
    *_, x, dx = plane
    sigma, u, V = 0.7, x[0] ** 2 + x[1] ** 2 + 0.3 * x[0], ufl.cos(x[0])
    chi = bump(x) * (1.0 + x[0])
    strong = V + sigma**2 / 2 * ufl.div(ufl.grad(u))
    strong -= sigma**2 / 4 * ufl.inner(ufl.grad(u), ufl.grad(u))
    assert number(equations.first_variation(u, chi, V, sigma, dx)) == pytest.approx(
        number(strong * chi * ufl.exp(-u) * dx), rel=1e-10
    )


def test_langevin_vanishes_at_gibbs_densities(plane):
    _, space, x, dx = plane
    sigma, V, chi = 0.7, x[0] ** 2 + 0.5 * x[1] ** 2, ufl.TestFunction(space)
    gibbs = ufl.exp(-2 * V / sigma**2)
    assert np.abs(vector(equations.langevin(gibbs, chi, V, sigma, dx))).max() < 1e-13
    assert np.abs(vector(equations.langevin(gibbs**2, chi, V, sigma, dx))).max() > 1e-3


def test_relative_fisher_is_the_bregman_divergence_of_the_energy(plane):
    """(D6), by quadrature: I(m′) − I(m) − ⟨δI(m), m′ − m⟩ on smooth functions of a disk."""
    *_, x, dx = plane
    sigma = 0.7
    old, new = 0.5 * x[0] ** 2 + x[1] ** 2, x[0] ** 2 + 0.4 * x[1] ** 2 + 0.2 * x[0]
    value = number(equations.relative_fisher(new, old, sigma, dx))
    difference = number(equations.log_energy(new, sigma, dx))
    difference -= number(equations.log_energy(old, sigma, dx))
    linear = number(equations.first_variation(old, ufl.exp(old - new) - 1.0, 0.0, sigma, dx))
    assert value == pytest.approx(difference - linear, rel=1e-10)
