"""Mean-field optimisation regularised by Fisher information, on DOLFINx, PETSc and MPI.

Minimise F(m) + (σ²/4) I(m) over probability densities m on R^d and follow its gradient flow
(equations are cited by the names of docs/theory.md, E1, D2, ...).

    import numpy as np
    from mpi4py import MPI
    mesh = fem_mf.disk(MPI.COMM_WORLD, radius=6.0, h=0.15)
    problem = fem_mf.Problem(mesh, fem_mf.Potential(lambda x: x[0]**2 + x[1]**2), sigma=0.5)
    start = fem_mf.Density.from_function(problem, lambda x: np.exp(-(x[0]**2 + x[1]**2)))
    for state in fem_mf.SchrodingerFlow(problem, dt=0.05).run(start, t_end=1.0):
        print(state.t, state.energy)
"""

import contextlib

# The wheel loads its own MPI before any compiled module can look for one; an installation of
# DOLFINx from conda, Debian or an image has no such module; mpi4py alone must come first.
with contextlib.suppress(ModuleNotFoundError):
    import dolfinx_solver  # noqa: F401

try:
    from mpi4py import MPI  # noqa: F401  isort: skip
    import dolfinx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fem_mf needs DOLFINx >= 0.11 with PETSc: pip install '.[wheel]' in a clone, or install it "
        f"into an environment (conda, Debian, docker image) that has DOLFINx ({error})"
    ) from error

from fem_mf.boundary import boundary_mass
from fem_mf.bregman import bregman
from fem_mf.density import Density, LogDensity
from fem_mf.first_variation import first_order_forms
from fem_mf.flows.hjb import HJBFlow
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.flows.langevin import LangevinFlow, minimise_entropic
from fem_mf.flows.relative_entropy_descent import RelativeEntropyDescent
from fem_mf.flows.schrodinger import SchrodingerFlow
from fem_mf.functionals.checks import check_derivative
from fem_mf.functionals.network import NetworkLoss
from fem_mf.functionals.terms import (
    Contact,
    Cylindrical,
    FormFunctional,
    Functional,
    MeanInteraction,
    Potential,
    functional,
)
from fem_mf.mesh import (
    ball,
    box,
    disk,
    interval,
    read_facet_tags,
    read_mesh,
    refine,
    truncation_radius,
)
from fem_mf.mpi import ConvergenceError, install_abort_hook, setup_logging
from fem_mf.observables import dissipation, eigenvalue, energy, residual
from fem_mf.output import History, XDMFSeries, progress
from fem_mf.output.checkpoint import Checkpoint
from fem_mf.output.results import open_results
from fem_mf.output.run import Run
from fem_mf.problem import Problem
from fem_mf.stationary.certificate import gap
from fem_mf.stationary.decay import decay_rate, spectral_gap
from fem_mf.stationary.limit import Limit, measure_decay
from fem_mf.stationary.minimise import Minimum, minimise

__all__ = [
    "Checkpoint",
    "Contact",
    "ConvergenceError",
    "Cylindrical",
    "Density",
    "FormFunctional",
    "Functional",
    "HJBFlow",
    "HJBOperator",
    "History",
    "LangevinFlow",
    "Limit",
    "LogDensity",
    "MeanInteraction",
    "Minimum",
    "NetworkLoss",
    "Potential",
    "Problem",
    "RelativeEntropyDescent",
    "Run",
    "SchrodingerFlow",
    "XDMFSeries",
    "ball",
    "boundary_mass",
    "box",
    "bregman",
    "check_derivative",
    "decay_rate",
    "disk",
    "dissipation",
    "eigenvalue",
    "energy",
    "first_order_forms",
    "functional",
    "gap",
    "interval",
    "measure_decay",
    "minimise",
    "minimise_entropic",
    "open_results",
    "progress",
    "read_facet_tags",
    "read_mesh",
    "refine",
    "residual",
    "setup_logging",
    "spectral_gap",
    "truncation_radius",
]
__version__ = "0.1.0"

install_abort_hook()
