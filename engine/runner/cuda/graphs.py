"""Steps as CUDA graphs, one a shape.

A shape is run as it is the first time, which loads what it needs; while the device works on that, it is
captured, and replayed from then on. All graphs share one memory pool: one runs at a time. A shape for which
memory is short is never captured.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable

import torch

from engine.runner.cuda.shapes import StepShape

_log = logging.getLogger(__name__)

Captured = tuple[torch.cuda.CUDAGraph, torch.Tensor]


class StepGraphs:
    """Runs `forward(shape)`, which must launch the same work on the same addresses every time."""

    def __init__(self, forward: Callable[[StepShape], torch.Tensor]) -> None:
        self._forward = forward
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[StepShape, Captured | None] = {}

    def drop(self) -> None:
        """Forget every graph: an address in them is not valid any more."""
        self._graphs.clear()
        # A pool without graphs is not used again; its memory is given back here.
        self._memory = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def __contains__(self, shape: StepShape) -> bool:
        return shape in self._graphs

    def run(self, shape: StepShape) -> torch.Tensor:
        """Launch forward(shape), or the graph of it, on the current stream; returns what it returns."""
        if shape not in self._graphs:
            result = self._forward(shape)
            self._graphs[shape] = self._capture(shape)
            return result
        captured = self._graphs[shape]
        if captured is None:
            return self._forward(shape)
        graph, result = captured
        graph.replay()
        return result

    def _capture(self, shape: StepShape) -> Captured | None:
        graph = torch.cuda.CUDAGraph()
        # The collector might free the graph of an engine that is gone, which ends a capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            return graph, self._record(graph, shape)
        except torch.OutOfMemoryError as error:
            _log.warning("no memory for a graph of %s, which will run without: %s", shape, error)
            return None
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
