"""Counters of one engine."""

from __future__ import annotations

from dataclasses import dataclass

STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Histogram of step times.

    Attributes:
        kind: "prefill": steps with a chunk of a prompt; "decode": the others.
        counts: steps up to each of STEP_BUCKETS_S (not cumulative); the last: longer ones.
        sum_s: of all of them.
    """

    kind: str
    counts: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent picture, taken at the end of a step.

    Attributes:
        num_blocks: blocks of the pool.
        free_blocks: blocks that no table or lease holds, cached ones included.
        used_blocks: the others.
        running: requests in the batch.
        waiting: requests in the queue, those waiting for a reservation included.
        reserved: requests whose KV is on its way.
        pending_tokens: tokens of waiting and running requests whose KV is to be computed.
        computed_tokens: tokens run since start.
        sampled_tokens: tokens drawn since start.
        prefix_query_tokens: tokens looked up in the prefix cache since start.
        prefix_hit_tokens: tokens found there since start.
        preemptions: requests that lost their blocks since start.
        steps: steps since start.
        step_times: how long they took, by kind.
        swapped: requests that are swapped out to host memory.
        saved_blocks: blocks copied to host memory since start, of swapped requests and of prefixes.
        loaded_blocks: blocks copied back since start.
    """

    num_blocks: int
    free_blocks: int
    used_blocks: int
    running: int
    waiting: int
    reserved: int
    pending_tokens: int
    computed_tokens: int
    sampled_tokens: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    steps: int
    step_times: tuple[StepTimes, ...] = ()
    swapped: int = 0
    saved_blocks: int = 0
    loaded_blocks: int = 0
