"""The mean-field Schrödinger equation in plain DOLFINx, compared with the package.

A network with infinitely many neurons tanh(az + b) learns sin z: m = ψ² is the distribution of
(a, b), V[m](x) = ½κ|x|² − (2/K) Σ_j (y_j − ∫N(z_j; ·) dm) N(z_j; x), and the gradient flow of
F(m) + (σ²/4) I(m) is ∂_tψ = (σ²/2)Δψ − ½(V[m] − λ)ψ (D2). A step (D7) finds s and ψ⁺ with norm one:

    (2/τ)⟨χ, ψ⁺ − ψⁿ⟩ + ⟨χ, (H[m⁺] − s)ψ⁺⟩ = 0 for every χ,   H[m] = −σ²Δ + V[m].

The fixed-point iteration solves this problem, linear for V of the last moments, normalises ψ⁺, and
updates the moments and s = λ + (2/τ)(1 − ⟨ψ⁺, ψⁿ⟩).

    mpirun -n 2 python demos/weak_form.py -weak_form_ksp_type cg -weak_form_ksp_rtol 1e-13
"""

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.fem.petsc import LinearProblem

import fem_mf as mf
from common import say, study
from fem_mf import equations
from fem_mf.plotting import plot_density


def main(
    h: float = 0.5,  # mesh size
    sigma: float = 0.5,  # σ, the strength of the Fisher information
    kappa: float = 0.1,  # κ, the curvature of the confining potential
    dt: float = 0.1,  # τ, the length of a step; the plain fixed point needs about 1 or less
    steps: int = 10,  # number of steps
    output: str = "results/weak_form",  # folder of density.png
) -> tuple[float, float]:
    """Run both; return the energies F^σ after the last step."""
    comm = MPI.COMM_WORLD
    domain = mf.disk(comm, 6.0, h)
    space = fem.functionspace(domain, ("Lagrange", 2))  # space of ψ
    potentials = fem.functionspace(domain, ("Lagrange", 3))  # space of V
    dx = ufl.Measure("dx", domain, metadata={"quadrature_degree": 7})
    z = np.linspace(-np.pi, np.pi, 40)
    data, x = np.sin(z), potentials.tabulate_dof_coordinates().T
    features = np.vstack((0.5 * kappa * (x[0] ** 2 + x[1] ** 2), np.tanh(np.outer(z, x[0]) + x[1])))
    psi: fem.Function = fem.Function(space)
    before = psi.copy()
    V, c = fem.Function(potentials), fem.Constant(domain, 0.0)  # c = 2/τ − s
    chi, theta = ufl.TestFunction(space), ufl.TestFunction(potentials)
    a = equations.schrodinger(ufl.TrialFunction(space), chi, V + c, sigma, dx)
    L = equations.mass(2.0 / dt * before, chi, dx)
    options = {"ksp_type": "preonly", "pc_type": "lu"} | PETSc.Options("weak_form_").getAll()
    step = LinearProblem(a, L, u=psi, petsc_options_prefix="weak_form_", petsc_options=options)
    weights = fem.form(equations.mass(psi**2, theta, dx))
    norm2, overlap = (fem.form(equations.mass(psi, f, dx)) for f in (psi, before))
    rayleigh = fem.form(equations.schrodinger(psi, psi, V, sigma, dx))
    kinetic = fem.form(equations.energy(psi, sigma, dx))

    def integral(form: fem.Form) -> float:
        return float(comm.allreduce(fem.assemble_scalar(form)))

    def update() -> np.ndarray:
        """Normalise ψ, set V from the moments ∫φ_j dm, and return them."""
        psi.x.array[:] /= np.sqrt(integral(norm2))
        b = fem.assemble_vector(weights)
        b.scatter_reverse(la.InsertMode.add)
        own = potentials.dofmap.index_map.size_local
        moments = comm.allreduce(features[:, :own] @ b.array[:own])
        V.x.array[:] = np.append(1.0, -2.0 / z.size * (data - moments[1:])) @ features
        return np.asarray(moments)

    trap = mf.Potential(lambda x: 0.5 * kappa * (x[0] ** 2 + x[1] ** 2))
    F = trap + mf.NetworkLoss(z, data, lambda x, z: np.tanh(x[0] * z + x[1]))
    problem = mf.Problem(domain, F, sigma, degree=2)
    start = mf.Density.from_function(problem, lambda x: np.exp(-0.5 * (x[0] ** 2 + x[1] ** 2)))
    psi.interpolate(lambda x: np.exp(-0.25 * (x[0] ** 2 + x[1] ** 2)))
    moments = update()
    for n in range(1, steps + 1):
        before.x.array[:] = psi.x.array
        shift = integral(rayleigh)
        for _ in range(100):
            c.value = np.asarray(2.0 / dt - shift)
            step.solve()
            old, moments = (moments, shift), update()
            shift = integral(rayleigh) + 2.0 / dt * (1.0 - integral(overlap))
            change = max(np.abs(moments - old[0]).max(), 0.5 * dt * abs(shift - old[1]))
            if change <= 1e-12:
                break
        else:
            raise SystemExit("the fixed point does not contract: choose a smaller --dt")
        energy = integral(kinetic) + moments[0] + np.mean((data - moments[1:]) ** 2)
        say(f"t = {n * dt:.2f}  F = {energy:.12f}")
    *_, state = mf.SchrodingerFlow(problem, dt).run(start, steps * dt)
    say(f"the package: F = {state.energy:.12f}, {state.energy - energy:+.1e}")
    plot_density(f"{output}/density.png", state.density, f"t = {state.t:g}")
    return energy, state.energy


if __name__ == "__main__":
    study(main)
