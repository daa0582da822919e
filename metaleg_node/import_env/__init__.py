"""The environment variables of the programs that this one replaces, and the configuration that means the same."""
