"""Sends requests to a cluster at once, and waits for what workers report."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from baton.aio import AsyncClient
from baton.client import Client
from baton.errors import RequestError
from baton.generation import Answer
from baton.process import ServiceProcess
from baton.v1 import registry_pb2


async def complete_all(
    address: str, prompts: Sequence[Sequence[int]], *, at_once: int = 1000, **options: Any
) -> list[Answer | RequestError]:
    """Send every prompt (token ids), `at_once` at a time; the answers and errors, in order."""
    gate = asyncio.Semaphore(at_once)
    async with AsyncClient(address) as client:

        async def one(prompt: Sequence[int]) -> Answer | RequestError:
            async with gate:
                try:
                    return await client.complete(token_ids=prompt, **options)
                except RequestError as error:
                    return error

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


def loads(client: Client) -> dict[str, registry_pb2.WorkerLoad]:
    """Return the last reported load of each worker."""
    return {status.info.worker_id: status.load for status in client.workers().workers}


def metric(client: Client, name: str) -> dict[str, float]:
    """Return one metric of each live worker, read from its metrics endpoint now."""
    values = {}
    for status in client.workers().workers:
        address = status.info.metrics_address
        with (
            contextlib.suppress(urllib.error.URLError),
            urllib.request.urlopen(f"http://{address}/metrics") as page,
        ):
            lines = page.read().decode().splitlines()
            samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
            assert samples, f"{status.info.worker_id} exports no {name}"
            values[status.info.worker_id] = sum(float(sample.split()[-1]) for sample in samples)
    return values


def hold_nothing(client: Client, workers: Iterable[ServiceProcess]) -> bool:
    """Whether each of these workers says, now, that no block is in use; one that does not answer has not."""
    used = metric(client, "baton_kv_blocks_used")
    return all(used.get(worker.name) == 0 for worker in workers)


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> float:
    """Poll until the condition holds; the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"{what}: not after {timeout_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - start
