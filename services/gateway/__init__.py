"""The gateway: all that a client sees."""
