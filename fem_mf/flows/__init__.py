"""Flows of m: Schrödinger (D2), Hamilton–Jacobi–Bellman (D3), Langevin (L1), descent (J1)."""

from __future__ import annotations

from fem_mf.flows.classical_part import Quadratic, RiccatiFlow
from fem_mf.flows.flow import HJBState, State
from fem_mf.flows.hjb import HJBFlow
from fem_mf.flows.hjb_operator import HJBOperator
from fem_mf.flows.langevin import LangevinFlow, LangevinState, minimise_entropic
from fem_mf.flows.relative_entropy_descent import DescentState, RelativeEntropyDescent
from fem_mf.flows.schrodinger import SchrodingerFlow

__all__ = [
    "DescentState",
    "HJBFlow",
    "HJBOperator",
    "HJBState",
    "LangevinFlow",
    "LangevinState",
    "Quadratic",
    "RelativeEntropyDescent",
    "RiccatiFlow",
    "SchrodingerFlow",
    "State",
    "minimise_entropic",
]
