"""Decode steps as CUDA graphs, at a ladder of batch sizes.

A size is run as it is the first time, which loads what it needs, captured the second time and
replayed from then on. All graphs share one memory pool: one runs at a time.
"""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable

import torch


def ladder(max_rows: int) -> tuple[int, ...]:
    """Batch sizes, growing: 1, 2, 4, then by eights, from 64 on by sixteens; the last is max_rows."""
    sizes = {1, 2, 4, *range(8, 64, 8), *range(64, max_rows, 16)}
    return (*sorted(size for size in sizes if size < max_rows), max_rows)


class DecodeGraphs:
    """Runs `forward(size)`, which must launch the same work on the same addresses every time."""

    def __init__(self, forward: Callable[[int], torch.Tensor], sizes: tuple[int, ...]) -> None:
        self._forward = forward
        self._sizes = sizes
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._seen: set[int] = set()

    def size_for(self, rows: int) -> int:
        """The smallest size that holds so many rows."""
        return self._sizes[bisect.bisect_left(self._sizes, rows)]

    def drop(self) -> None:
        """Forget every graph: an address in them is not valid any more."""
        self._graphs.clear()
        self._seen.clear()

    def run(self, size: int) -> torch.Tensor:
        """Launch forward(size), or the graph of it, on the current stream; returns what it returns."""
        found = self._graphs.get(size)
        if found is None:
            if size not in self._seen:
                self._seen.add(size)
                return self._forward(size)
            found = self._graphs[size] = self._capture(size)
        graph, result = found
        graph.replay()
        return result

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The collector might free the graph of an engine that is gone, which ends a capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            return graph, self._record(graph, size)
        finally:
            if collects:
                gc.enable()

    def _record(self, graph: torch.cuda.CUDAGraph, size: int) -> torch.Tensor:
        # Other threads of this process copy KV meanwhile: only this one must not wait for the device.
        with torch.cuda.graph(
            graph,
            pool=self._memory,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            return self._forward(size)
