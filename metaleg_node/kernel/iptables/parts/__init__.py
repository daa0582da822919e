"""One file for each part of `core.firewall`: how iptables holds it, and how it is understood when read back."""
