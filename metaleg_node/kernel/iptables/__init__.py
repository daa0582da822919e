"""The packet filter by iptables and ipset, for kernels without nf_tables."""
