"""The CPU backend: oneDNN products over packed float32 weights, numba kernels for the rest.

It is the reference for the kernels of other backends, and what a laptop runs.
"""
