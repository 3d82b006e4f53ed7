"""Reservations: waiting, refusal, leases, epochs. The blocks come back on every path."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from baton.v1 import decode_pb2, kv_pb2
from engine.events import StepEvents
from engine.request import Request
from engine.sampling_params import SamplingParams
from kvtransfer.peer import Peer
from kvtransfer.sender import Sender
from services.common.errors import BatonError, ErrorReason
from services.common.status import parse_status
from services.decode.config import LeaseConfig
from services.decode.reservation import Reservation
from services.worker.runtime import Worker
from tests.support.workers import (
    Pair,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

PROMPT = list(range(3, 43))


async def refusal(awaitable) -> BatonError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return parse_status(refused.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [9999]}, "token_ids"),
        ({"token_ids": [5] * 600}, "token_ids"),
        ({"num_prompt_tokens": 0}, "num_prompt_tokens"),
        ({"num_prompt_tokens": 41}, "num_prompt_tokens"),
        ({"priority": 101}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"gateway_id": ""}, "gateway_id"),
        ({"transfer_id": ""}, "transfer_id"),
        ({"transfer_id": "x" * 65}, "transfer_id"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": {"logprobs": 21}}, "sampling.logprobs"),
        ({"sampling": {"stop_token_ids": [9999]}}, "stop_token_ids"),
    ],
)
async def test_bad_fields_are_named(tiny_model: Path, change: dict, field: str) -> None:
    async with decode_worker(engine_config(tiny_model)) as decode, Pair(None, decode) as pair:
        good = {
            "request_id": "r",
            "gateway_id": "g",
            "transfer_id": "t",
            "token_ids": PROMPT,
            "num_prompt_tokens": 40,
            "sampling": {"max_tokens": 5},
        }
        error = await refusal(pair.decode.Reserve(decode_pb2.ReserveRequest(**(good | change)), timeout=5))
        assert (error.reason, error.field) == (ErrorReason.INVALID_ARGUMENT, field)
        assert field.rpartition(".")[2] in error.message
        await all_free(decode)


async def test_a_full_pool_makes_reservations_wait_in_order(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model, num_blocks=8)) as decode,
        Pair(prefill, decode) as pair,
    ):
        held = await pair.reserve([7] * 100, greedy(5), request_id="held")
        assert held.queue_s < 1
        waiting = [
            asyncio.create_task(pair.reserve([n] * 100, greedy(5), request_id=f"w{n}")) for n in (3, 4)
        ]
        await eventually(lambda: decode.host.engine.stats().waiting == 2)
        assert not any(task.done() for task in waiting)
        await pair.cancel("held")
        assert (await asyncio.wait_for(waiting[0], 5)).queue_s > 0
        assert not waiting[1].done()
        await pair.cancel("w3")
        await asyncio.wait_for(waiting[1], 5)
        await pair.cancel("w4")
        await all_free(decode)


async def test_a_full_queue_refuses_at_once_with_a_hint(tiny_model: Path) -> None:
    config = engine_config(tiny_model, num_blocks=8, max_queue=1)
    async with decode_worker(config) as decode, Pair(None, decode) as pair:
        await pair.reserve([7] * 100, greedy(5), request_id="held")
        waiting = asyncio.create_task(pair.reserve([8] * 100, greedy(5), request_id="w"))
        await eventually(lambda: decode.host.engine.stats().waiting == 1)
        error = await refusal(pair.reserve([9] * 100, greedy(5)))
        assert error.reason is ErrorReason.QUEUE_FULL
        assert error.retry_after_s
        too_large = await refusal(pair.reserve([9] * 200, greedy(5)))
        assert too_large.reason is ErrorReason.OUT_OF_BLOCKS
        await pair.cancel("held")
        await waiting
        await pair.cancel("w")
        await all_free(decode)


@pytest.mark.parametrize("how", ["deadline", "disconnect", "cancel"])
async def test_a_waiting_reservation_leaves_the_queue(tiny_model: Path, how: str) -> None:
    async with (
        decode_worker(engine_config(tiny_model, num_blocks=8)) as decode,
        Pair(None, decode) as pair,
    ):
        await pair.reserve([7] * 100, greedy(5), request_id="held")
        waiting = asyncio.create_task(
            pair.reserve([8] * 100, greedy(5), request_id="w", timeout=0.2 if how == "deadline" else 10)
        )
        await eventually(lambda: decode.host.engine.stats().waiting == 1)
        if how == "disconnect":
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        elif how == "cancel":
            await pair.decode.Cancel(decode_pb2.DecodeServiceCancelRequest(request_id="w"))
            assert (await refusal(waiting)).reason is ErrorReason.CANCELLED
        else:
            assert (await refusal(waiting)).reason is ErrorReason.DEADLINE_EXCEEDED
        await eventually(lambda: decode.host.engine.stats().waiting == 0)
        await pair.cancel("held")
        await all_free(decode)


async def test_a_lease_that_nobody_renews_lapses_and_the_gateway_hears_it(tiny_model: Path) -> None:
    leases = LeaseConfig(lease_s=0.3)
    async with (
        decode_worker(engine_config(tiny_model), leases=leases) as decode,
        Pair(None, decode) as pair,
    ):
        reserved = await pair.reserve(PROMPT, greedy(5), request_id="r")
        assert reserved.target.lease_ms == 300
        await eventually(lambda: pair.failures.get("r") == "LEASE_EXPIRED", 3)
        error = await refusal(
            pair.reserve(PROMPT, greedy(5), request_id="r", reservation_id=reserved.target.reservation_id)
        )
        assert error.reason is ErrorReason.RESERVATION_GONE
        await all_free(decode)


async def test_a_queued_prompt_keeps_its_lease(tiny_model: Path) -> None:
    """The prefill worker is busy for much longer than the lease; the reservation survives."""
    leases = LeaseConfig(lease_s=0.8)
    async with (
        prefill_worker(engine_config(tiny_model, num_blocks=32)) as prefill,
        decode_worker(engine_config(tiny_model), leases=leases) as decode,
        Pair(prefill, decode) as pair,
    ):
        engine = prefill.host.engine
        blocker = Request("blocker", [9] * 480, 480, SamplingParams(), hold_blocks=True, max_new_tokens=1)
        engine.submit(blocker)
        reserved = await pair.reserve(PROMPT, greedy(5), request_id="r")
        call = pair.start_prefill(PROMPT, greedy(5), reserved.target)
        await eventually(lambda: engine.stats().waiting == 1)
        await asyncio.sleep(1.8)
        assert "r" not in pair.failures
        engine.cancel("blocker")
        assert len([response async for response in call]) == 2
        await eventually(lambda: "r" in pair.finished)
        await all_free(prefill, decode)


async def test_a_failed_handoff_is_filled_again_under_the_next_epoch(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        want, _, _ = await pair.generate(PROMPT[:39], greedy(6))
        reserved = await pair.reserve(PROMPT[:39], greedy(6), request_id="r")
        first = pair.start_prefill(PROMPT[:39], greedy(6), reserved.target)
        first.cancel()
        await all_free(prefill)
        assert decode.host.engine.stats().reserved == 1

        again = await pair.reserve(
            PROMPT[:39], greedy(6), request_id="r", reservation_id=reserved.target.reservation_id
        )
        assert again.target.epoch == 2
        assert again.target.block_ids == reserved.target.block_ids
        stale = [r async for r in swallow(pair.start_prefill(PROMPT[:39], greedy(6), reserved.target))]
        assert all(response.WhichOneof("event") != "handed_over" for response in stale)
        responses = [r async for r in pair.start_prefill(PROMPT[:39], greedy(6), again.target)]
        await eventually(lambda: "r" in pair.finished)
        assert [responses[0].first_token.token_id, *pair.tokens["r"]] == want
        gone = await refusal(
            pair.reserve(PROMPT[:39], greedy(6), request_id="r", reservation_id=again.target.reservation_id)
        )
        assert gone.reason is ErrorReason.RESERVATION_GONE
        await all_free(prefill, decode)


async def test_after_a_fail_the_reservation_lapses_by_itself(tiny_model: Path) -> None:
    leases = LeaseConfig(lease_s=0.3)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model), leases=leases) as decode,
        Pair(prefill, decode) as pair,
    ):
        reserved = await pair.reserve(PROMPT, greedy(5), request_id="r")
        call = pair.start_prefill([*PROMPT[:-1], 9999], greedy(5), reserved.target)
        assert (await refusal(call.read())).field == "token_ids"
        assert decode.host.engine.stats().reserved == 1
        await eventually(lambda: pair.failures.get("r") == "LEASE_EXPIRED", 3)
        await all_free(prefill, decode)


@pytest.mark.parametrize("lie", ["tokens", "blocks", "payload"])
async def test_a_commit_that_does_not_fit_is_refused(tiny_model: Path, lie: str) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        reserved = await pair.reserve(PROMPT, greedy(5), request_id="r")
        commit = kv_pb2.KvCommit(num_blocks=3, num_tokens=40, first_token=7)
        if lie == "tokens":
            commit.num_tokens = 39
        await send_by_hand(
            prefill,
            reserved.target,
            num_blocks=2 if lie == "blocks" else 3,
            payload=b"\xff\xff" if lie == "payload" else commit.SerializeToString(),
        )
        await eventually(lambda: pair.failures.get("r") == "TRANSFER_FAILED")
        assert "r" not in pair.tokens or not pair.tokens["r"]
        await all_free(decode)


async def test_another_layout_is_refused(tiny_model: Path) -> None:
    async with (
        prefill_worker(engine_config(tiny_model, block_size=8)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        reserved = await pair.reserve(PROMPT, greedy(5), request_id="r")
        error = await refusal(pair.start_prefill(PROMPT, greedy(5), reserved.target).read())
        assert error.reason is ErrorReason.LAYOUT_MISMATCH
        await pair.cancel("r")
        await all_free(prefill, decode)


async def test_a_request_id_can_be_used_again_after_cancel(tiny_model: Path) -> None:
    async with decode_worker(engine_config(tiny_model)) as decode, Pair(None, decode) as pair:
        await pair.reserve(PROMPT, greedy(5), request_id="r")
        assert (await refusal(pair.reserve(PROMPT, greedy(5), request_id="r"))).field == "request_id"
        await pair.cancel("r")
        await pair.reserve(PROMPT, greedy(5), request_id="r")
        await pair.cancel("r")
        await pair.cancel("never heard of")
        await all_free(decode)


async def swallow(call):
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError:
        return


async def send_by_hand(prefill: Worker, target: kv_pb2.KvTarget, num_blocks: int, payload: bytes) -> None:
    sender = Sender("hand", "h1", prefill.host.regions, transports=["zmq_tcp"], allow_fallback=False)
    transfer = sender.begin(
        Peer.from_proto(target.peer),
        target.transfer_id,
        target.epoch,
        [list(blocks.ids) for blocks in target.block_ids],
        target.lease_ms / 1000,
    )
    transfer.push(0, 0, list(range(num_blocks)))
    transfer.commit(payload)
    deadline = time.monotonic() + 5
    while not transfer.done.done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    sender.close()


async def test_a_grant_that_crosses_the_end_of_its_call_harms_nobody(tiny_model: Path) -> None:
    """The call is cancelled, and before its task has run the engine's word arrives, among others' events."""
    async with decode_worker(engine_config(tiny_model)) as decode, Pair(None, decode) as pair:
        reservations = decode.service._reservations  # type: ignore[attr-defined]
        request = Request("crossing", list(PROMPT), len(PROMPT), SamplingParams(max_tokens=5))
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))

        def cancel_first(step: StepEvents, at: float) -> None:
            task.cancel()
            reservations.on_step(step, at)

        handlers = decode.host.events._handlers
        handlers[:] = [cancel_first if one == reservations.on_step else one for one in handlers]
        task = asyncio.create_task(reservations.open(Reservation("r", "g", "t", request)))
        with pytest.raises(asyncio.CancelledError):
            await task
        await all_free(decode)
        assert not faults
        assert not reservations._by_request
        assert (await pair.reserve(PROMPT, greedy(3))).target.block_ids
