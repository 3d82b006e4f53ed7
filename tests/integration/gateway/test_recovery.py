"""Workers that die, refuse and stall: streams stay exact, and nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest

from baton.v1.prefill_pb2 import PrefillRequest
from baton.v1.registry_pb2 import WorkerInfo
from services.common.errors import BatonError, ErrorReason
from services.common.status import parse_status
from tests.integration.gateway.conftest import MakeSetup, Setup
from tests.support.byte_tokenizer import ids_of
from tests.support.scripted_workers import ScriptedDecode, ScriptedPrefill, expected

PROMPT = ids_of("the prompt of a long story")


def fail_once(reason: ErrorReason):  # type: ignore[no-untyped-def]
    """Return a hook that raises the first time."""
    left = iter([1])

    async def hook(request: PrefillRequest) -> None:
        if next(left, None):
            raise BatonError(reason, "scripted")

    return hook


async def reason_of(setup: Setup, **sampling: object) -> BatonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setup.generate(PROMPT, **{"max_tokens": 8, **sampling})
    return parse_status(caught.value)


def attempts(worker: ScriptedDecode | ScriptedPrefill) -> list[str]:
    """Return the attempt (and epoch) numbers of what a worker was asked, cancellations left out."""
    asked = [entry.split() for entry in worker.log]
    return [entry[0].split("-", 1)[1] for entry in asked if entry[0] != "cancel"]


async def test_prefill_dies_before_its_token_and_another_fills_the_same_reservation(
    make_setup: MakeSetup,
) -> None:
    setup = await make_setup(prefills=2)
    p0, p1 = setup.workers.prefills["p0"], setup.workers.prefills["p1"]
    reached = asyncio.Event()

    async def hang(request: PrefillRequest) -> None:
        reached.set()
        await asyncio.Event().wait()

    p0.before_token = p1.before_token = hang
    running = asyncio.create_task(setup.generate(PROMPT, max_tokens=20))
    await reached.wait()
    victim, other = (p0, p1) if p0.log else (p1, p0)
    other.before_token = fail_never
    await setup.workers.kill(victim.worker_id)
    answer = await running
    assert answer.tokens == expected(PROMPT, 20)
    assert answer.finished.handoff.prefill_worker == other.worker_id
    assert answer.finished.handoff.retries == 1
    assert attempts(setup.workers.decodes["d0"]) == ["1", "1"]  # reserved, then opened again
    assert attempts(other) == ["1.2"]
    await setup.nothing_held()


async def fail_never(request: PrefillRequest) -> None:
    """Disturb nothing."""


@pytest.mark.parametrize(
    "reason",
    [
        ErrorReason.WORKER_LOST,
        ErrorReason.TRANSFER_FAILED,
        ErrorReason.RECEIVER_UNREACHABLE,
        ErrorReason.INTERNAL,
        ErrorReason.QUEUE_FULL,
        ErrorReason.DRAINING,
        ErrorReason.CANCELLED,
    ],
)
async def test_prefill_refuses_and_another_takes_over(make_setup: MakeSetup, reason: ErrorReason) -> None:
    setup = await make_setup(prefills=2)
    hook = fail_once(reason)
    for worker in setup.workers.prefills.values():
        worker.before_token = hook
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    assert sorted(len(worker.log) for worker in setup.workers.prefills.values()) == [1, 1]
    await setup.nothing_held()


@pytest.mark.parametrize("reason", [ErrorReason.TRANSFER_FAILED, ErrorReason.INTERNAL])
async def test_the_only_prefill_worker_gets_another_try(make_setup: MakeSetup, reason: ErrorReason) -> None:
    setup = await make_setup()
    setup.workers.prefills["p0"].before_token = fail_once(reason)
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    await setup.nothing_held()


async def test_the_transfer_fails_after_the_first_token_was_shown(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    p0 = setup.workers.prefills["p0"]
    p0.before_commit = fail_once(ErrorReason.TRANSFER_FAILED)
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    # The second attempt prefills the prompt and the token that the client has.
    assert [int(entry.split()[1]) for entry in p0.log] == [len(PROMPT), len(PROMPT) + 1]
    await setup.nothing_held()


async def test_prefill_dies_after_commit_and_decode_goes_on(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    d0 = setup.workers.decodes["d0"]

    async def fail_late(request: PrefillRequest) -> None:
        await asyncio.sleep(0.05)  # decode's tokens are under way
        raise BatonError(ErrorReason.INTERNAL, "scripted")

    setup.workers.prefills["p0"].after_commit = fail_late
    answer = await setup.generate(PROMPT, max_tokens=100)
    assert answer.tokens == expected(PROMPT, 100)
    assert answer.finished.handoff.retries == 0
    assert attempts(d0) == ["1"]
    await setup.nothing_held()


@pytest.mark.parametrize("reason", [ErrorReason.RESERVATION_GONE, ErrorReason.LEASE_EXPIRED])
async def test_a_reservation_that_is_gone_is_made_anew(make_setup: MakeSetup, reason: ErrorReason) -> None:
    setup = await make_setup()
    setup.workers.prefills["p0"].before_token = fail_once(reason)
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    assert attempts(setup.workers.decodes["d0"]) == ["1", "2"]
    await setup.nothing_held()


async def test_reopening_finds_the_reservation_gone(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    d0 = setup.workers.decodes["d0"]

    async def lose_lease(request: PrefillRequest) -> None:
        if request.request_id.endswith("-1.1"):
            await d0._free(request.target.transfer_id)
            raise BatonError(ErrorReason.TRANSFER_FAILED, "scripted")

    setup.workers.prefills["p0"].before_token = lose_lease
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    assert attempts(d0) == ["1", "1", "2"]
    await setup.nothing_held()


@pytest.mark.parametrize("reason", ["LEASE_EXPIRED", "TRANSFER_FAILED", "INTERNAL", "SOMETHING_NEW"])
async def test_decode_reports_a_failure_in_mid_stream(make_setup: MakeSetup, reason: str) -> None:
    setup = await make_setup()
    d0 = setup.workers.decodes["d0"]
    call = setup.call(PROMPT, max_tokens=60)
    tokens: list[int] = []
    async for response in call:
        tokens.extend(response.delta.token_ids)
        if len(tokens) >= 10 and len(d0.log) == 1 and d0.held:
            await d0.fail(next(iter(d0.held)), reason)
    assert tokens == expected(PROMPT, 60)
    assert attempts(d0) == ["1", "2"]
    await setup.nothing_held()


async def test_decode_dies_in_mid_stream_and_the_stream_goes_on(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    prompts = [ids_of(f"story number {i}") for i in range(8)]
    running = [asyncio.create_task(setup.generate(prompt, max_tokens=150)) for prompt in prompts]
    d0 = setup.workers.decodes["d0"]
    while len([one for one in d0.held.values() if one.is_running]) < 4:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)
    await setup.workers.kill("d0")
    answers = await asyncio.gather(*running)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == expected(prompt, 150)
        assert answer.finished.handoff.decode_worker == "d1"
    assert sum(answer.finished.handoff.retries for answer in answers) >= 4
    setup.workers.decodes.pop("d0")
    await setup.nothing_held()


async def test_sampled_streams_go_on_with_the_same_draws(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    call = setup.call(PROMPT, max_tokens=80, temperature=1)
    tokens: list[int] = []
    killed = ""
    async for response in call:
        tokens.extend(response.delta.token_ids)
        if len(tokens) >= 10 and not killed:
            (killed,) = [name for name, worker in setup.workers.decodes.items() if worker.held]
            seed = next(iter(setup.workers.decodes[killed].held.values())).request.sampling.seed
            await setup.workers.kill(killed)
    assert tokens == expected(PROMPT, 80, seed)


async def test_a_broken_stream_of_a_living_worker_loses_nothing(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    d0 = setup.workers.decodes["d0"]
    prompts = [ids_of(f"story number {i}") for i in range(6)]
    running = [asyncio.create_task(setup.generate(prompt, max_tokens=120)) for prompt in prompts]
    for _ in range(3):
        await asyncio.sleep(0.06)
        d0.break_streams()
    for prompt, answer in zip(prompts, await asyncio.gather(*running), strict=True):
        assert answer.tokens == expected(prompt, 120)
    await setup.nothing_held()


async def test_a_silent_decode_worker_is_given_up_after_three_beats(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=1, beat_interval_ms=100)
    registry = setup.generator.registry
    running = asyncio.create_task(setup.generate(PROMPT, max_tokens=30))
    while not any(one.is_running for one in setup.workers.decodes["d0"].held.values()):
        await asyncio.sleep(0.002)
    setup.workers.decodes["d0"].paused = True  # frozen: its connection stays open
    setup.workers.silent.add("d0")
    await setup.workers.add_decode("d1")
    answer = await running
    assert answer.tokens == expected(PROMPT, 30)
    assert answer.finished.handoff.decode_worker == "d1"
    assert "d0" not in [worker.info.worker_id for worker in registry]


async def test_a_worker_reborn_is_another_worker(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    call = setup.call(PROMPT, max_tokens=60)
    tokens: list[int] = []
    reborn = False
    async for response in call:
        tokens.extend(response.delta.token_ids)
        if len(tokens) >= 10 and not reborn:
            reborn = True
            await setup.workers.kill("d0")
            await setup.workers.add_decode("d0")
    assert tokens == expected(PROMPT, 60)
    await setup.nothing_held()


async def test_a_lost_worker_is_a_pause_until_another_comes(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    running = asyncio.create_task(setup.generate(PROMPT, max_tokens=60))
    while not any(one.is_running for one in setup.workers.decodes["d0"].held.values()):
        await asyncio.sleep(0.002)
    await setup.workers.kill("d0")
    await asyncio.sleep(0.2)
    await setup.workers.add_decode("d7")
    answer = await running
    assert answer.tokens == expected(PROMPT, 60)
    assert answer.finished.handoff.decode_worker == "d7"


async def test_without_another_worker_it_ends_unavailable(make_setup: MakeSetup) -> None:
    setup = await make_setup(worker_wait_s=0.3)
    call = setup.call(PROMPT, max_tokens=60)
    num_tokens = 0

    async def read() -> None:
        nonlocal num_tokens
        async for response in call:
            num_tokens += len(response.delta.token_ids)
            if num_tokens == 5:
                await setup.workers.kill("d0")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert parse_status(caught.value).reason is ErrorReason.WORKER_LOST
    assert 5 <= num_tokens < 60
    setup.workers.decodes.pop("d0")
    await setup.nothing_held()


@pytest.mark.parametrize(
    ("scripted", "told"),
    [(ErrorReason.TRANSFER_FAILED, ErrorReason.WORKER_LOST), (ErrorReason.INTERNAL, ErrorReason.INTERNAL)],
)
async def test_tries_are_bounded(make_setup: MakeSetup, scripted: ErrorReason, told: ErrorReason) -> None:
    setup = await make_setup(prefills=2, max_retries=2)

    async def always(request: PrefillRequest) -> None:
        raise BatonError(scripted, "scripted")

    for worker in setup.workers.prefills.values():
        worker.before_token = always
    error = await reason_of(setup)
    assert error.reason is told
    assert "gave up after 3 failures in a row; last: " in error.message
    assert sum(len(worker.log) for worker in setup.workers.prefills.values()) == 3
    await setup.nothing_held()


async def test_bad_input_that_only_a_worker_sees_is_not_tried_again(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    for worker in setup.workers.decodes.values():
        worker.reserve_errors = [BatonError(ErrorReason.INVALID_ARGUMENT, "scripted", field="x")] * 2
    assert (await reason_of(setup)).reason is ErrorReason.INVALID_ARGUMENT
    assert sum(len(attempts(worker)) for worker in setup.workers.decodes.values()) == 1
    await setup.nothing_held()


async def test_a_full_decode_worker_sends_the_request_to_another(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    errors = [BatonError(ErrorReason.QUEUE_FULL, "scripted")]
    for worker in setup.workers.decodes.values():
        worker.reserve_errors = errors
    answer = await setup.generate(PROMPT, max_tokens=12)
    assert answer.tokens == expected(PROMPT, 12)
    assert answer.finished.handoff.retries == 0
    await setup.nothing_held()


async def test_when_all_are_full_the_client_hears_it(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    for worker in setup.workers.decodes.values():
        worker.reserve_errors = [BatonError(ErrorReason.QUEUE_FULL, "scripted")]
    error = await reason_of(setup)
    assert error.reason is ErrorReason.QUEUE_FULL
    assert error.retry_after_s
    await setup.nothing_held()


async def test_a_worker_whose_connection_failed_is_avoided_by_others(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    await setup.workers.kill("d0")
    first = await setup.generate(PROMPT, max_tokens=4)
    assert first.tokens == expected(PROMPT, 4)
    retries = [(await setup.generate(PROMPT, max_tokens=4)).finished.handoff.retries for _ in range(6)]
    assert retries == [0] * 6


async def test_late_events_of_an_old_attempt_fall_flat(make_setup: MakeSetup) -> None:
    setup = await make_setup(decodes=2)
    seen = itertools.count()
    call = setup.call(PROMPT, max_tokens=60)
    tokens: list[int] = []
    async for response in call:
        tokens.extend(response.delta.token_ids)
        if len(tokens) >= 10 and next(seen) == 0:
            (holder,) = [worker for worker in setup.workers.decodes.values() if worker.held]
            (held,) = holder.held.values()
            holder.incarnation = "reborn"  # the stream is refused from now on, but the request runs on
            holder.break_streams()
            holder.held[held.request.request_id] = held
    assert tokens == expected(PROMPT, 60)
    await setup.nothing_held()


async def test_another_worker_at_the_same_address_keeps_its_stream(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    old = setup.workers.decodes["d0"]
    await setup.workers.kill("d0")
    port = int(info_of(setup, "d0").address.split(":")[1])
    new = await setup.workers.add_decode("d1", port=port)
    while "d0" in [worker.info.worker_id for worker in setup.generator.registry]:
        await asyncio.sleep(0.01)
    answer = await setup.generate(PROMPT, max_tokens=150)
    assert answer.tokens == expected(PROMPT, 150)
    assert answer.finished.handoff.retries == 0
    assert (old.held, attempts(new)) == ({}, ["1"])


def info_of(setup: Setup, worker_id: str) -> WorkerInfo:
    return next(worker.info for worker in setup.generator.registry if worker.info.worker_id == worker_id)
