"""Moves blocks of bytes between workers."""
