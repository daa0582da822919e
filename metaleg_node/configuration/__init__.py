"""The configuration: its table of settings, its file, and its text."""
