"""Structured answers through the official SDK, a gateway, and real engines with a tiny random model.

The model would write noise, so what keeps to a form here was kept to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from baton.v1.inference_pb2 import GenerateRequest
from baton.v1.sampling_pb2 import Grammar, SamplingParams
from tests.support.served_model import ServedModel, serve
from tests.support.tiny_models import save_tiny_llama

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 300}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["small", "large"]},
        "ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "size", "ids"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("turn", side={"enum": ["left", "right"]}), tool("stop")]
CHOICE = {"type": "function", "function": {"name": "turn"}}
TEMPLATES = {
    "plain": "",
    "hermes": "{# <tool_call> #}{{ tools | length if tools }}",
}


@pytest_asyncio.fixture(params=["plain"])
async def served(tmp_path: Path, request: Any) -> AsyncIterator[ServedModel]:
    """A model whose template is named by the parameter."""
    model = save_tiny_llama(tmp_path / "tiny")
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + TEMPLATES[request.param])
    async with serve(model) as served:
        yield served


@pytest.fixture
def client(served: ServedModel) -> AsyncOpenAI:
    return served.client


async def text_of(client: AsyncOpenAI, **fields: Any) -> str:
    answer = await client.chat.completions.create(**CHAT | fields)
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_schema_holds(client: AsyncOpenAI, temperature: float) -> None:
    texts = [
        await text_of(client, response_format=FORMAT, temperature=temperature, seed=seed) for seed in range(8)
    ]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1 or temperature == 0
    chunks = await client.chat.completions.create(
        **CHAT, response_format=FORMAT, temperature=temperature, seed=0, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == texts[0]


async def test_everywhere_that_text_is_made(client: AsyncOpenAI) -> None:
    text = {"format": {"type": "json_schema", "name": "thing", "schema": SCHEMA}}
    response = await client.responses.create(model="tiny", input="hi", max_output_tokens=300, text=text)  # type: ignore[call-overload]
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    assert response.text.format.type == "json_schema"
    several = await client.completions.create(
        model="tiny", prompt=["hi", "ho"], n=2, max_tokens=300, extra_body={"response_format": FORMAT}
    )
    assert len(several.choices) == 4
    for choice in several.choices:
        jsonschema.validate(json.loads(choice.text), SCHEMA)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": r"[a-c]{3}-\d\d"}, r"[a-c]{3}-\d\d"),
        ({"choice": ["north", "south", "süd"]}, "north|south|süd"),
        ({"grammar": 'start: "a" ("b" | "c")~3 "!"'}, "a[bc]{3}!"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"const": [1, "x"]}'}, r'\[1, "x"\]'),
    ],
)
async def test_other_forms(client: AsyncOpenAI, asked: Any, pattern: str) -> None:
    for seed in range(4):
        text = await text_of(client, extra_body={"structured_outputs": asked}, seed=seed)
        assert re.fullmatch(pattern, text), text


async def test_an_answer_that_is_cut_says_so(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT | {"max_tokens": 5}, response_format=FORMAT)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.choices[0].message.content or "").startswith('{"nam')


@pytest.mark.parametrize("served", ["plain", "hermes"], indirect=True)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_is_demanded_is_made(client: AsyncOpenAI, streamed: bool) -> None:
    names = set()
    for seed in range(6):
        choice: Any = "required" if seed % 2 else CHOICE
        fields = CHAT | {"tools": TOOLS, "tool_choice": choice, "seed": seed, "parallel_tool_calls": False}
        if streamed:
            async with client.chat.completions.stream(**fields) as events:
                answer: Any = await events.get_final_completion()
        else:
            answer = await client.chat.completions.create(**fields)
        (made,) = answer.choices
        assert made.finish_reason == "tool_calls"
        assert not made.message.content
        (call,) = made.message.tool_calls
        names.add(call.function.name)
        assert call.function.name == "turn" or choice == "required"
        by_name = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}
        jsonschema.validate(json.loads(call.function.arguments), by_name[call.function.name])
    assert "turn" in names


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_is_demanded_of_a_response_is_made(client: AsyncOpenAI, streamed: bool) -> None:
    tools: Any = [{"type": "function", **each["function"]} for each in TOOLS]
    for choice in ("required", {"type": "function", "name": "turn"}):
        fields: dict[str, Any] = {"model": "tiny", "input": "hi", "max_output_tokens": 300, "tools": tools}
        fields |= {"tool_choice": choice, "parallel_tool_calls": False}
        if streamed:
            async with client.responses.stream(**fields) as events:
                response: Any = await events.get_final_response()
        else:
            response = await client.responses.create(**fields)
        (call,) = response.output
        assert (call.type, response.status, response.output_text) == ("function_call", "completed", "")
        by_name = {each["name"]: each["parameters"] for each in tools}
        jsonschema.validate(json.loads(call.arguments), by_name[call.name])


@pytest.mark.parametrize("served", ["hermes"], indirect=True)
async def test_a_model_that_may_call_keeps_to_json_or_calls(client: AsyncOpenAI) -> None:
    strict = [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS]
    made = set()
    for seed in range(12):
        answer = await client.chat.completions.create(
            **CHAT, tools=strict, response_format=FORMAT, seed=seed, temperature=2
        )
        (choice,) = answer.choices
        made.add(choice.finish_reason)
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
        for call in choice.message.tool_calls or []:
            assert call.function.name in ("turn", "stop")
    assert made <= {"stop", "tool_calls", "length"}
    assert "stop" in made or "tool_calls" in made


async def test_grpc_takes_the_same(served: ServedModel) -> None:
    sampling = SamplingParams(max_tokens=300, grammar=Grammar(json_schema=json.dumps(SCHEMA)))
    call = served.stub.Generate(GenerateRequest(text="hi", sampling=sampling), timeout=20)
    text = "".join([response.delta.text async for response in call])
    jsonschema.validate(json.loads(text), SCHEMA)
    sampling.grammar.regex = "["
    with pytest.raises(grpc.aio.AioRpcError, match=r"sampling\.grammar: .*regex") as refused:
        async for _ in served.stub.Generate(GenerateRequest(text="hi", sampling=sampling), timeout=20):
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objet"}}}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": BAD_SCHEMA}, "response_format.json_schema.schema", "Invalid type: objet"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is needed"),
        ({"response_format": FORMAT | {"type": "text"}}, "response_format.json_schema", "no place"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, None, "pattern"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex", "regex"),
        ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "x"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one text"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "got 2"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": FORMAT},
            "structured_outputs",
            "not both",
        ),
        ({"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", "with a grammar"),
        ({"response_format": FORMAT, "min_tokens": 3}, "min_tokens", "with a grammar"),
        ({"tools": TOOLS}, "tools", "does not show tools"),
        ({"tools": [TOOLS[0], TOOLS[0]], "tool_choice": "required"}, "tools[1].function.name", "twice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "go"}}},
            "tool_choice.function.name",
            "'go' is not among the tools",
        ),
        (
            {"tools": [tool("f", a={"type": "objet"})], "tool_choice": "required"},
            "tools[0].function.parameters",
            "Invalid type: objet",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, None, "tool_choice"),
    ],
)
async def test_what_cannot_be_had_is_refused_before_any_work(
    client: AsyncOpenAI, fields: Any, param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        await client.chat.completions.create(**CHAT, extra_body=fields)
    assert param is None or caught.value.param == param


async def test_a_lost_worker_does_not_lose_the_place_in_the_grammar(tmp_path: Path) -> None:
    sampling = SamplingParams(max_tokens=300, seed=3, grammar=Grammar(regex="([a-z][0-9]){100}!"))
    request = GenerateRequest(text="count", sampling=sampling)
    async with serve(save_tiny_llama(tmp_path / "tiny"), decode=2) as served:
        texts: list[str] = []
        for is_disturbed in (False, True):
            texts.append("")
            async for response in served.stub.Generate(request, timeout=60):
                texts[-1] += response.delta.text
                if is_disturbed and len(texts[-1]) == 21:
                    busy = next(worker for worker in served.decodes if worker.host.engine.stats().running)
                    await served.end(busy)
                if response.HasField("finished"):
                    assert response.finished.handoff.retries == is_disturbed
        assert re.fullmatch("([a-z][0-9]){100}!", texts[0])
        assert texts[1] == texts[0]
