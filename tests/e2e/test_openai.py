"""The official SDK against a real cluster and the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from baton.cluster import LocalCluster

MESSAGES: list[Any] = [{"role": "user", "content": "Name three colours."}]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_chats_and_responses_agree_streaming_and_not(client: OpenAI, model: str) -> None:
    common: dict[str, Any] = {"model": model, "temperature": 0}
    whole = client.chat.completions.create(**common, messages=MESSAGES, max_tokens=24)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24
    chunks = client.chat.completions.create(**common, messages=MESSAGES, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    response = client.responses.create(**common, input=MESSAGES, max_output_tokens=24)
    assert response.output_text == text
    with client.responses.stream(**common, input=MESSAGES, max_output_tokens=24) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == text


def test_logprobs_are_of_the_tokens_that_make_the_text(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=8, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens, offsets = logprobs.tokens or [], logprobs.text_offset or []
    assert "".join(tokens) == answer.choices[0].text
    text = answer.choices[0].text
    assert all(text.startswith(token, at) for at, token in zip(offsets, tokens, strict=True))
    assert len(logprobs.token_logprobs or []) == 8
    for drawn, top in zip(logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True):
        assert len(top) == 3
        assert drawn == pytest.approx(max(top.values()))
        assert drawn < 0


def test_echo_and_the_best_of_several(client: OpenAI, model: str) -> None:
    fields: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": 8, "seed": 1}
    echoed = client.completions.create(**fields, echo=True, temperature=0).choices[0].text
    assert echoed == PROMPT + client.completions.create(**fields, temperature=0).choices[0].text
    samples = client.completions.create(**fields, n=4, logprobs=0).choices
    best = client.completions.create(**fields, best_of=4, logprobs=0).choices[0]

    def mean(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert best.text == max(samples, key=mean).text


def test_tokens_round_trip(client: OpenAI, model: str) -> None:
    text = "Naïve café, 12 ☃ 👩‍👩‍👧 \n\tend"
    base = str(client.base_url).removesuffix("/v1/")
    ids = client.post(f"{base}/tokenize", body={"prompt": text}, cast_to=object)["tokens"]  # type: ignore[index]
    back = client.post(f"{base}/detokenize", body={"tokens": ids}, cast_to=object)
    assert back == {"prompt": text}
    by_ids = client.completions.create(model=model, prompt=ids, temperature=0, max_tokens=4)
    by_text = client.completions.create(model=model, prompt=text, temperature=0, max_tokens=4)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_what_this_model_cannot_is_refused(client: OpenAI, model: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="does not show tools"):
        client.chat.completions.create(model=model, messages=MESSAGES, tools=[tool])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"
