"""The workers as sessions use them: selection, and a connection to each."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine

from services.common.ids import new_id
from services.common.tls import Certificate
from services.gateway.registry import Registry, Worker, WorkerKey
from services.gateway.selection import Hold, Prompt, Reserved, Selector
from services.gateway.session.link import WorkerLink


class Cluster:
    """One link a listed worker; listens to the registry.

    Args:
        certificate: what workers are shown; None: connections are open.
    Attributes:
        gateway_id: new at each start: a gateway reborn does not get its predecessor's tokens.
    """

    def __init__(
        self,
        registry: Registry,
        expected_output_tokens: int,
        local_prefill_tokens: int = 0,
        certificate: Certificate | None = None,
    ) -> None:
        self.registry = registry
        self.gateway_id = new_id()
        self._selector = Selector(registry, expected_output_tokens, local_prefill_tokens=local_prefill_tokens)
        self._certificate = certificate
        self._links: dict[WorkerKey, WorkerLink] = {}
        self._background: set[asyncio.Task[None]] = set()
        registry.listen(self)

    def on_joined(self, worker: Worker) -> None:
        """Connect."""
        self._links[worker.key] = WorkerLink(worker, self.gateway_id, self.registry, self._certificate)

    def on_lost(self, worker: Worker) -> None:
        """End every call to the worker."""
        link = self._links.pop(worker.key)
        link.lose()
        self.spawn(link.close())

    def pick_decode(
        self, prompt: Prompt, max_tokens: int, avoid: Collection[WorkerKey], refuse: Collection[WorkerKey]
    ) -> tuple[WorkerLink, Hold] | None:
        """Pick a decode worker and count the request there: see Selector."""
        picked = self._selector.pick_decode(prompt, max_tokens, avoid, refuse)
        return picked and (self._links[picked[0].key], picked[1])

    def pick_prefill(
        self,
        prompt: Prompt,
        reserved: Reserved,
        avoid: Collection[WorkerKey],
        refuse: Collection[WorkerKey],
    ) -> tuple[WorkerLink, Hold] | None:
        """Pick a worker to compute a prompt and count it there: see Selector."""
        picked = self._selector.pick_prefill(prompt, reserved, avoid, refuse)
        return picked and (self._links[picked[0].key], picked[1])

    def backlog_s(self) -> float:
        """Return how long a prompt waits before it is computed, seconds: see Selector."""
        return self._selector.backlog_s()

    def has_decode(self, refuse: Collection[WorkerKey]) -> bool:
        """Tell whether there is a decode worker that is not among `refuse`."""
        return bool(self._selector.eligible(lambda worker: worker.does_decode, (), refuse))

    def has_prefill(self, prompt: Prompt, reserved: Reserved, refuse: Collection[WorkerKey]) -> bool:
        """Tell whether a worker that is not among `refuse` may compute a prompt."""
        return bool(self._selector.fillers(prompt, reserved, (), refuse))

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
