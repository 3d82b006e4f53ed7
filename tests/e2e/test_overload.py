"""More requests than the decode pool holds wait for their turn; beyond the queue limit they are refused."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import OverloadedError
from baton.generation import Answer
from tests.support.golden import varied_prompts
from tests.support.traffic import complete_all, hold_nothing, wait_for

BLOCK_BYTES = 30 * 2 * 3 * 16 * 64 * 4
POOL_FOR_20 = ["--kv-bytes", str(20 * 3 * BLOCK_BYTES)]
OPTIONS = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 16}


def prompts_of(model_dir: Path, count: int) -> list[list[int]]:
    corpus = max(varied_prompts(model_dir), key=len)
    return [corpus[at : at + 30] for at in range(count)]


def test_200_requests_against_a_pool_for_20(model_dir: Path) -> None:
    prompts = prompts_of(model_dir, 200)
    with LocalCluster(decode_args=POOL_FOR_20) as cluster, Client(cluster.gateway_address) as client:
        answers = asyncio.run(complete_all(cluster.gateway_address, prompts, **OPTIONS))
        wait_for("blocks given back", lambda: hold_nothing(client, cluster.workers), 2.0)
        alone = client.complete(token_ids=prompts[7], **OPTIONS)
    failed = [answer for answer in answers if not isinstance(answer, Answer)]
    assert not failed
    assert all(len(answer.token_ids) == 16 for answer in answers if isinstance(answer, Answer))
    seventh = answers[7]
    assert isinstance(seventh, Answer)
    assert seventh.token_ids == alone.token_ids


def test_beyond_the_queue_limit_is_refused_at_once(model_dir: Path) -> None:
    prompts = prompts_of(model_dir, 200)
    with LocalCluster(decode_args=POOL_FOR_20, gateway_args=["--max-queue", "50"]) as cluster:
        start = time.monotonic()
        refused_after = []

        async def run() -> list[object]:
            task = asyncio.create_task(complete_all(cluster.gateway_address, prompts, **OPTIONS))
            await asyncio.sleep(1.0)
            async with httpx.AsyncClient() as http:
                body = {"model": cluster.model_name, "prompt": "One more", "max_tokens": 16}
                before = time.monotonic()
                response = await http.post(f"{cluster.http_url}/v1/completions", json=body, timeout=60)
                refused_after.append((response, time.monotonic() - before))
            return list(await task)

        answers = asyncio.run(run())
        took = time.monotonic() - start
    finished = [answer for answer in answers if isinstance(answer, Answer)]
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert len(finished) + len(refused) == 200
    assert len(finished) >= 50
    assert len(refused) >= 100
    assert all(error.retry_after_s is not None and error.retry_after_s > 0 for error in refused)
    response, http_s = refused_after[0]
    print(
        f"{len(finished)} finished, {len(refused)} refused in {took:.1f} s; over HTTP {response.status_code}"
    )
    if response.status_code == 429:
        assert int(response.headers["retry-after"]) >= 1
        assert http_s < 0.5
