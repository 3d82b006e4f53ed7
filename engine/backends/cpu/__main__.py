"""Compile the CPU kernels into numba's cache, so that no service has to: python -m engine.backends.cpu."""

import time
from importlib import import_module

started = time.perf_counter()
for module in ("engine.backends.cpu.backend", "engine.sampler.sampler"):
    import_module(module)
print(f"CPU kernels ready in {time.perf_counter() - started:.1f} s")
