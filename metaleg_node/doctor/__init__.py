"""`doctor`: what is wrong with this host and its cluster."""
