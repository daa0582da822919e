"""Damaged inputs of every kind, to find an exception that nobody declared: `./dev fuzz [SECONDS [SEED]]`."""
