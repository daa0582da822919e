"""The running service: the loop and what stands around it."""
