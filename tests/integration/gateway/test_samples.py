"""Several answers to one prompt, through a gateway and real engines: the prompt is computed once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from services.gateway.app import Gateway
from services.gateway.config import GatewayConfig
from services.worker.runtime import Worker
from tests.support.tiny_models import save_tiny_llama
from tests.support.workers import (
    BLOCK_SIZE,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    prefill_worker,
)

Served = tuple[AsyncOpenAI, list[Worker], Worker]


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A client, two prefill workers and a decode worker."""
    model = save_tiny_llama(tmp_path / "tiny")
    gateway = Gateway(GatewayConfig(grpc_port=0, http_port=0, model=str(model), drain_timeout_s=1.0))
    await gateway.start()
    addresses = [gateway.grpc_address]
    async with (
        prefill_worker(engine_config(model, max_step_tokens=512), gateway=addresses) as one,
        prefill_worker(engine_config(model, max_step_tokens=512), gateway=addresses) as two,
        decode_worker(engine_config(model), gateway=addresses) as decode,
        AsyncOpenAI(base_url=f"http://{gateway.http_address}/v1", api_key="none", max_retries=0) as client,
    ):
        await eventually(lambda: len(list(gateway.generator.registry)) == 3)
        yield client, [one, two], decode
        await all_free(one, two, decode)
    await gateway.stop()


def prompt(length: int, first: int) -> list[int]:
    return [3 + (first + i * i) % 250 for i in range(length)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_prompt_is_computed_and_moved_once(served: Served, streamed: bool) -> None:
    client, prefills, decode = served
    prompts = [prompt(100, 7), prompt(60, 90)]
    fields: dict[str, Any] = {"model": "tiny", "prompt": prompts, "max_tokens": 6, "seed": 5, "n": 4}
    texts: dict[int, str] = {}
    if streamed:
        async for chunk in await client.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
    else:
        answer = await client.completions.create(**fields)
        texts = {choice.index: choice.text for choice in answer.choices}
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (160, 48)
    assert sorted(texts) == list(range(8))
    rests = sum(3 * (len(tokens) % BLOCK_SIZE) for tokens in prompts)
    computed = sum(worker.host.engine.stats().computed_tokens for worker in prefills)
    assert computed == 160 + rests
    hits = decode.host.engine.stats().prefix_hit_tokens
    assert hits == sum(3 * (len(tokens) - len(tokens) % BLOCK_SIZE) for tokens in prompts)
    # And each answer is what it is alone.
    for i in (0, 3, 5):
        alone = await client.completions.create(
            model="tiny",
            prompt=prompts[i // 4],
            max_tokens=6,
            seed=5 + i % 4,
            extra_body={"cache_salt": "own"},
        )
        assert alone.choices[0].text == texts[i]


async def test_short_prompts_and_scored_ones_do_not_wait(served: Served) -> None:
    client, prefills, _ = served
    short = await client.completions.create(model="tiny", prompt=prompt(9, 1), n=3, max_tokens=1)
    assert len(short.choices) == 3
    scored = await client.completions.create(
        model="tiny", prompt=prompt(40, 2), n=2, max_tokens=2, echo=True, logprobs=1
    )
    assert [len(choice.logprobs.tokens or ()) for choice in scored.choices if choice.logprobs] == [42, 42]
    assert sum(worker.host.engine.stats().computed_tokens for worker in prefills) == 27 + 80


async def test_others_begin_as_soon_as_decode_has_the_prompt(served: Served) -> None:
    """Not when the first answer is complete, however its tokens travel."""
    client, _, _ = served
    fields: dict[str, Any] = {"model": "tiny", "max_tokens": 300, "n": 3, "extra_body": {"ignore_eos": True}}
    order: list[int] = []
    chunks = await client.completions.create(**fields, prompt=prompt(60, 5), stream=True)
    async for chunk in chunks:
        order += [choice.index for choice in chunk.choices]
    for index in (1, 2):
        assert order[: order.index(index)].count(0) < 150
