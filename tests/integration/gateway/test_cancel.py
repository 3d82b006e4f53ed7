"""Cancels, deadlines and limits: both workers are freed, and the rest goes on."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from baton.v1.prefill_pb2 import PrefillRequest
from services.common.errors import ErrorReason
from services.common.status import parse_status
from services.gateway.config import LimitsConfig
from tests.integration.gateway.conftest import MakeSetup
from tests.support.byte_tokenizer import ids_of
from tests.support.scripted_workers import expected

PROMPT = ids_of("the prompt")


async def hang(request: PrefillRequest) -> None:
    await asyncio.Event().wait()


async def test_cancel_while_waiting_for_a_reservation(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    d0 = setup.workers.decodes["d0"]
    d0.capacity = 0
    call = setup.call(PROMPT, max_tokens=8)
    reading = asyncio.create_task(anext(aiter(call)))
    while not d0.waiting:
        await asyncio.sleep(0.002)
    assert setup.generator.admission.waiting == 1
    call.cancel()
    await asyncio.wait([reading])
    await setup.nothing_held()


async def test_cancel_while_prefilling(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    p0 = setup.workers.prefills["p0"]
    p0.before_token = hang
    call = setup.call(PROMPT, max_tokens=8)
    reading = asyncio.create_task(drain(call))
    while not p0.active:
        await asyncio.sleep(0.002)
    assert setup.generator.admission.waiting == 0
    call.cancel()
    await asyncio.wait([reading])
    await setup.nothing_held()


async def test_cancel_while_transferring(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    setup.workers.prefills["p0"].before_commit = hang
    call = setup.call(PROMPT, max_tokens=8)
    async for response in call:
        if response.HasField("delta"):
            break
    call.cancel()
    await setup.nothing_held()


async def drain(call: grpc.aio.UnaryStreamCall[object, object]) -> None:
    async for _ in call:
        pass


async def test_cancel_at_random_moments(make_setup: MakeSetup) -> None:
    setup = await make_setup(prefills=2, decodes=2)
    for worker in setup.workers.prefills.values():
        worker.before_token = worker.before_commit = pause
    rng = random.Random(5)
    undisturbed = asyncio.create_task(setup.generate(PROMPT, max_tokens=200))
    for _ in range(20):
        calls = [setup.call(ids_of(f"prompt {i}"), max_tokens=50) for i in range(4)]
        readers = [asyncio.create_task(drain(call)) for call in calls]
        await asyncio.sleep(rng.uniform(0, 0.05))
        for call in calls:
            call.cancel()
        await asyncio.wait(readers)
    assert (await undisturbed).tokens == expected(PROMPT, 200)
    await setup.nothing_held()


async def pause(request: PrefillRequest) -> None:
    await asyncio.sleep(0.005)


@pytest.mark.parametrize("stage", ["queued", "prefilling", "decoding"])
async def test_a_deadline_frees_both_sides(make_setup: MakeSetup, stage: str) -> None:
    setup = await make_setup()
    d0, p0 = setup.workers.decodes["d0"], setup.workers.prefills["p0"]
    if stage == "queued":
        d0.capacity = 0
    elif stage == "prefilling":
        p0.before_token = hang
    else:
        d0.step_s = 0.02
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.generate(PROMPT, timeout=0.3, max_tokens=500)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await setup.nothing_held()


async def test_the_gateways_own_deadline_counts_when_the_caller_brings_none(make_setup: MakeSetup) -> None:
    setup = await make_setup(request_timeout_s=0.3)
    setup.workers.decodes["d0"].step_s = 0.02
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.generate(PROMPT, timeout=None, max_tokens=500)
    assert parse_status(caught.value).reason is ErrorReason.DEADLINE_EXCEEDED
    await setup.nothing_held()


async def test_a_burst_waits_for_room_and_all_finish(make_setup: MakeSetup) -> None:
    setup = await make_setup(prefills=2)
    setup.workers.decodes["d0"].capacity = 20
    prompts = [ids_of(f"prompt {i}") for i in range(200)]
    answers = await asyncio.gather(*(setup.generate(prompt, max_tokens=10) for prompt in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == expected(prompt, 10)
    await setup.nothing_held()


async def test_beyond_the_queue_limit_the_rest_is_refused_at_once(make_setup: MakeSetup) -> None:
    setup = await make_setup(limits=LimitsConfig(max_queue=50))
    d0 = setup.workers.decodes["d0"]
    d0.capacity = 20
    d0.paused = True
    loop = asyncio.get_running_loop()
    started = loop.time()
    calls = [asyncio.create_task(setup.generate(ids_of(f"p {i}"), max_tokens=10)) for i in range(200)]
    refused = 0
    while refused < 130:
        done = [call for call in calls if call.done()]
        refused = len(done)
        await asyncio.sleep(0.01)
        assert loop.time() - started < 5
    for call in done:
        error = call.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        parsed = parse_status(error)
        assert parsed.reason is ErrorReason.QUEUE_FULL
        assert parsed.retry_after_s
        assert "the limit is 50" in parsed.message
    d0.paused = False
    finished = await asyncio.gather(*calls, return_exceptions=True)
    answers = [result for result in finished if not isinstance(result, BaseException)]
    assert 50 <= len(answers) <= 70
    await setup.nothing_held()


async def test_draining_ends_what_runs_and_refuses_the_rest(make_setup: MakeSetup) -> None:
    setup = await make_setup(drain_timeout_s=5)
    running = asyncio.create_task(setup.generate(PROMPT, max_tokens=80))
    while not setup.workers.decodes["d0"].held:
        await asyncio.sleep(0.002)
    draining = asyncio.create_task(setup.generator.drain(5))
    await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.generate(PROMPT, max_tokens=4)
    assert parse_status(caught.value).reason is ErrorReason.DRAINING
    assert (await running).tokens == expected(PROMPT, 80)
    await draining
    assert setup.generator.admission.in_flight == 0
