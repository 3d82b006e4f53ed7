"""Conversations, tools and reasoning over gRPC: what the HTTP API has, in InferenceService's own shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from baton.aio import AsyncClient
from baton.errors import InvalidRequestError
from baton.v1.inference_pb2 import GenerateRequest, Tool, ToolCall, ToolChoice
from baton.v1.sampling_pb2 import FinishReason
from tests.integration.gateway.conftest import MakeSetup, Setup
from tests.support.byte_tokenizer import write_byte_tokenizer
from tests.support.speaking import ASSISTANT, CALL, SAID, TEMPLATES, speak

HI = [{"role": "user", "content": "hi"}]
WEATHER = Tool(
    name="get_weather",
    description="The weather of a city",
    parameters=json.dumps({"type": "object", "properties": {"city": {"type": "string"}}}),
)
STOP = Tool(name="stop")
ASK: dict[str, Any] = {"temperature": 0.0, "max_tokens": 400, "tools": [WEATHER, STOP]}


@pytest_asyncio.fixture
async def told(make_setup: MakeSetup, tmp_path: Path, request: Any) -> Setup:
    """A gateway of a model whose template is the one named by the parameter."""
    model = write_byte_tokenizer(
        tmp_path / "tiny", template=TEMPLATES[request.param], special_tokens=["[TOOL_CALLS]"]
    )
    return await make_setup(model=str(model))


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("told", names, indirect=True)


async def answer_of(told: Setup, messages: Any = HI, **options: Any) -> Any:
    async with AsyncClient(told.gateway.grpc_address) as client:
        return await client.complete(messages=messages, **ASK | options)


@pytest.mark.parametrize(("told", "said", "text", "num_calls"), SAID, indirect=["told"])
async def test_calls_come_in_deltas(
    told: Setup, monkeypatch: pytest.MonkeyPatch, said: Any, text: str, num_calls: int
) -> None:
    speak(monkeypatch, ASSISTANT, said)
    answer = await answer_of(told)
    assert answer.text == text
    assert answer.finished.reason == FinishReason.FINISH_REASON_STOP
    assert [call.name for call in answer.tool_calls] == ["get_weather"] * num_calls
    assert [json.loads(call.arguments) for call in answer.tool_calls] == [{"city": "Paris"}] * num_calls
    assert len({call.id for call in answer.tool_calls}) == num_calls


@of("hermes")
async def test_calls_go_back_and_the_prompt_is_that_of_the_http_api(
    told: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(monkeypatch, ASSISTANT, "Sunny.")
    call = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris"}')
    history = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1", "name": "get_weather"},
    ]
    answer = await answer_of(told, history)
    assert answer.text == "Sunny."
    function = {"name": call.name, "arguments": call.arguments}
    body = {
        "messages": [
            *HI,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "call_1", "name": "get_weather"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": WEATHER.name,
                    "description": WEATHER.description,
                    "parameters": json.loads(WEATHER.parameters),
                },
            },
            {"type": "function", "function": {"name": "stop"}},
        ],
        "temperature": 0,
    }
    whole = (await told.http.post("/v1/chat/completions", json=body)).json()
    assert whole["usage"]["prompt_tokens"] == answer.finished.usage.prompt_tokens
    assert whole["choices"][0]["message"]["content"] == "Sunny."


@of("hermes")
async def test_choices(told: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"<tool_call>{CALL}</tool_call>"
    speak(monkeypatch, ASSISTANT, said * 2)
    assert len((await answer_of(told, tool_choice=ToolChoice(single=True))).tool_calls) == 1
    others = await answer_of(told, tool_choice=ToolChoice(names=["stop"]))
    assert (others.text, len(others.tool_calls)) == (said * 2, 0)
    none = await answer_of(told, tool_choice=ToolChoice(mode=ToolChoice.MODE_NONE))
    assert none.text == said * 2
    shown = (await answer_of(told)).finished.usage.prompt_tokens
    assert none.finished.usage.prompt_tokens < shown - 50


@of("thinking")
async def test_reasoning_is_split_off_and_goes_back(told: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, ASSISTANT, "<think>hm</think>Yes.")
    answer = await answer_of(told, tools=[])
    assert (answer.reasoning, answer.text) == ("hm", "Yes.")
    speak(monkeypatch, ASSISTANT + "<think>\n", "hm</think>Yes.")
    answer = await answer_of(told, template_variables='{"think": true}')
    assert (answer.reasoning, answer.text) == ("hm", "Yes.")
    again = [*HI, {"role": "assistant", "content": "Yes.", "reasoning": "hm"}, *HI]
    speak(monkeypatch, ASSISTANT, "No.")
    assert (await answer_of(told, again)).text == "No."


@of("hermes")
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [Tool(name="a b")]}, "tools[0].name"),
        ({"tools": [Tool(name="f", parameters="[1]")]}, "tools[0].parameters"),
        ({"tools": [Tool(name="f", parameters='{"type": "objet"}', strict=True)]}, "tools[0].parameters"),
        ({"tool_choice": ToolChoice(names=["go"])}, "tool_choice.names[0]"),
        ({"tools": [], "tool_choice": ToolChoice(mode=ToolChoice.MODE_REQUIRED)}, "tool_choice"),
        ({"template_variables": "[]"}, "template_variables"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(told: Setup, options: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await answer_of(told, **options)
    assert caught.value.field == field


@of("hermes")
async def test_only_a_conversation_has_tools(told: Setup) -> None:
    for fields in ({"tools": [WEATHER]}, {"template_variables": "{}"}):
        with pytest.raises(grpc.aio.AioRpcError, match="conversation"):
            await anext(aiter(told.stub.Generate(GenerateRequest(text="hi", **fields), timeout=10)))
