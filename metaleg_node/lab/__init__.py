"""A throw-away cluster network made of network namespaces.

`metaleg-node demo` shows itself in it, and the end-to-end tests judge the real daemons in it: a server outside, a
router, three nodes with pods, dual stack, on the real kernel and without touching the machine's own network.
"""
