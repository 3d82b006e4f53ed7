"""StreamSteps: back-pressure, reattachment, and gateways that are gone."""

import asyncio
from pathlib import Path

import grpc
import pytest

from baton.v1 import decode_pb2
from services.common.errors import BatonError
from services.decode.config import LeaseConfig
from services.decode.outbox import Outbox
from tests.support.workers import (
    Pair,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

PROMPT = [5] * 20


async def test_tokens_wait_for_a_gateway_that_comes_back(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        want, _, _ = await pair.generate(PROMPT, greedy(30))
        await pair.detach()
        reserved = await pair.reserve(PROMPT, greedy(30), request_id="r")
        responses = [r async for r in pair.start_prefill(PROMPT, greedy(30), reserved.target)]
        await all_free(prefill, decode)
        assert "r" not in pair.tokens
        await pair.attach()
        await eventually(lambda: "r" in pair.finished)
        assert [responses[0].first_token.token_id, *pair.tokens["r"]] == want


async def test_a_gateway_without_a_stream_loses_its_requests(tiny_model: Path) -> None:
    leases = LeaseConfig(stream_grace_s=0.02)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model), leases=leases) as decode,
        Pair(prefill, decode) as pair,
        Pair(prefill, decode, gateway_id="other") as other,
    ):
        await other.reserve(PROMPT, greedy(400), request_id="others")
        running = asyncio.create_task(pair.generate(PROMPT, greedy(490), request_id="running"))
        await eventually(lambda: len(pair.tokens.get("running", [])) > 3)
        await pair.reserve(PROMPT, greedy(400), request_id="reserved")
        await pair.detach()
        await eventually(lambda: decode.host.engine.stats().running == 0)
        await eventually(lambda: decode.host.engine.stats().reserved == 1)
        assert decode.host.engine.stats().sampled_tokens < 489, "the running request was to be cut short"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await other.cancel("others")
        await all_free(prefill, decode)


async def test_a_second_stream_ends_the_first(tiny_model: Path) -> None:
    async with decode_worker(engine_config(tiny_model)) as decode, Pair(None, decode) as pair:
        first = pair.decode.StreamSteps(decode_pb2.StreamStepsRequest(gateway_id="g"))
        await first.read()
        second = pair.decode.StreamSteps(decode_pb2.StreamStepsRequest(gateway_id="g"))
        await second.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(first.read(), 5)
        second.cancel()


def event(number: int) -> decode_pb2.TokenEvent:
    return decode_pb2.TokenEvent(request_id="r", token_ids=[number])


async def test_a_slow_gateway_is_cut_and_nothing_is_lost_of_what_waits() -> None:
    lost = asyncio.Event()
    config = LeaseConfig(slow_gateway_s=0.1, stream_grace_s=0.5)
    outbox = Outbox("i", config, lost.set)
    got: list[int] = []
    resume = asyncio.Event()

    async def read(stop_after: int) -> None:
        async for message in outbox.stream():
            got.extend(token for event in message.events for token in event.token_ids)
            if len(got) == stop_after:
                await resume.wait()

    slow = asyncio.create_task(read(stop_after=1))
    for number in range(5):
        await asyncio.sleep(0.05)
        outbox.put(number, [event(number)])
    assert got == [0]
    resume.set()
    with pytest.raises(BatonError, match="cut"):
        await slow
    back = asyncio.create_task(read(stop_after=99))
    await eventually(lambda: got == [0, 1, 2, 3, 4])
    assert not lost.is_set()
    back.cancel()
    await asyncio.gather(back, return_exceptions=True)
    await asyncio.wait_for(lost.wait(), 5)


async def test_a_closing_outbox_gives_what_waits_first() -> None:
    outbox = Outbox("i", LeaseConfig(), lambda: None)
    for number in range(3):
        outbox.put(number, [event(number)])
    outbox.close()
    messages = [message async for message in outbox.stream()]
    assert [message.step for message in messages[1:]] == [0, 1, 2]
