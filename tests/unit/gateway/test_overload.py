"""Admission under more load than can be served, beside a made-up cluster in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from services.common.errors import BatonError
from services.gateway.access import ANYBODY, Caller
from services.gateway.admission import Admission
from services.gateway.config import LimitsConfig
from tests.support.virtual_time import run_in_virtual_time

# Of a small cluster; it serves 9.6 requests a second with twelve at once.
PROMPT_S, STEP_S, ROW_S = 0.05, 0.022, 0.005
NUM_OUT = 16
CAPACITY = 9.6
TARGET_TTFT_S, TARGET_TPOT_S = 1.5, 0.15
PATIENCE_S = TARGET_TTFT_S + 2 * NUM_OUT * TARGET_TPOT_S
SECONDS = 40.0
LIMITS = LimitsConfig(max_running=12, max_queue_s=0.8)
LOADS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Demand:
    deadline: float
    caller: Caller = ANYBODY
    priority: int = 0
    num_prompt_tokens: int = 32
    max_tokens: int = NUM_OUT


@dataclass(frozen=True)
class End:
    """Of one answered request, seconds; `at` is since the start."""

    at: float
    ttft_s: float
    tpot_s: float

    @property
    def is_good(self) -> bool:
        return self.ttft_s <= TARGET_TTFT_S and self.tpot_s <= TARGET_TPOT_S


class Workers:
    """One that computes prompts in turn, and one that decodes all rows step by step, at a changing speed."""

    def __init__(self, speed: Callable[[float], float]) -> None:
        self._speed = speed
        self._prefill = asyncio.Lock()
        self._rows: set[Row] = set()
        self._is_needed = asyncio.Event()
        self._task = asyncio.create_task(self._decode())
        self.num_prompts = 0

    async def prefill(self) -> None:
        self.num_prompts += 1
        try:
            async with self._prefill:
                await self._compute(PROMPT_S)
        finally:
            self.num_prompts -= 1

    async def decode(self, on_token: Callable[[], None]) -> None:
        row = Row(on_token)
        self._rows.add(row)
        self._is_needed.set()
        try:
            await row.done.wait()
        finally:
            self._rows.discard(row)

    def backlog_s(self) -> float:
        return self.num_prompts * PROMPT_S

    def close(self) -> None:
        self._task.cancel()

    async def _decode(self) -> None:
        while await self._is_needed.wait():
            rows = list(self._rows)
            await self._compute(STEP_S + ROW_S * len(rows))
            for row in rows:
                row.step()
            self._rows.difference_update([row for row in rows if row.done.is_set()])
            if not self._rows:
                self._is_needed.clear()

    async def _compute(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._speed(now()))


class Row:
    """A request that decodes."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._left = NUM_OUT - 1
        self.done = asyncio.Event()

    def step(self) -> None:
        self._left -= 1
        self._on_token()
        if not self._left:
            self.done.set()


def now() -> float:
    return asyncio.get_running_loop().time()


def noise(sigma: float) -> Callable[[float], float]:
    """Return a speed around 1 that wanders from quarter to quarter of a second."""
    draw = random.Random(7)
    level, speeds = 0.0, []
    for _ in range(int(4 * SECONDS) + 40):
        level = 0.8 * level + 0.6 * draw.gauss(0, 1)
        speeds.append(math.exp(sigma * level))
    return lambda at: speeds[min(int(4 * at), len(speeds) - 1)]


async def request(admission: Admission, workers: Workers, ends: list[End]) -> None:
    """One client: it gives up after PATIENCE_S, which the gateway knows."""
    began = now()
    try:
        (ticket,) = admission.admit([Demand(began + PATIENCE_S)])
    except BatonError:
        return
    count = 0

    def on_token() -> None:
        nonlocal count
        count += 1
        ticket.tokens(1, now())

    try:
        async with asyncio.timeout(PATIENCE_S):
            await ticket.start()
            await asyncio.sleep(0.002)
            ticket.run()
            await workers.prefill()
            on_token()
            first = now()
            await workers.decode(on_token)
        ends.append(End(now(), first - began, (now() - first) / (NUM_OUT - 1)))
    except (BatonError, TimeoutError):
        pass
    finally:
        ticket.release(count, is_whole=count == NUM_OUT)


def serve(load: float, speed: Callable[[float], float], limits: LimitsConfig = LIMITS) -> list[End]:
    """Offer `load` times the capacity for SECONDS; what was answered."""

    async def run() -> list[End]:
        workers = Workers(speed)
        admission = Admission(limits, 256, now, backlog_s=workers.backlog_s)
        draw, ends = random.Random(3), list[End]()
        clients = []
        while now() < SECONDS:
            await asyncio.sleep(draw.expovariate(load * CAPACITY))
            clients.append(asyncio.create_task(request(admission, workers, ends)))
        await asyncio.gather(*clients)
        workers.close()
        assert (admission.waiting, admission.started, admission.in_flight) == (0, 0, 0)
        return ends

    return run_in_virtual_time(run())


def per_second(ends: list[End], begin: float = 0.25 * SECONDS, end: float = SECONDS) -> float:
    return sum(begin <= one.at < end for one in ends) / (end - begin)


def good(ends: list[End]) -> list[End]:
    return [one for one in ends if one.is_good]


def check_steady(rates: list[float]) -> None:
    """Check that the rate at each of LOADS is the highest one, or nearly what was offered."""
    for load, rate in zip(LOADS, rates, strict=True):
        assert rate >= 0.9 * min(load * CAPACITY, max(rates)), rates


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_goodput_stays_at_its_peak_however_high_the_load(sigma: float) -> None:
    rates = [per_second(good(serve(load, noise(sigma)))) for load in LOADS]
    check_steady(rates)
    assert max(rates) >= 0.9 * CAPACITY


def test_a_stall_is_over_when_it_is_over() -> None:
    def speed(at: float) -> float:
        return 0.02 if 12 <= at < 15 else 1.0

    for load in (1.0, 1.5, 3.0):
        ends = good(serve(load, speed))
        assert per_second(ends, 12.5, 15) < 0.5 * CAPACITY
        assert per_second(ends, 18, 24) >= 0.9 * per_second(ends, 24), load


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_without_limits_as_much_is_answered_before_its_deadline(sigma: float) -> None:
    check_steady([per_second(serve(load, noise(sigma), LimitsConfig())) for load in LOADS])
