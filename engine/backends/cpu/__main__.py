"""Compile the CPU kernels into numba's cache, so that no service has to: python -m engine.backends.cpu."""

import time

_started = time.perf_counter()

import engine.backends.cpu.backend
import engine.sampler.sampler  # noqa: F401

print(f"CPU kernels ready in {time.perf_counter() - _started:.1f} s")
