"""What users of the official SDK do: every parameter, streaming and not, errors, leaving."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from services.gateway.config import LimitsConfig
from tests.integration.gateway.conftest import MakeSetup, Setup, client_of
from tests.support import scripted_workers
from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.openai_requests import CHAT, CHAT_IDS, CHAT_TEXT, HI_TEXT, MESSAGES, PLAIN, RESPONSE
from tests.support.scripted_workers import expected
from tests.support.speaking import speak


async def stream_chat(client: AsyncOpenAI, **fields: Any) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**CHAT | fields, stream=True)]


# Parameters: what is asked for, and what the answer to "hi" becomes. Seeds and stops show in the text.
SAMPLING = [
    ({}, HI_TEXT, "length"),
    ({"max_tokens": 3}, HI_TEXT[:3], "length"),
    ({"stop": HI_TEXT[2:4]}, HI_TEXT[:2], "stop"),
    ({"stop": ["zzz", HI_TEXT[5]]}, HI_TEXT[: HI_TEXT.index(HI_TEXT[5])], "stop"),
    ({"stop": []}, HI_TEXT, "length"),
    ({"temperature": 1, "seed": 11}, text_of(expected(ids_of("hi"), 8, seed=11)), "length"),
    ({"temperature": 0.5, "top_p": 0.9, "seed": 3}, text_of(expected(ids_of("hi"), 8, seed=3)), "length"),
    ({"frequency_penalty": 0.5, "presence_penalty": -0.5}, HI_TEXT, "length"),
    ({"logit_bias": {"5": -100}}, HI_TEXT, "length"),
    ({"user": "me"}, HI_TEXT, "length"),
    ({"extra_body": {"top_k": 5, "min_p": 0.1}}, HI_TEXT, "length"),
    ({"extra_body": {"top_k": -1, "repetition_penalty": 1.1}}, HI_TEXT, "length"),
    ({"extra_body": {"ignore_eos": True, "min_tokens": 2}}, HI_TEXT, "length"),
    ({"extra_body": {"stop_token_ids": ids_of(HI_TEXT[3])}}, HI_TEXT[: HI_TEXT.index(HI_TEXT[3])], "stop"),
    ({"extra_body": {"priority": -5, "cache_salt": "tenant"}}, HI_TEXT, "length"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("fields", "text", "finish"), SAMPLING)
async def test_parameters(
    client: AsyncOpenAI, fields: dict[str, Any], text: str, finish: str, streamed: bool
) -> None:
    if not streamed:
        answer = await client.completions.create(**PLAIN | fields)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, finish)
        return
    chunks = [chunk async for chunk in await client.completions.create(**PLAIN | fields, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == finish


async def test_extras_reach_the_workers(setup: Setup, client: AsyncOpenAI) -> None:
    reserved = []
    setup.workers.decodes["d0"].on_reserve = reserved.append
    extra = {"top_k": 5, "min_p": 0.25, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7]}
    extra |= {"priority": -5, "cache_salt": "tenant", "repetition_penalty": 1.5}
    fields = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"9": 2}, "seed": 4}
    await client.chat.completions.create(**CHAT | fields, extra_body=extra)
    (request,) = reserved
    sampling = request.sampling
    assert (request.priority, request.cache_salt) == (-5, "tenant")
    assert (sampling.top_k, sampling.min_p, sampling.min_tokens, sampling.ignore_eos) == (5, 0.25, 2, True)
    assert (list(sampling.stop_token_ids), dict(sampling.logit_bias)) == ([7], {9: 2.0})
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.5, 0.5)
    assert (sampling.frequency_penalty, sampling.seed, sampling.max_tokens) == (-0.5, 4, 8)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hi", ["hi"]),
        (ids_of("hé"), ["hé"]),
        ([ids_of("a"), ids_of("b")], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
    ],
)
async def test_echo(client: AsyncOpenAI, prompt: Any, texts: list[str], streamed: bool) -> None:
    answers = [""] * len(texts)
    fields = PLAIN | {"prompt": prompt, "echo": True}
    if streamed:
        async for chunk in await client.completions.create(**fields, stream=True):
            answers[chunk.choices[0].index] += chunk.choices[0].text
    else:
        answers = [choice.text for choice in (await client.completions.create(**fields)).choices]
    assert answers == [text + text_of(expected(ids_of(text), 8)) for text in texts]


async def test_best_of_keeps_the_likeliest(
    setup: Setup, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = scripted_workers.logprobs

    def by_seed(token: int, sampling: Any) -> Any:
        entry = made_up(token, sampling)
        if entry is not None:
            entry.sampled.logprob = -abs(sampling.seed - 12.0)
        return entry

    monkeypatch.setattr(scripted_workers, "logprobs", by_seed)
    fields = PLAIN | {"temperature": 1, "seed": 10, "best_of": 4, "n": 2}
    answer = await client.completions.create(**fields)
    texts = [text_of(expected(ids_of("hi"), 8, seed=seed)) for seed in (12, 11)]
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(texts))
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 32)


async def test_logprobs_of_a_completion(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(**PLAIN, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(HI_TEXT)
    assert logprobs.token_logprobs == [-0.5] * 8
    assert logprobs.text_offset == list(range(8))
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 8
    assert [top[token] for top, token in zip(logprobs.top_logprobs, HI_TEXT, strict=True)] == [-0.5] * 8


async def test_offsets_of_a_character_in_several_tokens(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(monkeypatch, "hi", "aé☃b")
    fields = PLAIN | {"max_tokens": 7}
    whole = (await client.completions.create(**fields, logprobs=0)).choices[0]
    assert whole.text == "aé☃b"
    assert whole.logprobs is not None
    assert whole.logprobs.tokens == [
        "a", "bytes:\\xc3", "bytes:\\xa9", "bytes:\\xe2", "bytes:\\x98", "bytes:\\x83", "b"
    ]  # fmt: skip
    assert whole.logprobs.text_offset == [0, 1, 1, 2, 2, 2, 3]
    chunks = [chunk async for chunk in await client.completions.create(**fields, logprobs=0, stream=True)]
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset or []] == whole.logprobs.text_offset


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("top", [None, 0, 3])
async def test_logprobs_of_a_chat(client: AsyncOpenAI, top: int | None, streamed: bool) -> None:
    fields: dict[str, Any] = {"logprobs": True} | ({} if top is None else {"top_logprobs": top})
    if streamed:
        found = [chunk.choices[0].logprobs for chunk in await stream_chat(client, **fields)]
        content = [entry for part in found if part for entry in part.content or []]
    else:
        answer = await client.chat.completions.create(**CHAT | fields)
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content or []
    assert [entry.token for entry in content] == list(CHAT_TEXT)
    assert [len(entry.top_logprobs) for entry in content] == [top or 0] * 8
    assert [entry.bytes for entry in content] == [[ord(char)] for char in CHAT_TEXT]


@pytest.mark.parametrize("streamed", [False, True])
async def test_several_answers_of_a_chat(client: AsyncOpenAI, streamed: bool) -> None:
    texts = [""] * 3
    fields = {"n": 3, "temperature": 1, "seed": 2}
    if streamed:
        for chunk in await stream_chat(client, **fields):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        answer = await client.chat.completions.create(**CHAT | fields)
        texts = [choice.message.content or "" for choice in answer.choices]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(CHAT_IDS), 24)
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert texts == [text_of(expected(CHAT_IDS, 8, seed=2 + i)) for i in range(3)]


async def test_usage_of_a_stream(client: AsyncOpenAI) -> None:
    chunks = await stream_chat(client, stream_options={"include_usage": True})
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    usage = chunks[-1].usage
    assert (chunks[-1].choices, usage.prompt_tokens, usage.completion_tokens) == ([], len(CHAT_IDS), 8)
    assert usage.prompt_tokens_details.cached_tokens == 16
    assert usage.total_tokens == len(CHAT_IDS) + 8


async def test_usage_with_every_chunk(client: AsyncOpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream_chat(client, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] in (1, 2)  # tokens that come while one is written share a chunk
    assert counts[-1] == 8


async def test_the_sdks_stream_helper(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(**CHAT, stop=CHAT_TEXT[4:6]) as events:
        final = await events.get_final_completion()
    assert final.choices[0].message.content == CHAT_TEXT[:4]
    assert final.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "s"}, *MESSAGES],
        [{"role": "developer", "content": "s"}, *MESSAGES],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [*MESSAGES, {"role": "assistant", "content": None}, *MESSAGES],
        [*MESSAGES, {"role": "tool", "tool_call_id": "c", "content": "x"}],
    ],
)
async def test_kinds_of_messages(client: AsyncOpenAI, messages: Any) -> None:
    answer = await client.chat.completions.create(**CHAT | {"messages": messages})
    assert len(answer.choices[0].message.content or "") == 8


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "baton"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("meta/other")


# Errors


@pytest.mark.parametrize(
    ("kind", "fields", "param", "code", "message"),
    [
        ("chat", {"model": "gpt-9"}, "model", "model_not_found", "'gpt-9' is not served"),
        ("chat", {"messages": []}, "messages", "invalid_argument", "at least one message"),
        ("chat", {"temperature": 9}, "temperature", "invalid_argument", "from 0 to 2"),
        ("chat", {"top_logprobs": 2}, "top_logprobs", "invalid_argument", "needs logprobs"),
        ("chat", {"n": 0}, "n", "invalid_argument", "greater than or equal to 1"),
        ("chat", {"max_tokens": 5000}, "max_tokens", "context_length_exceeded", "exceed the context of 2048"),
        ("chat", {"extra_body": {"foo": 1}}, "foo", "invalid_argument", "unknown field"),
        ("chat", {"tool_choice": "required"}, "tool_choice", "invalid_argument", "no tools"),
        (
            "chat",
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            "invalid_argument",
            "no tools",
        ),
        ("plain", {"prompt": "x" * 3000}, "prompt", "context_length_exceeded", "at most 2047"),
        ("plain", {"prompt": [300]}, "prompt", "invalid_argument", "from 0 to 258"),
        ("plain", {"suffix": "x"}, "suffix", "invalid_argument", "not supported"),
        ("plain", {"max_tokens": 0}, "max_tokens", "invalid_argument", "at least 1"),
        ("plain", {"best_of": 1, "n": 2}, "best_of", "invalid_argument", "at least n"),
        (
            "response",
            {"previous_response_id": "resp_1"},
            "previous_response_id",
            "invalid_argument",
            "not stored",
        ),
        ("response", {"store": True}, "store", "invalid_argument", "not stored"),
        ("response", {"background": True}, "background", "invalid_argument", "stream it instead"),
        ("response", {"input": []}, "input", "invalid_argument", "at least one message"),
        (
            "response",
            {"extra_body": {"max_tokens": 3}},
            "max_tokens",
            "invalid_argument",
            "max_output_tokens",
        ),
        (
            "response",
            {"input": [{"role": "user", "content": [{"type": "input_image", "text": "x"}]}]},
            "input[0].content[0]",
            "invalid_argument",
            "input_text",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_name_field_and_code(
    client: AsyncOpenAI,
    kind: str,
    fields: dict[str, Any],
    param: str,
    code: str,
    message: str,
    streamed: bool,
) -> None:
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(**CHAT | fields, stream=streamed),
        "plain": lambda: client.completions.create(**PLAIN | fields, stream=streamed),
        "response": lambda: client.responses.create(**RESPONSE | fields, stream=streamed),
    }
    with pytest.raises(openai.APIStatusError) as caught:
        await calls[kind]()
    error = caught.value
    assert isinstance(error, openai.NotFoundError if code == "model_not_found" else openai.BadRequestError)
    assert (error.param, error.code) == (param, code)
    assert message in error.message


async def test_overload_is_a_rate_limit_error(make_setup: MakeSetup) -> None:
    setup = await make_setup(limits=LimitsConfig(max_in_flight=1))
    async with client_of(setup) as client:
        running = await client.chat.completions.create(**CHAT | {"max_tokens": 1000}, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**CHAT)
        assert caught.value.response.headers["retry-after"] == "1"
        await running.close()


async def test_no_worker_is_an_internal_server_error(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=0)
    async with client_of(setup) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**CHAT)
        assert (caught.value.status_code, caught.value.code) == (503, "no_worker")


# Leaving


@pytest.mark.parametrize("kind", ["chat", "plain", "response"])
async def test_closing_a_stream_frees_everything(setup: Setup, client: AsyncOpenAI, kind: str) -> None:
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(**CHAT | {"max_tokens": 1500}, stream=True),
        "plain": lambda: client.completions.create(**PLAIN | {"max_tokens": 1500, "n": 3}, stream=True),
        "response": lambda: client.responses.create(**RESPONSE | {"max_output_tokens": 1500}, stream=True),
    }
    chunks = await calls[kind]()
    async for _ in chunks:
        break
    await chunks.close()
    await setup.nothing_held()


# Tokens


async def test_tokenize_and_detokenize(setup: Setup) -> None:
    async def post(path: str, **body: object) -> Any:
        return (await setup.http.post(path, json=body)).json()

    assert await post("/tokenize", prompt="é") == {"count": 2, "max_model_len": 2048, "tokens": ids_of("é")}
    named = await post("/tokenize", model="tiny", prompt="ab", return_token_strs=True)
    assert named["token_strs"] == ["a", "b"]
    assert (await post("/tokenize", messages=MESSAGES))["tokens"] == CHAT_IDS
    assert await post("/detokenize", tokens=CHAT_IDS) == {"prompt": "user\nhiassistant\n"}
    assert await post("/detokenize", tokens=[]) == {"prompt": ""}
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {"tokens": [1, 259]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ):
        assert (await post(path, **body))["error"]["param"] == param
