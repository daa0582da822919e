"""Measurements of the program's speed; `./dev bench` runs them."""
