"""Selection of workers: routing over the registry, with load counted at selection."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.gateway.prefix_index import leading_blocks
from services.gateway.registry import Registry, Worker, WorkerKey
from services.gateway.routing import (
    DecodeFacts,
    PrefillFacts,
    backlog_s,
    may_fill,
    num_blocks,
    pick_decode,
    pick_prefill,
    uncached_tokens,
)


class Prompt(Protocol):
    """The tokens that a worker is to be found for."""

    @property
    def num_tokens(self) -> int:
        """Tokens, those that a lost worker had emitted included."""

    def hashes(self, block_size: int) -> Sequence[bytes]:
        """Return the names of its full blocks, leading ones first."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Where a prompt's KV is to be.

    Attributes:
        worker: holds the reservation; None: nobody, only the first token is wanted.
        cached_tokens: leading tokens that it has already.
    """

    worker: Worker | None = None
    cached_tokens: int = 0


class Hold:
    """A request's share of a worker's load, from selection until release.

    Args:
        hashes: names of its prompt's blocks.
        blocks, tokens: what it adds to the load.
    """

    def __init__(self, worker: Worker, hashes: Sequence[bytes], *, blocks: int = 0, tokens: int = 0) -> None:
        self._worker = worker
        self._hashes = hashes
        worker.blocks.use(hashes)
        self._blocks, self._tokens = blocks, tokens
        self._report = worker.load
        worker.held_blocks += blocks
        worker.new_blocks += blocks
        worker.held_tokens += tokens
        worker.new_tokens += tokens

    def release(self) -> None:
        """Give the share back. Idempotent."""
        worker = self._worker
        worker.held_blocks -= self._blocks
        worker.held_tokens -= self._tokens
        if worker.load is self._report:  # else a report has reset what is new
            worker.new_blocks -= self._blocks
            worker.new_tokens -= self._tokens
        self._blocks = self._tokens = 0
        hashes, self._hashes = self._hashes, ()
        worker.blocks.let_go(hashes)


class Selector:
    """Picks workers of a registry.

    Args:
        expected_output_tokens: output that is expected of a request that asks for more.
        local_prefill_tokens: a prompt with at most so many uncached tokens is computed where it is reserved.
        decode, prefill: the choice; a bench compares others.
    """

    def __init__(
        self,
        registry: Registry,
        expected_output_tokens: int,
        *,
        local_prefill_tokens: int = 0,
        decode: Callable[[Sequence[DecodeFacts], int], int] = pick_decode,
        prefill: Callable[[Sequence[PrefillFacts], int], int] = pick_prefill,
    ) -> None:
        self._registry = registry
        self._expected_output_tokens = expected_output_tokens
        self._local_prefill_tokens = local_prefill_tokens
        self._choose_decode = decode
        self._choose_prefill = prefill
        self._picks = itertools.count(1)

    def pick_decode(
        self, prompt: Prompt, max_tokens: int, avoid: Collection[WorkerKey], refuse: Collection[WorkerKey]
    ) -> tuple[Worker, Hold] | None:
        """Pick the decode worker with most room and count the request there.

        Args:
            max_tokens: most that the request may still generate.
            avoid: workers that failed this request: taken only if there is no other.
            refuse: workers not to be taken at all.
        Returns:
            None if there is none.
        """
        workers = self.eligible(lambda worker: worker.does_decode, avoid, refuse)
        if not workers:
            return None
        grown = prompt.num_tokens + min(max_tokens, self._expected_output_tokens)
        queues = self._queues(workers)
        facts = [
            _decode_facts(worker, cached, queued)
            for worker, cached, queued in zip(workers, _cached_tokens(workers, prompt), queues, strict=True)
        ]
        worker = workers[self._choose_decode(facts, grown)]
        return worker, self._hold(worker, prompt, blocks=num_blocks(grown, worker.info.block_size))

    def pick_prefill(
        self,
        prompt: Prompt,
        reserved: Reserved,
        avoid: Collection[WorkerKey],
        refuse: Collection[WorkerKey],
    ) -> tuple[Worker, Hold] | None:
        """Pick a worker to compute a prompt, by queue and cached prefix, and count the prompt there.

        The worker with the reservation is a candidate if it is co-located, and gets a short
        prompt in any case.

        Args:
            reserved: where the prompt's KV is to be. Others as above.
        """
        workers = self.fillers(prompt, reserved, avoid, refuse)
        if not workers:
            return None
        if self._is_short(prompt, reserved):
            workers = [worker for worker in workers if worker is reserved.worker] or workers
        cached = [
            reserved.cached_tokens if worker is reserved.worker else tokens
            for worker, tokens in zip(workers, _cached_tokens(workers, prompt), strict=True)
        ]
        facts = [_prefill_facts(worker, tokens) for worker, tokens in zip(workers, cached, strict=True)]
        index = self._choose_prefill(facts, prompt.num_tokens)
        tokens = uncached_tokens(prompt.num_tokens, cached[index])
        return workers[index], self._hold(workers[index], prompt, tokens=tokens)

    def backlog_s(self) -> float:
        """Return how long a prompt waits before it is computed, seconds."""
        workers = self.eligible(lambda worker: worker.does_prefill, (), ())
        return backlog_s([_prefill_facts(worker, 0) for worker in workers])

    def fillers(
        self,
        prompt: Prompt,
        reserved: Reserved,
        avoid: Collection[WorkerKey],
        refuse: Collection[WorkerKey],
    ) -> list[Worker]:
        """Return the best class of workers that may compute a prompt. Args as in `pick_prefill`."""
        is_short = self._is_short(prompt, reserved)

        def does(worker: Worker) -> bool:
            same = worker is reserved.worker
            return may_fill(worker, reserved.worker, same=same, is_short=is_short)

        return self.eligible(does, avoid, refuse, reserved.worker)

    def eligible(
        self,
        does: Callable[[Worker], bool],
        avoid: Collection[WorkerKey],
        refuse: Collection[WorkerKey],
        reserved: Worker | None = None,
    ) -> list[Worker]:
        """Return the best class of workers: sound ones, those that failed before, those in doubt.

        A worker that drains takes nothing new; but what it has `reserved` it will compute.
        """
        workers = [
            w
            for w in self._registry
            if does(w) and (w is reserved or not w.is_draining) and w.key not in refuse
        ]
        sound = [w for w in workers if not w.is_suspect and w.key not in avoid]
        failed = [w for w in workers if not w.is_suspect]
        in_doubt = [w for w in workers if w.key not in avoid]
        return sound or failed or in_doubt

    def _is_short(self, prompt: Prompt, reserved: Reserved) -> bool:
        uncached = uncached_tokens(prompt.num_tokens, reserved.cached_tokens)
        return reserved.worker is not None and uncached <= self._local_prefill_tokens

    def _queues(self, workers: Sequence[Worker]) -> list[int]:
        """Return, for each decode worker, the shortest queue that a prompt for it may join."""
        prefills = [worker for worker in self._registry if worker.does_prefill and not worker.is_draining]
        apart = min((_queue(worker) for worker in prefills if not worker.does_decode), default=None)
        co_located = min((_queue(worker) for worker in prefills if worker.does_decode), default=None)
        queues = []
        for worker in workers:
            other = _queue(worker) if worker.does_prefill else co_located
            queues.append(min((queue for queue in (apart, other) if queue is not None), default=0))
        return queues

    def _hold(self, worker: Worker, prompt: Prompt, *, blocks: int = 0, tokens: int = 0) -> Hold:
        worker.last_pick = next(self._picks)
        hashes = prompt.hashes(worker.info.block_size)
        return Hold(worker, hashes, blocks=blocks, tokens=tokens)


def _cached_tokens(workers: Sequence[Worker], prompt: Prompt) -> list[int]:
    """Return the leading tokens that each worker holds; all have one block size, as one layout."""
    block_size = workers[0].info.block_size
    counts = leading_blocks([worker.blocks for worker in workers], prompt.hashes(block_size))
    return [count * block_size for count in counts]


def _queue(worker: Worker) -> int:
    return _prefill_facts(worker, 0).queued_tokens


def _decode_facts(worker: Worker, cached_tokens: int, queued_tokens: int) -> DecodeFacts:
    return DecodeFacts(
        num_blocks=worker.info.num_blocks,
        block_size=worker.info.block_size,
        free_blocks=worker.load.free_blocks,
        held_blocks=worker.held_blocks,
        new_blocks=worker.new_blocks,
        cached_tokens=cached_tokens,
        queued_tokens=queued_tokens,
        last_pick=worker.last_pick,
    )


def _prefill_facts(worker: Worker, cached_tokens: int) -> PrefillFacts:
    return PrefillFacts(
        pending_tokens=worker.load.pending_tokens,
        held_tokens=worker.held_tokens,
        new_tokens=worker.new_tokens,
        cached_tokens=cached_tokens,
        tokens_per_s=worker.pace.tokens_per_s,
        is_pace_proven=worker.pace.is_proven,
        last_pick=worker.last_pick,
    )
