"""The packet filter by nftables."""
