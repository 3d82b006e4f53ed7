"""CUDA kernels of our own, behind the same operations as the CPU backend. Only this package imports cupy."""
