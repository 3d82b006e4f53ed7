"""Reference backend: PyTorch on the CPU."""
