"""GET /cluster/live: the cluster and its recent requests, as server-sent events.

Each event is one object: "gateway", all "workers", and those "requests" that changed since the event
before; the first has the recent ones. An event comes when something changed, at most four times a
second, and at least once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence

from baton.v1.registry_pb2 import WorkerRole
from services.common.errors import BatonError, ErrorReason
from services.gateway.generator import Generator
from services.gateway.http.exchange import Exchange
from services.gateway.http.values import Json
from services.gateway.registry import Registry, Worker
from services.gateway.timeline import Bar, Timeline

MAX_VIEWERS = 64
_MOST_REQUESTS = 200
_LEAST_S, _MOST_S = 0.25, 0.75


class LiveApi:
    """Serves those who watch."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._viewers = 0

    async def stream(self, exchange: Exchange) -> None:
        """GET /cluster/live; ends when the client leaves or the gateway has drained.

        Raises:
            BatonError: RATE_LIMITED: MAX_VIEWERS watch already.
        """
        await exchange.read_body(0)
        if self._viewers >= MAX_VIEWERS:
            raise BatonError(ErrorReason.RATE_LIMITED, f"{MAX_VIEWERS} clients watch; that is the limit")
        self._viewers += 1
        try:
            await exchange.until_disconnect(self._send(exchange))
        finally:
            self._viewers -= 1

    async def _send(self, exchange: Exchange) -> None:
        await exchange.start_events()
        admission, registry = self._generator.admission, self._generator.registry
        stamp = 0
        while not (admission.is_draining and admission.in_flight == 0):
            changed = self._generator.timelines.since(stamp, _MOST_REQUESTS)
            stamp = changed[-1].stamp if changed else stamp
            event = json.dumps(self._event(changed), separators=(",", ":"))
            await exchange.send_events(f"data: {event}\n\n".encode())
            await asyncio.sleep(_LEAST_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOST_S):
                    await registry.changed()
        await exchange.send_events(b"", more=False)

    def _event(self, changed: Sequence[Timeline]) -> dict[str, Json]:
        generator = self._generator
        return {
            "now_unix_s": round(time.time(), 3),
            "model": generator.model.name,
            "gateway": {
                "in_flight": generator.admission.in_flight,
                "waiting": generator.admission.waiting,
                "is_ready": generator.model.is_ready,
            },
            "workers": [show_worker(generator.registry, worker) for worker in generator.registry],
            "requests": [show_timeline(timeline) for timeline in changed],
        }


def show_worker(registry: Registry, worker: Worker) -> dict[str, Json]:
    """Return a worker as JSON."""
    info, load = worker.info, worker.load
    return {
        "worker_id": info.worker_id,
        "incarnation": info.incarnation,
        "role": WorkerRole.Name(info.role).removeprefix("WORKER_ROLE_").lower(),
        "device": info.device,
        "address": info.address,
        "num_blocks": info.num_blocks,
        "used_blocks": load.used_blocks,
        "block_size": info.block_size,
        "running": load.running,
        "waiting": load.waiting,
        "pending_tokens": load.pending_tokens,
        "tokens_per_s": round(load.tokens_per_s, 1),
        "prefix_hit_tokens": load.prefix_hit_tokens,
        "prefix_query_tokens": load.prefix_query_tokens,
        "transferred_blocks": load.transferred_blocks,
        "transferred_bytes": load.transferred_bytes,
        "preemptions": load.preemptions,
        "transports": list(load.transports),
        "is_draining": worker.is_draining,
        "is_suspect": worker.is_suspect,
        "silent_ms": registry.silent_ms(worker),
    }


def show_timeline(timeline: Timeline) -> dict[str, Json]:
    """Return a request as JSON; times in seconds from its receipt."""
    return {
        "key": timeline.key,
        "request_id": timeline.request_id,
        "started_unix_s": round(timeline.started_unix_s, 4),
        "prompt_tokens": timeline.prompt_tokens,
        "cached_tokens": timeline.cached_tokens,
        "tokens": timeline.tokens,
        "ttft_s": timeline.ttft_s,
        "total_s": timeline.total_s,
        "retries": timeline.retries,
        "transport": timeline.transport,
        "handoff_bytes": timeline.handoff_bytes,
        "outcome": timeline.outcome,
        "reason": timeline.reason,
        "bars": [_show_bar(bar) for bar in timeline.bars],
    }


def _show_bar(bar: Bar) -> dict[str, Json]:
    return {
        "kind": bar.kind,
        "begin_s": round(bar.begin_s, 4),
        "end_s": None if bar.end_s is None else round(bar.end_s, 4),
        "worker": bar.worker,
        "tokens": bar.tokens,
        "failed": bar.failed,
    }
