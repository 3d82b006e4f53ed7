"""Steps as CUDA graphs, one a shape.

A shape is run as it is the first time, which loads what it needs, captured the second time and
replayed from then on. All graphs share one memory pool: one runs at a time.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import torch

from engine.runner.cuda.shapes import StepShape


class StepGraphs:
    """Runs `forward(shape)`, which must launch the same work on the same addresses every time."""

    def __init__(self, forward: Callable[[StepShape], torch.Tensor]) -> None:
        self._forward = forward
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._seen: set[StepShape] = set()

    def drop(self) -> None:
        """Forget every graph: an address in them is not valid any more."""
        self._graphs.clear()
        self._seen.clear()

    def run(self, shape: StepShape) -> torch.Tensor:
        """Launch forward(shape), or the graph of it, on the current stream; returns what it returns."""
        found = self._graphs.get(shape)
        if found is None:
            if shape not in self._seen:
                self._seen.add(shape)
                return self._forward(shape)
            found = self._graphs[shape] = self._capture(shape)
        graph, result = found
        graph.replay()
        return result

    def prepare(self, shape: StepShape) -> bool:
        """Take one of the two steps towards a graph; False: the other one is left."""
        if shape in self._graphs:
            return True
        if shape not in self._seen:
            self._seen.add(shape)
            self._forward(shape)
            return False
        self._graphs[shape] = self._capture(shape)
        return True

    def _capture(self, shape: StepShape) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The collector might free the graph of an engine that is gone, which ends a capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            return graph, self._record(graph, shape)
        finally:
            if collects:
                gc.enable()

    def _record(self, graph: torch.cuda.CUDAGraph, shape: StepShape) -> torch.Tensor:
        # Not torch.cuda.graph: it waits for the device, which has a step to run, and gives memory back.
        # Other threads of this process copy KV meanwhile: only this one must not wait for the device.
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
        try:
            result = self._forward(shape)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return result
