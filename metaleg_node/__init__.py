"""metaleg-node: keeps a Kubernetes node's routes and NAT rules as MetalLB's addresses need them."""

__version__ = "0.1.0"
