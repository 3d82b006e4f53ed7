"""Tools through /v1/responses, as the official SDK drives it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.speaking import ASSISTANT, CALL, SAID, TOOL, speak

FLAT: dict[str, Any] = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
STOP: dict[str, Any] = {"type": "function", "name": "stop", "parameters": None, "strict": False}
ASK: dict[str, Any] = {
    "model": "tiny",
    "input": "hi",
    "temperature": 0,
    "max_output_tokens": 400,
    "tools": [FLAT, STOP],
}

hermes = pytest.mark.parametrize("speaking", ["hermes"], indirect=True)
either = pytest.mark.parametrize("streamed", [False, True])


async def respond(client: AsyncOpenAI, streamed: bool, **fields: Any) -> Any:
    if not streamed:
        return await client.responses.create(**ASK | fields)
    async with client.responses.stream(**ASK | fields) as events:
        async for _ in events:
            pass
        return await events.get_final_response()


@either
@pytest.mark.parametrize(("speaking", "said", "text", "num_calls"), SAID, indirect=["speaking"])
async def test_calls_are_items(
    speaking: AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    said: Any,
    text: str,
    num_calls: int,
    streamed: bool,
) -> None:
    speak(monkeypatch, ASSISTANT, said)
    response = await respond(speaking, streamed)
    assert (response.output_text, response.status) == (text, "completed")
    kinds = [item.type for item in response.output]
    assert kinds == ["message"] * bool(text) + ["function_call"] * num_calls
    calls = [item for item in response.output if item.type == "function_call"]
    assert {(call.name, call.status) for call in calls} <= {("get_weather", "completed")}
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Paris"}] * num_calls
    assert len({call.call_id for call in calls} | {call.id for call in calls}) == 2 * num_calls
    assert [tool.name for tool in response.tools] == ["get_weather", "stop"]


@hermes
async def test_events_of_a_call(speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, f"A<tool_call>{CALL}</tool_call>B")
    events: list[Any] = [event async for event in await speaking.responses.create(**ASK, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [(event.type.removeprefix("response."), getattr(event, "output_index", None)) for event in events]
    message = ["output_item.added", "content_part.added", "output_text.delta"]
    message += ["output_text.done", "content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds == [
        ("created", None),
        ("in_progress", None),
        *[(kind, 0) for kind in message],
        *[(kind, 1) for kind in [*call, "output_item.done"]],
        *[(kind, 2) for kind in message],
        ("completed", None),
    ]
    added, delta, done, item_done = [event for event in events if getattr(event, "output_index", None) == 1]
    assert (added.item.status, added.item.arguments) == ("in_progress", "")
    assert added.item.id == delta.item_id == done.item_id == item_done.item.id
    assert json.loads(delta.delta) == json.loads(done.arguments) == {"city": "Paris"}
    assert item_done.item == events[-1].response.output[1]


@hermes
async def test_tools_are_in_the_prompt_and_calls_go_back(
    speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation is the chat's of the same turns: as many prompt tokens, and the same answer."""
    speak(monkeypatch, ASSISTANT, f"I look.<tool_call>{CALL}</tool_call>")
    first = await respond(speaking, False)
    without = await respond(speaking, False, tool_choice="none")
    assert first.usage.input_tokens > without.usage.input_tokens + 50
    assert without.output_text == f"I look.<tool_call>{CALL}</tool_call>"
    call: Any = first.output[1]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    user = {"role": "user", "content": "hi"}
    speak(monkeypatch, ASSISTANT, "Sunny.")
    again = await respond(speaking, False, input=[user, *[i.model_dump() for i in first.output], output])
    assert again.output_text == "Sunny."
    function = {"name": call.name, "arguments": call.arguments}
    turn: dict[str, Any] = {"role": "assistant", "content": "I look."}
    turn |= {"tool_calls": [{"id": call.call_id, "type": "function", "function": function}]}
    result = {"role": "tool", "tool_call_id": call.call_id, "name": call.name, "content": "sunny"}
    fields: dict[str, Any] = {"model": "tiny", "temperature": 0, "messages": [user, turn, result]}
    fields["tools"] = [TOOL, {"type": "function", "function": {"name": "stop"}}]
    chat = await speaking.chat.completions.create(**fields)
    assert chat.usage is not None
    assert again.usage.input_tokens == chat.usage.prompt_tokens


@hermes
async def test_one_call_at_a_time(speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, f"<tool_call>{CALL}</tool_call>" * 2)
    response = await respond(speaking, False, parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.parallel_tool_calls is False


@hermes
async def test_only_allowed_tools_are_called(speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, f"<tool_call>{CALL}</tool_call>")
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "stop"}]}
    response = await respond(speaking, False, tool_choice=allowed)
    assert response.output_text == f"<tool_call>{CALL}</tool_call>"
    nested = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    fields: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [TOOL],
    }
    fields["tool_choice"] = {"type": "allowed_tools", "allowed_tools": nested}
    chat = await speaking.chat.completions.create(**fields)
    assert chat.choices[0].finish_reason == "tool_calls"


@either
@pytest.mark.parametrize("speaking", ["thinking"], indirect=True)
async def test_reasoning_comes_before_a_call_and_goes_back(
    speaking: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    speak(monkeypatch, ASSISTANT, f"<think>hm</think><tool_call>{CALL}</tool_call>")
    response = await respond(speaking, streamed)
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    history = [{"role": "user", "content": "hi"}, *[item.model_dump() for item in response.output]]
    history.append({"type": "function_call_output", "call_id": response.output[1].call_id, "output": "ok"})
    speak(monkeypatch, ASSISTANT, "Fine.")
    assert (await respond(speaking, streamed, input=history)).output_text == "Fine."


@hermes
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [FLAT, FLAT]}, "tools[1].name", "twice"),
        ({"tools": [{"type": "web_search"}]}, None, "function"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "function", "name": "go"}}, "tool_choice.name", "'go' is not among"),
        (
            {"tools": [FLAT | {"parameters": {"type": "objet"}}], "tool_choice": "required"},
            "tools[0].parameters",
            "Invalid type: objet",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]},
            "input[0].call_id",
            "no function_call",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "of type message"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name", "required"),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
            "JSON",
        ),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role", "user"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(
    speaking: AsyncOpenAI, fields: Any, param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        await speaking.responses.create(**ASK | fields)
    assert param is None or caught.value.param == param
