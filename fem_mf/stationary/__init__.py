"""The minimiser of F^σ by Newton's method on the sphere ‖ψ‖ = 1, certificates and decay rates.

``fem_mf.minimise`` is a function; ``fem_mf.stationary.minimise`` is the module that defines it.
"""

from __future__ import annotations

from fem_mf.stationary.certificate import gap
from fem_mf.stationary.decay import decay_rate, spectral_gap
from fem_mf.stationary.limit import Decay, Limit, measure_decay
from fem_mf.stationary.minimise import Minimum, minimise_nested

__all__ = [
    "Decay",
    "Limit",
    "Minimum",
    "decay_rate",
    "gap",
    "measure_decay",
    "minimise_nested",
    "spectral_gap",
]
