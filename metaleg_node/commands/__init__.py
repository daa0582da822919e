"""The commands, each in a module of its own that has it as `COMMAND`."""
