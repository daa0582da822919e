"""One file for each part of `core.firewall`: how nftables holds it, and how it is understood when read back."""
