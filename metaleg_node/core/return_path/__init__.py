"""Replies leave by the way the request came."""
