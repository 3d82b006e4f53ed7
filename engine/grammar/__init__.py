"""Keeps an answer inside a grammar: which tokens may come next."""
