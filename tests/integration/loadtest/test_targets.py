"""What each target makes of answers, refusals, breaks, hang-ups and slow clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loadtest.errors import GeneratorError
from loadtest.leftovers import blocks_held, served_by
from loadtest.measures import measure
from loadtest.record import Outcome
from loadtest.run import Run, run
from loadtest.scenario import Scenario
from loadtest.verify import verify
from services.gateway.app import Gateway
from services.gateway.config import GatewayConfig
from tests.support.byte_tokenizer import write_byte_tokenizer
from tests.support.fake_endpoint import Script, fake_endpoint
from tests.support.scripted_workers import ScriptedCluster, expected


def words(body: dict[str, object]) -> tuple[str, ...]:
    """An answer that depends on the prompt."""
    prompt = body["prompt"]
    assert isinstance(prompt, list)
    return tuple(f"{prompt[number % len(prompt)]} " for number in range(int(str(body["max_tokens"]))))


async def test_refusals_and_breaks_are_counted_by_reason() -> None:
    def script(order: int, body: dict[str, object]) -> Script:
        kinds = (Script(0.01, (0.01,)), Script(0.0, status=429), Script(0.01, (0.01, 0.01), cut_after=1))
        return kinds[order % 3]

    with fake_endpoint(script) as endpoint:
        done = await run(Scenario(endpoint.url, concurrency=1, requests=9, input="4", output="2"))
    measures = measure(done.records)
    assert measures.outcomes == {"ok": 3, "cancelled": 0, "error": 6}
    assert measures.errors == {"QUEUE_FULL": 3, "CONNECTION_LOST": 3}
    answered = [record for record in done.records if record.outcome is Outcome.OK]
    assert [(record.prompt_tokens, record.tokens, record.finish_reason) for record in answered] == [
        (4, 2, "length")
    ] * 3


async def test_no_server_is_said_before_anything_is_sent() -> None:
    with pytest.raises(GeneratorError, match=r"127\.0\.0\.1:9"):
        await run(Scenario("http://127.0.0.1:9", rate=1, requests=1))


async def test_clients_hang_up_where_the_plan_says() -> None:
    with fake_endpoint(lambda order, body: Script(0.01, (0.01,) * 9, words=words(body))) as endpoint:
        load = Scenario(endpoint.url, concurrency=2, requests=12, output="10", cancel_share=1.0, input="4")
        done = await run(load, keep_answers=True)
        await asyncio.sleep(0.2)
        hung_up = sum(served.hung_up or len(served.wrote_at) < 10 for served in endpoint.served)
    assert {record.outcome for record in done.records} == {Outcome.CANCELLED}
    assert max(record.tokens for record in done.records) < 10
    assert hung_up >= 8  # the others' last writes were already under way


async def test_slow_clients_stop_reading() -> None:
    with fake_endpoint(lambda order, body: Script(0.0, (0.06,) * 9, words=words(body))) as endpoint:
        load = Scenario(
            endpoint.url, concurrency=1, requests=2, output="10", slow_share=1.0, slow_delay_s=0.2, input="4"
        )
        done = await run(load)
    for record in done.records:
        assert record.outcome is Outcome.OK
        assert record.slow
        # Written every 60 ms, read every 200 ms: the tokens come in heaps.
        assert len({round(at_s, 1) for at_s in record.token_s}) <= 5
        assert len(record.token_s) == 10


async def test_a_timeout_is_an_error() -> None:
    with fake_endpoint(lambda order, body: Script(1.0)) as endpoint:
        done = await run(Scenario(endpoint.url, rate=50, requests=2, timeout_s=0.1, input="4", output="1"))
    assert measure(done.records).errors == {"TIMEOUT": 2}


async def test_verify_finds_the_one_answer_that_differs() -> None:
    def script(order: int, body: dict[str, object]) -> Script:
        answer = words(body)
        if order == 5:
            answer = (*answer[:3], "wrong ", *answer[4:])
        return Script(0.0, (0.0,) * (len(answer) - 1), words=answer)

    with fake_endpoint(script) as endpoint:
        load = Scenario(endpoint.url, concurrency=1, requests=12, distinct=8, input="4", output="6")
        done = await run(load, keep_answers=True)
        found = await verify(load, done.records, most_prompts=100)
        salts = {served.body.get("cache_salt") for served in endpoint.served}
    assert (found.prompts, found.answers) == (8, 12)
    (mismatch,) = found.mismatches
    assert mismatch.index == 5
    assert mismatch.under_load.startswith("wrong")
    assert not found.is_right
    assert salts == {None, "loadtest-verify"}


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A real gateway with two scripted workers."""
    model = write_byte_tokenizer(tmp_path / "tiny")
    gateway = Gateway(
        GatewayConfig(model=str(model), grpc_port=0, http_port=0, worker_wait_s=2.0, drain_timeout_s=1.0)
    )
    await gateway.start()
    workers = ScriptedCluster(gateway.generator.registry)
    await workers.add_prefill("p0")
    await workers.add_decode("d0")
    yield gateway
    await gateway.stop()
    await workers.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_baton_itself_by_both_protocols(gateway: Gateway, protocol: str) -> None:
    address = gateway.grpc_address if protocol == "grpc" else gateway.http_address
    load = Scenario(
        f"{protocol}://{address}",
        rate=60,
        requests=40,
        input="uniform:4:20",
        output="8",
        first_token=10,
        last_token=100,
        distinct=10,
        cancel_share=0.2,
    )
    done = await run(load, processes=2, keep_answers=True, registry=gateway.grpc_address)
    measures = measure(done.records)
    assert measures.errors == {}
    assert measures.outcomes["ok"] + measures.outcomes["cancelled"] == 40
    assert measures.outcomes["cancelled"] > 0
    assert {record.tokens for record in done.records if record.outcome is Outcome.OK} == {8}
    found = await verify(load, done.records, most_prompts=4)
    assert (found.prompts, found.is_right) == (4, True)
    assert await blocks_held(gateway.grpc_address) == {"d0": 0, "p0": 0}
    workers = await served_by(gateway.grpc_address)
    assert list(workers) == ["d0", "p0"]
    assert workers["p0"].startswith("prefill, ")
    assert " blocks of 16 tokens" in workers["d0"]
    if protocol == "grpc":
        check_hand_offs(load, done)


def check_hand_offs(load: Scenario, done: Run) -> None:
    """Over gRPC the tokens, the workers and the queue's time are known."""
    from loadtest.plan import Plan
    from loadtest.prompts import Prompts

    plan, prompts = Plan(load), Prompts(load)
    for record in done.records:
        if record.outcome is Outcome.OK:
            prompt = prompts.prompt(plan.request(record.index))
            assert isinstance(prompt, tuple)
            assert record.answer == expected(prompt, 8)
            assert (record.prefill_worker, record.decode_worker) == ("p0", "d0")
            assert record.queue_s is not None


async def test_a_token_that_the_model_has_not_is_refused_at_once(gateway: Gateway) -> None:
    with pytest.raises(GeneratorError, match="token ids must be below"):
        await run(Scenario(f"grpc://{gateway.grpc_address}", rate=1, requests=1))
