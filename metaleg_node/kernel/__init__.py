"""Observes and applies; takes no decisions."""
