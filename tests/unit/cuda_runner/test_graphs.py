"""When a step is launched, captured or replayed; the graphs themselves need a device (tests/kernels)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from engine.runner.cuda.graphs import MAX_STAND_INS, StepGraphs
from engine.runner.cuda.shapes import StepShape

SMALL, LARGE = (StepShape(size, size, size, size, has_chunks=False) for size in (1, 8))


class Device:
    """Notes what becomes of each shape; `captures` while a graph is being captured."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.captures = False
        self.during_capture: Callable[[], None] = lambda: None
        self.pools = 0

    def forward(self, shape: StepShape) -> torch.Tensor:
        if self.captures:
            self.during_capture()
        self.done.append(f"{'capture' if self.captures else 'launch'} {shape.num_rows}")
        return torch.full((1,), shape.num_rows)

    def new_pool(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Graph:
        def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
            assert (pool, capture_error_mode) == ((0, device.pools), "thread_local")
            device.captures = True

        def capture_end(self) -> None:
            assert device.captures
            device.captures = False

        def replay(self) -> None:
            device.done.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", device.new_pool)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: device.done.append("empty"))
    return device


def test_a_shape_is_launched_once_and_then_replayed(device: Device) -> None:
    graphs = StepGraphs(device.forward)
    results = [graphs.run(shape).item() for shape in (SMALL, SMALL, LARGE, SMALL)]
    assert results == [1, 1, 8, 1]
    assert device.done == ["launch 1", "capture 1", "replay", "launch 8", "capture 8", "replay"]
    assert SMALL in graphs


def test_a_little_larger_shape_stands_in(device: Device) -> None:
    graphs = StepGraphs(device.forward)
    assert graphs.stand_in(SMALL) is None
    graphs.run(LARGE)
    for _ in range(MAX_STAND_INS):
        assert graphs.stand_in(SMALL) == LARGE
    assert graphs.stand_in(SMALL) is None  # it is needed often enough for a graph of its own
    far, telling = (StepShape(300, 300, 300, 300, has_chunks=False), replace(LARGE, tells_layers=True))
    for other in (far, telling, replace(LARGE, has_chunks=True)):
        graphs.run(other)
    assert graphs.stand_in(StepShape(2, 2, 2, 2, has_chunks=False)) == LARGE
    assert graphs.stand_in(StepShape(10, 10, 10, 10, has_chunks=False)) is None
    assert graphs.stand_in(StepShape(100, 100, 100, 100, has_chunks=False)) == far


def test_a_shape_without_a_graph_does_not_stand_in(device: Device) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("none left")

    graphs = StepGraphs(device.forward)
    device.during_capture = fail
    graphs.run(LARGE)
    assert graphs.stand_in(SMALL) is None


def test_dropped_graphs_are_captured_anew_in_memory_of_their_own(device: Device) -> None:
    graphs = StepGraphs(device.forward)
    graphs.run(SMALL)
    graphs.drop()
    assert SMALL not in graphs
    assert device.pools == 2
    graphs.run(SMALL)
    assert device.done == ["launch 1", "capture 1", "empty", "launch 1", "capture 1"]


def test_without_memory_for_a_graph_steps_are_launched(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("none left")

    graphs = StepGraphs(device.forward)
    device.during_capture = fail
    assert [graphs.run(LARGE).item() for _ in range(3)] == [8, 8, 8]
    assert device.done == ["launch 8"] * 3
    assert len(caplog.records) == 1
    device.during_capture = lambda: None
    graphs.run(SMALL)
    graphs.run(SMALL)
    assert device.done[3:] == ["launch 1", "capture 1", "replay"]


def test_another_failure_of_a_capture_is_told(device: Device) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    graphs = StepGraphs(device.forward)
    device.during_capture = fail
    with pytest.raises(ValueError, match="a bug"):
        graphs.run(SMALL)
    assert not device.captures
    assert SMALL not in graphs
