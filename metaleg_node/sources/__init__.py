"""Where the cluster state comes from; every source fills the same store."""
