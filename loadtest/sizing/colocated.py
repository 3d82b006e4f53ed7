"""Requests through a cluster of co-located workers: the gateway's choice, reservation, steps of both kinds.

A request reserves room where there is most of it, less what waits to be computed there; that is granted
when the step under way ends, and its prompt is in the steps from the next but one on. Nothing is handed over.
Where the profile says that workers of one machine slow each other down, several do so all the time: they are
busy near the rates that are looked for. Not modelled: failures, preemption, cancels.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from loadtest.sizing.both import BothWorker
from loadtest.sizing.choice import CACHED_WEIGHT, least
from loadtest.sizing.job import Job
from loadtest.sizing.profile import Profile
from loadtest.sizing.simulation import Simulated
from loadtest.traces import TraceRow

_ARRIVE, _RESERVE, _STEP = range(3)


def simulate_colocated(rows: Sequence[TraceRow], profile: Profile, num_workers: int) -> Simulated:
    """Run a load to its end. Pure: equal arguments give equal results."""
    return _Simulation(rows, profile, num_workers).run()


class _Simulation:
    def __init__(self, rows: Sequence[TraceRow], profile: Profile, num_workers: int) -> None:
        self._overhead_s = profile.overhead_s
        self._workers = [BothWorker(profile, slowed=num_workers > 1) for _ in range(num_workers)]
        self._loads = np.zeros(num_workers)  # tokens that requests grow to, and those to compute, by worker
        self._holders: defaultdict[int, set[int]] = defaultdict(set)  # first block -> workers
        self._jobs = [
            Job(i, row.at_s, row.input_tokens, row.output_tokens, row.hash_ids, row.block_tokens)
            for i, row in enumerate(rows)
        ]
        self._order = itertools.count()
        self._turn = itertools.count()
        self._events: list[tuple[float, int, int, int, Job | None, int]] = []

    def run(self) -> Simulated:
        for arriving in self._jobs:
            self._at(arriving.at_s, _ARRIVE, 0, arriving)
        now_s = 0.0
        while self._events:
            now_s, _, kind, index, job, version = heapq.heappop(self._events)
            if kind == _ARRIVE and job is not None:
                self._arrive(job, now_s)
            elif kind == _RESERVE and job is not None:
                self._reserve(job, now_s)
            elif kind == _STEP and version == self._workers[index].version:
                self._step(index, now_s)
        computing_s = sum(worker.computing_s for worker in self._workers)
        return Simulated(self._jobs, computing_s / max(now_s, 1e-9) / len(self._workers))

    def _at(self, at_s: float, kind: int, index: int, job: Job | None = None, version: int = 0) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), kind, index, job, version))

    def _arrive(self, job: Job, now_s: float) -> None:
        job.decode = least(self._loads, next(self._turn))
        if job.hash_ids:
            candidates = {job.decode, *self._holders.get(job.hash_ids[0], ())}
            job.decode = min(sorted(candidates), key=lambda index: self._cost(index, job))
        self._loads[job.decode] += _tokens(job)
        granted_s = self._workers[job.decode].step_end_s(now_s)
        if granted_s > now_s:
            self._at(granted_s, _RESERVE, job.decode, job)
        else:
            self._reserve(job, now_s)

    def _cost(self, index: int, job: Job) -> float:
        cached = self._workers[index].prefill.cached_tokens(job)
        return float(self._loads[index]) - CACHED_WEIGHT * cached

    def _reserve(self, job: Job, now_s: float) -> None:
        if job.output_tokens < 2 or self._workers[job.decode].decode.reserve(job):
            self._compute(job, now_s)

    def _compute(self, job: Job, now_s: float) -> None:
        self._schedule(job.decode, self._workers[job.decode].add(job, now_s))

    def _step(self, index: int, now_s: float) -> None:
        worker = self._workers[index]
        computed, ended = worker.end(now_s)
        for job in computed:
            job.first_s = job.end_s = now_s + self._overhead_s
            self._loads[index] -= job.input_tokens
            if job.hash_ids:
                self._holders[job.hash_ids[0]].add(index)
            if job.output_tokens < 2:
                self._loads[index] -= _grown(job)
        granted: list[Job] = []
        for job in ended:
            assert job.end_s is not None
            job.end_s += self._overhead_s
            self._loads[index] -= _grown(job)
            granted += worker.decode.release(job, _grown(job))
        for job in granted:
            worker.prefill.add(job)
        self._schedule(index, worker.begin(now_s))

    def _schedule(self, index: int, at_s: float | None) -> None:
        if at_s is not None:
            self._at(at_s, _STEP, index, version=self._workers[index].version)


def _grown(job: Job) -> int:
    return job.input_tokens + job.output_tokens


def _tokens(job: Job) -> int:
    return _grown(job) + job.input_tokens
