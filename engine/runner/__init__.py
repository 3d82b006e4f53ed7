"""Runs scheduled steps on a backend."""
