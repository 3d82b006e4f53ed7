"""The OpenAI API over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from baton.v1.prefill_pb2 import PrefillRequest
from services.gateway.config import LimitsConfig
from tests.integration.gateway.conftest import MakeSetup, Setup
from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.scripted_workers import expected

CHAT = [{"role": "user", "content": "hi"}]
CHAT_IDS = [1, *ids_of("user\nhi"), 2, 1, *ids_of("assistant\n")]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 6, **fields}


def completion(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 6, **fields}


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])
        elif line:
            assert line == "data: [DONE]"


async def stream(setup: Setup, path: str, body: dict[str, object]) -> list[dict[str, Any]]:
    async with setup.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events(response)]


async def test_a_chat(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    response = await setup.http.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "mine"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "mine"
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": text_of(expected(CHAT_IDS, 6)),
        "refusal": None,
    }
    assert choice["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": len(CHAT_IDS),
        "completion_tokens": 6,
        "total_tokens": len(CHAT_IDS) + 6,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    await setup.nothing_held()


async def test_a_streamed_chat(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    got = await stream(setup, "/v1/chat/completions", chat(stream_options={"include_usage": True}))
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(choice["delta"].get("content", "") for event in got for choice in event["choices"])
    assert text == text_of(expected(CHAT_IDS, 6))
    reasons = [choice["finish_reason"] for event in got for choice in event["choices"]]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert len({event["id"] for event in got}) == 1
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["completion_tokens"] == 6
    assert all(event["usage"] is None for event in got[:-1])


async def test_usage_may_come_with_every_chunk(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    options = {"include_usage": True, "continuous_usage_stats": True}
    got = await stream(setup, "/v1/completions", completion(stream_options=options))
    counts = [event["usage"]["completion_tokens"] for event in got]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 6


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("hi", [ids_of("hi")]),
        (["hi", "yo"], [ids_of("hi"), ids_of("yo")]),
        (ids_of("hi"), [ids_of("hi")]),
        ([ids_of("hi"), ids_of("é")], [ids_of("hi"), ids_of("é")]),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_prompts_of_a_completion(
    make_setup: MakeSetup, prompt: object, ids: list[list[int]], streamed: bool
) -> None:
    setup = await make_setup()
    texts = [""] * len(ids)
    if streamed:
        for event in await stream(setup, "/v1/completions", completion(prompt=prompt)):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    else:
        body = (await setup.http.post("/v1/completions", json=completion(prompt=prompt))).json()
        texts = [choice["text"] for choice in body["choices"]]
        assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
        assert body["usage"]["completion_tokens"] == 6 * len(ids)
    assert texts == [text_of(expected(one, 6)) for one in ids]
    await setup.nothing_held()


async def test_several_answers_to_one_prompt(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    body = completion(n=3, temperature=1, seed=5)
    answer = (await setup.http.post("/v1/completions", json=body)).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [text_of(expected(ids_of("hi"), 6, seed=5 + i)) for i in range(3)]
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 18


async def test_logprobs(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    body = chat(logprobs=True, top_logprobs=2)
    answer = (await setup.http.post("/v1/chat/completions", json=body)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == answer["choices"][0]["message"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * 6
    assert content[0]["bytes"] == list(content[0]["token"].encode())
    legacy = (await setup.http.post("/v1/completions", json=completion(logprobs=1))).json()
    logprobs = legacy["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == legacy["choices"][0]["text"]
    assert logprobs["text_offset"] == list(range(6))
    assert logprobs["token_logprobs"] == [-0.5] * 6


async def test_the_openai_sdk(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    async with AsyncOpenAI(base_url=f"{setup.http.base_url}/v1", api_key="none") as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny"]
        text = text_of(expected(CHAT_IDS, 6))
        whole = await client.chat.completions.create(
            model="tiny", messages=CHAT, temperature=0, max_completion_tokens=6, user="me"
        )
        assert whole.choices[0].message.content == text
        chunks = await client.chat.completions.create(
            model="tiny", messages=CHAT, temperature=0, max_completion_tokens=6, stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == text
        # What an earlier answer looks like when it is sent back.
        history = [*CHAT, whole.choices[0].message.model_dump(), *CHAT]
        again = await client.chat.completions.create(model="tiny", messages=history, max_tokens=2)
        assert again.usage is not None
        assert again.usage.completion_tokens == 2


async def test_a_client_that_leaves_frees_both_workers(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    async with setup.http.stream(
        "POST", "/v1/chat/completions", json=chat(max_tokens=1000, stream=True)
    ) as response:
        async for _ in events(response):
            break
    await setup.nothing_held()

    with pytest.raises(httpx.ReadTimeout):
        await setup.http.post("/v1/chat/completions", json=chat(max_tokens=1000), timeout=0.2)
    await setup.nothing_held()


async def test_a_failure_before_the_first_token_is_a_status(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=0)
    response = await setup.http.post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "no_worker"


async def test_a_failure_in_mid_stream_is_an_event_and_no_done(make_setup: MakeSetup) -> None:
    setup = await make_setup(worker_wait_s=0.1)
    lines: list[str] = []
    async with setup.http.stream(
        "POST", "/v1/completions", json=completion(max_tokens=1000, stream=True)
    ) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if len(lines) == 6:
                await setup.workers.kill("d0")
    last = [line for line in lines if line][-1]
    assert json.loads(last[6:])["error"]["code"] == "worker_lost"
    assert "data: [DONE]" not in lines


async def test_a_full_queue_is_429_with_retry_after(make_setup: MakeSetup) -> None:
    setup = await make_setup(limits=LimitsConfig(max_queue=1))
    release = asyncio.Event()

    async def wait(request: PrefillRequest) -> None:
        await release.wait()

    setup.workers.decodes["d0"].capacity = 0
    waiting = asyncio.create_task(setup.http.post("/v1/completions", json=completion()))
    while not setup.generator.admission.waiting:
        await asyncio.sleep(0.002)
    refused = await setup.http.post("/v1/completions", json=completion())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    waiting.cancel()
    await asyncio.wait([waiting])
    await setup.nothing_held()


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("chat/completions", chat(model="other"), 404, "model", "'other' is not served; known: 'tiny'"),
        ("chat/completions", chat(messages=[]), 400, "messages", "at least one message"),
        ("chat/completions", {"model": "tiny"}, 400, "messages", "field required"),
        ("chat/completions", chat(prompt="x"), 400, "prompt", "/v1/completions"),
        ("completions", completion(messages=CHAT), 400, "messages", "/v1/chat/completions"),
        ("completions", {"model": "tiny"}, 400, "prompt", "field required"),
        ("completions", completion(prompt=""), 400, "prompt", "empty"),
        ("completions", completion(prompt=[]), 400, "prompt", "empty"),
        ("completions", completion(prompt=["a", ""]), 400, "prompt[1]", "empty"),
        ("completions", completion(prompt="x" * 3000), 400, "prompt", "at most 2047"),
        ("completions", completion(prompt="\ud800"), 400, "body", "Invalid JSON"),
        ("completions", completion(max_tokens=3000), 400, "max_tokens", "exceed the context of 2048"),
        ("completions", completion(temprature=1), 400, "temprature", "did you mean 'temperature'?"),
        ("completions", completion(temperature="1"), 400, "temperature", "valid number"),
        ("completions", completion(temperature=3), 400, "temperature", "from 0 to 2, got 3"),
        ("completions", completion(top_p=0), 400, "top_p", "above 0 and at most 1"),
        ("completions", completion(n=99), 400, "n", "less than or equal to 16"),
        ("completions", completion(stop=[1]), 400, "stop[0]", "valid string"),
        ("completions", completion(stop=["a"] * 17), 400, "stop", "at most 16"),
        ("completions", completion(logit_bias={"x": 1}), 400, "logit_bias", "token ids, got 'x'"),
        (
            "completions",
            completion(prompt_logprobs=1, stream=True),
            400,
            "prompt_logprobs",
            "stream to false",
        ),
        ("completions", completion(best_of=2, n=3), 400, "best_of", "at least n (3), got 2"),
        ("completions", completion(best_of=2, stream=True), 400, "best_of", "set stream to false"),
        ("completions", completion(suffix="x"), 400, "suffix", "filling in before a suffix is not supported"),
        ("completions", completion(stream_options={"include": True}), 400, None, "include_usage"),
        ("chat/completions", chat(tools=[TOOL]), 400, "tools", "does not show tools"),
        (
            "chat/completions",
            chat(response_format={"type": "xml"}),
            400,
            "response_format.type",
            "json_object",
        ),
        ("completions", completion(guided_json={}), 400, "guided_json", "structured_outputs.json"),
        ("chat/completions", chat(top_logprobs=2), 400, "top_logprobs", "needs logprobs"),
        (
            "chat/completions",
            chat(messages=[{"role": "user", "content": 5}]),
            400,
            None,
            "messages[0].content",
        ),
        ("chat/completions", chat(messages=[{"content": "x"}]), 400, "messages[0].role", "field required"),
        (
            "chat/completions",
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]),
            400,
            "messages[0].content[0]",
            'only parts of type "text"',
        ),
    ],
)
async def test_bad_input_names_field_and_limit(
    make_setup: MakeSetup, path: str, body: dict[str, object], status: int, param: str | None, message: str
) -> None:
    setup = await make_setup()
    response = await setup.http.post(
        f"/v1/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert message in error["message"]
    if param is not None:
        assert error["param"] == param
    assert setup.workers.prefills["p0"].log == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"prompt": "\xff\xfe"}', b'"text"'])
async def test_a_body_that_is_no_json_object(make_setup: MakeSetup, content: bytes) -> None:
    setup = await make_setup()
    response = await setup.http.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_harmless_fields_are_taken(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    body = chat(
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        n=1,
        logit_bias={},
        stop=None,
    )
    assert (await setup.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_huge_body_is_refused_unread(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    host, port = setup.gateway.http_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 104857600\r\n\r\n{"
    )
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 2)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"at most 4194304 bytes" in answer
    writer.close()


async def test_a_huge_body_without_a_length_is_cut_off(make_setup: MakeSetup) -> None:
    setup = await make_setup(max_body_bytes=100_000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 10_000

    response = await setup.http.post("/v1/completions", content=chunks())
    assert response.status_code == 413
    assert "at most 100000 bytes" in response.json()["error"]["message"]
    assert (await setup.http.get("/health")).status_code == 200


async def test_health_ready_models_metrics(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=0)
    assert (await setup.http.get("/health")).status_code == 200
    assert (await setup.http.get("/ready")).status_code == 503
    assert (await setup.http.get("/v1/models")).json()["data"] == []
    await setup.workers.add_decode("d0")
    assert (await setup.http.get("/ready")).status_code == 200
    await setup.http.post("/v1/completions", json=completion())
    await setup.http.post("/v1/completions", json=completion(top_p=0))
    await setup.nothing_held()
    text = (await setup.http.get("/metrics")).text
    for line in (
        'baton_requests_total{outcome="ok"} 1.0',
        'baton_errors_total{reason="INVALID_ARGUMENT"} 1.0',
        'baton_errors_total{reason="NO_WORKER"} 1.0',
        "baton_generation_tokens_total 6.0",
        "baton_time_to_first_token_seconds_count 1.0",
        "baton_inter_token_latency_seconds_count ",
        'baton_workers{role="decode"} 1.0',
        "baton_num_requests_waiting 0.0",
    ):
        assert line in text


async def test_other_paths_and_methods(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    missing = await setup.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (await setup.http.get("/v1/completions")).status_code == 405
