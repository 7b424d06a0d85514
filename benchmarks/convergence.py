"""Orders of convergence on the moving Gaussian (X1), in time and in space.

    python benchmarks/convergence.py
    python benchmarks/convergence.py --levels 4 --degree 3

In time: the largest error of ψ in L² over a run, dt halved, on an interval of degree 8, whose error
in space is negligible. In space: the minimiser on triangles, h halved. tests/convergence asserts
the orders.
"""

from __future__ import annotations

import argparse

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem

import fem_mf as mf

SIGMA, KAPPA, STRENGTH, TARGET = 0.7, 1.0, 2.0, np.array([1.5, -1.0])
MEAN, PRECISION, T_END = np.array([-1.5, 1.0]), 2.5, 2.0
LIMIT = np.sqrt(2.0 * KAPPA) / SIGMA  # of the precision
CENTRE = STRENGTH * TARGET / (KAPPA + STRENGTH)  # of the mean


def problem(mesh, degree, mass="consistent"):
    """The trap and the mean interaction on a mesh of any dimension."""
    d = mesh.geometry.dim
    trap = mf.Potential(lambda x: 0.5 * KAPPA * np.sum(x[:d] ** 2, axis=0))
    return mf.Problem(
        mesh, trap + mf.MeanInteraction(STRENGTH, TARGET[:d]), SIGMA, degree, mass=mass
    )


def gaussian(where, mean, theta):
    """N(mean, θ⁻¹ Id) on a problem, interpolated."""
    d = where.dim
    return mf.Density.from_function(
        where, lambda x: np.exp(-0.5 * theta * np.sum((x[:d].T - mean[:d]) ** 2, axis=1))
    )


def exact(t):
    """Mean and precision at time t."""
    rate = SIGMA * np.sqrt(0.5 * KAPPA)
    growth = np.cosh(rate * t) + LIMIT / PRECISION * np.sinh(rate * t)
    theta = LIMIT * growth / (np.sinh(rate * t) + LIMIT / PRECISION * np.cosh(rate * t))
    return CENTRE + (MEAN - CENTRE) * growth ** (-(KAPPA + STRENGTH) / KAPPA), theta


def distance(density, mean, theta):
    """‖ψ − ψ_exact‖, both on the problem of the density."""
    true = gaussian(density.problem, mean, theta)
    return density.problem.discretisation.norm(density.amplitude() - true.amplitude())


def error_in_space(density, mean, theta):
    """‖ψ − ψ_exact‖ in L², by quadrature, on a plane."""
    x = ufl.SpatialCoordinate(density.problem.mesh)
    squared = (x[0] - mean[0]) ** 2 + (x[1] - mean[1]) ** 2
    true = np.sqrt(theta / (2.0 * np.pi)) * ufl.exp(-0.25 * theta * squared)
    form = fem.form((density.psi - true) ** 2 * ufl.dx(degree=12))
    return np.sqrt(density.problem.comm.allreduce(fem.assemble_scalar(form)))


def show(title, sizes, errors):
    """Print sizes, errors and observed orders."""
    if MPI.COMM_WORLD.rank:
        return
    print(title)
    orders = [np.nan, *(np.diff(np.log(errors)) / np.diff(np.log(sizes)))]
    for row in zip(sizes, errors, orders, strict=True):
        print("  {:8.4g}  {:9.2e}  {:6.2f}".format(*row))


def main():
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--levels", type=int, default=3, help="number of sizes in each table")
    parser.add_argument("--degree", type=int, default=2, help="of ψ in the study in space")
    options = parser.parse_args()
    comm = MPI.COMM_WORLD

    line = problem(mf.interval(comm, 9.0, 0.5), 8, "lumped")
    start = gaussian(line, MEAN, PRECISION)
    steps = [0.05 / 2**level for level in range(options.levels)]
    for scheme in ("backward-euler", "crank-nicolson", "sdirk2"):
        errors = []
        for dt in steps:
            flow = mf.SchrodingerFlow(line, dt, scheme, fixed_point_tolerance=1e-11)
            states = flow.run(start, T_END)
            errors.append(max(distance(state.density, *exact(state.t)) for state in states))
        show(f"{scheme}: dt, largest error of ψ, order", steps, errors)

    minimum = 2.0 * SIGMA * np.sqrt(0.5 * KAPPA)
    minimum += 0.5 * KAPPA * STRENGTH * TARGET @ TARGET / (KAPPA + STRENGTH)
    mesh, sizes, errors, energies = mf.box(comm, 5.5, 0.8), [], [], []
    for level in range(options.levels):
        mesh = mf.refine(mesh) if level else mesh
        best = mf.minimise(problem(mesh, options.degree), tol=1e-12)
        sizes.append(0.8 / 2**level)
        errors.append(error_in_space(best.density, CENTRE, LIMIT))
        energies.append(abs(best.energy - minimum))
    show(f"degree {options.degree}: h, error of ψ of the minimiser, order", sizes, errors)
    show(f"degree {options.degree}: h, error of its energy, order", sizes, energies)


if __name__ == "__main__":
    main()
