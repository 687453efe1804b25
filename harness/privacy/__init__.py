"""Mechanism → events → ε, and the randomness that the mechanism is executed with."""
