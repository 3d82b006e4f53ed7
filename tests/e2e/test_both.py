"""Two co-located workers: answers are Transformers', and cancels and a kill leave nothing behind."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from baton.cli.status import status_view
from baton.client import Client
from baton.cluster import LocalCluster
from baton.generation import Answer
from baton.v1 import registry_pb2
from tests.e2e.test_cancel import start_and_cancel
from tests.support.golden import GreedyReference, varied_prompts
from tests.support.traffic import complete_all, hold_nothing, loads, metric, wait_for

OPTIONS = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 24}


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalCluster]:
    """Two co-located workers."""
    with LocalCluster(prefill=0, decode=0, both=2) as cluster:
        yield cluster


def test_equals_transformers_and_nothing_moves(
    pair: LocalCluster, reference: GreedyReference, model_dir: Path
) -> None:
    prompts = varied_prompts(model_dir)[::3]
    answers = asyncio.run(complete_all(pair.gateway_address, prompts, at_once=16, **OPTIONS))
    workers = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert isinstance(answer, Answer), answer
        if note := reference.check(prompt, answer.token_ids):
            print(note)
        handoff = answer.finished.handoff
        assert handoff.prefill_worker == handoff.decode_worker
        assert (handoff.transport, handoff.bytes) == ("in_place", 0)
        workers.add(handoff.decode_worker)
    assert workers == {"both-0", "both-1"}
    with Client(pair.gateway_address) as client:
        wait_for("blocks given back", lambda: hold_nothing(client, pair.workers), 2.0)
        assert sum(metric(client, "baton_handoff_bytes_total").values()) == 0
        wait_for("a beat", lambda: all(load.transports for load in loads(client).values()), 5.0)
        status = client.workers()
        assert {worker.info.role for worker in status.workers} == {registry_pb2.WORKER_ROLE_BOTH}
        screen = io.StringIO()
        Console(file=screen, width=160).print(status_view(status, client.address))
        assert screen.getvalue().count(" both ") == screen.getvalue().count("in_place") == 2


def test_a_decode_worker_computes_short_prompts_itself(reference: GreedyReference, model_dir: Path) -> None:
    corpus = max(varied_prompts(model_dir), key=len)
    short, long = corpus[:40], corpus[100:300]
    with (
        LocalCluster(gateway_args=["--local-prefill-tokens", "64"]) as cluster,
        Client(cluster.gateway_address) as client,
    ):
        workers = []
        # The last one is long, and all but 41 of its tokens are cached.
        for prompt in (short, long, long + short):
            answer = client.complete(token_ids=prompt, **OPTIONS)
            reference.check(prompt, answer.token_ids)
            workers.append(answer.finished.handoff.prefill_worker)
    assert workers == ["decode-0", "prefill-0", "decode-0"]


def test_cancels_free_everything(pair: LocalCluster, model_dir: Path) -> None:
    rng = random.Random(5)
    corpus = max(varied_prompts(model_dir), key=len)
    with Client(pair.gateway_address) as client:
        wait_for("an idle start", lambda: hold_nothing(client, pair.workers), 3.0)
        for attempt in range(8):
            prompt = corpus[rng.randrange(400) :][: rng.randrange(400, 1000)]
            delay_s = rng.uniform(0.0, 0.3) if attempt % 2 else rng.uniform(0.4, 2.0)
            asyncio.run(start_and_cancel(pair.gateway_address, prompt, delay_s))
            wait_for("blocks given back", lambda: hold_nothing(client, pair.workers), 3.0)


def test_kill_one_of_two(pair: LocalCluster, model_dir: Path) -> None:
    corpus = max(varied_prompts(model_dir), key=len)
    prompts = [corpus[at : at + 200 + 37 * at] for at in range(12)]
    options = OPTIONS | {"max_tokens": 64}
    undisturbed = asyncio.run(complete_all(pair.gateway_address, prompts, **options))

    async def run() -> list[object]:
        salted = options | {"cache_salt": "again"}
        task = asyncio.create_task(complete_all(pair.gateway_address, prompts, **salted))
        victim = pair.workers[0]
        while (await asyncio.to_thread(loads, client))[victim.name].running == 0:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        pair.kill(victim)
        return list(await task)

    with Client(pair.gateway_address) as client:
        disturbed = asyncio.run(run())
        survivor = pair.workers[1]
        wait_for("the survivor's blocks given back", lambda: hold_nothing(client, [survivor]), 15.0)
    retries = 0
    for calm, rough in zip(undisturbed, disturbed, strict=True):
        assert isinstance(calm, Answer), calm
        assert isinstance(rough, Answer), rough
        assert rough.token_ids == calm.token_ids
        retries += rough.finished.handoff.retries
    assert retries > 0, "the kill hit nobody"
