"""Cancel, deadline and disconnect at every stage: both sides give all blocks back, and go on serving."""

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from baton.v1 import prefill_pb2
from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.support.told_layers import tell_of_layers
from tests.support.workers import (
    Pair,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

LONG = [3 + n % 250 for n in range(400)]


@pytest.mark.parametrize("transport", ["shared_memory", "zmq_tcp"])
async def test_cancel_at_random_moments(tiny_model: Path, transport: str) -> None:
    rng = random.Random(11)
    config = engine_config(tiny_model, max_step_tokens=16, max_chunk_tokens=16, prefix_cache=False)
    async with (
        prefill_worker(config, transports=[transport]) as prefill,
        decode_worker(config, transports=[transport]) as decode,
        Pair(prefill, decode) as pair,
    ):
        want, _, _ = await pair.generate(LONG, greedy(8))
        for _ in range(20):
            await pair.generate_and_cancel(LONG, greedy(100), rng.uniform(0, 0.15))
            await all_free(prefill, decode)
        again, _, _ = await pair.generate(LONG, greedy(8))
        assert again == want


async def test_cancel_while_layers_go_ahead_of_the_rest(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, told = random.Random(), tell_of_layers(monkeypatch)
    config = engine_config(tiny_model, max_step_tokens=400, max_chunk_tokens=400, prefix_cache=False)
    async with (
        prefill_worker(config) as prefill,
        decode_worker(config) as decode,
        Pair(prefill, decode) as pair,
    ):
        want, _, _ = await pair.generate(LONG, greedy(4))
        for _ in range(20):
            await pair.generate_and_cancel(LONG, greedy(4), rng.uniform(0, 0.04))
            again, _, _ = await pair.generate(LONG, greedy(4))
            assert again == want
        await all_free(prefill, decode)
    assert told.num_waits > 20


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
async def test_in_mid_prefill(tiny_model: Path, how: str) -> None:
    config = engine_config(tiny_model, max_step_tokens=8, max_chunk_tokens=8)
    async with (
        prefill_worker(config) as prefill,
        decode_worker(config) as decode,
        Pair(prefill, decode) as pair,
    ):
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        call = pair.start_prefill(LONG, greedy(5), reserved.target, request_id="p")
        await eventually(lambda: prefill.host.engine.stats().computed_tokens > 8)
        if how == "disconnect":
            call.cancel()
        else:
            await pair.prefill.Cancel(prefill_pb2.PrefillServiceCancelRequest(request_id="p"))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is grpc.StatusCode.CANCELLED
        await all_free(prefill)
        assert prefill.host.engine.stats().computed_tokens < len(LONG)
        await pair.cancel("r")
        await all_free(decode)


@pytest.mark.parametrize("how", ["disconnect", "deadline"])
async def test_while_queued_on_prefill(tiny_model: Path, how: str) -> None:
    async with (
        prefill_worker(engine_config(tiny_model, num_blocks=26)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        engine = prefill.host.engine
        engine.submit(Request("first", [9] * 400, 400, SamplingParams(), hold_blocks=True, max_new_tokens=1))
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        timeout = 0.3 if how == "deadline" else 20
        call = pair.start_prefill(LONG, greedy(5), reserved.target, timeout=timeout)
        await eventually(lambda: engine.stats().waiting == 1)
        if how == "disconnect":
            call.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: engine.stats().waiting == 0)
        engine.cancel("first")
        await pair.cancel("r")
        await all_free(prefill, decode)


async def test_a_receiver_that_releases_stops_the_prefill(tiny_model: Path) -> None:
    config = engine_config(tiny_model, max_step_tokens=8, max_chunk_tokens=8)
    async with (
        prefill_worker(config) as prefill,
        decode_worker(config) as decode,
        Pair(prefill, decode) as pair,
    ):
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        call = pair.start_prefill(LONG, greedy(5), reserved.target, request_id="other")
        await eventually(lambda: prefill.host.engine.stats().computed_tokens > 8)
        await pair.cancel("r")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await all_free(prefill, decode)
        assert prefill.host.engine.stats().computed_tokens < len(LONG)


async def test_in_mid_decode(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        task = asyncio.create_task(pair.generate([5] * 20, greedy(480), request_id="r"))
        await eventually(lambda: len(pair.tokens.get("r", [])) > 3)
        await pair.cancel("r")
        await all_free(prefill, decode)
        seen = len(pair.tokens["r"])
        await asyncio.sleep(0.1)
        assert len(pair.tokens["r"]) <= seen + 1
        assert "r" not in pair.finished
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
