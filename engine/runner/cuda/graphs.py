"""Steps as CUDA graphs, one a shape.

A shape is run as it is the first time, which loads what it needs; while the device works on that, it is
captured, and replayed from then on. All graphs share one memory pool: one runs at a time. A shape for which
memory is short is never captured.

A capture takes the host 15 to 45 ms, for which every stream of the engine may stand still. So while a little
larger shape is there, steps run as that.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Callable

import torch

from engine.runner.cuda.shapes import StepShape

_log = logging.getLogger(__name__)

# What a stand-in computes for nothing, on a large GPU and 8B parameters: up to 5 ms.
_MAX_PADDING_TOKENS = 256
# Then it is common enough for a pause; a busy engine is never idle.
MAX_STAND_INS = 256

Captured = tuple[torch.cuda.CUDAGraph, torch.Tensor]


class StepGraphs:
    """Runs `forward(shape)`, which must launch the same work on the same addresses every time."""

    def __init__(self, forward: Callable[[StepShape], torch.Tensor]) -> None:
        self._forward = forward
        self._memory = torch.cuda.graph_pool_handle()
        self._graphs: dict[StepShape, Captured | None] = {}
        self._num_stand_ins: Counter[StepShape] = Counter()

    def drop(self) -> None:
        """Forget every graph: an address in them is not valid any more."""
        self._graphs.clear()
        self._num_stand_ins.clear()
        # A pool without graphs is not used again; its memory is given back here.
        self._memory = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def __contains__(self, shape: StepShape) -> bool:
        return shape in self._graphs

    def stand_in(self, shape: StepShape) -> StepShape | None:
        """Name a captured shape that serves one that is not captured; None: it is worth a capture now."""
        if self._num_stand_ins[shape] == MAX_STAND_INS:
            return None
        most = shape.num_tokens + _MAX_PADDING_TOKENS
        ready = [
            other
            for other, captured in self._graphs.items()
            if captured is not None and other.num_tokens <= most and other.serves(shape)
        ]
        if not ready:
            return None
        self._num_stand_ins[shape] += 1
        return min(ready, key=lambda other: (other.num_tokens, other.num_wanted))

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
