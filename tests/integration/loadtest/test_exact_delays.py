"""The harness against an endpoint whose every delay is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from loadtest.measures import measure
from loadtest.percentiles import LEVELS, Distribution
from loadtest.run import Run, run
from loadtest.scenario import Scenario
from tests.support.fake_endpoint import FakeEndpoint, Script, fake_endpoint

RATE = 40.0
REQUESTS = 160
TOKENS = 8


def scripted(order: int, body: dict[str, object]) -> Script:
    """A TTFT with a long tail, and gaps of 10 to 40 ms."""
    random = np.random.default_rng(order)
    ttft_s = 0.06 * float(np.exp(0.5 * random.standard_normal()))
    return Script(ttft_s, tuple(random.uniform(0.01, 0.04, TOKENS - 1).tolist()))


def scenario(url: str, **changes: float | str) -> Scenario:
    values: dict[str, float | str] = {
        "rate": RATE,
        "arrivals": "constant",
        "requests": REQUESTS,
        "input": "fixed:16",
        "output": f"fixed:{TOKENS}",
        **changes,
    }
    return Scenario(url, **values)  # type: ignore[arg-type]


def close(measured: Distribution, truth_s: list[float], label: str) -> None:
    """Each percentile within 2 % or 1 ms, whichever is more."""
    ordered = np.sort(truth_s)
    for level in LEVELS:
        true = float(ordered[int(np.ceil(len(ordered) * level / 100)) - 1])
        value = measured.at(level).value
        assert abs(value - true) <= max(0.02 * true, 0.001), f"{label} p{level}: {value} for {true}"


def truth(endpoint: FakeEndpoint, done: Run) -> tuple[list[float], list[float], list[float]]:
    """What the endpoint did: TTFTs from the planned times, gaps, TPOTs."""
    clock_zero = done.started_unix_s - (time.time() - time.monotonic())
    ttfts, gaps, tpots = [], [], []
    by_prompt = {tuple(served.body["prompt"]): served for served in endpoint.served}  # type: ignore[arg-type]
    assert len(by_prompt) == len(done.records)
    for served, record in zip(endpoint.served, done.records, strict=True):  # constant arrivals keep the order
        ttfts.append(served.wrote_at[0] - clock_zero - record.planned_s)
        gaps.extend(np.diff(served.wrote_at).tolist())
        tpots.append((served.wrote_at[-1] - served.wrote_at[0]) / (TOKENS - 1))
    return ttfts, gaps, tpots


@contextmanager
def quiet_machine() -> Iterator[None]:
    """Skip what fails in the block if, meanwhile, a sleeping thread was itself woken more than 1 ms late.

    A machine that keeps a thread waiting for a core cannot show a millisecond, whoever measures.
    """
    late_s: list[float] = []
    done = threading.Event()

    def sleep() -> None:
        while not done.is_set():
            before = time.monotonic()
            time.sleep(0.002)
            late_s.append(time.monotonic() - before - 0.002)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        yield
    except AssertionError as error:
        worst = float(np.percentile(late_s, 99))
        if worst > 0.001:
            pytest.skip(f"the machine is too busy: timers {1000 * worst:.1f} ms late (p99); {error}"[:200])
        raise
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("processes", [1, 2])
async def test_percentiles_are_those_of_the_script(processes: int) -> None:
    with quiet_machine(), fake_endpoint(scripted) as endpoint:
        await check_percentiles(endpoint, processes)


async def check_percentiles(endpoint: FakeEndpoint, processes: int) -> None:
    done = await run(scenario(endpoint.url), processes=processes)
    measures = measure(done.records)
    assert measures.outcomes == {"ok": REQUESTS, "cancelled": 0, "error": 0}
    ttfts, gaps, tpots = truth(endpoint, done)
    close(measures.ttft, ttfts, "TTFT")
    close(measures.itl, gaps, "ITL")
    close(measures.tpot, tpots, "TPOT")
    # And the endpoint kept to its script, so these are the script's figures too.
    wanted = [scripted(order, {}) for order in range(REQUESTS)]
    assert measures.ttft.at(50).value == pytest.approx(
        np.percentile([script.ttft_s for script in wanted], 50), rel=0.05, abs=0.003
    )
    assert measures.itl.mean == pytest.approx(
        np.mean([script.gaps_s for script in wanted]), rel=0.02, abs=0.001
    )
    assert measures.request_rate == pytest.approx(REQUESTS / measures.span_s)
    assert len(done.healths) == processes


async def test_a_stalled_server_shows_its_stall() -> None:
    """No coordinated omission: requests due in a stall of 1 s waited, on average, half of it."""

    def script(order: int, body: dict[str, object]) -> Script:
        if order == RATE:  # one second in
            now = time.monotonic()
            endpoint.stall = (now, now + 1.0)
        return Script(0.02)

    with quiet_machine(), fake_endpoint(script) as endpoint:
        done = await run(scenario(endpoint.url, output="fixed:1", requests=120))
        check_stall(done)


def check_stall(done: Run) -> None:
    waits = [record.ttft_s or 0.0 for record in done.records]
    stalled = waits[int(RATE) : int(2 * RATE) - 2]
    assert max(waits) == pytest.approx(1.0, abs=0.05)
    assert np.mean(stalled) == pytest.approx(0.52, abs=0.05)
    assert np.diff(stalled) == pytest.approx(-1 / RATE, abs=0.02)
    sent = [record.sent_s for record in done.records]
    planned = [record.planned_s for record in done.records]
    assert np.diff(planned) == pytest.approx(1 / RATE)
    assert np.percentile(np.subtract(sent, planned), 95) < 0.005


async def test_closed_loop_keeps_its_concurrency() -> None:
    with quiet_machine(), fake_endpoint(lambda order, body: Script(0.05, (0.01,))) as endpoint:
        load = scenario(endpoint.url, rate=0.0, concurrency=3, requests=30)
        done = await run(load, processes=2)
        check_concurrency(done)


def check_concurrency(done: Run) -> None:
    moments = [(record.sent_s, 1) for record in done.records] + [(r.end_s, -1) for r in done.records]
    running = np.cumsum([change for _, change in sorted(moments)])
    assert running.max() == 3
    assert len(done.records) == 30
