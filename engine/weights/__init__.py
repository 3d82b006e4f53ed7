"""Reads weights from files."""
