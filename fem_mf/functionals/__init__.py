"""Terms of F (theory §7) with their derivatives V[m], and checks of functionals."""

from __future__ import annotations

from fem_mf.functionals.checks import Convexity, check_derivative, probe_convexity
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

__all__ = [
    "Contact",
    "Convexity",
    "Cylindrical",
    "FormFunctional",
    "Functional",
    "MeanInteraction",
    "NetworkLoss",
    "Potential",
    "check_derivative",
    "functional",
    "probe_convexity",
]
