from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from services.common.errors import BatonError, ErrorReason
from services.common.keys import Limits
from services.gateway.access import ANYBODY, Caller
from services.gateway.admission import Admission
from services.gateway.config import LimitsConfig
from services.gateway.ticket import Ticket


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Demand:
    caller: Caller = ANYBODY
    priority: int = 0
    deadline: float = 1e9
    num_prompt_tokens: int = 10
    max_tokens: int = 10


@dataclass
class Bench:
    """An admission on a clock of its own."""

    clock: Clock = field(default_factory=Clock)

    def admission(self, **limits: float) -> Admission:
        return Admission(LimitsConfig(**limits), 256, self.clock)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def admit(admission: Admission, *demands: Demand) -> list[Ticket]:
    return admission.admit(demands or [Demand()])


def refusal(admission: Admission, *demands: Demand) -> BatonError:
    before = (admission.waiting, admission.in_flight)
    with pytest.raises(BatonError) as caught:
        admit(admission, *demands)
    assert (admission.waiting, admission.in_flight) == before
    return caught.value


async def started(*tickets: Ticket) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(ticket.start()) for ticket in tickets]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_waiting_requests_are_limited_and_running_ones_are_not(bench: Bench) -> None:
    admission = bench.admission(max_queue=2)
    first, second = admit(admission, Demand(), Demand())
    error = refusal(admission)
    assert error.reason is ErrorReason.QUEUE_FULL
    assert "the limit is 2" in error.message
    assert error.retry_after_s
    first.run()
    (third,) = admit(admission)
    assert (admission.waiting, admission.in_flight) == (2, 3)
    for ticket in (first, second, third):
        ticket.release()
        ticket.release()
    assert (admission.waiting, admission.in_flight) == (0, 0)


def test_in_flight_is_limited(bench: Bench) -> None:
    admission = bench.admission(max_in_flight=1)
    (ticket,) = admit(admission)
    ticket.run()
    assert "1 requests in flight; the limit is 1" in refusal(admission).message
    ticket.release()
    admit(admission)


def test_tokens_in_flight_count_the_expected_answer(bench: Bench) -> None:
    admission = bench.admission(max_tokens_in_flight=300)
    (ticket,) = admit(admission, Demand(num_prompt_tokens=10, max_tokens=5000))  # 10 + 256
    assert "266 tokens in flight" in refusal(admission, Demand(num_prompt_tokens=25)).message
    (other,) = admit(admission, Demand(num_prompt_tokens=24))
    ticket.release()
    other.release()
    admit(admission, Demand(num_prompt_tokens=280))


def test_several_are_admitted_together_or_not_at_all(bench: Bench) -> None:
    refusal(bench.admission(max_queue=3), *[Demand()] * 4)
    refusal(bench.admission(max_in_flight=3), *[Demand()] * 4)


def test_requests_a_minute_refill_with_time(bench: Bench) -> None:
    admission = bench.admission(requests_per_minute=60)
    for _ in range(60):
        admit(admission)[0].release()
    error = refusal(admission)
    assert error.reason is ErrorReason.RATE_LIMITED
    assert error.retry_after_s == pytest.approx(1.0)
    bench.clock.now += 1.0
    admit(admission)
    refusal(admission)


def test_tokens_a_minute_are_corrected_at_the_end(bench: Bench) -> None:
    admission = bench.admission(tokens_per_minute=600)
    (ticket,) = admit(admission, Demand(num_prompt_tokens=100, max_tokens=200))
    (rest,) = admit(admission, Demand(num_prompt_tokens=300, max_tokens=0))
    error = refusal(admission)
    assert error.retry_after_s == pytest.approx(2.0)  # 20 tokens at 10 a second
    ticket.release(output_tokens=20)
    rest.release()
    admit(admission)


def test_more_than_a_minutes_tokens_pass_when_nothing_was_used(bench: Bench) -> None:
    admission = bench.admission(tokens_per_minute=60)
    admit(admission, Demand(num_prompt_tokens=120, max_tokens=0))
    bench.clock.now += 60
    assert refusal(admission).retry_after_s == pytest.approx(20.0)


def test_limits_of_one_key_are_no_other_keys(bench: Bench) -> None:
    admission = bench.admission()
    one = Caller("k1", "a", limits=Limits(max_requests=1))
    two = Caller("k2", "a", limits=Limits(max_requests=1))
    (ticket,) = admit(admission, Demand(one))
    error = refusal(admission, Demand(one))
    assert error.reason is ErrorReason.RATE_LIMITED
    assert "this key has 1 requests in flight" in error.message
    admit(admission, Demand(two))
    ticket.release()
    admit(admission, Demand(one))


async def test_those_beyond_max_running_wait_by_urgency_then_arrival(bench: Bench) -> None:
    admission = bench.admission(max_running=1, priority_step_s=10)
    running, normal, later, urgent = admit(
        admission, Demand(), Demand(), Demand(priority=1), Demand(priority=-1)
    )
    tasks = await started(running, normal, later, urgent)
    order = []
    for _ in range(3):
        current = next(t for t in (running, normal, later, urgent) if t.has_place)
        current.run()
        current.release()
        order.append(next(t for t in (running, normal, later, urgent) if t.has_place))
    assert order == [urgent, normal, later]
    later.release()
    await asyncio.gather(*tasks)
    assert (admission.waiting, admission.in_flight, admission.started) == (0, 0, 0)


async def test_who_waited_long_enough_comes_before_more_urgent_newcomers(bench: Bench) -> None:
    admission = bench.admission(max_running=1, priority_step_s=1)
    running, patient = admit(admission, Demand(), Demand(priority=5))
    tasks = await started(running, patient)
    bench.clock.now += 5.5
    (newcomer,) = admit(admission, Demand(priority=0))
    tasks += await started(newcomer)
    running.release()
    assert patient.has_place
    assert not newcomer.has_place
    patient.release()
    newcomer.release()
    await asyncio.gather(*tasks)


async def test_a_cancelled_wait_leaves_the_queue(bench: Bench) -> None:
    admission = bench.admission(max_running=1)
    running, gone, next_one = admit(admission, Demand(), Demand(), Demand())
    tasks = await started(running, gone, next_one)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    gone.release()
    running.release()
    assert next_one.has_place
    next_one.release()
    assert (admission.waiting, admission.in_flight, admission.started) == (0, 0, 0)
    await asyncio.gather(*tasks, return_exceptions=True)


async def saturate(bench: Bench, admission: Admission, exits_per_s: float) -> list[Ticket]:
    """Let requests leave the queue at a steady pace, and leave ten in it."""
    waiting = admit(admission, *[Demand()] * 20)
    for ticket in waiting[:10]:
        bench.clock.now += 1 / exits_per_s
        ticket.run()
    return waiting[10:]


async def test_a_request_that_would_wait_too_long_is_refused_at_once(bench: Bench) -> None:
    admission = bench.admission(max_queue_s=4)
    waiting = await saturate(bench, admission, exits_per_s=2)
    error = refusal(admission)  # ten are before it, at two a second
    assert error.reason is ErrorReason.QUEUE_FULL
    assert "4 s are allowed" in error.message
    assert error.retry_after_s
    assert 1 <= error.retry_after_s <= 3
    for ticket in waiting[:5]:
        bench.clock.now += 0.5
        ticket.run()
    admit(admission)


def stream(bench: Bench, admission: Admission, gap_s: float) -> Ticket:
    """Let a request get tokens, so long apart."""
    (ticket,) = admit(admission)
    ticket.run()
    for _ in range(30):
        bench.clock.now += gap_s
        ticket.tokens(1, bench.clock.now)
    return ticket


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(bench: Bench) -> None:
    admission = bench.admission()
    stream(bench, admission, gap_s=0.08)  # 100 tokens take 8 s
    await saturate(bench, admission, exits_per_s=2)  # ten wait, for 5 s
    now = bench.clock.now
    assert "deadline cannot be met" in refusal(admission, Demand(deadline=now + 18, max_tokens=100)).message
    admit(admission, Demand(deadline=now + 18, max_tokens=10))
    admit(admission, Demand(deadline=now + 25, max_tokens=100))


def test_a_deadline_counts_without_a_queue_too(bench: Bench) -> None:
    admission = bench.admission()
    ticket = stream(bench, admission, gap_s=0.5)
    hasty = Demand(deadline=bench.clock.now + 11, max_tokens=16)
    assert "deadline cannot be met" in refusal(admission, hasty).message
    admit(admission, Demand(deadline=bench.clock.now + 13, max_tokens=16))
    ticket.release(10)  # the last that had tokens: how far apart they came says nothing any more
    admit(admission, Demand(deadline=bench.clock.now + 11, max_tokens=16))


def test_one_long_gap_and_a_slow_hand_off_say_little(bench: Bench) -> None:
    admission = bench.admission()
    (ticket,) = admit(admission)
    ticket.run()
    for gap_s in (0.0, 3.0, *[0.1] * 20, 3.0, *[0.1] * 20):
        bench.clock.now += gap_s
        ticket.tokens(1, bench.clock.now)
        admit(admission, Demand(deadline=bench.clock.now + 3, max_tokens=16))


def test_answers_are_expected_to_become_as_long_as_they_do(bench: Bench) -> None:
    admission = bench.admission()
    for _ in range(2):
        ticket = stream(bench, admission, gap_s=0.1)
        stream(bench, admission, gap_s=0.1)
        ticket.release(output_tokens=20)
    admit(admission, Demand(deadline=bench.clock.now + 4, max_tokens=200))


def test_prompts_that_wait_for_workers_count(bench: Bench) -> None:
    waits = 1.0
    admission = Admission(LimitsConfig(max_queue_s=2), 256, bench.clock, backlog_s=lambda: waits)
    admit(admission)
    admit(admission)
    waits = 2.5
    error = refusal(admission)
    assert "this one would for 2.5 s; 2 s are allowed" in error.message
    assert error.retry_after_s == pytest.approx(1.0)


def test_who_comes_alone_is_let_in_whatever_was_before(bench: Bench) -> None:
    admission = Admission(LimitsConfig(max_queue_s=2), 256, bench.clock, backlog_s=lambda: 60.0)
    (ticket,) = admit(admission)
    refusal(admission)
    ticket.release()
    admit(admission)


async def test_whoever_waits_for_max_queue_s_is_told_to_come_again(bench: Bench) -> None:
    admission = bench.admission(max_running=1, max_queue_s=0.02)
    running, waits = admit(admission, Demand(), Demand())
    await started(running)
    with pytest.raises(BatonError, match=r"no room came within 0\.02 s") as caught:
        await waits.start()
    assert caught.value.reason is ErrorReason.QUEUE_FULL
    waits.release()
    (soon,) = admit(admission, Demand(deadline=bench.clock.now + 0.01))
    with pytest.raises(BatonError) as caught:
        await soon.start()
    assert caught.value.reason is ErrorReason.DEADLINE_EXCEEDED
    soon.release()
    running.release()
    assert (admission.waiting, admission.in_flight, admission.started) == (0, 0, 0)


def test_draining_refuses(bench: Bench) -> None:
    admission = bench.admission()
    admission.is_draining = True
    assert refusal(admission).reason is ErrorReason.DRAINING
