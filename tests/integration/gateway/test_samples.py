"""Several answers to one prompt, through a gateway and real engines: the prompt is computed once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.served_model import ServedModel, serve
from tests.support.tiny_models import save_tiny_llama
from tests.support.workers import BLOCK_SIZE, engine_config


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedModel]:
    """Two prefill workers and a decode worker."""
    model = save_tiny_llama(tmp_path / "tiny")
    async with serve(model, prefill=2, prefill_engine=engine_config(model, max_step_tokens=512)) as served:
        yield served


def prompt(length: int, first: int) -> list[int]:
    return [3 + (first + i * i) % 250 for i in range(length)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_prompt_is_computed_and_moved_once(served: ServedModel, streamed: bool) -> None:
    client = served.client
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
    computed = sum(worker.host.engine.stats().computed_tokens for worker in served.prefills)
    assert computed == 160 + rests
    hits = served.decodes[0].host.engine.stats().prefix_hit_tokens
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


async def test_short_prompts_do_not_wait(served: ServedModel) -> None:
    short = await served.client.completions.create(model="tiny", prompt=prompt(9, 1), n=3, max_tokens=1)
    assert len(short.choices) == 3
    assert sum(worker.host.engine.stats().computed_tokens for worker in served.prefills) == 27


@pytest.mark.parametrize("length", [9, 40])
async def test_a_prompt_is_scored_once(served: ServedModel, length: int) -> None:
    fields: dict[str, Any] = {"model": "tiny", "prompt": prompt(length, 2), "echo": True, "logprobs": 1}
    answer = await served.client.completions.create(**fields, max_tokens=2, n=3)
    scores = [choice.logprobs for choice in answer.choices]
    assert [len(score.tokens or ()) for score in scores if score] == [length + 2] * 3
    computed = sum(worker.host.engine.stats().computed_tokens for worker in served.prefills)
    assert computed == length + 2 * (length % BLOCK_SIZE)
    alone = await served.client.completions.create(**fields, max_tokens=1, extra_body={"cache_salt": "own"})
    assert alone.choices[0].logprobs is not None
    told = (alone.choices[0].logprobs.token_logprobs or ())[:length]
    assert [(score.token_logprobs or ())[:length] for score in scores if score] == [told] * 3


async def test_others_begin_as_soon_as_decode_has_the_prompt(served: ServedModel) -> None:
    """Not when the first answer is complete, however its tokens travel."""
    client = served.client
    fields: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "n": 3, "extra_body": {"ignore_eos": True}}
    order: list[int] = []
    chunks = await client.completions.create(**fields, prompt=prompt(60, 5), stream=True)
    async for chunk in chunks:
        order += [choice.index for choice in chunk.choices]
    for index in (1, 2):
        assert order[: order.index(index)].count(0) < 400
