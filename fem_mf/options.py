"""PETSc options: who wins, and what is good when nobody says anything.

    defaults = default_options(condition=1e4, dofs=66_000, dim=2)
    tolerances = configure(ksp, defaults, {"pc_type": "jacobi"})

Options come from, in this order: the command line (``-fem_mf_schrodinger_ksp_type ...``), the
``petsc_options`` argument, the defaults. Nothing stays behind in the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petsc4py import PETSc

from fem_mf.parallel import all_ranks_agree

__all__ = ["Options", "configure", "default_options", "default_preconditioner", "mumps"]

type Options = Mapping[str, str | int | float | bool | None]

# Unpreconditioned condition number above which Jacobi needs more iterations than a factorisation
# or multigrid costs (measured at 66k dofs: 15 iterations at 30, some 100 at 1e3).
_JACOBI_CONDITION = 1e3
_DIRECT_DOFS = {1: 10_000_000, 2: 500_000, 3: 40_000}
# Half the time of multigrid at 185k dofs of degree 4 hexahedra; its iterations grow with 1/h.
_INCOMPLETE_DOFS = {1: 0, 2: 0, 3: 400_000}
_MULTIGRID: dict[str, str | int | float] = {
    "pc_type": "gamg",
    "mg_levels_ksp_type": "chebyshev",
    "mg_levels_pc_type": "jacobi",
}


def configure(solver: PETSc.KSP | PETSc.SNES, defaults: Options, chosen: Options) -> dict[str, Any]:
    """Give a solver its options. Collective.

    Returns:
        The tolerances of a linear solver that the user fixed.

    Raises:
        ValueError: PETSc refuses an option, or does not know one.
    """
    prefix = solver.getOptionsPrefix()
    database = PETSc.Options(prefix)
    picked = database.getString("pc_type", str(chosen.get("pc_type", "")))
    if picked not in ("", defaults.get("pc_type"), "lu", "cholesky"):
        # What belongs to the default preconditioner is no option of another one.
        defaults = {key: value for key, value in defaults.items() if key.startswith("ksp_")}
    options = {**defaults, **chosen}
    added = [key for key in options if not database.hasName(key)]
    tolerances: dict[str, Any] = {}
    error = None
    try:
        for key in added:
            value = options[key]
            database.setValue(key, "" if value is None else value)
        solver.setFromOptions()
        if isinstance(solver, PETSc.KSP):
            solver.setUp()  # reads the options of inner solvers
            rtol, atol, divtol, max_it = solver.getTolerances()
            values = {"rtol": rtol, "atol": atol, "divtol": divtol, "max_it": max_it}
            tolerances = {k: v for k, v in values.items() if database.hasName(f"ksp_{k}")}
        unknown = [k for k in chosen if k in added and not PETSc.Options().used(prefix + k)]
        if unknown:
            error = ValueError(
                f"PETSc does not know the options {unknown} here: misspelt, or of a solver "
                "that was not chosen"
            )
    except PETSc.Error as caught:
        code = caught.ierr  # type: ignore[attr-defined]
        error = ValueError(
            f"PETSc refused the solver options {options} (prefix {prefix}): error code "
            f"{code}; is that solver in this build of PETSc?"
        )
    finally:
        for key in added:
            database.delValue(key)
    all_ranks_agree(solver.comm.tompi4py(), error)
    return tolerances


def mumps(dim: int) -> dict[str, str | int | float]:
    """A factorisation by MUMPS, with the ordering that is fastest in this dimension."""
    chosen: dict[str, str | int | float] = {"pc_factor_mat_solver_type": "mumps"}
    if dim < 3:
        # Approximate minimum fill: analysis and factorisation together take 0.4 of the time that
        # they take with the default nested dissection (16k to 260k dofs, degree 2 triangles).
        chosen["mat_mumps_icntl_7"] = 2
    return chosen


def default_options(condition: float, dofs: int, dim: int) -> dict[str, str | int | float]:
    """CG with the preconditioner that is good at this condition number and size.

    Args:
        condition: of the diagonally scaled matrix, an upper estimate.
        dofs: global size.
        dim: of the mesh.
    """
    if condition <= _JACOBI_CONDITION and dim > 1:
        return {"ksp_type": "cg", "pc_type": "jacobi"}
    if dofs <= _DIRECT_DOFS[dim]:
        return {"ksp_type": "cg", "pc_type": "lu", **mumps(dim)}
    return {"ksp_type": "cg", **_MULTIGRID}


def default_preconditioner(dofs: int, dim: int) -> dict[str, str | int | float]:
    """A preconditioner for an elliptic operator without a time step to tame it.

    A factorisation where it is affordable, an incomplete one in three dimensions, multigrid beyond.

    Args:
        dofs: global size.
        dim: of the mesh.
    """
    if dofs <= _DIRECT_DOFS[dim]:
        # With approximate minimum fill MUMPS' Cholesky solves returned infinity on three ranks (3k
        # dofs, d = 2); METIS is right, and repeated factorisations are no slower (0.48 s against
        # 0.63 s at 199k dofs of degree 2).
        ordering = {"mat_mumps_icntl_7": 5}
        return {"ksp_type": "preonly", "pc_type": "cholesky", **mumps(dim), **ordering}
    if dofs <= _INCOMPLETE_DOFS[dim]:
        return {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "icc"}
    return {"ksp_type": "preonly", **_MULTIGRID}
