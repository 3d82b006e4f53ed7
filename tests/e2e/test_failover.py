"""A worker killed under way costs a pause: every stream ends with exactly the undisturbed tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from baton.client import Client
from baton.cluster import LocalCluster
from baton.generation import Answer
from baton.process import ServiceProcess
from tests.support.golden import varied_prompts
from tests.support.traffic import complete_all, hold_nothing, loads, wait_for

OPTIONS = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 40}


@pytest.fixture(scope="module")
def four() -> Iterator[LocalCluster]:
    """Two workers of each kind."""
    with LocalCluster(prefill=2, decode=2) as cluster:
        yield cluster


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_kill_one_of_two(role: Literal["prefill", "decode"], four: LocalCluster, model_dir: Path) -> None:
    cluster = four
    for worker in [worker for worker in cluster.workers if worker.exit_status is not None]:
        cluster.restart(worker)
    corpus = max(varied_prompts(model_dir), key=len)
    prompts = [corpus[at : at + 150 + 17 * at] for at in range(12)]
    with Client(cluster.gateway_address) as client:
        calm_salt, salt = ({"cache_salt": f"{role} {name}"} for name in ("calm", "rough"))
        undisturbed = asyncio.run(complete_all(cluster.gateway_address, prompts, **OPTIONS | calm_salt))

        async def run() -> list[object]:
            task = asyncio.create_task(complete_all(cluster.gateway_address, prompts, **OPTIONS | salt))
            victim = await _busy(cluster, client, role)
            cluster.kill(victim)
            return list(await task)

        disturbed = asyncio.run(run())
        survivors = [worker for worker in cluster.workers if worker.exit_status is None]
        assert len(survivors) == 3
        wait_for(
            "the survivors' blocks given back",
            lambda: hold_nothing(client, survivors),
            15.0,
        )
    retries = 0
    for calm, rough in zip(undisturbed, disturbed, strict=True):
        assert isinstance(calm, Answer), calm
        assert isinstance(rough, Answer), rough
        assert rough.token_ids == calm.token_ids
        retries += rough.finished.handoff.retries
    assert retries > 0, "the kill hit nobody"


async def _busy(cluster: LocalCluster, client: Client, role: str) -> ServiceProcess:
    """Wait until a worker of the role has work under way, and return its process."""
    for _ in range(1000):
        await asyncio.sleep(0.02)
        load = await asyncio.to_thread(loads, client)
        for worker in cluster.workers:
            if worker.role == role and load[worker.name].running > 0:
                if role == "decode":
                    await asyncio.sleep(0.5)
                return worker
    raise AssertionError(f"no {role} worker was ever busy")
