"""Decides what each step runs."""
