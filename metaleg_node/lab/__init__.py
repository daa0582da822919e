"""A throw-away cluster network made of network namespaces.

`metaleg-node demo` shows itself in it: a server outside, a router, three nodes with pods, dual stack, on the real
kernel and without touching the machine's own network. The lab of the end-to-end tests is made of it.
"""
