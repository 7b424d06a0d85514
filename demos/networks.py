"""Common parts of the network demos: cross-validation of σ and κ, and finite networks."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np

import fem_mf as mf
from common import say


def trap(kappa: float) -> mf.Potential:
    """½κ|x|²."""
    return mf.Potential(lambda x: 0.5 * kappa * np.sum(x**2, axis=0))


def cross_validate(
    network: mf.NetworkLoss,
    sigmas: tuple[float, ...],
    kappas: tuple[float, ...],
    h: float,
    loss: str = "squared",
    folds: int = 5,
) -> tuple[float, float]:
    """The largest κ, then σ, with a held-out loss within 2 % of the least. Collective.

    Smaller differences are below the scatter between folds, and a larger κ allows a smaller domain.

    Args:
        network: the loss on all data.
        sigmas: values of σ, from the largest.
        kappas: values of κ, from the largest.
        h: size of coarse cells of degree 4, on a square or cube.
        loss: name of the loss of the network.
        folds: number of parts into which the data are split; each is held out once.
    """
    dim = 2 if network.z.ndim == 1 else 3
    radius = mf.truncation_radius(min(kappas), sigmas[0], tol=1e-4, dim=dim, offset=2.0)
    cell = "quadrilateral" if dim == 2 else "hexahedron"
    mesh = mf.box(MPI.COMM_WORLD, radius, h, dim, cell)
    fold = np.arange(network.y.size) % folds
    table = np.zeros((len(kappas), len(sigmas)))
    say(
        "mean loss on data left out\n" + "".join(["         ", *(f"  σ = {s:<7g}" for s in sigmas)])
    )
    for row, kappa in zip(table, kappas, strict=True):
        for k in range(folds):
            kept, left_out = (
                mf.NetworkLoss(network.z[part], network.y[part], network.neuron, loss)
                for part in (fold != k, fold == k)
            )
            problem = mf.Problem(mesh, trap(kappa) + kept, sigmas[0], degree=4, mass="lumped")
            density = None
            for i, sigma in enumerate(sigmas):  # problems with the same κ share their features
                density = mf.minimise(problem.with_sigma(sigma), density, tol=1e-4).density
                row[i] += left_out.value(density) * np.mean(fold == k)
        say(f"κ = {kappa:<5g}" + "".join(f"{value:12.5f}" for value in row))
    i, j = np.argwhere(table <= 1.02 * table.min())[0]
    say(f"least loss {table.min():.5f}; chosen: σ = {sigmas[j]:g}, κ = {kappas[i]:g}")
    return sigmas[j], kappas[i]


def finite_outputs(
    density: mf.Density, network: mf.NetworkLoss, sizes: tuple[int, ...], samples: int
) -> dict[int, Any]:
    """Outputs ``(samples, K)`` of networks of n neurons drawn from m, at the data. Collective."""
    neurons = density.sample(samples * max(sizes), seed=1).T.reshape(-1, samples, max(sizes))
    return {
        n: np.stack([network.neuron(neurons[:, :, :n], d).mean(axis=1) for d in network.z], axis=1)
        for n in sizes
    }


def finite_networks(
    density: mf.Density, network: mf.NetworkLoss, samples: int
) -> dict[int, tuple[float, float, float]]:
    """Squared loss of networks drawn from m, by n: mean, standard error, expectation. Collective.

    The expected mean is F(m) + (1/n) (1/K) Σ_j Var_m N(z_j; ·).
    """
    z, y, neuron = network.z, network.y, network.neuron
    squares = mf.NetworkLoss(z, y, lambda x, z: neuron(x, z) ** 2).predict(density)
    variance = float(np.mean(squares - network.predict(density) ** 2))
    table = {}
    say("neurons    mean loss    ± s.e.    expected")
    outputs = finite_outputs(density, network, (10, 100, 1000, 10_000), samples)
    for n, output in outputs.items():
        losses = np.mean((output - y) ** 2, axis=1)
        deviation = float(losses.std(ddof=1) / np.sqrt(samples))
        table[n] = float(losses.mean()), deviation, network.value(density) + variance / n
        say("{:7,} {:12.5f} {:9.5f} {:11.5f}".format(n, *table[n]))
    return table
