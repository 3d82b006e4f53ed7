"""The commands, a module each: `add_flags` and `run`."""
