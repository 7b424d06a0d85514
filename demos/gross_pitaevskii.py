"""Ground states of the Gross–Pitaevskii equation, compared with published tables.

With σ² = ½ the regularised energy (E1) of a trap and a contact term is that of a Bose gas,

    E = ∫ ½|∇ψ|² + ½|x|²ψ² + (β/2)ψ⁴ dx,   −½Δψ + ½|x|²ψ + βψ³ = μψ

(X6); its minimiser is the ground state, and the eigenvalue μ the chemical potential. Each case is
solved from the previous one, on collocated quadrilaterals of high degree, then with cells of half
the size: the change estimates the error. The table also has the published value, the certificate
(C1) and the virial identity 2K − 2P + d I₄ = 0. For large β the density tends to the Thomas–Fermi
parabola (R² − |x|²)/(2β).

    python demos/gross_pitaevskii.py
    mpirun -n 2 python demos/gross_pitaevskii.py --cells 8 --output results/gp

Published: d = 1: Bao, Chern, Lim 2006; d = 2: Muruganandam, Adhikari 2009; between walls, ½F^σ for
V = σ = β = 1 and ψ = 0 around (−8, 8)²: Gallistl, Hauck, Liang, Peterseim, arXiv:2402.06311.
"""

from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
from matplotlib.figure import Figure

import fem_mf as mf
from common import say, study

PUBLISHED = {  # β: μ
    1: {400.0: 35.5775},
    2: {3.1371: 1.42005, 12.5484: 2.25583, 62.742: 4.60982, 313.71: 10.06825, 627.42: 14.18922},
}
WALLS = 0.5407229817
COLUMNS = ("beta", "E", "mu", "change", "published", "difference", "virial", "gap")


def box(radius: float, cells: int, dim: int) -> Any:
    """[−radius, radius]^dim."""
    cell = "interval" if dim == 1 else "quadrilateral"
    return mf.box(MPI.COMM_WORLD, radius, 2.0 * radius / cells, dim, cell)


def main(
    dim: Literal[1, 2] = 2,  # dimension
    beta: tuple[float, ...] | None = None,  # strengths β of the contact term; None: published ones
    degree: int = 8,  # degree of ψ
    cells: int = 16,  # cells per axis of the coarser mesh
    output: str = "results/gross_pitaevskii",  # folder of table.csv and densities.png
) -> dict[str, Any]:
    """Solve all cases; return a row of COLUMNS for each β, and ½F^σ between walls."""
    published, rows = PUBLISHED[dim], []
    potential = mf.Potential(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2))
    start: mf.Density | None = None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=120)
    axes = figure.subplots()
    say("".join(f"{name:>16}" for name in COLUMNS))
    for b in sorted(beta or published):
        contact = mf.Contact(b)
        fermi = (b * (dim + 2) / (2.0, np.pi)[dim - 1]) ** (1.0 / (dim + 2))  # Thomas–Fermi R
        best = []
        for n in (cells, 2 * cells):
            mesh = box(fermi + 5.0, n, dim)  # ψ decays as exp(−|x|²/2) beyond R
            problem = mf.Problem(mesh, potential + contact, np.sqrt(0.5), degree, mass="lumped")
            # The coarser mesh need not resolve ψ well enough for the final tolerance.
            best.append(mf.minimise(problem, start, tol=1e-8 if n == cells else 1e-12))
            start = best[-1].density
        coarse, fine = best
        m, mu = fine.density, fine.eigenvalue
        virial = 0.25 * m.fisher_information() - 2.0 * potential.value(m) + dim * contact.value(m)
        known = published.get(b, np.nan)
        change = abs(mu - coarse.eigenvalue)
        rows.append((b, fine.energy, mu, change, known, mu - known, virial, fine.gap))
        say("".join(f"{x:16.10g}" if abs(x) > 1e-3 else f"{x:16.1e}" for x in rows[-1]))

        x = np.linspace(0.0, 1.4, 300)
        section = m.evaluate(np.pad(fermi * x[:, None], ((0, 0), (0, dim - 1))))
        axes.plot(x, 2.0 * b / fermi**2 * section, label=f"β = {b:g}")
    constant = mf.Potential(lambda x: np.ones_like(x[0]))
    gas, square = constant + mf.Contact(1.0), box(8.0, 2 * cells, 2)
    walls = mf.minimise(mf.Problem(square, gas, 1.0, degree, "dirichlet", "lumped"))
    say(f"between walls: F/2 = {0.5 * walls.energy:.12f}, published {WALLS:.10f}")

    if MPI.COMM_WORLD.rank == 0:
        Path(output).mkdir(parents=True, exist_ok=True)
        np.savetxt(
            f"{output}/table.csv", rows, delimiter=",", header=",".join(COLUMNS), comments=""
        )
        axes.plot(x, np.maximum(1.0 - x**2, 0.0), "k:", label="Thomas–Fermi, β → ∞")
        axes.set(xlabel="|x| / R", ylabel="2β m / R²", title=f"ground states, d = {dim}")
        axes.legend(frameon=False)
        figure.savefig(f"{output}/densities.png")
    return {"rows": rows, "walls": 0.5 * walls.energy}


if __name__ == "__main__":
    study(main)
