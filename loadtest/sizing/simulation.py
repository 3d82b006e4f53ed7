"""Requests through a cluster: the gateway's choice, reservation, prefill, hand-off, decode.

As in the real one a request first reserves room on the decode worker that holds least, which takes the call
when its step under way ends; then it goes to the prefill worker with the least to compute before it. Where
the profile says that workers of one machine slow each other down, those of equal numbers (modulo the kinds'
counts) share one. Not modelled: failures, preemption, cancels.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.measures import Targets
from loadtest.sizing.choice import CACHED_WEIGHT, least
from loadtest.sizing.decode import DecodeWorker
from loadtest.sizing.job import Job
from loadtest.sizing.prefill import PrefillWorker
from loadtest.sizing.profile import Profile
from loadtest.traces import TraceRow

_ARRIVE, _RESERVE, _PREFILLED, _JOIN, _DECODED = range(5)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it.

    Attributes:
        jobs: by arrival, all complete.
        prefill_share: mean share of the time that a prefill worker computed, 0 to 1.
    """

    jobs: list[Job]
    prefill_share: float

    def attainment(self, targets: Targets) -> float:
        """Return the share of requests that met the targets."""
        met = sum(
            job.ttft_s is not None and job.ttft_s <= targets.ttft_s and job.tpot_s <= targets.tpot_s
            for job in self.jobs
        )
        return met / max(1, len(self.jobs))


def simulate(rows: Sequence[TraceRow], profile: Profile, num_prefill: int, num_decode: int) -> Simulated:
    """Run a load to its end. Pure: equal arguments give equal results."""
    return _Simulation(rows, profile, num_prefill, num_decode).run()


class _Simulation:
    def __init__(self, rows: Sequence[TraceRow], profile: Profile, num_prefill: int, num_decode: int) -> None:
        self._profile = profile
        self._prefills = [PrefillWorker(profile) for _ in range(num_prefill)]
        self._decodes = [DecodeWorker(profile) for _ in range(num_decode)]
        self._pending = np.zeros(num_prefill)  # tokens to compute, by worker
        self._expected = np.zeros(num_decode)  # tokens that its requests grow to, by worker
        self._holders: defaultdict[int, set[int]] = defaultdict(set)  # first block -> prefill workers
        self._jobs = [
            Job(i, row.at_s, row.input_tokens, row.output_tokens, row.hash_ids, row.block_tokens)
            for i, row in enumerate(rows)
        ]
        self._order = itertools.count()
        self._events: list[tuple[float, int, int, int, Job | None, int]] = []
        self._busy_s = 0.0
        self._decoding = [0] * num_decode  # requests between the end of prefill and their own, by worker
        self._turn = itertools.count()

    def run(self) -> Simulated:
        for arriving in self._jobs:
            self._at(arriving.at_s, _ARRIVE, 0, arriving)
        now_s = 0.0
        while self._events:
            now_s, _, kind, worker, job, version = heapq.heappop(self._events)
            if kind == _ARRIVE and job is not None:
                self._arrive(job, now_s)
            elif kind == _RESERVE and job is not None:
                self._reserve(job, now_s)
            elif kind == _PREFILLED:
                self._prefilled(worker, now_s)
            elif kind == _JOIN and job is not None:
                joins_s = self._decodes[worker].join(job, now_s)
                self._at(joins_s, _DECODED, worker, version=self._decodes[worker].version)
            elif kind == _DECODED and version == self._decodes[worker].version:
                self._decoded(worker, now_s)
        busy = self._busy_s / max(now_s, 1e-9) / len(self._prefills)
        return Simulated(self._jobs, busy)

    def _at(self, at_s: float, kind: int, worker: int, job: Job | None = None, version: int = 0) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), kind, worker, job, version))

    def _arrive(self, job: Job, now_s: float) -> None:
        if job.output_tokens < 2:
            self._send(job, now_s)
            return
        job.decode = least(self._expected, next(self._turn))
        self._expected[job.decode] += job.input_tokens + job.output_tokens
        granted_s = self._decodes[job.decode].step_end_s(now_s)
        if granted_s > now_s:
            self._at(granted_s, _RESERVE, job.decode, job)
        else:
            self._reserve(job, now_s)

    def _reserve(self, job: Job, now_s: float) -> None:
        if self._decodes[job.decode].reserve(job):
            self._send(job, now_s)

    def _send(self, job: Job, now_s: float) -> None:
        """Give a prompt to a prefill worker."""
        index = least(self._pending, next(self._turn))
        if job.hash_ids:
            index = self._by_prefix(job, index)
        worker = self._prefills[index]
        worker.add(job)
        self._pending[index] += job.remaining_tokens
        if not worker.is_busy:
            self._step(index, now_s)

    def _by_prefix(self, job: Job, idlest: int) -> int:
        """Weigh the workers that hold the prompt's first block against the one with least to do."""
        candidates = {idlest, *self._holders.get(job.hash_ids[0], ())}

        def cost(index: int) -> float:
            uncached = job.input_tokens - self._prefills[index].cached_tokens(job)
            return float(self._pending[index]) + CACHED_WEIGHT * uncached

        best: int = min(sorted(candidates), key=cost)
        return best

    def _step(self, index: int, now_s: float) -> None:
        seconds = self._prefills[index].start_step()
        if seconds is not None:
            if any(self._decoding[index :: len(self._prefills)]):
                seconds *= self._profile.prefill_slowdown
            self._busy_s += seconds
            self._at(now_s + seconds, _PREFILLED, index)
        if self._profile.decode_slowdown > 1:
            self._slow_decode(index, now_s)

    def _slow_decode(self, prefill: int, now_s: float) -> None:
        """Tell the decode workers of a prefill worker's machine whether it works."""
        factor = self._profile.decode_slowdown if self._prefills[prefill].is_busy else 1.0
        for index in range(prefill, len(self._decodes), len(self._prefills)):
            changes_s = self._decodes[index].slow(factor, now_s)
            if changes_s is not None:
                self._at(changes_s, _DECODED, index, version=self._decodes[index].version)

    def _prefilled(self, index: int, now_s: float) -> None:
        profile = self._profile
        for job in self._prefills[index].end_step():
            self._pending[index] -= job.input_tokens - job.cached_tokens
            if job.hash_ids:
                self._holders[job.hash_ids[0]].add(index)
            job.first_s = job.end_s = now_s + profile.overhead_s
            if job.output_tokens > 1:
                self._decoding[job.decode] += 1
                handoff_s = profile.handoff_s + profile.handoff_token_s * job.input_tokens
                self._at(now_s + handoff_s, _JOIN, job.decode, job)
        self._step(index, now_s)

    def _decoded(self, index: int, now_s: float) -> None:
        worker = self._decodes[index]
        for job in worker.advance(now_s):
            self._expected[index] -= job.input_tokens + job.output_tokens
            self._decoding[index] -= 1
            assert job.end_s is not None
            job.end_s += self._profile.overhead_s
            for granted in worker.release(job, job.input_tokens + job.output_tokens):
                self._send(granted, now_s)
        end_s = worker.next_end_s()
        if end_s is not None:
            self._at(end_s, _DECODED, index, version=worker.version)
