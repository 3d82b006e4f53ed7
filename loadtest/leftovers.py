"""What the workers say of themselves during a run, and whether they still hold blocks after it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from baton.aio import AsyncClient
from baton.errors import RequestError
from baton.v1 import registry_pb2

_SAMPLE_S = 1.0
_SETTLE_S = 20.0


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """One worker at one moment, as the gateway last heard.

    Attributes:
        at_s: seconds from the start of the run.
        kv_share: blocks in use, 0 to 1.
        running, waiting: requests.
        tokens_per_s: computed (prefill) or generated (decode).
    """

    at_s: float
    worker: str
    role: str
    kv_share: float
    running: int
    waiting: int
    tokens_per_s: float


async def watch_workers(address: str, start_at: float, samples: list[WorkerSample]) -> None:
    """Append a sample of each worker to `samples` every second, until cancelled."""
    async with AsyncClient(address) as client:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            try:
                listed = await client.workers()
            except RequestError:
                continue  # the records tell of an outage
            at_s = time.monotonic() - start_at
            samples.extend(_sample(at_s, status) for status in listed.workers)


async def served_by(address: str) -> dict[str, str]:
    """Return worker id -> what a reader of a result needs to know of it.

    Raises:
        RequestError: the gateway does not answer.
    """
    async with AsyncClient(address) as client:
        infos = [status.info for status in (await client.workers()).workers]
    return {
        info.worker_id: f"{_role(info)}, {info.model} on {info.device}, {info.num_blocks} blocks of "
        f"{info.block_size} tokens, steps of {info.max_step_tokens}"
        for info in sorted(infos, key=lambda info: info.worker_id)
    }


async def blocks_held(address: str, settle_s: float = _SETTLE_S) -> dict[str, int]:
    """Return the KV blocks that each worker still holds, once nothing is under way.

    Waits up to `settle_s` for beats that are newer than this call and for counts of 0.

    Returns:
        worker id -> blocks in use (cached blocks that nobody holds are not).
    Raises:
        RequestError: the gateway does not answer.
    """
    asked = time.monotonic()
    async with AsyncClient(address) as client:
        while True:
            listed = await client.workers()
            waited_s = time.monotonic() - asked
            held = {status.info.worker_id: status.load.used_blocks for status in listed.workers}
            is_news = all(status.silent_ms < 1000 * waited_s for status in listed.workers)
            if waited_s > settle_s or (is_news and not any(held.values())):
                return held
            await asyncio.sleep(0.1)


def _sample(at_s: float, status: registry_pb2.WorkerStatus) -> WorkerSample:
    load = status.load
    return WorkerSample(
        at_s=at_s,
        worker=status.info.worker_id,
        role=_role(status.info),
        kv_share=load.used_blocks / max(status.info.num_blocks, 1),
        running=load.running,
        waiting=load.waiting,
        tokens_per_s=load.tokens_per_s,
    )


def _role(info: registry_pb2.WorkerInfo) -> str:
    return registry_pb2.WorkerRole.Name(info.role).removeprefix("WORKER_ROLE_").lower()
