"""Which worker gets a request: pure functions of what the gateway knows.

Load is counted at selection, not when a worker reports it: else all requests of
one moment would go to the same worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeFacts:
    """What is known of a decode worker.

    Attributes:
        num_blocks: size of its pool.
        block_size: tokens a block.
        free_blocks: as last reported.
        held_blocks: what this gateway's requests there are expected to grow to.
        new_blocks: the part of `held_blocks` given to it since that report.
        last_pick: grows with each pick; breaks ties.
    """

    num_blocks: int
    block_size: int
    free_blocks: int
    held_blocks: int
    new_blocks: int
    last_pick: int


@dataclass(frozen=True, slots=True)
class PrefillFacts:
    """What is known of a prefill worker.

    Attributes:
        pending_tokens: tokens to compute, as last reported.
        held_tokens: tokens of this gateway's prompts that it has not finished.
        new_tokens: the part of `held_tokens` given to it since that report.
        last_pick: grows with each pick; breaks ties.
    """

    pending_tokens: int
    held_tokens: int
    new_tokens: int
    last_pick: int


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Return the blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def pick_decode(workers: Sequence[DecodeFacts], num_tokens: int) -> int:
    """Return the index of the worker that has most free blocks after expected growth.

    Two views count, the worse one decides: the pool less what this gateway's requests
    will grow to, and the free blocks reported (which show other gateways' requests)
    less what was given since. Below zero, requests queue, and the shortest queue wins.

    Args:
        workers: at least one.
        num_tokens: prompt and expected output of the request.
    """

    def free_after(worker: DecodeFacts) -> float:
        need = num_blocks(num_tokens, worker.block_size)
        free = min(worker.num_blocks - worker.held_blocks, worker.free_blocks - worker.new_blocks)
        return (free - need) * worker.block_size

    return max(range(len(workers)), key=lambda i: (free_after(workers[i]), -workers[i].last_pick))


def pick_prefill(workers: Sequence[PrefillFacts]) -> int:
    """Return the index of the worker with the fewest tokens to compute before this prompt.

    What this gateway gave is known exactly; the report shows other gateways' share but
    lags, so the larger of the two counts.

    Args:
        workers: at least one.
    """

    def queued(worker: PrefillFacts) -> int:
        return max(worker.held_tokens, worker.pending_tokens + worker.new_tokens)

    return min(range(len(workers)), key=lambda i: (queued(workers[i]), workers[i].last_pick))
