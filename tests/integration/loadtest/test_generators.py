"""Generator processes: ended early, lost, or the bottleneck."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from pathlib import Path

import pytest

from loadtest.errors import GeneratorError
from loadtest.health import warnings
from loadtest.record import Record
from loadtest.run import Progress, run
from loadtest.scenario import Scenario
from tests.support.fake_endpoint import Script, fake_endpoint


def children() -> set[int]:
    """The processes that this one started and that live; other tests' shared cluster may be among them."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


async def test_an_interrupt_ends_the_run_with_what_there_is() -> None:
    interrupted = False

    def interrupt(which: int, progress: Progress) -> None:
        nonlocal interrupted
        if progress.ok and not interrupted:
            interrupted = True
            os.kill(os.getpid(), signal.SIGINT)

    before = children()
    with fake_endpoint(lambda order, body: Script(0.01 if order % 2 else 30.0)) as endpoint:
        load = Scenario(endpoint.url, rate=20, duration_s=60, input="4", output="1")
        async with asyncio.timeout(20):
            done = await run(load, processes=2, on_progress=interrupt)
    reasons = {record.reason for record in done.records}
    assert reasons == {"", "INTERRUPTED"}
    assert len(done.healths) == 2
    assert done.wall_s < 10
    assert children() <= before


async def test_a_generator_that_dies_is_an_error() -> None:
    before = children()

    def kill(which: int, progress: Progress) -> None:
        for pid in sorted(children() - before)[:1]:
            os.kill(pid, signal.SIGKILL)

    with fake_endpoint(lambda order, body: Script(0.01)) as endpoint:
        load = Scenario(endpoint.url, rate=20, duration_s=3, input="4", output="1")
        with pytest.raises(GeneratorError, match="died in the run"):
            await run(load, processes=2, on_progress=kill)
    assert children() <= before


async def test_a_generator_without_the_time_to_send_says_so() -> None:
    """Far more than one Python process can send: the run must not pass for the server's."""
    with fake_endpoint(lambda order, body: Script(0.0)) as endpoint:
        load = Scenario(endpoint.url, rate=20_000, requests=3000, input="400", output="1", timeout_s=30)
        done = await run(load)
    assert len(warnings(done.healths)) == 1


async def test_turns_wait_for_the_answer_and_think() -> None:
    def script(order: int, body: dict[str, object]) -> Script:
        return Script(0.05, (0.01,) * 3, status=503 if len(body["prompt"]) > 60 else 200)  # type: ignore[arg-type]

    with fake_endpoint(script) as endpoint:
        load = Scenario(
            endpoint.url, rate=20, requests=4, input="10", output="4", turns=9, think_s=0.1, stop_at_eos=True
        )
        done = await run(load, processes=2)
    by_session: dict[int, list[Record]] = {}
    for record in done.records:
        by_session.setdefault(record.index // 9, []).append(record)
    assert len(by_session) == 4
    for turns in by_session.values():
        # 10, 24, 38, 52, 66 tokens: the fifth is refused, and ends the session.
        assert [record.input_tokens for record in turns] == [10, 24, 38, 52, 66]
        assert [record.outcome.value for record in turns] == ["ok"] * 4 + ["error"]
        for before, after in itertools.pairwise(turns):
            assert 0.09 <= after.planned_s - before.end_s < 2
