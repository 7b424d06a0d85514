"""Exact solutions of theory §9, for comparison with computed ones."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp


def gaussian(mean, precision):
    """The density N(mean, precision⁻¹ Id), normalised, as a callable of x of shape (3, n)."""
    mean = np.atleast_1d(mean)
    d = mean.size

    def m(x):
        squared = sum((x[i] - mean[i]) ** 2 for i in range(d))
        return (precision / (2 * np.pi)) ** (d / 2) * np.exp(-0.5 * precision * squared)

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


def rate(sizes, errors):
    """Slope of log error against log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
