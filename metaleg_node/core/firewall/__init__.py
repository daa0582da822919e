"""What the packet filter holds, in terms that every packet filter renders: one file for each part."""
