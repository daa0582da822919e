"""From what the kernel holds to what it should hold."""
