"""Measures what this machine can do at most: large reads and large matrix products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from bench.engine.floor import Ceilings

# Of the rate of products; what the best attention kernels reach beside them.
ATTENTION_SHARE = 0.85


def measure_ceilings(backend: str, dtype: str) -> Ceilings:
    """Measure the ceilings of a backend's device; takes about a second."""
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    size = 8192 if backend == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    product_s = _least_seconds(functools.partial(torch.matmul, left, right), device)
    product_flops = 2 * size**3 / product_s
    numbers = torch.ones((4 << 30 if backend == "cuda" else 512 << 20) // 4, device=device)
    read_s = _least_seconds(numbers.sum, device)
    read_bytes_s = numbers.nbytes / read_s
    del numbers, left, right
    if backend == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(read_bytes_s, product_flops, ATTENTION_SHARE * product_flops)


def _least_seconds(work: Callable[[], object], device: torch.device, turns: int = 10) -> float:
    """Return the least time of several turns."""
    times = []
    for _ in range(turns):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
