"""A prompt shown before its answer, scored: what harnesses ask for to compare texts by their likelihood."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.gateway.test_structured import served as _served
from tests.support.served_model import ServedModel
from tests.support.tiny_models import ids_of

served = _served
PROMPT = "abc def"
PLAIN: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0}


@pytest.fixture
def client(served: ServedModel) -> AsyncOpenAI:
    return served.client


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_echo_with_logprobs(client: AsyncOpenAI, streamed: bool) -> None:
    fields = PLAIN | {"echo": True, "logprobs": 2, "max_tokens": 3, "extra_body": {"ignore_eos": True}}
    parts: list[Any] = []
    if streamed:
        parts = [chunk.choices[0] async for chunk in await client.completions.create(**fields, stream=True)]
    else:
        parts = [(await client.completions.create(**fields)).choices[0]]
    text = "".join(part.text for part in parts)
    known = [part.logprobs for part in parts if part.logprobs]
    tokens, values, tops, offsets = (
        [value for logprobs in known for value in getattr(logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    assert text.startswith(PROMPT)
    assert len(tokens) == len(PROMPT) + 3
    assert tokens[: len(PROMPT)] == list(PROMPT)
    assert (values[0], tops[0]) == (None, None)
    assert all(value < 0 for value in values[1:])
    assert all(2 <= len(top) <= 3 for top in tops[1:])
    assert all(
        top[token] == value for token, value, top in zip(tokens[1:], values[1:], tops[1:], strict=True)
    )
    assert offsets[: len(PROMPT)] == list(range(len(PROMPT)))


async def test_a_prompt_is_scored_alone(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(**PLAIN, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 0)
    assert choice.logprobs is not None
    whole = await client.completions.create(**PLAIN, echo=True, logprobs=0, max_tokens=2)
    assert whole.choices[0].logprobs is not None
    scored = whole.choices[0].logprobs.token_logprobs or []
    assert choice.logprobs.token_logprobs == scored[: len(PROMPT)]
    with pytest.raises(openai.BadRequestError, match="at least 1"):
        await client.completions.create(**PLAIN, max_tokens=0)


async def test_prompt_logprobs_of_several_prompts(client: AsyncOpenAI) -> None:
    prompts = [PROMPT, "a", ids_of("hello")]
    for prompt in prompts:
        body = PLAIN | {"prompt": prompt, "max_tokens": 2, "n": 2}
        answer = await client.completions.create(**body, extra_body={"prompt_logprobs": 1})
        for choice in answer.choices:
            found: Any = choice.prompt_logprobs  # type: ignore[attr-defined]
            assert choice.logprobs is None
            ids = ids_of(prompt) if isinstance(prompt, str) else prompt
            assert found[0] is None
            assert len(found) == len(ids)
            for token_id, entry in zip(ids[1:], found[1:], strict=True):
                assert 1 <= len(entry) <= 2
                assert entry[str(token_id)]["logprob"] <= max(top["logprob"] for top in entry.values())
