"""What the scheduler costs the host a step: schedule and commit, no model and no device.

    python bench/scheduler.py                 256 requests in decode, one step ahead
    python bench/scheduler.py --running 64 --prompts 4

A decode step of an 8B model takes 7 ms on a GPU; whatever the host does in that time is
hidden, but it is also the least time of a step of a small model. Times are CPU time of
this thread, so that neighbours on the machine do not count; the tokens of all requests
are checked at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque

from engine.config import EngineConfig
from engine.events import TokenSampled
from engine.kv.layout import CacheGroup, CacheKind
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.scheduler.scheduler import Scheduler
from engine.step import SampledToken, SchedulerOutput, StepResult

BLOCK_SIZE = 64
VOCAB_SIZE = 50_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--running", type=int, default=256, help="requests in decode")
    parser.add_argument("--prompts", type=int, default=0, help="of which so many are replaced each step")
    parser.add_argument("--context", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--synchronous", action="store_true", help="commit each step before the next")
    args = parser.parse_args()
    bench = Bench(args.running, args.context, ahead=not args.synchronous)
    bench.fill(args.running)
    bench.run(args.steps, args.prompts)
    bench.check()
    for name, times in (("schedule", bench.schedule_s), ("commit", bench.commit_s), ("both", bench.both_s)):
        cuts = statistics.quantiles(times, n=100)
        print(
            f"{name:>8}: median {statistics.median(times) * 1e6:6.0f} us, "
            f"p99 {cuts[98] * 1e6:6.0f} us, least {min(times) * 1e6:6.0f} us"
        )


class Bench:
    """A scheduler and a device that draws (request number + position) modulo the vocabulary."""

    def __init__(self, max_running: int, context: int, ahead: bool) -> None:
        config = EngineConfig(
            model="",
            model_name="",
            block_size=BLOCK_SIZE,
            max_step_tokens=1 << 20,
            max_chunk_tokens=1 << 20,
            max_running=max_running,
        )
        group = CacheGroup("attention", CacheKind.ATTENTION, (0,), BLOCK_SIZE, (1,), "bfloat16")
        num_blocks = max_running * (context + 4096) // BLOCK_SIZE
        self.scheduler = Scheduler(config, (group,), num_blocks, 1 << 20, frozenset({VOCAB_SIZE}))
        self.context = context
        self.ahead = ahead
        self.requests: dict[str, Request] = {}
        self.drawn: dict[str, list[int]] = {}
        self.under_way: deque[SchedulerOutput] = deque()
        self.schedule_s: list[float] = []
        self.commit_s: list[float] = []

    @property
    def both_s(self) -> list[float]:
        """Both parts of a step."""
        return [a + b for a, b in zip(self.schedule_s, self.commit_s, strict=True)]

    def add(self) -> None:
        """One more request, unlike the others."""
        number = len(self.requests)
        # Lengths differ, so that not all requests fill a block in the same step.
        length = self.context + number % BLOCK_SIZE
        tokens = [(number * 7919 + i) % VOCAB_SIZE for i in range(length)]
        sampling = SamplingParams(max_tokens=4000, temperature=0.0)
        request = Request(f"request-{number}", tokens, length, sampling, arrival=number + 1)
        self.requests[request.request_id] = request
        self.drawn[request.request_id] = []
        self.scheduler.add(request)

    def fill(self, count: int) -> None:
        """Get so many requests into decode, unmeasured."""
        for _ in range(count):
            self.add()
        for _ in range(3):
            self.step()
        self.schedule_s.clear()
        self.commit_s.clear()

    def run(self, steps: int, prompts: int) -> None:
        """Run so many steps; before each, the oldest `prompts` requests give way to new ones."""
        oldest = iter(tuple(self.requests))
        for _ in range(steps):
            for _ in range(prompts):
                request_id = next(oldest, None)
                if request_id is not None:
                    self.scheduler.cancel(request_id)
                    self.add()
            self.step()

    def step(self) -> None:
        """One step; the device takes no time."""
        begun = time.thread_time()
        output = self.scheduler.schedule()
        self.schedule_s.append(time.thread_time() - begun)
        self.under_way.append(output)
        if len(self.under_way) > self.ahead:
            oldest = self.under_way.popleft()
            result = StepResult(
                {
                    row.request.request_id: SampledToken(draw(row.request, row.start + row.num_tokens))
                    for row in oldest.rows
                    if row.sample
                }
            )
            begun = time.thread_time()
            self.scheduler.commit(oldest, result)
            self.commit_s.append(time.thread_time() - begun)
            self.take()
        else:
            self.commit_s.append(0.0)

    def take(self) -> None:
        """Read the events, as the engine's owner does."""
        for event in self.scheduler.take_events():
            if isinstance(event, TokenSampled):
                self.drawn[event.request_id].append(event.token.token_id)
        self.scheduler.take_ended()

    def check(self) -> None:
        """Every request has the tokens that the device drew for it, and no block is lost."""
        for request_id, request in self.requests.items():
            drawn = self.drawn[request_id]
            start = request.num_prompt_tokens
            assert drawn == [draw(request, start + i) for i in range(len(drawn))], request_id
            self.scheduler.cancel(request_id)
        for output in self.under_way:
            self.scheduler.commit(output, StepResult({}))
        self.scheduler.check_invariants()
        assert self.scheduler.stats().used_blocks == 0


def draw(request: Request, position: int) -> int:
    """Token at a position."""
    return (request.arrival * 31 + position) % VOCAB_SIZE


if __name__ == "__main__":
    main()
