"""The minimiser of the tanh network as a user of DOLFINx would first write it.

Normalised gradient flow in ψ with backward Euler, the potential frozen over a step, each step a
``LinearProblem``; it stops when the energy no longer changes. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem, mesh
from dolfinx.fem.petsc import LinearProblem

SIGMA, KAPPA, RADIUS, DT = 0.5, 0.2, 6.0, 2.0
Z = np.linspace(-np.pi, np.pi, 40)
Y = np.sin(Z)


def main(dofs: float) -> None:
    """Minimise on a grid of triangles with about so many degrees of freedom."""
    cells = round((np.sqrt(dofs) - 1) / 2)
    corners = [(-RADIUS, -RADIUS), (RADIUS, RADIUS)]
    domain = mesh.create_rectangle(MPI.COMM_WORLD, corners, (cells, cells))
    begin = time.perf_counter()
    space = fem.functionspace(domain, ("Lagrange", 2))
    x = ufl.SpatialCoordinate(domain)
    neurons = [ufl.tanh(x[0] * float(z) + x[1]) for z in Z]
    psi = fem.Function(space)
    psi.interpolate(lambda x: np.exp(-0.25 * (x[0] ** 2 + x[1] ** 2)))
    weights = fem.Constant(domain, np.zeros(len(Z)))
    potential = 0.5 * KAPPA * ufl.dot(x, x) + sum(
        weights[j] * neuron for j, neuron in enumerate(neurons)
    )
    moments = [fem.form(neuron * psi**2 * ufl.dx) for neuron in neurons]
    norm = fem.form(psi**2 * ufl.dx)
    rest = fem.form(
        (SIGMA**2 * ufl.dot(ufl.grad(psi), ufl.grad(psi)) + 0.5 * KAPPA * ufl.dot(x, x) * psi**2)
        * ufl.dx
    )
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    a = u * v + 0.5 * DT * (SIGMA**2 * ufl.dot(ufl.grad(u), ufl.grad(v)) + potential * u * v)
    options = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
    step = LinearProblem(
        a * ufl.dx, psi * v * ufl.dx, petsc_options=options, petsc_options_prefix="plain_"
    )
    energy, steps = np.inf, 0
    while True:
        psi.x.array[:] /= np.sqrt(fem.assemble_scalar(norm))
        outputs = np.array([fem.assemble_scalar(form) for form in moments])
        weights.value[:] = -2.0 / len(Z) * (Y - outputs)
        before = energy
        energy = float(np.mean((Y - outputs) ** 2) + fem.assemble_scalar(rest))
        if abs(before - energy) < 1e-11 or steps >= 400:
            break
        psi.x.array[:] = step.solve().x.array
        steps += 1
    seconds = time.perf_counter() - begin
    size = space.dofmap.index_map.size_global
    print(json.dumps({"dofs": size, "energy": energy, "seconds": seconds, "steps": steps}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
