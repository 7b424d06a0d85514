"""The minimiser of F^σ: Newton's method on the sphere ‖ψ‖ = 1, and what certifies its result."""
