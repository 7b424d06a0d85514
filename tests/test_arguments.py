"""Arguments of the wrong type: a TypeError or ValueError that names the argument."""

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.rows import rows

COMM = MPI.COMM_WORLD
F = mf.Potential(lambda x: x[0] ** 2)
MESH = mf.interval(COMM, 3.0, 0.5)
PROBLEM = mf.Problem(MESH, F, 0.5, 2)
LUMPED = mf.Problem(MESH, F, 0.5, 1, mass="lumped")
DENSITY = mf.Density(PROBLEM, np.ones(PROBLEM.discretisation.num_owned))
FLOW = mf.SchrodingerFlow(PROBLEM, 0.1)

CASES = {
    "sigma a word": (lambda: mf.Problem(MESH, F, "0.5"), "sigma must be a number, not '0.5'"),
    "another sigma": (lambda: PROBLEM.with_sigma(None), "sigma must be a number, not None"),
    "degree a fraction": (lambda: mf.Problem(MESH, F, 0.5, 2.5), "degree must be an integer"),
    "degree true": (lambda: mf.Problem(MESH, F, 0.5, True), "degree must be an integer"),
    "dt": (lambda: mf.SchrodingerFlow(PROBLEM, "a"), "dt must be a number, not 'a'"),
    "dt of u": (lambda: mf.HJBFlow(PROBLEM, None), "dt must be a number, not None"),
    "dt of Langevin": (lambda: mf.LangevinFlow(LUMPED, [0.1]), "dt must be a number"),
    "no problem": (lambda: mf.SchrodingerFlow(5, 0.1), "problem must be a Problem, not int"),
    "tolerance": (
        lambda: mf.SchrodingerFlow(PROBLEM, 0.1, tolerance="a"),
        "tolerance must be a number",
    ),
    "max_iterations": (
        lambda: mf.SchrodingerFlow(PROBLEM, 0.1, max_iterations=2.5),
        "max_iterations must be an integer",
    ),
    "t_end": (lambda: FLOW.run(DENSITY, "a"), "t_end must be a number"),
    "start": (lambda: FLOW.run(np.ones(3), 1.0), "start must be a Density, .* not ndarray"),
    "start of u": (lambda: mf.HJBFlow(PROBLEM, 0.1).run(5, 1.0), "start must be a Density"),
    "minimise": (lambda: mf.minimise(5), "problem must be a Problem"),
    "its start": (lambda: mf.minimise(PROBLEM, np.ones(3)), "density must be a Density"),
    "its starts": (lambda: mf.minimise(PROBLEM, starts=[1]), "density must be a Density"),
    "tol": (lambda: mf.minimise(PROBLEM, tol=None), "tol must be a number, not None"),
    "energy": (lambda: mf.energy(PROBLEM, 5), "density must be a Density, .* not int"),
    "eigenvalue": (lambda: mf.eigenvalue(PROBLEM, 5), "density must be a Density"),
    "residual": (lambda: mf.residual(PROBLEM, "m"), "density must be a Density, .* not str"),
    "gap": (lambda: mf.gap(PROBLEM, None), "density must be a Density"),
    "decay_rate": (lambda: mf.decay_rate(DENSITY, PROBLEM), "problem must be a Problem"),
    "radius": (lambda: mf.interval(COMM, "a", 0.1), "radius must be a number or one per axis"),
    "h": (lambda: mf.box(COMM, 1.0, "a"), "h must be a number, not 'a'"),
    "h zero": (lambda: mf.disk(COMM, 1.0, 0), "h must be positive"),
    "strength": (lambda: mf.MeanInteraction("a"), "strength must be a number"),
    "beta": (lambda: mf.Contact(None), "beta must be a number, not None"),
    "samples": (lambda: DENSITY.sample(2.5, seed=1), "n must be an integer, not 2.5"),
    "data of two inputs": (
        lambda: mf.NetworkLoss(np.ones((4, 2)), np.ones(4), lambda x, z: np.tanh(x[0] * z)).value(
            DENSITY
        ),
        "the neuron at datum number 0",
    ),
}


@rows("name", CASES)
def test_the_argument_is_named(name):
    action, text = CASES[name]
    with pytest.raises((TypeError, ValueError), match=text):
        action()


def test_numbers_of_numpy_are_numbers():
    problem = mf.Problem(MESH, F, np.float32(0.5), np.int64(2))
    assert problem.sigma == 0.5
    mf.SchrodingerFlow(problem, np.float64(0.1), max_iterations=np.int32(10))
