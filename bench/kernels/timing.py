"""Graph-replay timing, and the ceilings that results are shares of."""

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engine.backends.cuda import driver, loader
from engine.backends.cuda.source import Source


def graph_time_us(work: Callable[[], None], calls: int, *, samples: int = 15) -> float:
    """Median microseconds of one call; `work` makes `calls` of them and is captured once."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(2):
        graph.replay()
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def read_ceiling(num_bytes: int = 4 << 30) -> float:
    """Bytes a second of a kernel that only reads, best of several grids."""
    source = Source.of("read_ceiling", {}, Path(__file__).parent)
    arch = loader.facts().arch
    path = loader.find_or_compile(source, arch, (loader.AHEAD_DIR, loader.cache_dir()))
    kernel = loader.Module(driver.load_module(path)).kernel("read_ceiling")
    data = torch.randint(0, 2**31 - 1, (num_bytes // 4,), dtype=torch.int32, device="cuda")
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    best = 0.0
    for per_sm in (2, 4, 8):
        blocks = loader.facts().num_sms * per_sm
        us = graph_time_us(
            lambda blocks=blocks: kernel((blocks, 1, 1), (256, 1, 1), data, np.int64(num_bytes), sink),
            1,
            samples=7,
        )
        best = max(best, num_bytes / us * 1e6)
    return best


def copy_ceiling(num_bytes: int = 4 << 30) -> float:
    """Bytes a second, read and written, of a device-to-device copy."""
    source = torch.randint(0, 2**31 - 1, (num_bytes // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes / graph_time_us(lambda: target.copy_(source), 1, samples=7) * 1e6
