"""Measures what this machine can do at most: large reads and large matrix products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from bench.engine.floor import Ceilings

# Of the rate of products; what the best attention kernels reach beside them.
ATTENTION_SHARE = 0.85
WARM_S, SUSTAINED_S = 1.0, 0.5


def measure_ceilings(backend: str, dtype: str) -> Ceilings:
    """Measure the ceilings of a backend's device; takes some seconds."""
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    size = 8192 if backend == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    product_s = _least_seconds(functools.partial(torch.matmul, left, right), device)
    product_flops = 2 * size**3 / product_s
    sustained_s = _sustained_seconds(functools.partial(torch.matmul, left, right), device)
    numbers = torch.ones((4 << 30 if backend == "cuda" else 512 << 20) // 4, device=device)
    read_s = _least_seconds(numbers.sum, device)
    read_bytes_s = numbers.nbytes / read_s
    del numbers, left, right
    if backend == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(read_bytes_s, product_flops, ATTENTION_SHARE * product_flops, 2 * size**3 / sustained_s)


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


def _sustained_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the mean time of a turn once the device has done nothing else for a while."""
    start, count = time.perf_counter(), 0
    warm = start
    while (now := time.perf_counter()) < start + WARM_S + SUSTAINED_S:
        if now < start + WARM_S:
            warm, count = now, 0
        for _ in range(8):
            work()
        _wait(device)
        count += 8
    return (time.perf_counter() - warm) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
