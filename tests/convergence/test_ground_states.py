"""Minimisers against published ground states (X6) and exact ones (X1), with certificates."""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.rows import rows

COMM = MPI.COMM_WORLD
BOSE = np.sqrt(0.5)


def trap(x):
    return 0.5 * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def bose_gas(beta, mesh, degree, mass="lumped"):
    """The minimum and its virial 2K − 2P + d I₄."""
    potential, contact = mf.Potential(trap), mf.Contact(beta)
    problem = mf.Problem(mesh, potential + contact, BOSE, degree=degree, mass=mass)
    best = mf.minimise(problem, tol=1e-12)
    kinetic = 0.25 * BOSE**2 * best.density.fisher_information()
    interaction = problem.dim * contact.value(best.density)
    return best, 2 * kinetic - 2 * potential.value(best.density) + interaction


def test_one_dimensional_gas():
    # Bao, Chern, Lim (2006)
    best, virial = bose_gas(400.0, mf.interval(COMM, 14.0, 0.7), 8)
    assert best.energy == pytest.approx(21.3601, abs=5e-5)
    assert best.eigenvalue == pytest.approx(35.5775, abs=5e-5)
    assert abs(virial) < 1e-8
    assert best.gap <= 1e-12


@rows(("beta", "mu"), [(3.1371, 1.42005), (62.742, 4.60982), (627.42, 14.18922)])
def test_two_dimensional_gas(beta, mu):
    # Muruganandam, Adhikari (2009)
    radius = 5.0 + (4 * beta / np.pi) ** 0.25
    mesh = mf.box(COMM, radius, radius / 10, cell="quadrilateral")
    best, virial = bose_gas(beta, mesh, 6)
    assert best.eigenvalue == pytest.approx(mu, abs=2e-5)
    assert abs(virial) < 1e-7
    assert best.gap <= 1e-12


def test_virial_identity_to_1e_8_at_degree_8():
    best, virial = bose_gas(62.742, mf.box(COMM, 8.0, 0.6, cell="quadrilateral"), 8)
    assert best.eigenvalue == pytest.approx(4.60982, abs=2e-5)
    assert abs(virial) < 1e-8


@pytest.mark.parametrize("mass", ["consistent", "lumped"])
def test_gas_between_walls(mass):
    # Gallistl, Hauck, Liang, Peterseim, arXiv:2402.06311, with E = F/2
    functional = mf.Potential(lambda x: np.ones_like(x[0])) + mf.Contact(1.0)
    mesh = mf.box(COMM, 8.0, 2.0, cell="quadrilateral")
    problem = mf.Problem(mesh, functional, 1.0, degree=6, boundary="dirichlet", mass=mass)
    assert mf.minimise(problem).energy / 2 == pytest.approx(0.5407229817, abs=1e-9)


def test_anharmonic_oscillator():
    # ground state of −ψ″ + x⁴ψ
    problem = mf.Problem(mf.interval(COMM, 5.0, 0.5), mf.Potential(lambda x: x[0] ** 4), 1.0, 8)
    best = mf.minimise(problem)
    assert best.eigenvalue == pytest.approx(1.0603620905, abs=1e-10)


@rows(("dim", "degree", "cells", "cap"), [(1, 8, 16, 1e-11), (2, 8, 16, 1e-11), (3, 6, 6, 1e-5)])
def test_minimum_of_the_moving_gaussian_to_the_accuracy_of_the_mesh(dim, degree, cells, cap):
    sigma, kappa, strength, target = 0.9, 1.1, 0.7, 0.6
    theta = np.sqrt(2 * kappa) / sigma
    radius = 0.4 + (8.0 if dim < 3 else 6.0) / np.sqrt(theta)
    h = 2 * radius / cells
    cell = {1: "interval", 2: "quadrilateral", 3: "hexahedron"}[dim]
    mesh = mf.interval(COMM, radius, h) if dim == 1 else mf.box(COMM, radius, h, dim, cell)
    functional = mf.Potential(lambda x: kappa * trap(x)) + mf.MeanInteraction(strength, target)
    best = mf.minimise(mf.Problem(mesh, functional, sigma, degree=degree, mass="lumped"))
    squared = dim * target**2
    exact = dim * sigma * np.sqrt(kappa / 2)
    exact += 0.5 * kappa * strength * squared / (kappa + strength)
    assert best.energy == pytest.approx(exact, abs=cap)
    mean = strength * target / (kappa + strength)
    np.testing.assert_allclose(best.density.mean(), mean, atol=100 * cap)
    np.testing.assert_allclose(best.density.covariance(), np.eye(dim) / theta, atol=1000 * cap)
