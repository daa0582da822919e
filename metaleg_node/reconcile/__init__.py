"""One reconcile, from the kernel as it is to the kernel as it should be."""
