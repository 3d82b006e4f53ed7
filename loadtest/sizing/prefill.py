"""A prefill worker: prompts in chunks under a token budget, served by age and by length in turns, as
engine/scheduler/chunks.py does; and a prefix cache that forgets the least recently used blocks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict

from loadtest.sizing.job import Job
from loadtest.sizing.profile import Profile


class PrefillWorker:
    """One worker; the simulation calls `start_step` whenever it is idle and has work.

    Attributes:
        is_busy: a step is under way.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        # Both orders hold every waiting prompt; what was taken by one is dropped by the other when met.
        self._by_age: list[tuple[int, int, Job]] = []
        self._by_length: list[tuple[int, int, int, Job]] = []
        self._puts = itertools.count()
        self._waiting: set[Job] = set()
        self._shortest_first = False
        self._step: list[tuple[Job, int]] = []
        self._cache: OrderedDict[int, None] = OrderedDict()
        self.is_busy = False

    def cached_tokens(self, job: Job) -> int:
        """Return the leading tokens of a prompt that are cached; never all of them."""
        count = 0
        for name in job.hash_ids:
            if name not in self._cache:
                break
            count += 1
        return min(count * job.block_tokens, job.input_tokens - 1)

    def add(self, job: Job) -> None:
        """Queue a prompt."""
        job.cached_tokens = job.done_tokens = self.cached_tokens(job)
        self._put(job)

    def start_step(self) -> float | None:
        """Begin a step; returns how long it takes, None: there is nothing to do."""
        chunks_s = self.cut(self._profile.max_step_tokens)
        return None if chunks_s is None else self._profile.prefill_step_s + chunks_s

    def cut(self, budget: int) -> float | None:
        """Begin a step of at most `budget` tokens; returns what its chunks take, None: there is nothing."""
        seconds = 0.0
        self._step = []
        while budget > 0 and (job := self._take()) is not None:
            size = min(budget, job.remaining_tokens)
            self._step.append((job, size))
            seconds += self._profile.prefill_chunk_s(job.done_tokens, size)
            if size == job.remaining_tokens:
                seconds += self._profile.prefill_prompt_s
            budget -= size
        self.is_busy = bool(self._step)
        self._shortest_first = not self._shortest_first
        return seconds if self._step else None

    def end_step(self) -> list[Job]:
        """End the step; returns the prompts that are complete."""
        done: list[Job] = []
        for job, size in self._step:
            job.done_tokens += size
            if job.remaining_tokens:
                self._put(job)
            else:
                done.append(job)
                self._remember(job)
        return done

    def _put(self, job: Job) -> None:
        self._waiting.add(job)
        put = next(self._puts)
        heapq.heappush(self._by_age, (job.number, put, job))
        heapq.heappush(self._by_length, (job.remaining_tokens, job.number, put, job))

    def _take(self) -> Job | None:
        while self._waiting:
            if self._shortest_first:
                remaining, _, _, job = heapq.heappop(self._by_length)
                is_current = remaining == job.remaining_tokens
            else:
                _, _, job = heapq.heappop(self._by_age)
                is_current = True
            if is_current and job in self._waiting:
                self._waiting.remove(job)
                return job
        self._by_age.clear()
        self._by_length.clear()
        return None

    def _remember(self, job: Job) -> None:
        for name in job.hash_ids:
            self._cache.pop(name, None)
            self._cache[name] = None
        while len(self._cache) * job.block_tokens > self._profile.prefill_tokens:
            self._cache.popitem(last=False)
