"""When steps ran: first runs and chunks of requests, and a histogram of step times."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.request import Chunk
from engine.stats import STEP_BUCKETS_S, StepTimes
from engine.step import ScheduledRow, SchedulerOutput


class StepClock:
    """Notes when each step begins and ends. A step that was scheduled while another one ran
    begins when that one ends, so the times of steps add up to no more than the time that passed.
    """

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._last_end_s = 0.0
        self._prefill = _Histogram()
        self._decode = _Histogram()

    def begin(self, step: int, rows: Sequence[ScheduledRow]) -> None:
        """Note that a step was scheduled."""
        now = self._begun[step] = time.monotonic()
        for row in rows:
            if row.request.first_run_s is None:
                row.request.first_run_s = now

    def end(self, output: SchedulerOutput) -> None:
        """Note that its results are there; its chunks are added to their requests."""
        now = time.monotonic()
        begun = max(self._begun.pop(output.step, now), self._last_end_s)
        self._last_end_s = now
        has_chunks = False
        for row in output.rows:
            if row.num_tokens > 1 or row.start < row.request.num_prompt_tokens:
                has_chunks = True
                row.request.chunks.append(Chunk(row.start, row.num_tokens, begun, now))
        (self._prefill if has_chunks else self._decode).observe(now - begun)

    def drop(self, step: int) -> None:
        """Forget a step that failed."""
        self._begun.pop(step, None)

    def times(self) -> tuple[StepTimes, ...]:
        """Return the histograms so far."""
        return self._prefill.picture("prefill"), self._decode.picture("decode")


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(STEP_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        index = sum(seconds > bound for bound in STEP_BUCKETS_S)
        self._counts[index] += 1
        self._sum_s += seconds

    def picture(self, kind: str) -> StepTimes:
        return StepTimes(kind, tuple(self._counts), self._sum_s)
