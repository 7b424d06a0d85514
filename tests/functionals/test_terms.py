"""Functionals and their derivatives against formulas, independent quadrature and Taylor tests."""

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem
from scipy.optimize import minimize

import fem_mf as mf
from tests.exact import gaussian, rate
from tests.rows import rows

COMM = MPI.COMM_WORLD
Z = np.linspace(-2.0, 2.0, 7)
Y = np.sin(2.0 * Z)

MESHES = {
    "interval": lambda: mf.interval(COMM, 4.0, 0.5),
    "triangles": lambda: mf.box(COMM, 4.0, 1.0),
    "quadrilaterals": lambda: mf.box(COMM, 4.0, 1.0, cell="quadrilateral"),
    "tetrahedra": lambda: mf.box(COMM, 3.0, 1.5, dim=3),
    "hexahedra": lambda: mf.box(COMM, 3.0, 1.5, cell="hexahedron"),
}
SPACES = [
    ("interval", 3, "lumped"),
    ("triangles", 1, "lumped"),
    ("triangles", 2, "consistent"),
    ("quadrilaterals", 2, "consistent"),
    ("quadrilaterals", 4, "lumped"),
    ("tetrahedra", 1, "consistent"),
    ("hexahedra", 2, "lumped"),
]
PLANE = [s for s in SPACES if s[0] in ("triangles", "quadrilaterals")]
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda s: "-".join(map(str, s)))
every_plane = pytest.mark.parametrize("space", PLANE, ids=lambda s: "-".join(map(str, s)))


def neuron(x, z):
    return np.tanh(x[0] * z + x[1])


def neuron_with_weight(x, z):
    return x[2] * np.tanh(x[0] * z + x[1])


def network(dim=2):
    return mf.NetworkLoss(Z, Y, neuron if dim < 3 else neuron_with_weight)


def bump(x):
    """A density without any symmetry."""
    return np.exp(-0.6 * (x[0] - 0.3) ** 2 - 0.9 * (x[1] + 0.2) ** 2 - 0.5 * (x[2] - 0.1) ** 2)


def density_on(space, functional):
    name, degree, mass = space
    problem = mf.Problem(MESHES[name](), functional, sigma=0.5, degree=degree, mass=mass)
    return mf.Density.from_function(problem, bump)


def integral(density, integrand, degree=12):
    """∫integrand(x, ψ) dx in the problem's own rule when lumped, else by a much better one."""
    problem = density.problem
    dx = problem.discretisation.dx_mass if problem.lumped else ufl.dx(degree=degree)
    x = ufl.SpatialCoordinate(problem.mesh)
    return COMM.allreduce(fem.assemble_scalar(fem.form(integrand(x, density.psi) * dx)))


def nodal(values):
    """Values of a function at the nodes of its space."""
    return values.x.array


# -- values and derivatives --------------------------------------------------------------------


@rows("space", SPACES)
def test_potential(space):
    def g(x):
        return 1.0 + x[0] - 2.0 * x[0] ** 2 + (0.5 * x[1] if space[0] != "interval" else 0.0)

    functional = mf.Potential(g)
    density = density_on(space, functional)
    exact = integral(density, lambda x, psi: g(x) * psi**2)
    if space[1] == 1 and space[2] == "consistent":
        # g is interpolated in P1 there: compare with the interpolant's integral
        v = functional.derivative(density)
        exact = integral(density, lambda x, psi: v * psi**2)
    assert functional.value(density) == pytest.approx(exact, rel=1e-12)
    potential = functional.derivative(density)
    assert potential.function_space is density.problem.potential_space
    np.testing.assert_allclose(
        nodal(potential), g(density.problem.discretisation.potential_nodes), atol=1e-13
    )


@rows("space", SPACES)
def test_mean_interaction(space):
    target = 0.7
    functional = mf.MeanInteraction(3.0, target)
    density = density_on(space, functional)
    dim = density.problem.dim
    mean = np.array([integral(density, lambda x, p, i=i: x[i] * p**2) for i in range(dim)])
    exact = 1.5 * np.sum((mean - target) ** 2)
    assert functional.value(density) == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(
        nodal(functional.derivative(density)),
        3.0 * (mean - target) @ density.problem.discretisation.potential_nodes[:dim],
        atol=1e-12,
    )


def test_mean_interaction_with_one_target_per_coordinate():
    functional = mf.MeanInteraction(2.0, [0.3, -0.2])
    density = density_on(("triangles", 2, "consistent"), functional)
    expected = np.sum((density.mean() - [0.3, -0.2]) ** 2)
    assert functional.value(density) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="target has 2 components on a mesh of dimension 3"):
        functional.value(density_on(("tetrahedra", 1, "consistent"), functional))
    for strength, target in ((np.nan, 0.0), (1.0, np.inf)):
        with pytest.raises(ValueError, match="finite strength and target"):
            mf.MeanInteraction(strength, target)


@rows("space", PLANE)
def test_cylindrical_of_two_moments(space):
    functional = mf.Cylindrical(
        [lambda x: x[0], lambda x: x[0] * x[1] + 1.0],
        lambda y: np.exp(y[0]) * y[1] ** 2,
        lambda y: np.exp(y[0]) * np.array([y[1] ** 2, 2.0 * y[1]]),
    )
    density = density_on(space, functional)
    y = [
        integral(density, lambda x, psi: x[0] * psi**2),
        integral(density, lambda x, psi: (x[0] * x[1] + 1.0) * psi**2),
    ]
    assert functional.value(density) == pytest.approx(np.exp(y[0]) * y[1] ** 2, rel=1e-12)
    x = density.problem.discretisation.potential_nodes
    expected = np.exp(y[0]) * (y[1] ** 2 * x[0] + 2.0 * y[1] * (x[0] * x[1] + 1.0))
    np.testing.assert_allclose(nodal(functional.derivative(density)), expected, atol=1e-12)


def test_cylindrical_refuses_a_gradient_of_the_wrong_shape_and_no_features():
    functional = mf.Cylindrical([lambda x: x[0]], lambda y: y[0] ** 2, lambda y: 2.0 * y[0])
    with pytest.raises(ValueError, match=r"gradient returned shape \(\), expected \(1,\)"):
        functional.derivative(density_on(("interval", 3, "lumped"), functional))
    with pytest.raises(ValueError, match="at least one feature"):
        mf.Cylindrical([], lambda y: 0.0, lambda y: y)


def check_network(density, functional, ufl_neuron, numpy_neuron, rtol):
    outputs = np.array(
        [integral(density, lambda x, p, z=z: ufl_neuron(x, z) * p**2, 16) for z in Z]
    )
    np.testing.assert_allclose(functional.predict(density), outputs, rtol=0, atol=rtol)
    exact = np.mean((Y - outputs) ** 2)
    assert functional.value(density) == pytest.approx(exact, rel=10 * rtol)
    x = density.problem.discretisation.potential_nodes
    expected = (
        -2.0
        / Z.size
        * sum((y - f) * numpy_neuron(x, z) for y, f, z in zip(Y, outputs, Z, strict=True))
    )
    np.testing.assert_allclose(nodal(functional.derivative(density)), expected, atol=10 * rtol)


def ufl_neuron(x, z):
    return ufl.tanh(x[0] * float(z) + x[1])


@rows(
    ("space", "rtol"),
    [
        (("triangles", 1, "lumped"), 1e-13),
        (("quadrilaterals", 4, "lumped"), 1e-13),
        (("triangles", 3, "consistent"), 2e-4),  # the neuron is interpolated: order 2k
    ],
)
def test_network_loss_in_the_plane(space, rtol):
    functional = network()
    check_network(density_on(space, functional), functional, ufl_neuron, neuron, rtol)


@pytest.mark.parametrize(
    ("space", "rtol"),
    [(("hexahedra", 2, "lumped"), 1e-13), (("tetrahedra", 2, "consistent"), 3e-3)],
)
def test_network_loss_with_an_output_weight_in_space(space, rtol):
    functional = network(3)
    density = density_on(space, functional)
    check_network(
        density,
        functional,
        lambda x, z: x[2] * ufl_neuron(x, z),
        neuron_with_weight,
        rtol,
    )


def test_network_loss_with_data_of_two_inputs():
    data = np.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.9]])
    functional = mf.NetworkLoss(
        data, [1.0, 0.0, -1.0], lambda x, z: np.tanh(x[0] * z[0] + x[1] * z[1])
    )
    density = density_on(("quadrilaterals", 4, "lumped"), functional)
    outputs = [
        integral(
            density, lambda x, p, z=z: ufl.tanh(x[0] * float(z[0]) + x[1] * float(z[1])) * p**2
        )
        for z in data
    ]
    exact = np.mean((np.array([1.0, 0.0, -1.0]) - outputs) ** 2)
    assert functional.value(density) == pytest.approx(exact, rel=1e-12)
    assert functional.predict(density, data[:1]) == pytest.approx(outputs[:1], rel=1e-12)


def test_network_predicts_at_new_inputs():
    functional = network()
    density = density_on(("quadrilaterals", 4, "lumped"), functional)
    new = [-1.3, 0.2, 5.0]
    exact = [integral(density, lambda x, p, z=z: ufl_neuron(x, z) * p**2) for z in new]
    np.testing.assert_allclose(functional.predict(density, new), exact, rtol=0, atol=1e-13)
    np.testing.assert_allclose(functional.predict(density, Z), functional.predict(density))


def test_logistic_loss():
    labels = np.sign(np.cos(3.0 * Z))
    functional = mf.NetworkLoss(Z, labels, lambda x, z: 5.0 * neuron(x, z), loss="logistic")
    density = density_on(("quadrilaterals", 4, "lumped"), functional)
    f = functional.predict(density)
    assert functional.value(density) == pytest.approx(np.mean(np.log1p(np.exp(-labels * f))))
    x = density.problem.discretisation.potential_nodes
    slopes = -labels / (1.0 + np.exp(labels * f)) / Z.size
    expected = sum(c * 5.0 * neuron(x, z) for c, z in zip(slopes, Z, strict=True))
    np.testing.assert_allclose(nodal(functional.derivative(density)), expected, atol=1e-13)
    assert 1.9 < mf.check_derivative(functional, density).order < 2.1
    assert mf.functionals.probe_convexity(functional, density) > 0


def test_logistic_loss_of_outputs_far_from_zero():
    functional = mf.NetworkLoss([1.0, 2.0], [-1.0, 1.0], neuron, loss="logistic")
    far = np.array([1e4, 1e4])
    assert functional.phi(far) == 5e3
    np.testing.assert_array_equal(functional.gradient(far), [0.5, 0.0])


def test_network_loss_refuses_an_unknown_loss_and_labels_of_another_kind():
    with pytest.raises(ValueError, match="loss must be 'squared' or 'logistic', not 'hinge'"):
        mf.NetworkLoss(Z, Y, neuron, loss="hinge")
    with pytest.raises(ValueError, match=r"y are labels −1 or 1; got values \[0\. 1\.\]"):
        mf.NetworkLoss([1.0, 2.0], [0.0, 1.0], neuron, loss="logistic")


@rows("space", SPACES)
def test_contact_is_exact(space):
    functional = mf.Contact(2.5)
    density = density_on(space, functional)
    exact = integral(density, lambda x, psi: psi**4, 4 * space[1])
    assert functional.value(density) == pytest.approx(1.25 * exact, rel=1e-12)
    potential = functional.derivative(density)
    # V is βψ² as a function, not only at nodes
    error = integral(density, lambda x, psi: (potential - 2.5 * psi**2) ** 2, 4 * space[1])
    assert abs(error) < 1e-26
    with pytest.raises(ValueError, match="beta must be finite"):
        mf.Contact(np.nan)


def test_contact_of_a_gaussian():
    problem = mf.Problem(
        mf.box(COMM, 6.0, 0.75, cell="quadrilateral"), mf.Contact(1.0), 0.5, 6, mass="lumped"
    )
    theta = 1.7
    density = mf.Density.from_function(problem, gaussian([0.1, -0.2], theta))
    assert problem.functional.value(density) == pytest.approx(0.5 * theta / (4 * np.pi), rel=1e-8)


# -- algebra -----------------------------------------------------------------------------------


class Custom:
    """½(∫|x|² dm)², as a user would write it, on a space of its own."""

    def value(self, density):
        return 0.5 * density.integrate(lambda x: x[0] ** 2 + x[1] ** 2) ** 2

    def derivative(self, density):
        second = density.integrate(lambda x: x[0] ** 2 + x[1] ** 2)
        space = fem.functionspace(density.problem.mesh, ("Lagrange", 2))
        v = fem.Function(space)
        v.interpolate(lambda x: second * (x[0] ** 2 + x[1] ** 2))
        return v


def built_in():
    return mf.Cylindrical(
        [lambda x: x[0] ** 2 + x[1] ** 2], lambda y: 0.5 * float(y[0]) ** 2, lambda y: y
    )


@rows("space", PLANE)
def test_sums_and_multiples(space):
    a, b, c = mf.Potential(lambda x: x[0] ** 2), network(), mf.MeanInteraction(2.0, 0.4)
    sums = {
        "2a + b/2 - c": (2 * a + b * 0.5 + (-1) * c, (2.0, 0.5, -1.0)),
        "sum": (sum([a, b, c]), (1.0, 1.0, 1.0)),
        "nested": (2 * (a + 3 * (b + c)), (2.0, 6.0, 6.0)),
        "numpy": (np.float64(2.0) * a + np.int64(1) * b + 0 * c, (2.0, 1.0, 0.0)),
    }
    density = density_on(space, a + b + c)
    for name, (total, factors) in sums.items():
        parts = list(zip(factors, (a, b, c), strict=True))
        value = sum(f * term.value(density) for f, term in parts)
        assert total.value(density) == pytest.approx(value, rel=1e-13), name
        potential = sum(f * nodal(term.derivative(density)) for f, term in parts)
        np.testing.assert_allclose(nodal(total.derivative(density)), potential, atol=1e-13)


def test_contact_in_a_sum_has_the_potential_space_it_needs():
    functional = mf.Potential(lambda x: x[0] ** 2) + 2.0 * mf.Contact(1.0)
    density = density_on(("triangles", 2, "consistent"), functional)
    assert density.problem.discretisation.potential_degree == 4
    exact = integral(density, lambda x, psi: x[0] ** 2 * psi**2 + psi**4, 8)
    assert functional.value(density) == pytest.approx(exact, rel=1e-12)


def test_what_is_not_a_functional_is_refused():
    functional = mf.Contact(1.0)
    for wrong in (lambda: functional + 1.0, lambda: "2" * functional, lambda: functional + None):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match="factor of a functional must be finite"):
        np.nan * functional
    with pytest.raises(ValueError, match=r"value\(density\) and derivative\(density\)"):
        mf.Problem(MESHES["interval"](), lambda m: 0.0, sigma=0.5)


@rows("space", [s for s in PLANE if s[1] > 1])
def test_user_defined_functional_equals_the_built_in_one(space):
    custom, known = Custom(), built_in()
    density = density_on(space, custom)
    trap = mf.Potential(lambda x: x[0] ** 2)
    for user, own in ((custom, known), (2.0 * (trap + custom), 2.0 * (trap + known))):
        assert user.value(density) == pytest.approx(own.value(density), rel=1e-12)
        np.testing.assert_allclose(
            density.problem.on_potential_space(user.derivative(density)),
            nodal(own.derivative(density)),
            atol=1e-11,
        )
    assert (custom + trap).value(density) == pytest.approx((trap + custom).value(density))
    assert sum([trap, custom]).value(density) == pytest.approx((trap + custom).value(density))


@rows(
    ("result", "text"),
    [
        (lambda m: np.ones(3), "must return a scalar dolfinx.fem.Function"),
        (lambda m: density_on(("interval", 3, "lumped"), Custom()).psi, "problem's mesh"),
        (lambda m: not_finite(m.problem), "values that are not finite"),
    ],
)
def test_a_user_defined_derivative_is_checked(result, text):
    class Broken(Custom):
        def derivative(self, density):
            return result(density)

    density = density_on(("triangles", 2, "consistent"), Broken())
    with pytest.raises(ValueError, match=text):
        mf.residual(density.problem, density)


def not_finite(problem):
    v = problem.new_potential()
    v.x.array[:] = np.nan
    return v


# -- Taylor test and convexity -----------------------------------------------------------------


def nonlinear(dim):
    """On an interval the neuron is tanh(az), x[1] being zero."""
    return {
        "network": network(dim),
        "mean interaction": mf.MeanInteraction(2.0, 0.5),
        "cylindrical": mf.Cylindrical(
            [lambda x: np.cos(x[0]), lambda x: x[0] ** 2],
            lambda y: np.exp(y[0] + 0.3 * y[1]),
            lambda y: np.exp(y[0] + 0.3 * y[1]) * np.array([1.0, 0.3]),
        ),
        "contact": mf.Contact(1.5),
        "sum": 2.0 * mf.Contact(1.0) + network(dim) + mf.Potential(lambda x: x[0] ** 4),
    }


@every_space
def test_taylor_remainder_is_of_order_two(space):
    functionals = nonlinear(3 if space[0] in ("tetrahedra", "hexahedra") else 2)
    for name in ("network", "mean interaction", "cylindrical", "contact", "sum"):
        functional = functionals[name]
        density = density_on(space, functional)
        for seed in range(2):
            check = mf.check_derivative(functional, density, seed=seed)
            assert abs(check.order - 2.0) < 0.1, (name, check)


def test_taylor_remainder_of_users_functional_is_of_order_two():
    density = density_on(("triangles", 2, "consistent"), Custom())
    assert abs(mf.check_derivative(Custom(), density).order - 2.0) < 0.1


def test_taylor_remainder_of_a_linear_functional_is_rounding():
    functional = mf.Potential(lambda x: np.sin(x[0]))
    check = mf.check_derivative(functional, density_on(("triangles", 2, "consistent"), functional))
    assert check.order == np.inf
    assert check.remainders.max() < 1e-14


class Wrong(mf.Contact):
    """A derivative of twice the size: somebody forgot ½."""

    def derivative(self, density):
        v = super().derivative(density)
        v.x.array[:] *= 2.0
        return v


@pytest.mark.parametrize("space", [("triangles", 2, "consistent"), ("quadrilaterals", 4, "lumped")])
def test_taylor_remainder_shows_a_wrong_derivative(space):
    wrong = Wrong(1.0)
    check = mf.check_derivative(wrong, density_on(space, wrong))
    assert abs(check.order - 1.0) < 0.2
    assert check.remainders[-1] > 1e-5
    sign = mf.Cylindrical([lambda x: x[0]], lambda y: y[0] ** 2, lambda y: -2.0 * y)
    assert abs(mf.check_derivative(sign, density_on(space, sign)).order - 1.0) < 0.2


@every_plane
def test_convexity_probe(space):
    convex = [network(), mf.MeanInteraction(1.0, 0.2), mf.Contact(1.0)]
    for functional in [*convex, sum(convex)]:
        assert mf.functionals.probe_convexity(functional, density_on(space, functional)) > 1e-6
    concave = [mf.MeanInteraction(-1.0), mf.Contact(-1.0), -1.0 * network()]
    for functional in concave:
        assert mf.functionals.probe_convexity(functional, density_on(space, functional)) < -1e-6
    linear = mf.Potential(lambda x: x[0] ** 2)
    assert mf.functionals.probe_convexity(linear, density_on(space, linear)) == 0.0


def test_convexity_probe_sees_a_pair_attraction_in_a_convex_sum():
    # −½∬|x − x'|² dm dm is not convex: |∫x dm|² − ∫|x|² dm, up to sign
    attraction = mf.Potential(lambda x: x[0] ** 2 + x[1] ** 2) + mf.MeanInteraction(-2.0)
    density = density_on(("quadrilaterals", 4, "lumped"), attraction)
    assert mf.functionals.probe_convexity(attraction, density) < -1e-6


# -- convergence of the potential's quadrature -------------------------------------------------


@rows(
    ("cell", "degree", "mass", "order"),
    [
        ("triangle", 1, "lumped", 2),
        ("triangle", 2, "consistent", 4),
        ("quadrilateral", 2, "lumped", 4),
        ("quadrilateral", 3, "consistent", 6),
    ],
)
def test_moments_converge_at_the_order_of_the_energy(cell, degree, mass, order):
    # one ψ for all meshes: the error is only that of the potential space and of its quadrature
    def exact(x, z=1.0):
        return np.tanh(x[0] * z + x[1] + 0.4)

    functional = mf.Potential(exact)
    x, w = np.polynomial.hermite_e.hermegauss(80)
    points = np.array([g.ravel() for g in np.meshgrid(x, x)]) / np.sqrt(1.2)
    weights = np.outer(w, w).ravel() / (2 * np.pi)
    reference = exact(np.vstack([points[0] + 0.3, points[1] - 0.2])) @ weights
    errors, sizes = [], [0.5, 0.25]
    mesh = None
    for h in sizes:
        refined = mesh is not None and cell == "triangle"
        mesh = mf.refine(mesh) if refined else mf.box(COMM, 6.5, h, cell=cell)
        problem = mf.Problem(mesh, functional, 0.5, degree, mass=mass)
        density = mf.Density.from_function(problem, gaussian([0.3, -0.2], 1.2))
        errors.append(abs(functional.value(density) - reference))
    assert rate(sizes, errors) > order - 0.3, errors


# -- functions of a mesh -----------------------------------------------------------------------


@rows("options", [{"degree": 2}, {"degree": 1, "mass": "lumped"}])
@rows("kind", ["UFL", "Function"])
def test_potentials_and_features_may_be_functions_of_the_mesh(kind, options):
    mesh = mf.disk(COMM, 3.0, 0.5)
    x = ufl.SpatialCoordinate(mesh)
    expressions = [x[0] ** 2 + 0.5 * x[1] ** 2, ufl.tanh(x[0]), ufl.sin(x[1])]
    callables = [
        lambda x: x[0] ** 2 + 0.5 * x[1] ** 2,
        lambda x: np.tanh(x[0]),
        lambda x: np.sin(x[1]),
    ]
    if kind == "Function":
        space = fem.functionspace(mesh, ("Lagrange", 6))
        expressions = [fem.Function(space) for _ in callables]
        for function, callable_ in zip(expressions, callables, strict=True):
            function.interpolate(callable_)

    def problem_of(g, *features):
        term = mf.Cylindrical(features, lambda y: 0.5 * float(y @ y), lambda y: y)
        return mf.Problem(mesh, mf.Potential(g) + term, 0.5, **options)

    tied, free = problem_of(*expressions), problem_of(*callables)
    density = mf.Density.from_function(tied, lambda x: np.exp(-(x[0] ** 2) - x[1] ** 2))
    other = mf.Density(free, density.amplitude())
    accuracy = 1e-10 if kind == "UFL" else 1e-6
    assert tied.functional.value(density) == pytest.approx(
        free.functional.value(other), rel=accuracy
    )
    np.testing.assert_allclose(
        tied.functional.derivative(density).x.array,
        free.functional.derivative(other).x.array,
        rtol=0,
        atol=10 * accuracy,
    )
    assert mf.minimise(tied).energy == pytest.approx(mf.minimise(free).energy, rel=accuracy)


def test_functions_of_another_mesh_are_refused():
    here, there = mf.disk(COMM, 3.0, 0.8), mf.disk(COMM, 3.0, 0.8)
    x = ufl.SpatialCoordinate(there)
    functional = mf.Potential(x[0] ** 2)
    problem = mf.Problem(here, functional, 0.5, 2)
    density = mf.Density(problem, np.ones(problem.discretisation.num_owned))
    with pytest.raises(ValueError, match="on another mesh: it ties the functional"):
        functional.value(density)
    with pytest.raises(ValueError, match=r"shape \(2,\); a scalar is needed"):
        mf.Potential(ufl.SpatialCoordinate(here)).value(density)
    with pytest.raises(ValueError, match="not finite"):
        mf.Potential(ufl.ln(ufl.SpatialCoordinate(here)[0])).value(density)


def test_features_that_vanish_on_the_mesh():
    """x has three rows in every dimension: a neuron of d = 3 is zero on a mesh in the plane."""
    mesh = mf.box(COMM, 4.0, 1.0)
    loss = mf.NetworkLoss(Z, Y, lambda x, z: x[2] * np.tanh(x[0] * z + x[1]))
    problem = mf.Problem(mesh, mf.Potential(lambda x: x[0] ** 2) + loss, 0.5, 2)
    density = mf.Density(problem, np.ones(problem.discretisation.num_owned))
    with pytest.raises(ValueError, match=r"every feature vanishes .* x\[2:\] is zero"):
        loss.value(density)
    with pytest.raises(ValueError, match=r"vanishes at all nodes"):
        mf.SchrodingerFlow(problem, 0.1)


def test_a_feature_that_vanishes_is_named(caplog):
    z = np.array([-1.0, 0.0, 1.0])
    loss = mf.NetworkLoss(z, z, lambda x, z: np.tanh(x[0] * z))
    problem = mf.Problem(mf.interval(COMM, 3.0, 0.5), loss, 0.5, 2)
    loss.value(mf.Density(problem, np.ones(problem.discretisation.num_owned)))
    (warning,) = [r.getMessage() for r in caplog.records if "vanish" in r.getMessage()]
    assert warning.startswith("warning: 1 of 3 features") and warning.endswith("number 1")
    zero = mf.Problem(mf.interval(COMM, 3.0, 0.5), mf.Potential(lambda x: 0.0 * x[0]), 0.5, 2)
    assert mf.minimise(zero).energy == pytest.approx(0.0, abs=1e-12)  # a flat V is one


def test_features_are_shared_by_several_sigma_and_by_no_other_data():
    calls = []

    def neuron(x, z):
        calls.append(z)
        return np.tanh(x[0] * z + 0.5)

    mesh = mf.interval(COMM, 4.0, 0.5)
    loss = mf.NetworkLoss(Z, Y, neuron)
    problem = mf.Problem(mesh, loss, 0.5, 2)
    density = mf.Density(problem, np.ones(problem.discretisation.num_owned))
    value = loss.value(density)
    assert len(calls) == len(Z)
    other = problem.with_sigma(0.3)
    assert loss.value(mf.Density(other, np.ones(other.discretisation.num_owned))) == value
    assert len(calls) == len(Z)  # nothing was evaluated anew
    # Other data, and another discretisation, have features of their own.
    changed = mf.NetworkLoss(Z[::-1], Y, neuron)
    assert changed.value(density) != value and len(calls) == 2 * len(Z)
    finer = mf.Problem(mesh, loss, 0.5, 3)
    assert loss.value(mf.Density(finer, np.ones(finer.discretisation.num_owned))) == pytest.approx(
        value, rel=1e-3
    )
    assert len(calls) == 3 * len(Z)


# -- your own ----------------------------------------------------------------------------------

OWN = {
    "lumped": {"degree": 4, "mass": "lumped"},
    "consistent": {"degree": 2, "potential_degree": 4},
    "degree 1": {"degree": 1, "mass": "lumped"},
}


class OwnContact(mf.Functional):
    """β/2 ∫m² dx as a user would write it."""

    def __init__(self, beta):
        self.beta = beta

    def value(self, density):
        return 0.5 * self.beta * density.expect(density.values())

    def derivative(self, density):
        return density.potential(self.beta * density.values())


def own_forms(beta):
    yield OwnContact(beta)
    yield beta * OwnContact(1.0)  # a Functional takes factors
    yield 2.0 * mf.functional(
        value=lambda m: 0.25 * beta * m.expect(m.values()),
        derivative=lambda m: 0.5 * beta * m.values(),
        convex=True,
    )


@rows("options", OWN)
def test_functionals_of_your_own_on_points_and_weights(options):
    """Potential and contact term by hand, against the package's, for every mass and degree."""
    mesh, beta = mf.interval(COMM, 5.0, 0.25), 3.0
    trap = mf.functional(
        value=lambda m: m.expect(0.5 * m.points()[0] ** 2),
        derivative=lambda m: 0.5 * m.points()[0] ** 2,
        convex=True,
    )
    usual = mf.Potential(lambda x: 0.5 * x[0] ** 2) + mf.Contact(beta)
    reference = mf.Problem(mesh, usual, 0.7, **OWN[options])
    best = mf.minimise(reference)
    for contact in own_forms(beta):
        problem = mf.Problem(mesh, trap + contact, 0.7, **OWN[options])
        density = mf.Density(problem, best.density.amplitude())
        assert mf.energy(problem, density) == pytest.approx(best.energy, rel=1e-12)
        np.testing.assert_allclose(
            problem.functional.derivative(density).x.array,
            usual.derivative(best.density).x.array,
            rtol=0,
            atol=1e-12,
        )
        assert mf.check_derivative(problem.functional, density).order > 1.9
        found = mf.minimise(problem, tol=1e-9)
        assert found.energy == pytest.approx(best.energy, abs=1e-9)


def test_a_functional_that_is_not_quadratic():
    """(β/3)∫m³ with lumped mass: a Taylor test, and the minimum against SciPy."""
    beta, sigma = 4.0, 0.8
    cubic = mf.functional(
        value=lambda m: beta / 3 * m.expect(m.values() ** 2),
        derivative=lambda m: beta * m.values() ** 2,
    )
    problem = mf.Problem(
        mf.interval(COMM, 4.0, 0.25),
        mf.Potential(lambda x: 0.5 * x[0] ** 2) + cubic,
        sigma,
        1,
        mass="lumped",
    )
    start = mf.Density.from_function(problem, gaussian(0.4, 1.5))
    assert mf.check_derivative(cubic, start).order > 1.9
    stiffness = problem.stiffness.copy().convert("dense").getDenseArray()
    mass, x = problem.discretisation.mass_diagonal, problem.discretisation.nodes[0]

    def value_and_slope(free):
        norm = np.sqrt(mass @ free**2)
        psi = free / norm
        value = sigma**2 * psi @ stiffness @ psi
        value += mass @ (0.5 * x**2 * psi**2 + beta / 3 * psi**6)
        slope = 2 * sigma**2 * stiffness @ psi + mass * (x**2 * psi + 2 * beta * psi**5)
        return value, (slope - mass * psi * (psi @ slope)) / norm

    found = minimize(
        value_and_slope,
        start.amplitude(),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 5000},
    )
    best = mf.minimise(problem, start)
    assert best.energy == pytest.approx(found.fun, abs=1e-10)
    *_, last = mf.SchrodingerFlow(problem, 1e3).run(start, 4e3)
    assert last.energy == pytest.approx(found.fun, abs=1e-10)


@rows("options", [{"degree": 2}, {"degree": 4, "mass": "lumped"}])
@rows("mesh", ["interval", "triangles", "quadrilaterals"])
def test_functionals_as_forms(mesh, options):
    """Potential, contact and a cubic as UFL forms, against the package's and against formulas."""
    if mesh == "triangles" and options.get("mass") == "lumped":
        options = {"degree": 1, "mass": "lumped"}
    domain = MESHES[mesh]()
    x = ufl.SpatialCoordinate(domain)
    forms = {
        "potential": mf.FormFunctional(lambda m, dx: 0.5 * x[0] ** 2 * m * dx, convex=True),
        "contact": mf.FormFunctional(lambda m, dx: 1.5 * m**2 * dx, convex=True),
        "cubic": mf.FormFunctional(lambda m, dx: 4.0 / 3.0 * m**3 * dx, convex=True),
    }
    terms = {"potential": mf.Potential(lambda x: 0.5 * x[0] ** 2), "contact": mf.Contact(3.0)}
    problem = mf.Problem(domain, forms["potential"] + forms["contact"], 0.7, **options)
    density = mf.Density.from_function(problem, gaussian([0.3, -0.2, 0.0][: problem.dim], 1.2))
    for name, term in terms.items():
        assert forms[name].value(density) == pytest.approx(term.value(density), rel=1e-10)
        np.testing.assert_allclose(
            forms[name].derivative(density).x.array,
            term.derivative(density).x.array,
            rtol=0,
            atol=1e-8,
        )
    # The cubic: V = βm² in the sense of L², and a Taylor test where that is exact.
    v, m = forms["cubic"].derivative(density), density.values()
    assert density.expect(v.x.array[: m.size]) == pytest.approx(
        4.0 * density.expect(m**2), rel=3e-2
    )
    if problem.lumped:
        assert mf.check_derivative(forms["cubic"], density).order > 1.9
    usual = mf.Problem(
        domain, terms["potential"] + terms["contact"], 0.7, **options,
        potential_degree=None if problem.lumped else problem.discretisation.potential_degree,
    )  # fmt: skip
    assert mf.minimise(problem, tol=1e-8).energy == pytest.approx(
        mf.minimise(usual, tol=1e-8).energy, abs=1e-8
    )
