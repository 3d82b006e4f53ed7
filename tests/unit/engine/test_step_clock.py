"""Chunks and step times that the scheduler notes."""

from __future__ import annotations

import pytest

from engine.scheduler import step_clock
from engine.scheduler.step_clock import StepClock
from engine.stats import STEP_BUCKETS_S
from engine.step import ScheduledRow, SchedulerOutput
from tests.support.engine_builders import create_request


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(step_clock.time, "monotonic", lambda: time[0])
    return time


def test_chunks_have_the_times_of_their_steps(now: list[float]) -> None:
    clock = StepClock()
    request = create_request(10)
    for step, (start, count, seconds) in enumerate([(0, 8, 0.02), (8, 2, 0.004)]):
        row = ScheduledRow(request, start, count, sample=start > 0)
        clock.begin(step, [row])
        now[0] += seconds
        clock.end(SchedulerOutput(step, (row,)))
        now[0] += 1.0
    assert request.first_run_s == 100.0
    assert [(c.start, c.num_tokens) for c in request.chunks] == [(0, 8), (8, 2)]
    assert [c.ended_s - c.begun_s for c in request.chunks] == pytest.approx([0.02, 0.004])
    prefill, decode = clock.times()
    assert sum(prefill.counts) == 2
    assert prefill.sum_s == pytest.approx(0.024)
    assert prefill.counts[sum(b < 0.02 - 1e-9 for b in STEP_BUCKETS_S)] == 1
    assert sum(decode.counts) == 0


def test_a_step_that_was_scheduled_ahead_begins_when_the_one_before_ends(now: list[float]) -> None:
    clock = StepClock()
    request = create_request(4)
    rows = [ScheduledRow(request, 4 + i, 1, sample=True) for i in range(2)]
    clock.begin(1, rows[:1])
    now[0] += 0.001
    clock.begin(2, rows[1:])
    now[0] += 0.009
    clock.end(SchedulerOutput(1, (rows[0],)))
    now[0] += 0.010
    clock.end(SchedulerOutput(2, (rows[1],)))
    _, decode = clock.times()
    assert decode.sum_s == pytest.approx(0.020)
    assert request.chunks == []
