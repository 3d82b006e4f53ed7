"""An hour's worth of steps in seconds: after thousands of requests no block is lost and memory has not grown.

The device is one that only remembers which blocks its steps touch: it draws a token that
depends on request and position alone, and fails if a block that a step under way touches
has another owner. Nothing here keeps anything of a request that has ended.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import deque
from collections.abc import Sequence

import pytest

from engine.config import EngineConfig
from engine.events import RequestCancelled, RequestFailed, ReservationGranted, StepEvents, TokenSampled
from engine.kv.host_tier import HostSlots
from engine.loop import EngineLoop
from engine.request import FinishReason, Request, RequestStatus
from engine.sampling_params import SamplingParams
from engine.scheduler.scheduler import Scheduler
from engine.step import SampledToken, SchedulerOutput, StepResult
from tests.support.engine_builders import create_group

EOS = 50_000
BLOCK_SIZE = 16


def draw(request: Request, position: int) -> int:
    """One in five hundred ends the answer."""
    value = (request.arrival * 2654435761 + position * 40503) % 1_000_003
    return EOS if value % 500 == 0 else value % EOS


class LateStep:
    """Resolves when it is waited for."""

    def __init__(self, device: Device, output: SchedulerOutput) -> None:
        self.layers = ()
        self.device = device
        self.sampled = [(row.request, row.start + row.num_tokens) for row in output.rows if row.sample]
        # Block -> the request in whose table it is; None: a copy touches it as well.
        self.touched: dict[int, Request] = {}
        for row in output.rows:
            assert row.pending == (row.start == len(row.request.token_ids))
            for block_id in row.request.block_ids[0][row.start // BLOCK_SIZE :]:
                self.touched[block_id] = row.request

    def is_over(self) -> bool:
        return self not in self.device.under_way

    def wait(self) -> StepResult:
        assert self.device.under_way.popleft() is self
        return StepResult(
            {request.request_id: SampledToken(draw(request, position)) for request, position in self.sampled}
        )


class Device:
    """Runs nothing, late."""

    def __init__(self) -> None:
        self.under_way: deque[LateStep] = deque()

    def prepare(self) -> bool:
        return False

    def launch(self, output: SchedulerOutput) -> LateStep:
        step = LateStep(self, output)
        for other in self.under_way:
            for block_id in step.touched.keys() & other.touched.keys():
                assert step.touched[block_id] is other.touched[block_id], "a block has two owners"
        self.under_way.append(step)
        assert len(self.under_way) <= 2
        return step

    def check_granted(self, block_ids: Sequence[int]) -> None:
        for step in self.under_way:
            assert not step.touched.keys() & set(block_ids)


class Hour:
    """Requests of all kinds arrive, as fast as they are served, and are cancelled at random."""

    def __init__(self, seed: int, num_blocks: int, max_running: int, mean_tokens: int) -> None:
        self.rng = random.Random(seed)
        self.mean_tokens = mean_tokens
        self.max_running = max_running
        config = EngineConfig(
            model="",
            model_name="",
            max_step_tokens=1024,
            max_chunk_tokens=512,
            max_running=max_running,
        )
        self.scheduler = Scheduler(
            config,
            (create_group(BLOCK_SIZE),),
            num_blocks,
            100_000,
            frozenset({EOS}),
            host_slots=HostSlots(num_blocks // 8, num_blocks // 4),
        )
        self.device = Device()
        self.loop = EngineLoop(self.scheduler, self.device, self.publish, ahead=True)
        self.live: dict[str, Request] = {}
        self.granted: list[Request] = []
        self.num_seen: dict[str, int] = {}
        self.num_added = 0
        self.num_ended = 0
        self.num_cancelled = 0
        self.num_tokens = 0

    def publish(self, events: StepEvents, ended: Sequence[str], ends: bool) -> None:
        for event in events.events:
            request = self.live[event.request_id]
            match event:
                case TokenSampled():
                    position = request.num_prompt_tokens + self.num_seen[event.request_id]
                    assert event.token.token_id == draw(request, position)
                    assert (event.token.token_id == EOS) == (event.finish_reason is FinishReason.STOP)
                    self.num_seen[event.request_id] += 1
                    self.num_tokens += 1
                case ReservationGranted():
                    self.device.check_granted(event.block_ids[0][event.num_cached_tokens // BLOCK_SIZE :])
                    self.granted.append(request)
                case RequestCancelled():
                    self.num_cancelled += 1
                case RequestFailed():
                    raise AssertionError(event.error)
        for request_id in ended:
            del self.live[request_id]
            del self.num_seen[request_id]
            self.num_ended += 1

    def length(self) -> int:
        """Lognormal, as the lengths of chats are."""
        return min(8 * self.mean_tokens, 1 + int(self.rng.lognormvariate(0, 0.9) * self.mean_tokens / 1.5))

    def add(self) -> None:
        rng, number = self.rng, self.num_added
        self.num_added += 1
        # A third begin as one of a few others did.
        shared = [rng.randrange(20)] * (BLOCK_SIZE * rng.randrange(8)) if rng.random() < 0.33 else []
        tokens = shared + [(number * 31 + i) % EOS for i in range(self.length())]
        hold = rng.random() < 0.1
        request = Request(
            f"request-{number}",
            tokens,
            len(tokens),
            SamplingParams(max_tokens=3 * self.length(), temperature=0.0),
            priority=rng.randrange(2),
            arrival=number + 1,
            hold_blocks=hold,
            max_new_tokens=1 if hold else None,
        )
        if not hold and rng.random() < 0.4:
            request.status = RequestStatus.QUEUED
        self.live[request.request_id] = request
        self.num_seen[request.request_id] = 0
        self.scheduler.add(request)

    def run(self, num_requests: int) -> None:
        """Serve so many more, to the last."""
        end = self.num_added + num_requests
        while True:
            while self.num_added < end and self.scheduler.num_queued < 8:
                self.add()
            busy = self.loop.step()
            for request in self.granted:
                if request.status is RequestStatus.RESERVED:
                    self.num_seen[request.request_id] = 1
                    first = draw(request, request.num_tokens)
                    self.scheduler.commit_reservation(request.request_id, first)
            self.granted.clear()
            for request in [r for r in self.live.values() if r.status is RequestStatus.FINISHED]:
                self.scheduler.cancel(request.request_id)
            if self.live and self.rng.random() < 0.02:
                self.scheduler.cancel(self.rng.choice(list(self.live)))
            if not busy and not self.live and self.num_added == end:
                break
        self.loop.publish(0)

    def memory_bytes(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize(
    ("num_requests", "num_blocks", "max_running", "mean_tokens"),
    [
        pytest.param(1_000, 100, 32, 30, id="short"),
        pytest.param(20_000, 100, 32, 30, id="full", marks=[pytest.mark.matrix, pytest.mark.timeout(3600)]),
    ],
)
def test_an_hour_compressed(num_requests: int, num_blocks: int, max_running: int, mean_tokens: int) -> None:
    hour = Hour(5, num_blocks, max_running, mean_tokens)
    tracemalloc.start()
    try:
        # Caches and journals fill up first.
        hour.run(num_requests // 4)
        before = hour.memory_bytes()
        hour.run(num_requests - num_requests // 4)
        grown = hour.memory_bytes() - before
    finally:
        tracemalloc.stop()
    hour.scheduler.check_invariants()
    stats = hour.scheduler.stats()
    assert hour.num_ended == num_requests
    assert (stats.used_blocks, stats.swapped, stats.running, stats.waiting, stats.reserved) == (0, 0, 0, 0, 0)
    assert stats.preemptions > num_requests // 100
    assert stats.loaded_blocks > 0
    assert hour.num_cancelled > num_requests // 100
    # A reference or two for each request would be more.
    assert grown < 16 * num_requests, f"{grown} bytes more than after the first quarter"
    print(f"{hour.num_tokens} tokens, {stats}, {grown} bytes")
