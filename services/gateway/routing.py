"""Which worker gets a request: pure functions of what the gateway knows.

Load is counted at selection, not when a worker reports it: else all requests of
one moment would go to the same worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Duties(Protocol):
    """What a worker does; a co-located one does both."""

    @property
    def does_prefill(self) -> bool:
        """Computes prompts for others."""

    @property
    def does_decode(self) -> bool:
        """Holds reservations and generates tokens."""


@dataclass(frozen=True, slots=True)
class DecodeFacts:
    """What is known of a decode worker.

    Attributes:
        num_blocks: size of its pool.
        block_size: tokens a block.
        free_blocks: as last reported.
        held_blocks: what this gateway's requests there are expected to grow to.
        new_blocks: the part of `held_blocks` given to it since that report.
        cached_tokens: leading tokens of this prompt in its prefix cache.
        queued_tokens: tokens that wait to be computed before this prompt, where that is quickest for it.
        last_pick: grows with each pick; breaks ties.
    """

    num_blocks: int
    block_size: int
    free_blocks: int
    held_blocks: int
    new_blocks: int
    cached_tokens: int
    queued_tokens: int
    last_pick: int


@dataclass(frozen=True, slots=True)
class PrefillFacts:
    """What is known of a prefill worker.

    Attributes:
        pending_tokens: tokens to compute, as last reported.
        held_tokens: tokens of this gateway's prompts that it has not finished.
        new_tokens: the part of `held_tokens` given to it since that report.
        cached_tokens: leading tokens of this prompt in its prefix cache.
        tokens_per_s: what it computes while it is busy; 0: not known yet.
        is_pace_proven: that is enough to set it apart from others.
        last_pick: grows with each pick; breaks ties.
    """

    pending_tokens: int
    held_tokens: int
    new_tokens: int
    cached_tokens: int
    tokens_per_s: float
    is_pace_proven: bool
    last_pick: int

    @property
    def queued_tokens(self) -> int:
        """Tokens to compute before a new prompt's.

        What this gateway gave is known exactly; the report shows other gateways' share but
        lags, so the larger counts.
        """
        return max(self.held_tokens, self.pending_tokens + self.new_tokens)


# A missed prefix costs the pool compute, a transfer and a second copy in some cache; a queue costs
# this request alone. On the Mooncake traces, with large caches and small ones, 8 keeps 90 to 99 % of
# one shared cache's hits and 12 keeps 96 to 99 %, at the same waiting times; more gains little
# (bench/routing.py).
CACHED_WEIGHT = 12


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Return the blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def uncached_tokens(num_tokens: int, cached_tokens: int) -> int:
    """Return the tokens of a prompt that must be computed; its last one always is, to sample from it."""
    return max(1, num_tokens - cached_tokens)


def may_fill(prefill: Duties, decode: Duties | None, *, same: bool, is_short: bool) -> bool:
    """Say whether a worker may compute a prompt whose KV is to be on another, or on itself.

    Two co-located workers never do so for each other: each could wait for blocks that the
    other's reservations hold, for ever.

    Args:
        prefill: what the worker that would compute does.
        decode: what the worker with the reservation does; None: only a first token is wanted.
        same: they are one worker; it computes in the reservation itself.
        is_short: the prompt is one that a decode worker may compute between its streams.
    """
    if same:
        return prefill.does_prefill or is_short
    if decode is not None and decode.does_prefill and prefill.does_decode:
        return False
    return prefill.does_prefill


def pick_decode(workers: Sequence[DecodeFacts], num_tokens: int) -> int:
    """Return the index of the worker with most room after expected growth and most of the prompt cached.

    A cached token, which need not be sent (or computed, on a co-located worker), is worth
    CACHED_WEIGHT tokens of room, and one that waits to be computed costs one. Where the
    request fits comes before where it would queue.

    Two views of room count, the worse one decides: the pool less what this gateway's
    requests will grow to, and the free blocks reported (which show other gateways'
    requests) less what was given since.

    Args:
        workers: at least one.
        num_tokens: prompt and expected output of the request.
    """

    def rank(worker: DecodeFacts) -> tuple[bool, int, int]:
        need = num_blocks(num_tokens, worker.block_size)
        free = min(worker.num_blocks - worker.held_blocks, worker.free_blocks - worker.new_blocks)
        room = (free - need) * worker.block_size
        worth = room + CACHED_WEIGHT * worker.cached_tokens - worker.queued_tokens
        return room >= 0, worth, -worker.last_pick

    return max(range(len(workers)), key=lambda i: rank(workers[i]))


def pick_prefill(workers: Sequence[PrefillFacts], num_tokens: int) -> int:
    """Return the index of the worker with the shortest queue and most of the prompt cached.

    That is the least time of queue and uncached tokens at the worker's pace, a token to
    compute being as dear as CACHED_WEIGHT tokens to wait for. A worker whose pace is not
    proven is taken to be as fast as the fastest: one prompt's time would say that one worker
    is ten times as fast as its like, and send it prompts that the other has cached.

    Args:
        workers: at least one.
        num_tokens: tokens of the prompt.
    """
    fastest = max((worker.tokens_per_s for worker in workers if worker.is_pace_proven), default=1.0)

    def cost_s(worker: PrefillFacts) -> float:
        cost = worker.queued_tokens + CACHED_WEIGHT * uncached_tokens(num_tokens, worker.cached_tokens)
        return cost / (worker.tokens_per_s if worker.is_pace_proven else fastest)

    return min(range(len(workers)), key=lambda i: (cost_s(workers[i]), workers[i].last_pick))


def backlog_s(workers: Sequence[PrefillFacts]) -> float:
    """Return how long a new prompt waits where it waits least, seconds.

    A worker whose pace is unknown has computed nothing yet, and so has nobody waiting for long.
    """
    waits = (worker.queued_tokens / worker.tokens_per_s if worker.tokens_per_s else 0.0 for worker in workers)
    return min(waits, default=0.0)
