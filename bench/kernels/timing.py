"""Graph-replay timing, and the ceilings that results are shares of."""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engine.backends.cuda import driver, loader
from engine.backends.cuda.source import Source

WARM_S = 0.03


def graph_time_us(work: Callable[[], None], calls: int, *, samples: int = 15) -> float:
    """Median microseconds of one call; `work` makes `calls` of them and is captured once.

    Replays for WARM_S first: short launches after an idle stretch took 8 % longer (an H200's first 7 ms).
    """
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    until = time.perf_counter() + WARM_S
    while True:
        graph.replay()
        torch.cuda.synchronize()
        if time.perf_counter() > until:
            break
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def _kernel(name: str) -> loader.Kernel:
    source = Source.of("ceilings", {}, Path(__file__).parent)
    path = loader.find_or_compile(source, loader.facts().arch, (loader.AHEAD_DIR, loader.cache_dir()))
    return loader.Module(driver.load_module(path)).kernel(name)


def _best_rate(kernel: loader.Kernel, num_bytes: int, other: torch.Tensor) -> float:
    data = torch.randint(0, 2**31 - 1, (num_bytes // 4,), dtype=torch.int32, device="cuda")
    times = []
    for per_sm in (2, 4, 8, 16):
        grid = (loader.facts().num_sms * per_sm, 1, 1)
        work = functools.partial(kernel, grid, (256, 1, 1), data, np.int64(num_bytes), other)
        times.append(graph_time_us(work, 1, samples=7))
    return num_bytes / min(times) * 1e6


def read_ceiling(num_bytes: int = 4 << 30) -> float:
    """Bytes a second of a kernel that only reads, best of several grids."""
    return _best_rate(_kernel("read_ceiling"), num_bytes, torch.zeros(1, dtype=torch.int32, device="cuda"))


def copy_ceiling(num_bytes: int = 4 << 30) -> float:
    """Bytes a second, read and written: the better of torch's copy and a kernel's."""
    target = torch.empty(num_bytes // 4, dtype=torch.int32, device="cuda")
    source = torch.randint_like(target, 2**31 - 1)
    torch_rate = num_bytes / graph_time_us(lambda: target.copy_(source), 1, samples=7) * 1e6
    return 2 * max(torch_rate, _best_rate(_kernel("copy_ceiling"), num_bytes, target))
