"""Extrapolation of a short past: exact on polynomials, and cautious where they are no help."""

import numpy as np
from scipy.interpolate import BarycentricInterpolator

from fem_mf.flows.flow import Extrapolation
from tests.rows import rows

TIMES = np.array([0.0, 0.1, 0.25, 0.3, 0.45])  # steps of different lengths


def curve(t):
    return np.array([10.0 + t + 0.3 * t**2, -8.0 + 0.5 * t - 0.1 * t**3 + 0.02 * t**4])


def learnt(order, values):
    past = Extrapolation(order, np.linalg.norm)
    for t, value in zip(TIMES, values, strict=False):
        past.add(t, value)
    return past


@rows("order", [1, 2, 3, 4])
def test_the_polynomial_through_the_last_values(order):
    for known in (2, 3, 4, 5):
        check_prediction(order, known)


def check_prediction(order, known):
    values = [curve(t) for t in TIMES[:known]]
    used = slice(max(0, known - order - 1), known)
    exact = BarycentricInterpolator(TIMES[used], np.array(values[used]))(0.6)
    np.testing.assert_allclose(learnt(order, values).predict(0.6), exact, rtol=1e-12)
    if min(order, known - 1) == 4:
        np.testing.assert_allclose(exact, curve(0.6), rtol=1e-12)


def test_without_a_past_there_is_no_prediction():
    past = Extrapolation(3, np.linalg.norm)
    assert past.predict(1.0) is None
    past.add(0.0, np.array([2.0, 3.0]))
    np.testing.assert_array_equal(past.predict(1.0), [2.0, 3.0])


def test_a_past_that_jumps_predicts_its_last_value():
    # the first order would move it by more than a tenth
    values = [np.array([value]) for value in (1.0, 1.0, 1.0, 2.0)]
    np.testing.assert_array_equal(learnt(3, values).predict(0.35), [2.0])


def test_noise_is_not_amplified():
    # where a higher order moves the prediction by more than a lower one it is left out
    noise = np.random.default_rng(1).standard_normal((5, 20))
    values = [5.0 + t + 1e-3 * row for t, row in zip(TIMES, noise, strict=True)]
    error = np.abs(learnt(4, values).predict(0.5) - 5.5).max()
    every = BarycentricInterpolator(TIMES, np.array(values))(0.5)
    assert error < 8e-3
    assert np.abs(every - 5.5).max() > error
