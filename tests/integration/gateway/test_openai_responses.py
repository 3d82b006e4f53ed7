"""/v1/responses as the official SDK drives it: input, events, what goes back, reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.gateway.conftest import MakeSetup, client_of
from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.openai_requests import CHAT_IDS, CHAT_TEXT, MESSAGES, RESPONSE
from tests.support.scripted_workers import expected
from tests.support.speaking import ASSISTANT, speak


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, CHAT_IDS),
        ({"input": [{"role": "user", "content": "hi"}]}, CHAT_IDS),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, CHAT_IDS),
        ({"instructions": "be"}, [1, *ids_of("system\nbe"), 2, *CHAT_IDS]),
        ({"reasoning": {"effort": None, "summary": None}, "tools": [], "tool_choice": "auto"}, CHAT_IDS),
        (
            {"input": [{"role": "developer", "content": "be"}, *MESSAGES]},
            [1, *ids_of("system\nbe"), 2, *CHAT_IDS],
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_response(
    client: AsyncOpenAI, fields: dict[str, Any], ids: Sequence[int], streamed: bool
) -> None:
    text = text_of(expected(ids, 8))
    if streamed:
        async with client.responses.stream(**RESPONSE | fields) as events:
            deltas = [event.delta async for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == text
        return
    response = await client.responses.create(**RESPONSE | fields)
    assert response.output_text == text
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(ids), 8)
    assert response.usage.input_tokens_details.cached_tokens == 16


async def test_events_of_a_response(client: AsyncOpenAI) -> None:
    fields = {"extra_body": {"stop": CHAT_TEXT[2]}, "store": False, "metadata": {"a": "b"}}
    events = [event async for event in await client.responses.create(**RESPONSE | fields, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    done: Any = events[-1]
    assert (done.response.status, done.response.output_text) == ("completed", CHAT_TEXT[:2])
    assert (done.response.metadata, done.response.error) == ({"a": "b"}, None)
    assert done.response.output[0].id == events[2].item.id  # type: ignore[union-attr]


async def test_a_response_is_sent_back_as_input(client: AsyncOpenAI) -> None:
    first = await client.responses.create(**RESPONSE)
    history: list[Any] = [*MESSAGES, *[item.model_dump() for item in first.output], *MESSAGES]
    second = await client.responses.create(**RESPONSE | {"input": history})
    ids = [1, *ids_of("user\nhi"), 2, 1, *ids_of("assistant\n" + first.output_text), 2, *CHAT_IDS]
    assert second.output_text == text_of(expected(ids, 8))


async def test_logprobs_of_a_response(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        **RESPONSE, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    content: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert [entry.token for entry in content.logprobs] == list(CHAT_TEXT)
    assert {len(entry.top_logprobs) for entry in content.logprobs} == {2}


async def test_a_response_that_breaks_off(make_setup: MakeSetup) -> None:
    setup = await make_setup(worker_wait_s=0.05)
    async with client_of(setup) as client:
        kinds: list[str] = []
        events = await client.responses.create(**RESPONSE | {"max_output_tokens": 2000}, stream=True)

        async def read() -> None:
            async for event in events:
                kinds.append(event.type)
                if len(kinds) == 8:
                    await setup.workers.kill("d0")

        with pytest.raises(openai.APIError, match="worker"):
            await read()
        assert kinds[-1] == "response.failed"
        assert "response.completed" not in kinds


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("speaking", ["thinking"], indirect=True)
async def test_reasoning_of_a_response(
    speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    speak(monkeypatch, ASSISTANT, "<think>hm</think>Yes.")
    fields = RESPONSE | {"max_output_tokens": 100}
    if streamed:
        async with speaking.responses.stream(**fields) as events:
            kinds = [event.type async for event in events]
            response: Any = await events.get_final_response()
        assert "response.reasoning_text.delta" in kinds
    else:
        response = await speaking.responses.create(**fields)
    reasoning, message = response.output
    assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "hm")
    assert (message.type, response.output_text, response.status) == ("message", "Yes.", "completed")
    assert response.usage.output_tokens_details.reasoning_tokens == len("<think>hm</think>")
