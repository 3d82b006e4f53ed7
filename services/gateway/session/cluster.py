"""The workers as sessions use them: connections, selection, and load counted at selection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Coroutine

from services.common.ids import new_id
from services.gateway.registry import Registry, Worker
from services.gateway.routing import DecodeFacts, PrefillFacts, num_blocks, pick_decode, pick_prefill
from services.gateway.session.link import WorkerLink

WorkerKey = tuple[str, str]


class Hold:
    """A request's share of a worker's load, from selection until release."""

    def __init__(self, worker: Worker, *, blocks: int = 0, tokens: int = 0) -> None:
        self._worker = worker
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


class Cluster:
    """One link a listed worker; listens to the registry.

    Attributes:
        gateway_id: new at each start: a gateway reborn does not get its predecessor's tokens.
    """

    def __init__(self, registry: Registry, expected_output_tokens: int) -> None:
        self.registry = registry
        self.gateway_id = new_id()
        self._expected_output_tokens = expected_output_tokens
        self._links: dict[WorkerKey, WorkerLink] = {}
        self._picks = itertools.count(1)
        self._background: set[asyncio.Task[None]] = set()
        registry.listen(self)

    def on_joined(self, worker: Worker) -> None:
        """Connect."""
        self._links[worker.key] = WorkerLink(worker, self.gateway_id, self.registry)

    def on_lost(self, worker: Worker) -> None:
        """End every call to the worker."""
        link = self._links.pop(worker.key)
        link.lose()
        self.spawn(link.close())

    def pick_decode(
        self, num_tokens: int, max_tokens: int, avoid: Collection[WorkerKey], refuse: Collection[WorkerKey]
    ) -> tuple[WorkerLink, Hold] | None:
        """Pick the decode worker with most room and count the request there.

        Args:
            num_tokens: tokens that it has.
            max_tokens: most that it may still generate.
            avoid: workers that failed this request: taken only if there is no other.
            refuse: workers not to be taken at all.
        Returns:
            None if there is none.
        """
        workers = self._eligible(lambda worker: worker.does_decode, avoid, refuse)
        if not workers:
            return None
        grown = num_tokens + min(max_tokens, self._expected_output_tokens)
        worker = workers[pick_decode([_decode_facts(worker) for worker in workers], grown)]
        worker.last_pick = next(self._picks)
        return self._links[worker.key], Hold(worker, blocks=num_blocks(grown, worker.info.block_size))

    def pick_prefill(
        self, num_tokens: int, avoid: Collection[WorkerKey], refuse: Collection[WorkerKey]
    ) -> tuple[WorkerLink, Hold] | None:
        """Pick the prefill worker with the shortest queue and count the prompt there. Args as above."""
        workers = self._eligible(lambda worker: worker.does_prefill, avoid, refuse)
        if not workers:
            return None
        worker = workers[pick_prefill([_prefill_facts(worker) for worker in workers])]
        worker.last_pick = next(self._picks)
        return self._links[worker.key], Hold(worker, tokens=num_tokens)

    def has_decode(self, refuse: Collection[WorkerKey]) -> bool:
        """Tell whether there is a decode worker that is not among `refuse`."""
        return bool(self._eligible(lambda worker: worker.does_decode, (), refuse))

    def has_prefill(self, refuse: Collection[WorkerKey]) -> bool:
        """Tell whether there is a prefill worker that is not among `refuse`."""
        return bool(self._eligible(lambda worker: worker.does_prefill, (), refuse))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` apart from any request; `close` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Wait for cancellations under way, then close all links."""
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.lose()
        await asyncio.gather(*(link.close() for link in links))

    def _eligible(
        self, does: Callable[[Worker], bool], avoid: Collection[WorkerKey], refuse: Collection[WorkerKey]
    ) -> list[Worker]:
        """Return the best class of workers: sound ones, those that failed before, those in doubt."""
        workers = [w for w in self.registry if does(w) and not w.is_draining and w.key not in refuse]
        sound = [w for w in workers if not w.is_suspect and w.key not in avoid]
        failed = [w for w in workers if not w.is_suspect]
        in_doubt = [w for w in workers if w.key not in avoid]
        return sound or failed or in_doubt


def _decode_facts(worker: Worker) -> DecodeFacts:
    return DecodeFacts(
        num_blocks=worker.info.num_blocks,
        block_size=worker.info.block_size,
        free_blocks=worker.load.free_blocks,
        held_blocks=worker.held_blocks,
        new_blocks=worker.new_blocks,
        last_pick=worker.last_pick,
    )


def _prefill_facts(worker: Worker) -> PrefillFacts:
    return PrefillFacts(
        pending_tokens=worker.load.pending_tokens,
        held_tokens=worker.held_tokens,
        new_tokens=worker.new_tokens,
        last_pick=worker.last_pick,
    )
