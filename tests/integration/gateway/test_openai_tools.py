"""Tools and reasoning of chats through the official SDK; the workers say what they are told."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.openai_requests import CHAT, MESSAGES
from tests.support.speaking import ASSISTANT, CALL, SAID, TOOL, speak

FREE = CHAT | {"max_tokens": 400, "tools": [TOOL]}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("speaking", "said", "text", "num_calls"), SAID, indirect=["speaking"])
async def test_calls_of_tools(
    speaking: AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    said: Any,
    text: str,
    num_calls: int,
    streamed: bool,
) -> None:
    speak(monkeypatch, ASSISTANT, said)
    if streamed:
        async with speaking.chat.completions.stream(**FREE) as events:
            answer: Any = await events.get_final_completion()
    else:
        answer = await speaking.chat.completions.create(**FREE)
    (choice,) = answer.choices
    calls = choice.message.tool_calls or []
    assert (choice.message.content or "") == text
    assert choice.finish_reason == ("tool_calls" if num_calls else "stop")
    assert [(call.type, call.function.name) for call in calls] == [("function", "get_weather")] * num_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Paris"}] * num_calls
    assert len({call.id for call in calls}) == num_calls


@pytest.mark.parametrize("speaking", ["hermes"], indirect=True)
async def test_tools_are_in_the_prompt_and_calls_go_back(
    speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(monkeypatch, ASSISTANT, f"<tool_call>{CALL}</tool_call>")
    with_tools = await speaking.chat.completions.create(**FREE)
    without = await speaking.chat.completions.create(**FREE | {"tool_choice": "none"})
    assert with_tools.usage is not None
    assert without.usage is not None
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 50
    assert without.choices[0].message.content == f"<tool_call>{CALL}</tool_call>"
    message = with_tools.choices[0].message
    result = {"role": "tool", "tool_call_id": (message.tool_calls or [])[0].id, "content": "sunny"}
    history: list[Any] = [*MESSAGES, message.model_dump(), result]
    speak(monkeypatch, ASSISTANT, "Sunny.")
    again = await speaking.chat.completions.create(**FREE | {"messages": history})
    assert again.choices[0].message.content == "Sunny."
    assert again.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("speaking", ["hermes"], indirect=True)
async def test_one_call_at_a_time(speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, f"<tool_call>{CALL}</tool_call>" * 2)
    answer = await speaking.chat.completions.create(**FREE, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or []) == 1


@pytest.mark.parametrize("speaking", ["hermes"], indirect=True)
async def test_a_call_that_is_cut_off_is_text(speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, f"<tool_call>{CALL}</tool_call>")
    answer = await speaking.chat.completions.create(**FREE | {"max_tokens": 30})
    assert answer.choices[0].message.content == f"<tool_call>{CALL}"[:30]
    assert answer.choices[0].finish_reason == "length"


async def test_a_template_without_tools_refuses_them(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not show tools") as caught:
        await client.chat.completions.create(**FREE)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("speaking", ["thinking"], indirect=True)
async def test_reasoning_is_split_off(
    speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, think: bool, streamed: bool
) -> None:
    said = f"is it 1 < 2?</think>\n\nYes.<tool_call>{CALL}</tool_call>"
    after = ASSISTANT + ("<think>\n" if think else "")
    speak(monkeypatch, after, said if think else f"<think>\n{said}")
    fields = FREE | {"extra_body": {"chat_template_kwargs": {"think": think}}}
    if streamed:
        chunks = [chunk async for chunk in await speaking.chat.completions.create(**fields, stream=True)]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
        calls = [call for delta in deltas for call in delta.tool_calls or []]
    else:
        message: Any = (await speaking.chat.completions.create(**fields)).choices[0].message
        reasoning, content, calls = message.reasoning_content, message.content, message.tool_calls
    assert (reasoning, content, len(calls)) == ("is it 1 < 2?", "Yes.", 1)
