"""A request cancelled at any moment gives back every block on both sides within a second."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

from baton.aio import AsyncClient
from baton.client import Client
from baton.cluster import LocalCluster
from baton.generation import Delta
from tests.support.golden import varied_prompts
from tests.support.traffic import hold_nothing, wait_for


async def start_and_cancel(address: str, prompt: list[int], delay_s: float) -> int:
    """Cancel a long request after `delay_s`; the tokens that had arrived."""
    tokens = 0

    async def consume(client: AsyncClient) -> None:
        nonlocal tokens
        options = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 400}
        async for event in client.generate(token_ids=prompt, **options):
            tokens += len(event.token_ids) if isinstance(event, Delta) else 0

    async with AsyncClient(address) as client:
        task = asyncio.create_task(consume(client))
        await asyncio.sleep(delay_s)
        assert not task.done(), "the request was to be cancelled under way"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return tokens


def test_cancel_at_random_moments(cluster: LocalCluster, model_dir: Path) -> None:
    rng = random.Random(3)
    corpus = max(varied_prompts(model_dir), key=len)
    tokens = []
    with Client(cluster.gateway_address) as client:
        client.complete(token_ids=corpus[:40], max_tokens=2)
        wait_for("an idle start", lambda: hold_nothing(client, cluster.workers), 3.0)
        for attempt in range(20):
            prompt = corpus[rng.randrange(400) :][: rng.randrange(200, 1000)]
            delay_s = rng.uniform(0.0, 0.4) if attempt % 2 else rng.uniform(0.4, 2.5)
            tokens.append(asyncio.run(start_and_cancel(cluster.gateway_address, prompt, delay_s)))
            took = wait_for("blocks given back", lambda: hold_nothing(client, cluster.workers), 1.0)
            print(
                f"{len(prompt)} tokens, cancelled after {delay_s:.2f} s and {tokens[-1]} tokens: {took:.2f} s"
            )
        assert client.complete(token_ids=corpus[:40], max_tokens=2).token_ids
    assert min(tokens) == 0, "none was cancelled before its first token"
    assert max(tokens) > 1, "none was cancelled in decode"
