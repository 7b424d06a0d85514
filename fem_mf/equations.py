"""All weak forms of the package, in UFL. Names and letters are those of the theory page.

    from fem_mf import equations
    psi, chi = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    V = problem.functional.derivative(density)
    form = equations.schrodinger(psi, chi, V, problem.sigma, ufl.dx)

The functions are stateless: they combine trial functions, test functions and coefficients into a
form and depend neither on a problem nor on time. All forms that the package assembles are defined
here (``langevin`` is for reference, since edge averages replace it); a faster way to the same
matrix, where one exists, is compared with the form when a problem is set up.

To solve another equation, replace the function before creating the problem. ``schrodinger`` is used
by ``SchrodingerFlow``, ``minimise`` and the certificate; it must be symmetric in ψ and χ, and V
must enter as ∫Vψχ, since V is the derivative of F. ``hjb``, ``hopf_cole`` and ``log_energy`` are
used by the other formulations and are not derived from it.

``dx`` and ``ds`` are UFL measures; ``sigma`` is σ as a number, a ``fem.Constant`` or a field.
"""

from __future__ import annotations

from typing import Any

import ufl

__all__ = [
    "energy",
    "entropy",
    "first_variation",
    "fisher",
    "hjb",
    "hopf_cole",
    "langevin",
    "log_energy",
    "mass",
    "relative_fisher",
    "schrodinger",
]

_TINY = 1e-300  # keeps logarithms finite where ψ = 0

type Expr = Any  # a UFL expression, a fem.Function or Constant, or a number
type Form = Any
type Measure = Any


def _dot(a: Expr, b: Expr) -> Expr:
    return ufl.inner(ufl.grad(a), ufl.grad(b))


# -- in ψ = √m ---------------------------------------------------------------------------------


def mass(a: Expr, b: Expr, dx: Measure, v: Expr | None = None) -> Form:
    """∫ab dx, or ∫ab e^{−v} dx: the inner product of L², or of L²(ρ) with ρ = e^{−v}."""
    return a * b * dx if v is None else ufl.exp(-v) * a * b * dx


def fisher(psi: Expr, chi: Expr, sigma: Expr) -> Expr:
    """σ²∇ψ·∇χ: for χ = ψ the integrand of (σ²/4) I(m) (E1), else half its derivative by ψ."""
    return sigma**2 * _dot(psi, chi)


def energy(psi: Expr, sigma: Expr, dx: Measure) -> Form:
    """(σ²/4) I(m) = σ²∫|∇ψ|² dx, the regularising part of F^σ(m) (E1)."""
    return fisher(psi, psi, sigma) * dx


def entropy(psi: Expr, other: Expr, dx: Measure) -> Form:
    """∫m log m dx with m = ψ² (L1), or ∫m log(m/m') dx with m' = ψ'² given as ``other``.

    Set ``other`` = 1 for the first. The convention is 0 log 0 = 0.
    """
    return psi**2 * (ufl.ln(psi**2 + _TINY) - ufl.ln(other**2 + _TINY)) * dx


def schrodinger(psi: Expr, chi: Expr, V: Expr, sigma: Expr, dx: Measure) -> Form:
    """⟨χ, H[m]ψ⟩ = ∫(σ²∇ψ·∇χ + Vψχ) dx with V = V[m] (F2).

    The mean-field Schrödinger flow is ∂_tψ = −½(H[m] − λ)ψ (D2), its stationary states are
    Hψ = λψ, and for V = V[m] the form is half the derivative of F^σ(ψ²) in direction χ.
    """
    return fisher(psi, chi, sigma) * dx + V * psi * chi * dx


# -- in u = −log m -----------------------------------------------------------------------------


def log_energy(u: Expr, sigma: Expr, dx: Measure) -> Form:
    """(σ²/4) I(m) = (σ²/4)∫|∇u|² e^{−u} dx (E1)."""
    return sigma**2 / 4 * _dot(u, u) * ufl.exp(-u) * dx


def relative_fisher(new: Expr, old: Expr, sigma: Expr, dx: Measure) -> Form:
    """(σ²/4)∫|∇log(m'/m)|² m' dx with m' = e^{−new} and m = e^{−old} (D6)."""
    difference = old - new
    return sigma**2 / 4 * _dot(difference, difference) * ufl.exp(-new) * dx


def hjb(
    u: Expr, chi: Expr, V: Expr, sigma: Expr, dx: Measure, ds: Measure, v: Expr | None = None
) -> Form:
    """Minus the right-hand side of the mean-field HJB equation, tested with χ (D3, F3).

    ∫((σ²/2)∇u·∇χ + (σ²/4)|∇u|²χ − Vχ) dx − ∫(σ²/2)∂_nu χ ds, that is −(σ²/2)Δu + (σ²/4)|∇u|² − V.
    If v is given, the argument u is w = u − v, V is the part that depends on m (W2), and the term
    (σ²/2)∇v·∇w χ is added. λ_t is not included: subtract it from V. With the boundary term the
    flux is that of u itself (an outflow).
    """
    half = sigma**2 / 2
    normal = ufl.FacetNormal(ufl.domain.extract_unique_domain(chi))
    form = half * _dot(u, chi) * dx + half / 2 * _dot(u, u) * chi * dx - V * chi * dx
    if v is not None:
        form += half * _dot(v, u) * chi * dx
    return form - half * ufl.inner(ufl.grad(u), normal) * chi * ds


def hopf_cole(
    phi: Expr, chi: Expr, v: Expr, G: Expr, sigma: Expr, dx: Measure, ds: Measure | None = None
) -> Form:
    """(σ²/2)∫ρ∇φ·∇χ dx + ½∫ρGφχ dx with ρ = e^{−v}, φ = e^{−w/2}: half of H in L²(ρ) (W3).

    ∂_tφ is minus this form, represented in L²(ρ); this is equation (W2) in linear form. It is half
    of H in L²(ρ) up to ½∂_tv, a constant for a stationary v. With ``ds`` the term −(σ²/2)∫ρ∂_nφχ ds
    is added and the flux is that of φ itself (an outflow, as in ``hjb``); without it the flux is 0.
    """
    rho = ufl.exp(-v)
    form = rho * sigma**2 / 2 * _dot(phi, chi) * dx + rho / 2 * G * phi * chi * dx
    if ds is None:
        return form
    normal = ufl.FacetNormal(ufl.domain.extract_unique_domain(chi))
    return form - rho * sigma**2 / 2 * ufl.inner(ufl.grad(phi), normal) * chi * ds


def first_variation(u: Expr, chi: Expr, V: Expr, sigma: Expr, dx: Measure) -> Form:
    """∫δF^σ/δm χ dm with δF^σ/δm = V + (σ²/2)Δu − (σ²/4)|∇u|² and m = e^{−u} (E2, F1).

    Integrated by parts: ∫((V + (σ²/4)|∇u|²)χ − (σ²/2)∇u·∇χ) e^{−u} dx.
    """
    m = ufl.exp(-u)
    inner = V + sigma**2 / 4 * _dot(u, u)
    return inner * chi * m * dx - sigma**2 / 2 * _dot(u, chi) * m * dx


# -- in m --------------------------------------------------------------------------------------


def langevin(m: Expr, chi: Expr, V: Expr, sigma: Expr, dx: Measure) -> Form:
    """∫(m∇V·∇χ + (σ²/2)∇m·∇χ) dx, minus the weak form of ∂_tm without boundary flux (L1).

    The equation is ∂_tm = ∇·(m∇V[m]) + (σ²/2)Δm. ``LangevinFlow`` discretises it by edge averages
    instead, which keep m positive and Gibbs densities exact.
    """
    return m * _dot(V, chi) * dx + sigma**2 / 2 * _dot(m, chi) * dx
