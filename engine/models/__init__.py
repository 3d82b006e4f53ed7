"""Architectures, described by their configuration, and the transformer built from them."""
