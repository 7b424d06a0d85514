"""Terms of F (theory §7), each with V[m] as its derivative, and what they share."""
