"""Exact solutions of theory §9, for comparison with computed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

import fem_mf as mf


def gaussian(mean, precision):
    """The density N(mean, precision⁻¹), normalised, as a callable of x of shape (3, n).

    ``precision`` is a number or a matrix.
    """
    mean = np.atleast_1d(mean)
    d = mean.size
    matrix = np.asarray(precision) * np.eye(d) if np.ndim(precision) == 0 else precision

    def m(x):
        y = x[:d] - mean[:, None]
        factor = np.sqrt(np.linalg.det(matrix / (2 * np.pi)))
        return factor * np.exp(-0.5 * np.sum(y * (matrix @ y), axis=0))

    return m


def gaussian_energy(mean, precision, *, sigma, kappa, strength=0.0, target=0.0):
    """F^σ(N(mean, precision⁻¹ Id)) of (X1)."""
    mean = np.atleast_1d(mean)
    d = mean.size
    trap = 0.5 * kappa * (d / precision + mean @ mean)
    return trap + 0.5 * strength * np.sum((mean - target) ** 2) + 0.25 * sigma**2 * d * precision


def moving_gaussian(t, mean, precision, *, sigma, kappa, strength, target):
    """Mean and precision of (X1) at time t: Riccati equation in closed form, mean by ODE."""
    limit = np.sqrt(2 * kappa) / sigma
    rate = 0.5 * sigma**2 * limit

    def theta(s):
        tanh = np.tanh(rate * s)
        return limit * (precision + limit * tanh) / (limit + precision * tanh)

    def slope(s, mu):
        return -(kappa * mu + strength * (mu - target)) / theta(s)

    solution = solve_ivp(slope, (0, t), np.atleast_1d(mean), rtol=1e-12, atol=1e-13)
    return solution.y[:, -1], theta(t)


def breathing_precision(t, precision, *, d, sigma, kappa, strength):
    """Precision of (X2) at time t, mean zero."""

    def slope(s, theta):
        return kappa + 2 * strength * d / theta - 0.5 * sigma**2 * theta**2

    return solve_ivp(slope, (0, t), [precision], rtol=1e-12, atol=1e-13).y[0, -1]


def rotating_gaussian(t, mean, precision, *, q, sigma, strength, target):
    """Mean and precision matrix of (X4) with the mean interaction of (X1) at time t."""

    def slope(_, state):
        mu, theta = state[:2], state[2:].reshape(2, 2)
        force = q @ mu + strength * (mu - target)
        return np.append(-np.linalg.solve(theta, force), q - 0.5 * sigma**2 * theta @ theta)

    start = np.append(mean, precision)
    end = solve_ivp(slope, (0.0, t), start, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    return end[:2], end[2:].reshape(2, 2)


def ornstein_uhlenbeck(t, mean, variance, *, sigma, kappa, strength, target):
    """Mean and variance of (X5) at time t."""
    total = kappa + strength
    centre, spread = strength * target / total, sigma**2 / (2 * kappa)
    decayed = centre + (np.atleast_1d(mean) - centre) * np.exp(-total * t)
    return decayed, spread + (variance - spread) * np.exp(-2 * kappa * t)


class Solution(NamedTuple):
    """A functional whose flow carries Gaussians into Gaussians.

    ``at(t)`` is the mean and the precision matrix at time t.
    """

    functional: Callable[[], Any]
    sigma: float
    at: Callable[[float], tuple[Any, Any]]

    @property
    def start(self) -> tuple[Any, Any]:
        """Mean and precision matrix at t = 0."""
        return self.at(0.0)


def trap(kappa):
    """∫½κ|x|² dm."""
    return mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2 + x[2] ** 2))


X1 = {"sigma": 0.7, "kappa": 1.0, "strength": 0.8, "target": 0.5}
X2 = {"sigma": 0.8, "kappa": 0.5, "strength": 0.6}
X4 = {
    "q": np.array([[1.75, -1.3], [-1.3, 3.25]]),  # does not commute with the first precision
    "sigma": 0.8,
    "strength": 0.5,
    "target": np.array([1.5, 0.5]),
}
X5 = {"sigma": 1.0, "kappa": 1.0, "strength": 0.5, "target": 0.6}


def _breathing():
    return mf.Cylindrical(
        [lambda x: x[0] ** 2],
        lambda y: 0.5 * X2["strength"] * y[0] ** 2,
        lambda y: X2["strength"] * y,
    )


def _matrices(mean, precision):
    return mean, np.atleast_2d(precision)


SOLUTIONS = {
    "X1": Solution(
        lambda: trap(X1["kappa"]) + mf.MeanInteraction(X1["strength"], X1["target"]),
        X1["sigma"],
        lambda t: _matrices(*moving_gaussian(t, -0.8, 1.2, **X1)),
    ),
    "X2": Solution(
        lambda: trap(X2["kappa"]) + _breathing(),
        X2["sigma"],
        lambda t: _matrices(np.zeros(1), breathing_precision(t, 0.6, d=1, **X2)),
    ),
    "X3": Solution(
        lambda: trap(X1["kappa"]),
        X1["sigma"],
        lambda t: _matrices(*moving_gaussian(t, 0.0, 1.2, **X1 | {"strength": 0.0})),
    ),
    "X4": Solution(
        lambda: (
            mf.Potential(lambda x: 0.5 * np.sum(x[:2] * (X4["q"] @ x[:2]), axis=0))
            + mf.MeanInteraction(X4["strength"], X4["target"])
        ),
        X4["sigma"],
        lambda t: rotating_gaussian(t, np.array([-1.2, 0.9]), np.diag([3.0, 1.5]), **X4),
    ),
}


def rate(sizes, errors):
    """Slope of log error against log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
