"""Decides: pure functions over frozen values. Reads no clock, file or socket."""
