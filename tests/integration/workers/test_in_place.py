"""Prompts computed in their own reservation: by co-located workers, and by decode workers."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from baton.v1 import prefill_pb2, sampling_pb2
from engine.sampling_params import SamplingParams
from services.common.errors import ErrorReason
from services.common.status import parse_status
from services.decode.config import LeaseConfig
from services.worker.runtime import Worker
from tests.integration.workers.test_handoff import engine_alone, random_prompts
from tests.integration.workers.test_lifecycle import scrape
from tests.support.workers import (
    BLOCK_SIZE,
    Pair,
    all_free,
    both_worker,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
LONG = [3 + n % 250 for n in range(400)]
SLOW = {"max_step_tokens": 8, "max_chunk_tokens": 8}


@contextlib.asynccontextmanager
async def co_located(tiny_model: Path, **settings: int) -> AsyncIterator[tuple[Worker, Pair]]:
    async with both_worker(engine_config(tiny_model, **settings)) as both, Pair(both, both) as pair:
        yield both, pair


def reason_of(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> ErrorReason:
    return parse_status(error.value).reason


@pytest.mark.parametrize("role", ["both", "decode"])
async def test_tokens_equal_the_engine_alone_and_nothing_moves(tiny_model: Path, role: str) -> None:
    prompts = random_prompts([1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 200])
    expected = engine_alone(tiny_model, prompts, GREEDY)
    make = {"both": both_worker, "decode": decode_worker}[role]
    async with (
        make(engine_config(tiny_model, num_blocks=128), metrics_port=0) as worker,
        Pair(worker, worker) as pair,
    ):
        answers = await asyncio.gather(*(pair.generate(prompt, greedy(20)) for prompt in prompts))
        for prompt, want, (tokens, first, handed_over) in zip(prompts, expected, answers, strict=True):
            assert tokens == want, f"prompt of {len(prompt)} tokens"
            assert handed_over is not None
            assert handed_over.transport == "in_place"
            assert (handed_over.blocks, handed_over.bytes, handed_over.exposed_s) == (0, 0, 0)
            assert handed_over.skipped_blocks == -(-len(prompt) // BLOCK_SIZE)
            assert first.queue_s >= 0
            assert first.compute_s > 0
            assert sum(chunk.num_tokens for chunk in first.chunks) == len(prompt)
        await all_free(worker)
        # Each prompt was computed once.
        assert worker.host.engine.stats().computed_tokens == sum(map(len, prompts)) + 19 * len(prompts)
        seen = await asyncio.to_thread(scrape, worker.metrics_address)
        assert seen['baton_handoff_blocks_total{direction="received",transport="in_place"}'] == 0
        assert seen['baton_handoffs_total{outcome="committed"}'] == len(prompts)
        assert seen["baton_request_prefill_time_seconds_count"] == len(prompts)


async def test_a_cached_prompt_is_not_computed_again(tiny_model: Path) -> None:
    (prompt,) = random_prompts([4 * BLOCK_SIZE])
    (expected,) = engine_alone(tiny_model, [prompt], GREEDY)
    async with co_located(tiny_model) as (both, pair):
        for cached in (0, 3 * BLOCK_SIZE):
            tokens, first, _ = await pair.generate(prompt, greedy(20))
            assert tokens == expected
            assert first.cached_tokens == cached
        await all_free(both)


async def test_preempted_prompts_and_streams_end_with_the_same_tokens(tiny_model: Path) -> None:
    prompts = random_prompts([30, 40, 50, 60], seed=5)
    expected = engine_alone(
        tiny_model, prompts, SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    )
    async with co_located(tiny_model, num_blocks=16) as (both, pair):
        answers = await asyncio.gather(*(pair.generate(prompt, greedy(60)) for prompt in prompts))
        assert [tokens for tokens, _, _ in answers] == expected
        assert both.host.engine.stats().preemptions > 0
        await all_free(both)


async def test_a_first_token_that_ends_the_answer(tiny_model: Path) -> None:
    (prompt,) = random_prompts([40], seed=3)
    async with co_located(tiny_model) as (both, pair):
        (first, *_), _, _ = await pair.generate(prompt, greedy(4))
        stop = sampling_pb2.SamplingParams(temperature=0, stop_token_ids=[first])
        _, stopped, handed_over = await pair.generate(prompt, stop)
        assert handed_over is None
        assert stopped.finish_reason == sampling_pb2.FINISH_REASON_STOP
        await all_free(both)


async def test_both_prefills_for_others_and_takes_blocks_from_others(tiny_model: Path) -> None:
    prompts = random_prompts([17, 100], seed=6)
    expected = engine_alone(tiny_model, prompts, GREEDY)
    async with (
        both_worker(engine_config(tiny_model, prefix_cache=False)) as both,
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(both, decode) as sending,
        Pair(prefill, both, gateway_id="another") as taking,
    ):
        for pair, transport in ((sending, "shared_memory"), (taking, "shared_memory")):
            answers = await asyncio.gather(*(pair.generate(prompt, greedy(20)) for prompt in prompts))
            for prompt, want, (tokens, _, handed_over) in zip(prompts, expected, answers, strict=True):
                assert tokens == want
                assert handed_over is not None
                assert handed_over.transport == transport
                assert handed_over.blocks == -(-len(prompt) // BLOCK_SIZE)
        await all_free(both, prefill, decode)


@pytest.mark.parametrize("how", ["disconnect", "cancel prefill", "cancel decode"])
async def test_ended_before_the_first_token(tiny_model: Path, how: str) -> None:
    async with co_located(tiny_model, **SLOW) as (both, pair):
        want, _, _ = await pair.generate(LONG[:40], greedy(8))
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        call = pair.start_prefill(LONG, greedy(5), reserved.target, request_id="r.1")
        before = both.host.engine.stats().computed_tokens
        await eventually(lambda: both.host.engine.stats().computed_tokens > before + 8)
        if how == "disconnect":
            call.cancel()
        elif how == "cancel prefill":
            await pair.prefill.Cancel(prefill_pb2.PrefillServiceCancelRequest(request_id="r.1"), timeout=5)
        else:
            await pair.cancel("r")
        if how != "disconnect":
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert reason_of(ended) is ErrorReason.CANCELLED
        await all_free(both)
        assert both.host.engine.stats().computed_tokens < before + len(LONG)
        again, _, _ = await pair.generate(LONG[:40], greedy(8))
        assert again == want


async def test_cancel_at_random_moments(tiny_model: Path) -> None:
    rng = random.Random(12)
    async with co_located(tiny_model, max_step_tokens=16, max_chunk_tokens=16) as (both, pair):
        want, _, _ = await pair.generate(LONG, greedy(8))
        for _ in range(20):
            await pair.generate_and_cancel(LONG, greedy(100), rng.uniform(0, 0.1))
            await all_free(both)
        again, _, _ = await pair.generate(LONG, greedy(8))
        assert again == want


async def test_what_is_no_reservation_of_this_worker_is_refused(tiny_model: Path) -> None:
    async with co_located(tiny_model) as (both, pair):
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        target = reserved.target
        with pytest.raises(grpc.aio.AioRpcError) as other_tokens:
            await pair.start_prefill(LONG[1:], greedy(5), target).read()
        assert reason_of(other_tokens) is ErrorReason.INVALID_ARGUMENT
        target.epoch = 2
        with pytest.raises(grpc.aio.AioRpcError) as other_epoch:
            await pair.start_prefill(LONG, greedy(5), target).read()
        assert reason_of(other_epoch) is ErrorReason.RESERVATION_GONE
        target.epoch = 1
        target.peer.incarnation = "before"
        with pytest.raises(grpc.aio.AioRpcError) as reborn:
            await pair.start_prefill(LONG, greedy(5), target).read()
        assert reason_of(reborn) is ErrorReason.RESERVATION_GONE
        target.peer.incarnation = both.identity.incarnation
        first, second = (pair.start_prefill(LONG, greedy(5), target) for _ in range(2))
        reads = await asyncio.gather(first.read(), second.read(), return_exceptions=True)
        (refused,) = [read for read in reads if isinstance(read, grpc.aio.AioRpcError)]
        assert parse_status(refused).reason is ErrorReason.RESERVATION_GONE
        await eventually(lambda: "r" in pair.finished)
        with pytest.raises(grpc.aio.AioRpcError) as over:
            await pair.reserve(LONG, greedy(5), request_id="r", reservation_id=target.reservation_id)
        assert reason_of(over) is ErrorReason.RESERVATION_GONE
        await all_free(both)


async def test_a_decode_worker_refuses_prompts_for_others(tiny_model: Path) -> None:
    async with (
        decode_worker(engine_config(tiny_model)) as decode,
        decode_worker(engine_config(tiny_model)) as other,
        Pair(decode, other) as pair,
    ):
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        for target in (reserved.target, None):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await pair.start_prefill(LONG, greedy(5), target).read()
            assert reason_of(refused) is ErrorReason.INVALID_ARGUMENT
        await pair.cancel("r")
        await all_free(decode, other)


@pytest.mark.parametrize("transport", ["shared_memory", "zmq_tcp"])
async def test_what_another_prefill_worker_left_unfinished_is_computed_in_place(
    tiny_model: Path, transport: str
) -> None:
    (expected,) = engine_alone(tiny_model, [LONG], GREEDY)
    async with (
        prefill_worker(engine_config(tiny_model, **SLOW), transports=[transport]) as prefill,
        both_worker(engine_config(tiny_model), transports=[transport]) as both,
        Pair(prefill, both) as pair,
        Pair(both, both, gateway_id="unused") as own,
    ):
        reserved = await pair.reserve(LONG, greedy(20), request_id="r")
        call = pair.start_prefill(LONG, greedy(20), reserved.target, request_id="r.1")
        await eventually(lambda: prefill.host.engine.stats().computed_tokens > 100)
        call.cancel()
        again = await pair.reserve(
            LONG, greedy(20), request_id="r", reservation_id=reserved.target.reservation_id
        )
        assert again.target.epoch == 2
        responses = [r async for r in own.start_prefill(LONG, greedy(20), again.target, request_id="r.2")]
        assert responses[1].handed_over.transport == "in_place"
        await eventually(lambda: "r" in pair.finished)
        assert [responses[0].first_token.token_id, *pair.tokens["r"]] == expected
        await all_free(prefill, both)


async def test_a_reservation_that_nobody_computes_lapses(tiny_model: Path) -> None:
    leases = LeaseConfig(lease_s=0.2)
    async with both_worker(engine_config(tiny_model), leases=leases) as both, Pair(both, both) as pair:
        reserved = await pair.reserve(LONG, greedy(5), request_id="lapsed")
        await eventually(lambda: pair.failures.get("lapsed") == "LEASE_EXPIRED")
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await pair.start_prefill(LONG, greedy(5), reserved.target).read()
        assert reason_of(gone) is ErrorReason.RESERVATION_GONE
        await all_free(both)


async def test_a_draining_worker_still_computes_what_holds_a_reservation(tiny_model: Path) -> None:
    async with co_located(tiny_model) as (both, pair):
        reserved = await pair.reserve(LONG[:40], greedy(5), request_id="r")
        both.service.drain()
        for refused_call in (
            pair.reserve(LONG, greedy(5)),
            pair.start_prefill(LONG, greedy(1), None).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await refused_call
            assert reason_of(refused) is ErrorReason.DRAINING
        idle = asyncio.create_task(both.service.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()
        await pair.start_prefill(LONG[:40], greedy(5), reserved.target).read()
        await asyncio.wait_for(idle, 5)
        await eventually(lambda: "r" in pair.finished)


async def test_a_worker_that_stops_ends_what_it_computes(tiny_model: Path) -> None:
    workers = both_worker(engine_config(tiny_model, **SLOW))
    both = await workers.__aenter__()
    async with Pair(both, both) as pair:
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        call = pair.start_prefill(LONG, greedy(5), reserved.target)
        await eventually(lambda: both.host.engine.stats().computed_tokens > 8)
        await both.stop(drain_s=0)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert reason_of(ended) is ErrorReason.DRAINING


async def test_a_step_that_fails_fails_the_call(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with co_located(tiny_model) as (both, pair):
        reserved = await pair.reserve(LONG, greedy(5), request_id="r")
        monkeypatch.setattr(both.host.engine._loop._runner, "launch", lambda output: 1 // 0)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await pair.start_prefill(LONG, greedy(5), reserved.target).read()
        assert reason_of(failed) is ErrorReason.INTERNAL
        assert "r" not in pair.failures
        await all_free(both)
