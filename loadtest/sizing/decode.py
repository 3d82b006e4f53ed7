"""A decode worker. Between two changes of its batch all steps follow one formula, so the simulation
jumps from change to change: the number of events does not depend on how many tokens are generated.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from loadtest.sizing.job import Job
from loadtest.sizing.profile import Profile


class DecodeWorker:
    """One worker. `held_tokens` counts reservations and the batch as they are, `version` grows with
    each change of the batch: an event of an older version is void.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._at_s = 0.0
        self._steps = 0
        self._context = 0  # sum over the batch
        self._batch: list[tuple[int, int, Job]] = []  # by the number of steps at which each ends
        self._joining: list[Job] = []
        self._queue: deque[Job] = deque()
        self._slowdown = self._next_slowdown = 1.0
        self.held_tokens = 0
        self.version = 0

    def reserve(self, job: Job) -> bool:
        """Set room aside for a prompt and its first token; False: it waits."""
        if not self._queue and self._fits(job):
            self.held_tokens += job.input_tokens + 1
            return True
        self._queue.append(job)
        return False

    def release(self, job: Job, tokens: int) -> list[Job]:
        """Give a request's room back; returns those that have their reservation now."""
        self.held_tokens -= tokens
        granted: list[Job] = []
        while self._queue and self._fits(self._queue[0]):
            one = self._queue.popleft()
            self.held_tokens += one.input_tokens + 1
            granted.append(one)
        return granted

    def step_end_s(self, now_s: float) -> float:
        """Return when the step under way ends: an engine takes commands between two steps. Idle: now."""
        return self._at_s + self._span_s(self._steps_until(now_s) + 1) if self._batch else now_s

    def join(self, job: Job, now_s: float) -> float:
        """Let a request into the batch at the next end of a step; returns when that is."""
        self._joining.append(job)
        if not self._batch:
            self._at_s = now_s
        return self.step_end_s(now_s)

    def slow(self, factor: float, now_s: float) -> float | None:
        """Make steps take `factor` of their time from the next one on; returns when it begins.

        Returns:
            None: nothing runs, or nothing changes.
        """
        changes = factor != self._next_slowdown
        self._next_slowdown = factor
        if not self._batch:
            self._slowdown = factor
        return self.step_end_s(now_s) if changes and self._batch else None

    @property
    def num_rows(self) -> int:
        """Requests in the batch."""
        return len(self._batch)

    @property
    def rows_s(self) -> float:
        """What the batch as it is adds to a step."""
        return self._profile.decode_row_s * len(self._batch) + self._profile.decode_context_s * self._context

    def advance(self, now_s: float) -> list[Job]:
        """Run the steps that have ended by `now_s`; returns the requests that are complete."""
        if self._batch:
            count = min(self._steps_until(now_s), self._batch[0][0] - self._steps)
            end_s = self._at_s + self._span_s(count)
            self._pass(count, end_s)
        self._slowdown = self._next_slowdown
        return self._change()

    def step(self, end_s: float) -> list[Job]:
        """Run one step that ends at `end_s`, whatever else was in it; returns as `advance` does."""
        self._pass(1, end_s)
        return self._change()

    def _pass(self, count: int, end_s: float) -> None:
        self._at_s = end_s
        self._context += count * len(self._batch)
        self._steps += count
        self.held_tokens += count * len(self._batch)

    def _change(self) -> list[Job]:
        """Let those leave that are complete, and those join that wait for it."""
        done: list[Job] = []
        while self._batch and self._batch[0][0] <= self._steps:
            job = heapq.heappop(self._batch)[2]
            job.end_s = self._at_s
            self._context -= job.input_tokens + job.output_tokens
            done.append(job)
        for job in self._joining:
            heapq.heappush(self._batch, (self._steps + job.output_tokens - 1, job.number, job))
            self._context += job.input_tokens + 1
        self._joining.clear()
        self.version += 1
        return done

    def next_end_s(self) -> float | None:
        """Return when the next request of the batch ends if nothing joins; None: the batch is empty."""
        return self._at_s + self._span_s(self._batch[0][0] - self._steps) if self._batch else None

    def _fits(self, job: Job) -> bool:
        # A pool that holds nothing takes what would else never run.
        is_room = self.held_tokens + job.input_tokens + 1 <= self._profile.decode_tokens
        return is_room or self.held_tokens == 0

    def _coefficients(self) -> tuple[float, float]:
        """Return u, v: k steps take u * k + v * k * k seconds."""
        rows, profile = len(self._batch), self._profile
        growth = profile.decode_context_s * rows / 2
        first = profile.decode_step_s + self.rows_s
        return self._slowdown * (first - growth), self._slowdown * growth

    def _span_s(self, steps: int) -> float:
        u, v = self._coefficients()
        return u * steps + v * steps * steps

    def _steps_until(self, now_s: float) -> int:
        """Return how many steps have ended; one that lacks a millionth counts, since times are rounded."""
        u, v = self._coefficients()
        span = max(0.0, now_s - self._at_s)
        # The root of v k^2 + u k = span without the difference of two nearly equal numbers.
        steps = 2 * span / (u + math.sqrt(u * u + 4 * v * span))
        return int(steps + 1e-6)
