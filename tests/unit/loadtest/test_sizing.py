"""The simulation against plain arithmetic and against one that takes every step."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import UsageError
from loadtest.measures import Targets
from loadtest.sizing.fit import fit_costs
from loadtest.sizing.load import denser, lengthen, mean_rate, superpose
from loadtest.sizing.profile import Profile
from loadtest.sizing.recommend import candidates, judge, recommend
from loadtest.sizing.simulation import simulate
from loadtest.traces import TraceRow

PROFILE = Profile(
    prefill_step_s=0.002,
    prefill_token_s=0.0001,
    prefill_attention_s=1e-8,
    decode_step_s=0.005,
    decode_row_s=0.0002,
    decode_context_s=1e-7,
    handoff_s=0.001,
    handoff_token_s=1e-6,
    overhead_s=0.003,
    max_step_tokens=256,
    prefill_tokens=100_000,
    decode_tokens=100_000,
)


def poisson(rate: float, count: int, seed: int = 1) -> list[TraceRow]:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate, count))
    lengths = random.integers(10, 2000, count)
    outputs = random.integers(1, 200, count)
    return [TraceRow(float(at), int(n), int(m)) for at, n, m in zip(times, lengths, outputs, strict=True)]


def test_one_request_alone_is_plain_arithmetic() -> None:
    (job,) = simulate([TraceRow(1.0, 600, 11)], PROFILE, 1, 1).jobs
    first = 1.0 + PROFILE.prompt_s(600)
    assert PROFILE.prompt_s(600) == pytest.approx(3 * 0.002 + 600 * 0.0001 + 600 * 300 * 1e-8)
    assert job.ttft_s == pytest.approx(first - 1.0 + 0.003)
    steps = sum(0.005 + 0.0002 + 1e-7 * (601 + i) for i in range(10))
    assert job.end_s == pytest.approx(first + 0.001 + 600e-6 + steps + 0.003)
    assert job.tpot_s == pytest.approx((0.0016 + steps) / 10)


def test_a_reservation_waits_for_the_end_of_the_step_under_way() -> None:
    """The second request comes in the middle of a step of 0.1 s that the first one runs."""
    slow = replace(PROFILE, decode_step_s=0.1, decode_row_s=0.0, decode_context_s=0.0)
    first, second = simulate([TraceRow(0.0, 100, 50), TraceRow(1.0, 100, 2)], slow, 1, 1).jobs
    begun = PROFILE.prompt_s(100) + 0.001 + 100e-6
    assert first.end_s == pytest.approx(begun + 49 * 0.1 + 0.003)
    granted = begun + 0.1 * math.ceil((1.0 - begun) / 0.1)
    assert second.first_s == pytest.approx(granted + PROFILE.prompt_s(100) + 0.003)


def test_workers_of_one_machine_slow_each_other_down() -> None:
    """Steps of 0.01 s are 1.5 times as long while the other request's prompt of one step is computed."""
    costs = {
        "prefill_step_s": 0.1,
        "prefill_token_s": 0.0,
        "prefill_attention_s": 0.0,
        "handoff_token_s": 0.0,
    }
    shared = replace(
        PROFILE, **costs, decode_row_s=0.0, decode_context_s=0.0, decode_step_s=0.01, max_step_tokens=1000
    )
    shared = replace(shared, prefill_slowdown=2.0, decode_slowdown=1.5)
    rows = [TraceRow(0.0, 100, 101), TraceRow(0.5005, 100, 1)]
    first, second = simulate(rows, shared, 1, 1).jobs
    # The first prompt has the machine for itself; its steps begin at 0.101.
    assert first.ttft_s == pytest.approx(0.1 + 0.003)
    # The second one needs no room, so it begins at once, and takes twice as long.
    assert second.ttft_s == pytest.approx(0.2 + 0.003)
    # Of 100 steps the one under way at 0.5005 ends at 0.501 as it began; from there on they take 0.015 each,
    # until the one that begins before 0.7005: 14 of them.
    assert first.end_s == pytest.approx(0.101 + 100 * 0.01 + 14 * 0.005 + 0.003)
    # Two machines: of two such prompts only the one beside the stream is slowed down.
    apart = simulate([*rows, TraceRow(0.6, 100, 1)], shared, 2, 2).jobs
    assert [job.ttft_s for job in apart] == pytest.approx([0.103, 0.203, 0.103])
    assert apart[0].end_s == first.end_s


def test_one_token_needs_no_decode() -> None:
    (job,) = simulate([TraceRow(0.0, 100, 1)], PROFILE, 1, 1).jobs
    assert job.end_s == job.first_s
    assert job.tpot_s == 0.0


def step_by_step(arrivals: list[tuple[float, int, int]]) -> list[float]:
    """A decode worker that takes each step: (joins at, context, steps) -> end times."""
    waiting = sorted((at, i, context, steps) for i, (at, context, steps) in enumerate(arrivals))
    batch: list[list[float]] = []
    ends = [0.0] * len(arrivals)
    now = 0.0
    while waiting or batch:
        if not batch:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now + 1e-12:
            _, i, context, steps = waiting.pop(0)
            batch.append([i, context, steps])
        now += 0.005 + 0.0002 * len(batch) + 1e-7 * sum(one[1] for one in batch)
        for one in batch:
            one[1] += 1
            one[2] -= 1
            if one[2] == 0:
                ends[int(one[0])] = now
        batch = [one for one in batch if one[2] > 0]
    return ends


def test_jumping_from_change_to_change_equals_taking_every_step() -> None:
    rows = [TraceRow(row.at_s, row.input_tokens, row.output_tokens + 1) for row in poisson(8.0, 150)]
    jobs = simulate(rows, PROFILE, 3, 1).jobs
    joins = [
        (job.first_s - 0.003 + 0.001 + 1e-6 * job.input_tokens, job.input_tokens + 1, job.output_tokens - 1)
        for job in jobs
        if job.first_s is not None
    ]
    ends = step_by_step(joins)
    assert [job.end_s for job in jobs] == pytest.approx([end + 0.003 for end in ends], abs=1e-6)


def test_a_full_pool_makes_requests_wait_but_all_end() -> None:
    rows = [TraceRow(0.0, 900, 50) for _ in range(20)]
    small = Profile(**{**{f: getattr(PROFILE, f) for f in PROFILE.__slots__}, "decode_tokens": 2000})
    wide, tight = simulate(rows, PROFILE, 4, 1), simulate(rows, small, 4, 1)
    assert all(job.end_s is not None for job in tight.jobs)
    last = [max(job.end_s or 0.0 for job in one.jobs) for one in (wide, tight)]
    assert last[1] > 2 * last[0]


def test_shared_prefixes_are_computed_once_where_they_are_cached() -> None:
    rows = [TraceRow(10.0 * i, 1024, 2, (1, 2), 512) for i in range(3)]
    jobs = simulate(rows, PROFILE, 2, 1).jobs
    assert [job.cached_tokens for job in jobs] == [0, 1023, 1023]


def test_load_can_be_made_denser_and_superposed() -> None:
    rows = poisson(5.0, 500)
    assert mean_rate(denser(rows, 3.0)) == pytest.approx(3 * mean_rate(rows))
    many = superpose(rows, 10)
    assert len(many) == 5000
    assert mean_rate(many) == pytest.approx(10 * mean_rate(rows), rel=0.05)
    assert [row.at_s for row in many] == sorted(row.at_s for row in many)


def test_the_recommended_split_beats_its_neighbours() -> None:
    rows = poisson(5.0, 400)
    targets = Targets(0.5, 0.02)
    splits = recommend(rows, PROFILE, targets, 5)
    assert {split.prefill for split in splits} == {1, 2, 3, 4}
    assert splits[0].max_rate > 1.3 * splits[-1].max_rate
    best = simulate(
        denser(rows, 0.99 * splits[0].max_rate / mean_rate(rows)),
        PROFILE,
        splits[0].prefill,
        splits[0].decode,
    )
    assert best.attainment(targets) >= 0.88
    over = simulate(
        denser(rows, 1.2 * splits[0].max_rate / mean_rate(rows)), PROFILE, splits[0].prefill, splits[0].decode
    )
    assert over.attainment(targets) < 0.9


def test_no_rate_is_recommended_that_the_workers_cannot_keep_up() -> None:
    """Forty requests sent at once would all be answered within these targets, whatever their rate."""
    rows = poisson(5.0, 40)
    split = judge(rows, PROFILE, Targets(5.0, 1.0), 2, 2, 0.9)
    capacity = 2 / np.mean([PROFILE.prompt_s(row.input_tokens) for row in rows])
    assert 0.7 * capacity < split.max_rate < 1.1 * capacity


def test_a_trace_that_is_repeated_keeps_its_rate_and_shares_nothing() -> None:
    rows = [TraceRow(2.0, 100, 1, (0, 1), 64), TraceRow(4.0, 100, 1, (0, 2), 64)]
    twice = lengthen(rows, 2)
    assert [row.at_s for row in twice] == [2.0, 4.0, 6.0, 8.0]
    assert mean_rate(twice) == mean_rate(rows)
    assert {*twice[2].hash_ids, *twice[3].hash_ids} == {3, 4, 5}


def test_many_workers_are_tried_around_the_ratio_of_work() -> None:
    tried = candidates(poisson(5.0, 100), PROFILE, 1000)
    assert len(tried) <= 7
    assert all(1 <= count < 1000 for count in tried)


def test_a_thousand_workers_are_simulated_in_seconds() -> None:
    rows = superpose(poisson(20.0, 1000), 20)
    begun = time.monotonic()
    done = simulate(denser(rows, 5.0), PROFILE, 500, 500)
    assert time.monotonic() - begun < 60
    assert len(done.jobs) == 20_000
    assert all(job.end_s is not None for job in done.jobs)


def test_costs_are_found_again_and_never_negative() -> None:
    random = np.random.default_rng(2)
    rows, contexts = random.integers(1, 32, 60).astype(float), random.integers(10, 5000, 60).astype(float)
    times = 0.004 + 0.0003 * rows + 1e-8 * rows * contexts
    columns = [[1.0] * 60, rows.tolist(), (rows * contexts).tolist()]
    assert fit_costs(columns, times.tolist()) == pytest.approx([0.004, 0.0003, 1e-8], rel=1e-6)
    assert min(fit_costs([[1.0] * 60, (-rows).tolist()], times.tolist())) >= 0


def test_a_profile_survives_its_file_and_bad_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    PROFILE.write(path)
    assert Profile.read(path) == PROFILE
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a profile"):
        Profile.read(path)
