"""Flows of m: Schrödinger (D2), Hamilton–Jacobi–Bellman (D3), Langevin (L1), descent (J1)."""
