"""Undisturbed requests over gRPC."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from baton.v1.inference_pb2 import (
    ChatMessage,
    ChatMessages,
    DetokenizeRequest,
    GenerateRequest,
    ListModelsRequest,
    TokenIds,
    TokenizeRequest,
)
from baton.v1.sampling_pb2 import FinishReason, SamplingParams
from services.common.errors import ErrorReason
from services.common.status import parse_status
from tests.integration.gateway.conftest import MakeSetup, collect
from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.scripted_workers import CONTEXT_LENGTH, expected

PROMPT = ids_of("the prompt")


async def test_an_answer_is_exact_and_accounted_for(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    answer = await setup.generate(PROMPT, max_tokens=40)
    assert answer.tokens == expected(PROMPT, 40)
    assert answer.text == text_of(answer.tokens)
    assert answer.started.prompt_tokens == len(PROMPT)
    assert answer.started.model == "tiny"
    finished = answer.finished
    assert finished.reason == FinishReason.FINISH_REASON_LENGTH
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(PROMPT), 40)
    assert finished.usage.cached_tokens == len(PROMPT)
    assert (finished.handoff.transport, finished.handoff.blocks, finished.handoff.bytes) == ("fake", 2, 128)
    assert (finished.handoff.prefill_worker, finished.handoff.decode_worker) == ("p0", "d0")
    assert 0 < finished.timing.ttft_s <= finished.timing.total_s
    await setup.nothing_held()


async def test_many_at_once_over_several_workers(make_setup: MakeSetup) -> None:
    setup = await make_setup(prefills=3, decodes=3)
    prompts = [ids_of(f"prompt number {i}") for i in range(60)]
    answers = await asyncio.gather(*(setup.generate(prompt, max_tokens=20) for prompt in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == expected(prompt, 20)
    assert {answer.finished.handoff.decode_worker for answer in answers} == {"d0", "d1", "d2"}
    assert {answer.finished.handoff.prefill_worker for answer in answers} == {"p0", "p1", "p2"}
    await setup.nothing_held()


async def test_one_token_needs_no_decode_worker(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    answer = await setup.generate(PROMPT, max_tokens=1)
    assert answer.tokens == expected(PROMPT, 1)
    assert answer.finished.reason == FinishReason.FINISH_REASON_LENGTH
    assert not answer.finished.HasField("handoff")
    assert setup.workers.decodes["d0"].log == []


async def test_a_first_token_that_ends_the_answer_frees_the_reservation(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    (first,) = expected(PROMPT, 1)
    answer = await setup.generate(PROMPT, max_tokens=9, stop_token_ids=[first])
    assert (answer.tokens, answer.text) == ([first], "")
    assert answer.finished.reason == FinishReason.FINISH_REASON_STOP
    await setup.nothing_held()


async def test_a_stop_string_over_several_tokens(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    text = text_of(expected(PROMPT, 60))
    stop = text[20:23]
    answer = await setup.generate(PROMPT, max_tokens=60, stop=["###", stop])
    assert answer.text == text[: text.index(stop)]
    assert answer.finished.matched_stop == stop
    assert answer.finished.reason == FinishReason.FINISH_REASON_STOP
    assert answer.finished.usage.completion_tokens == text.index(stop) + 3
    await setup.nothing_held()


async def test_a_stop_string_does_not_count_before_min_tokens(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    text = text_of(expected(PROMPT, 30))
    answer = await setup.generate(PROMPT, max_tokens=30, min_tokens=10, stop=[text[4]])
    at = text.find(text[4], 10)
    assert answer.text == (text if at < 0 else text[:at])


async def test_logprobs_come_with_every_token_the_first_included(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    answer = await setup.generate(PROMPT, max_tokens=8, logprobs=2)
    entries = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert [entry.sampled.token_id for entry in entries] == answer.tokens
    assert all(len(entry.top) == 2 for entry in entries)


async def test_text_messages_and_ids_are_the_same_prompt(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    chat = ChatMessages(messages=[ChatMessage(role="user", content="hé")])
    tokenized = await setup.stub.Tokenize(TokenizeRequest(messages=chat))
    ids = list(tokenized.token_ids)
    assert ids == [1, *ids_of("user\nhé"), 2, 1, *ids_of("assistant\n")]
    params = SamplingParams(temperature=0, max_tokens=5)
    by_chat = await collect(setup.stub.Generate(GenerateRequest(messages=chat, sampling=params)))
    assert by_chat.tokens == expected(ids, 5)
    by_text = await collect(setup.stub.Generate(GenerateRequest(text="plain", sampling=params)))
    assert by_text.tokens == expected(ids_of("plain"), 5)


async def test_ids_become_text_again(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    request = DetokenizeRequest(token_ids=[1, *ids_of("hé ☃"), 2, ids_of("é")[0]])
    assert (await setup.stub.Detokenize(request)).text == "hé ☃\ufffd"
    assert (await setup.stub.Detokenize(DetokenizeRequest())).text == ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.stub.Detokenize(DetokenizeRequest(token_ids=[1, 259]))
    error = parse_status(caught.value)
    assert (error.reason, error.field) == (ErrorReason.INVALID_ARGUMENT, "token_ids[1]")
    assert "below 259, got 259" in error.message


async def test_a_seed_is_drawn_once_for_the_whole_request(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    seeded = await setup.generate(PROMPT, max_tokens=20, temperature=1, seed=7)
    assert seeded.tokens == expected(PROMPT, 20, seed=7)
    one, two = [await setup.generate(PROMPT, max_tokens=20, temperature=1) for _ in range(2)]
    assert one.tokens != two.tokens


async def test_the_callers_id_is_echoed_and_may_repeat(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    request = GenerateRequest(
        token_ids=TokenIds(ids=PROMPT),
        request_id="mine",
        sampling=SamplingParams(temperature=0, max_tokens=30),
    )
    answers = await asyncio.gather(*(collect(setup.stub.Generate(request)) for _ in range(4)))
    assert [answer.started.request_id for answer in answers] == ["mine"] * 4
    assert all(answer.tokens == expected(PROMPT, 30) for answer in answers)


async def test_models_are_listed_when_a_worker_of_each_kind_is_there(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=0)
    assert not (await setup.stub.ListModels(ListModelsRequest())).models
    await setup.workers.add_decode("d0")
    (model,) = (await setup.stub.ListModels(ListModelsRequest())).models
    assert (model.name, model.context_length) == ("tiny", CONTEXT_LENGTH)


@pytest.mark.parametrize(
    ("request_", "reason", "field", "message"),
    [
        (GenerateRequest(model="other", text="a"), "MODEL_NOT_FOUND", "model", "'other' is not served"),
        (GenerateRequest(), "INVALID_ARGUMENT", "input", "exactly one of text, messages and token_ids"),
        (GenerateRequest(text=""), "INVALID_ARGUMENT", "text", "empty"),
        (GenerateRequest(messages=ChatMessages()), "INVALID_ARGUMENT", "messages.messages", "at least one"),
        (GenerateRequest(token_ids=TokenIds()), "INVALID_ARGUMENT", "token_ids", "empty"),
        (GenerateRequest(token_ids=TokenIds(ids=[999])), "INVALID_ARGUMENT", "token_ids", "from 0 to 258"),
        (
            GenerateRequest(text="a" * CONTEXT_LENGTH),
            "CONTEXT_LENGTH_EXCEEDED",
            "text",
            f"{CONTEXT_LENGTH} tokens; at most {CONTEXT_LENGTH - 1}",
        ),
        (
            GenerateRequest(text="a" * 2000, sampling=SamplingParams(max_tokens=100)),
            "CONTEXT_LENGTH_EXCEEDED",
            "sampling.max_tokens",
            "2000 prompt tokens and 100 to generate exceed the context of 2048",
        ),
        (
            GenerateRequest(text="a", sampling=SamplingParams(top_p=2)),
            "INVALID_ARGUMENT",
            "sampling.top_p",
            "at most 1, got 2",
        ),
        (GenerateRequest(text="a", priority=101), "INVALID_ARGUMENT", "priority", "from -100 to 100"),
        (GenerateRequest(text="a", request_id="x" * 129), "INVALID_ARGUMENT", "request_id", "at most 128"),
    ],
)
async def test_bad_input_names_field_and_limit(
    make_setup: MakeSetup, request_: GenerateRequest, reason: str, field: str, message: str
) -> None:
    setup = await make_setup()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(setup.stub.Generate(request_))
    error = parse_status(caught.value)
    assert (error.reason.name, error.field) == (reason, field)
    assert message in error.message
    assert setup.workers.decodes["d0"].log == []
    await setup.nothing_held()


async def test_invalid_utf8_is_bad_input(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    raw = setup.channel.unary_stream("/baton.v1.InferenceService/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in raw(b"\x12\x02\xff\xfe"):  # field 2, text
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in (caught.value.details() or "")


async def test_without_workers_the_answer_is_unavailable(make_setup: MakeSetup) -> None:
    setup = await make_setup(prefills=1, decodes=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.generate(PROMPT, max_tokens=5)
    error = parse_status(caught.value)
    assert error.reason is ErrorReason.NO_WORKER
    assert error.retry_after_s
