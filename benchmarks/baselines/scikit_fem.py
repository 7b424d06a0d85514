"""The minimiser of the tanh network with scikit-fem and SciPy, written with care.

Quadratic triangles; Riemannian conjugate gradients (Polak–Ribière) in the metric of one frozen
Hamiltonian, factorised once, with an exact line search: along ψ + tδ the moments and the quadratic
energies are ratios of quadratics in t. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import skfem
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import splu
from skfem.helpers import dot, grad

SIGMA, KAPPA, RADIUS = 0.5, 0.2, 6.0
Z = np.linspace(-np.pi, np.pi, 40)
Y = np.sin(Z)


class Network:
    """The discrete problem: matrices, and the neurons at the quadrature points."""

    def __init__(self, dofs: float) -> None:
        line = np.linspace(-RADIUS, RADIUS, round((np.sqrt(dofs) - 1) / 2) + 1)
        mesh = skfem.MeshTri.init_tensor(line, line)
        self.basis = skfem.Basis(mesh, skfem.ElementTriP2(), intorder=5)
        x, y = self.basis.global_coordinates().value
        self.trap = 0.5 * KAPPA * (x**2 + y**2)
        self.neurons = np.tanh(Z[:, None] * x.ravel() + y.ravel())
        self.dx = self.basis.dx.ravel()
        self.mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(self.basis)
        linear = skfem.BilinearForm(
            lambda u, v, w: SIGMA**2 * dot(grad(u), grad(v)) + w["V"] * u * v
        )
        self.linear = linear.assemble(self.basis, V=self.trap)
        self._load = skfem.LinearForm(lambda v, w: w["f"] * v)
        self.factor = splu((self.linear + 0.5 * self.mass).tocsc())

    def values(self, psi: np.ndarray) -> np.ndarray:
        """ψ at the quadrature points."""
        return np.asarray(self.basis.interpolate(psi)).ravel()

    def products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """∫N_k ab for every neuron, from values at the quadrature points."""
        return self.neurons @ (a * b * self.dx)

    def gradient(self, psi: np.ndarray, values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """H[m]ψ as a load vector."""
        potential = (-2.0 / len(Z) * (Y - outputs)) @ self.neurons
        mean_field = (potential * values).reshape(self.trap.shape)
        return self.linear @ psi + self._load.assemble(self.basis, f=mean_field)


def main(dofs: float) -> None:
    """Minimise on a grid of triangles with about so many degrees of freedom."""
    begin = time.perf_counter()
    net = Network(dofs)
    setup = time.perf_counter() - begin
    psi = np.exp(-0.25 * (net.basis.doflocs**2).sum(axis=0))
    psi /= np.sqrt(psi @ (net.mass @ psi))
    direction = previous = None
    slope = iterations = 0
    while iterations < 200:
        values, mass_psi = net.values(psi), net.mass @ psi
        outputs = net.products(values, values)
        gradient = net.gradient(psi, values, outputs)
        residual = gradient - (psi @ gradient) * mass_psi
        z, normal = net.factor.solve(residual), net.factor.solve(mass_psi)
        z -= normal * (mass_psi @ z) / (mass_psi @ normal)
        size = residual @ z
        if size < 1e-16:
            break
        beta = 0.0 if previous is None else max(0.0, (size - previous @ z) / slope)
        direction = -z if direction is None else beta * direction - z
        direction -= psi * (mass_psi @ direction)
        slope, previous = size, residual
        step = net.values(direction)
        y = outputs, net.products(values, step), net.products(step, step)
        e = [
            a @ (net.linear @ b) for a, b in ((psi, psi), (psi, direction), (direction, direction))
        ]
        n = direction @ (net.mass @ direction)

        def energy(t: float, y: tuple = y, e: tuple = e, n: float = n) -> float:
            norm = 1.0 + t * t * n
            found = (y[0] + 2.0 * t * y[1] + t * t * y[2]) / norm
            return float(np.mean((Y - found) ** 2) + (e[0] + 2 * t * e[1] + t * t * e[2]) / norm)

        psi = psi + minimize_scalar(energy, bracket=(0.0, 1.0), tol=1e-10).x * direction
        psi /= np.sqrt(psi @ (net.mass @ psi))
        iterations += 1
    seconds = time.perf_counter() - begin
    total = float(np.mean((Y - outputs) ** 2) + psi @ (net.linear @ psi))
    result = {"dofs": int(net.basis.N), "energy": total, "setup": setup, "seconds": seconds}
    print(json.dumps({**result, "steps": iterations}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
