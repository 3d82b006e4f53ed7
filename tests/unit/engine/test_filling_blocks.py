"""Blocks of a prompt's end, announced while the step that computes them is under way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from engine.events import BlocksFilled, BlocksFilling, Event, StepEvents
from engine.request import GivenBlocks, Request
from engine.scheduler.filled_blocks import FilledBlocks
from engine.step import MIN_TOKENS_TOLD_EARLY, LayersWritten, ScheduledRow
from tests.support.engine_builders import create_config, create_group, create_request, create_scheduler
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner

NUM_BLOCKS = 1200
CHUNK = 600


class Driver(EngineDriver):
    """Keeps all events in order."""

    def __init__(self, *, late: bool) -> None:
        scheduler = create_scheduler(
            NUM_BLOCKS, (4,), create_config(max_step_tokens=CHUNK, max_chunk_tokens=CHUNK)
        )
        self.events: list[Event] = []
        super().__init__(scheduler, VerifyingRunner(NUM_BLOCKS, (4,), late=late), late)
        self.runner.layers = [LayersWritten(1, lambda: None)]

    def _publish(self, events: StepEvents, ended: list[str], ends: bool) -> None:
        self.events += events.events
        super()._publish(events, ended, ends)

    @property
    def filling(self) -> list[BlocksFilling]:
        return [event for event in self.events if isinstance(event, BlocksFilling)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("num_tokens", [CHUNK, CHUNK + MIN_TOKENS_TOLD_EARLY, CHUNK + 513])
def test_the_blocks_of_the_last_chunk_are_announced_before_they_are_final(
    late: bool, num_tokens: int
) -> None:
    driver = Driver(late=late)
    request = create_request(num_tokens, "a", hold_blocks=True)
    driver.submit(request)
    driver.run()
    (event,) = driver.filling
    last_start = num_tokens - num_tokens % CHUNK if num_tokens > CHUNK else 0
    assert event.first_index == last_start // 4
    assert list(event.block_ids) == request.block_ids[0][last_start // 4 :]
    assert [part.num_bytes for part in event.parts] == [create_group().block_bytes]
    # It changes nothing of what is said at the end.
    assert driver.filled["a"] == request.block_ids[0]
    last = [index for index, e in enumerate(driver.events) if isinstance(e, BlocksFilled)][-1]
    assert driver.events.index(event) < last


def test_layers_are_leading_bytes_of_a_block() -> None:
    group = dataclasses.replace(create_group(), layer_ids=(3, 5, 7, 9), shape=(4, 2, 1, 4, 4))
    request = create_request(CHUNK, "a", hold_blocks=True)
    request.block_ids = [list(range(CHUNK // 4))]
    waited: list[int] = []
    layers = [LayersWritten(count, lambda count=count: waited.append(count)) for count in (3, 4)]
    (event,) = FilledBlocks((group,)).ahead([ScheduledRow(request, 0, CHUNK, True)], layers)
    assert [part.num_bytes for part in event.parts] == [3 * 128, 512]
    for part in event.parts:
        part.wait()
    assert waited == [3, 4]


def given(request: Request) -> Request:
    blocks = (tuple(range(-(-request.num_tokens // 4))),)
    return dataclasses.replace(request, given=GivenBlocks(blocks, 0, lambda: True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_request(MIN_TOKENS_TOLD_EARLY - 1, "a", hold_blocks=True),
        lambda: create_request(CHUNK + MIN_TOKENS_TOLD_EARLY - 1, "a", hold_blocks=True),
        lambda: create_request(CHUNK, "a", max_tokens=1),
        lambda: given(create_request(CHUNK, "a", hold_blocks=True)),
    ],
    ids=["short", "short at its end", "not for others", "in place"],
)
def test_others_are_not_announced(make: Callable[[], Request]) -> None:
    driver = Driver(late=False)
    driver.submit(make())
    driver.run()
    assert driver.tokens["a"]
    assert not driver.filling
    assert not any(output.tells_layers for output in driver.runner.outputs)
