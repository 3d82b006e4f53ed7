"""Counters of one engine."""

from __future__ import annotations

from dataclasses import dataclass


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
