"""Whether the tests notice small changes of the equations.

    python benchmarks/mutations.py                     # all of them, about three minutes
    python benchmarks/mutations.py --list
    python benchmarks/mutations.py --only F1 --only "D7, step"

Each mutation is a text replaced in a copy of the package, with the few tests that should fail on
it. They run on the copy and stop at the first failure. A mutation that no test catches, or whose
text is not found exactly once, ends the program with exit code 1. First the same tests run on an
unchanged copy, where they must pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PASSED, FAILED = 0, 1  # exit codes of pytest; others mean that it did not run the tests


class Mutation(NamedTuple):
    """A text of a file of the package, what replaces it, and tests of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_CERTIFICATE = "tests/stationary/test_certificate.py::"
_DESCENT = "tests/flows/test_relative_entropy_descent.py::"
_FIRST = "tests/test_first_variation.py::"
_FORMS = "tests/test_equations.py::"
_HJB = "tests/flows/test_hjb.py::"
_LANGEVIN = "tests/flows/test_langevin.py::"
_MOVEMENT = "tests/flows/test_minimising_movement.py::"
_OBSERVABLES = "tests/test_observables.py::"

MUTATIONS = [
    # -- §1: the functional and its first variation
    Mutation(
        "E1, energy by 4e-4",
        "observables.py",
        "kinetic = 0.25 * problem.sigma**2",
        "kinetic = 1.0004 * 0.25 * problem.sigma**2",
        _OBSERVABLES + "test_energy_and_eigenvalue_of_a_gaussian",
    ),
    Mutation(
        "E1, the form of u by 4e-4",
        "equations.py",
        "return sigma**2 / 4 * _dot(u, u) * ufl.exp(-u) * dx",
        "return 1.0004 * sigma**2 / 4 * _dot(u, u) * ufl.exp(-u) * dx",
        _FORMS + "test_the_energy_in_psi_and_in_u_is_the_same",
    ),
    Mutation(
        "E2, |∇u|² by 4e-4",
        "equations.py",
        "inner = V + sigma**2 / 4 * _dot(u, u)",
        "inner = V + 1.0004 * sigma**2 / 4 * _dot(u, u)",
        _FORMS + "test_the_first_variation_is_the_hjb_operator_against_m",
    ),
    Mutation(
        "E3, Bregman part of F by 4e-4",
        "bregman.py",
        "float(functional.value(first)) - linear",
        "float(functional.value(first)) - 1.0004 * linear",
        _FIRST + "test_bregman_of_gaussians_in_closed_form",
    ),
    # -- §2: the minimiser
    Mutation(
        "F1, by 4e-4",
        "first_variation.py",
        "flat=flat,",
        "flat=1.0004 * flat,",
        _FIRST + "test_forms_of_a_gaussian_in_closed_form",
    ),
    Mutation(
        "F2, σ² by 4e-4",
        "equations.py",
        "return sigma**2 * _dot(psi, chi)",
        "return 1.0004 * sigma**2 * _dot(psi, chi)",
        _OBSERVABLES + "test_energy_and_eigenvalue_of_a_gaussian",
    ),
    Mutation(
        "F3, by 4e-4",
        "first_variation.py",
        "hjb=float(np.sqrt(known.variance(values))),",
        "hjb=1.0004 * float(np.sqrt(known.variance(values))),",
        _FIRST + "test_forms_of_a_gaussian_in_closed_form",
    ),
    # -- §3: the dynamics
    Mutation(
        "D1, λ by 4e-4",
        "observables.py",
        "return problem.discretisation.dot(density.amplitude(), load)\n",
        "return 1.0004 * problem.discretisation.dot(density.amplitude(), load)\n",
        _OBSERVABLES + "test_energy_and_eigenvalue_of_a_gaussian",
    ),
    Mutation(
        "D2, time of Crank–Nicolson by 0.1 %",
        "flows/tableau.py",
        "rows=((0.0,), (0.5, 0.5))",
        "rows=((0.0,), (0.501, 0.5))",
        _MOVEMENT + "test_steps_of_every_scheme_against_dense_eigenvectors",
    ),
    Mutation(
        "D3, |∇w|² by 2 %",
        "equations.py",
        "half / 2 * _dot(u, u) * chi * dx",
        "1.02 * half / 2 * _dot(u, u) * chi * dx",
        _FORMS + "test_the_hjb_form_is_minus_the_right_hand_side",
    ),
    Mutation(
        "D3, the step by 0.1 %",
        "flows/hjb_operator.py",
        "weight=a / (1.0 + a)",
        "weight=1.001 * a / (1.0 + a)",
        "tests/flows/test_hjb_operator.py::test_rate_and_step_of_a_quadratic_in_closed_form",
    ),
    Mutation(
        "D4, dissipation by 4e-4",
        "flows/hjb.py",
        "dissipation = density.variance(",
        "dissipation = 1.0004 * density.variance(",
        _HJB + "test_residual_and_eigenvalue_of_a_gaussian_in_closed_form",
    ),
    Mutation(
        "D4, of ψ by 4e-4",
        "observables.py",
        "return first_order(problem, density).residual ** 2",
        "return 1.0004 * first_order(problem, density).residual ** 2",
        _OBSERVABLES + "test_residual_of_a_gaussian",
    ),
    Mutation(
        "D5, decay rate by 1e-4",
        "stationary/decay.py",
        "return value, slowest",
        "return 1.0001 * value, slowest",
        _CERTIFICATE + "test_decay_rate_against_dense_eigenvalues",
    ),
    Mutation(
        "D6, |∇log m'/m|² by 4e-4",
        "equations.py",
        "sigma**2 / 4 * _dot(difference, difference)",
        "1.0004 * sigma**2 / 4 * _dot(difference, difference)",
        _FORMS + "test_relative_fisher_is_the_bregman_divergence_of_the_energy",
    ),
    Mutation(
        "D7, length of a fixed-point stage by 0.1 %",
        "flows/schrodinger_stage.py",
        "self.stage, self.anchor, self.a, self._inexact = stage, anchor, a, inexact",
        "self.stage, self.anchor, self.a, self._inexact = stage, anchor, 1.001 * a, inexact",
        _MOVEMENT + "test_steps_of_every_scheme_against_dense_eigenvectors",
    ),
    Mutation(
        "D7, length of a Newton stage by 0.1 %",
        "flows/schrodinger_stage.py",
        "length=a,\n            )\n        )",
        "length=1.001 * a,\n            )\n        )",
        _MOVEMENT + "test_the_fixed_point_and_newton_give_the_same_step",
    ),
    # -- §4: u = v + w
    Mutation(
        "W1, closed form 1 % of a step late",
        "flows/classical_part.py",
        "self._flow.shape(t + time * dt)",
        "self._flow.shape(t + (time + 0.01) * dt)",
        _HJB + "test_decomposed_moving_gaussian_has_an_error_in_time_of_w_alone",
    ),
    Mutation(
        "W1, σ² of the closed form by 0.1 %",
        "flows/classical_part.py",
        "half = 0.5 * sigma**2\n",
        "half = 1.001 * 0.5 * sigma**2\n",
        "tests/flows/test_classical_part.py::test_flow_is_that_of_the_integrator",
    ),
    Mutation(
        "W1, step of the implicit v by 0.1 %",
        "flows/classical_part.py",
        "guess, self._potential, a, 0.0)",
        "guess, self._potential, 1.001 * a, 0.0)",
        _HJB + "test_without_mean_field_u_is_v_for_any_potential",
    ),
    Mutation(
        "W2, drift by 2 %",
        "equations.py",
        "form += half * _dot(v, u) * chi * dx",
        "form += 1.02 * half * _dot(v, u) * chi * dx",
        _FORMS + "test_the_hjb_form_is_minus_the_right_hand_side",
    ),
    Mutation(
        "W3, G by 0.1 %",
        "equations.py",
        "rho / 2 * G * phi * chi * dx",
        "1.001 * rho / 2 * G * phi * chi * dx",
        _FORMS + "test_hopf_cole_with_its_boundary_term_is_the_equation_of_phi",
    ),
    Mutation(
        "W3, length of a stage by 2 %",
        "flows/hopf_cole.py",
        "self._weight.value = np.asarray(a / (1.0 + a))",
        "self._weight.value = np.asarray(1.02 * a / (1.0 + a))",
        "tests/convergence/test_orders.py::test_orders_in_time -k hopf-cole",
    ),
    # -- §5: descent in relative entropy
    Mutation(
        "J1, H/h by 0.1 %",
        "flows/relative_entropy_descent.py",
        "- entropy / state.dt",
        "- 1.001 * entropy / state.dt",
        _DESCENT + "test_recursion_on_gaussians",
    ),
    Mutation(
        "J2, the step by 0.1 %",
        "flows/hjb.py",
        "stage.solve(start, guess, known, a, shift)",
        "stage.solve(start, guess, known, 1.001 * a, shift)",
        _DESCENT + "test_recursion_on_gaussians",
    ),
    Mutation(
        "J3, order two in place of one",
        "flows/relative_entropy_descent.py",
        'HJBFlow(problem, step, "backward-euler"',
        'HJBFlow(problem, step, "sdirk2"',
        "tests/convergence/test_orders.py::test_orders_in_time -k relative",
    ),
    # -- §6: Langevin
    Mutation(
        "L1, temperature by 1 %",
        "flows/edge_averaged.py",
        "problem, 0.5 * problem.sigma**2",
        "problem, 0.505 * problem.sigma**2",
        _LANGEVIN + "test_equilibria_of_a_given_potential_are_exact_at_the_nodes",
    ),
    Mutation(
        "L1, flux by 0.1 %",
        "flows/edge_averaged.py",
        "self._weight = self.temperature * coupling",
        "self._weight = 1.001 * self.temperature * coupling",
        _LANGEVIN + "test_a_step_against_a_dense_solve",
    ),
    Mutation(
        "L1, Gibbs exponent of the gap by 1e-4",
        "flows/langevin.py",
        "np.exp((lowest - potential) / temperature)",
        "np.exp(1.0001 * (lowest - potential) / temperature)",
        _LANGEVIN + "test_scalars_of_a_state_are_those_of_its_density",
    ),
    Mutation(
        "L1, Gibbs exponent of the minimiser by 1e-4",
        "flows/langevin_stage.py",
        "exponent = (discrete.min(potential) - potential) / s",
        "exponent = 1.0001 * (discrete.min(potential) - potential) / s",
        _LANGEVIN + "test_the_minimiser_proves_itself",
    ),
    # -- §8: certificates
    Mutation(
        "C1, gap by 1e-4",
        "stationary/certificate.py",
        "return max(condition.eigenvalue - pairs.values[0], 0.0)",
        "return 0.9999 * max(condition.eigenvalue - pairs.values[0], 0.0)",
        _CERTIFICATE + "test_the_gap_of_a_linear_functional_is_the_error_itself",
    ),
]


def copy_of_the_package(folder: Path) -> None:
    """What the tests need, in a folder of its own."""
    for name in ("fem_mf", "tests", "demos"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests, as on the command line of pytest, on the package in a folder."""
    environment = {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def first_failure(output: str) -> str:
    """The test that failed, as pytest names it."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0].split("::")[-1] if lines else ""


def check(mutation: Mutation, folder: Path) -> tuple[bool, str]:
    """Whether a mutation is caught, and by what, or why not."""
    file = folder / "fem_mf" / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return False, f"its text stands {text.count(mutation.old)} times in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = run(folder, mutation.tests)
    finally:
        file.write_text(text, encoding="utf-8")
    if done.returncode == PASSED:
        return False, "all tests pass"
    if done.returncode != FAILED:
        return False, f"pytest ended with {done.returncode}: {done.stdout[-500:]}"
    return True, first_failure(done.stdout)


def main() -> int:
    """Check the mutations that are asked for; 0 when all of them are caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="names that begin like this"
    )
    parser.add_argument("--list", action="store_true", help="the names, and what is replaced")
    options = parser.parse_args()
    begins = tuple(options.only) if options.only else ""
    chosen = [mutation for mutation in MUTATIONS if mutation.name.startswith(begins)]
    if not chosen:
        parser.error(f"no mutation begins with {options.only}")
    console = Console(width=140)
    if options.list:
        for mutation in chosen:
            console.print(f"{mutation.name}: {mutation.file}", markup=False)
        return 0
    table = Table("mutation", "file", "caught", "by", "seconds", title="Mutations")
    everything = True
    with tempfile.TemporaryDirectory(prefix="fem_mf-mutations-") as name:
        folder = Path(name)
        copy_of_the_package(folder)
        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            done = run(folder, tests)
            if done.returncode != PASSED:
                console.print(f"{tests} fails without a mutation:\n{done.stdout}", markup=False)
                return 1
        for mutation in chosen:
            start = time.monotonic()
            caught, why = check(mutation, folder)
            everything = everything and caught
            seconds = f"{time.monotonic() - start:.0f}"
            verdict = "yes" if caught else "NO"
            table.add_row(mutation.name, mutation.file, verdict, why, seconds)
            console.print(f"{mutation.name}: {verdict} ({why})", markup=False)
    console.print(table)
    return 0 if everything else 1


if __name__ == "__main__":
    raise SystemExit(main())
