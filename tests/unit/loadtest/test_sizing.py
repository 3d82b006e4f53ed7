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
from loadtest.sizing.cluster import Cluster
from loadtest.sizing.colocated import simulate_colocated
from loadtest.sizing.fit import fit_costs
from loadtest.sizing.load import denser, lengthen, mean_rate, superpose
from loadtest.sizing.profile import Profile
from loadtest.sizing.recommend import CLEAR_GAIN, Judged, candidates, gain, judge, recommend
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


def test_a_prompt_costs_something_in_the_step_that_completes_it() -> None:
    """Two prompts that share a step: the step is paid once, what a prompt costs twice."""
    costly = replace(PROFILE, prefill_prompt_s=0.01)
    assert costly.prompt_s(600) == pytest.approx(PROFILE.prompt_s(600) + 0.01)
    rows = [TraceRow(0.0, 600, 1), TraceRow(0.001, 50, 1), TraceRow(0.002, 60, 1)]
    jobs = [simulate(rows, profile, 1, 1).jobs for profile in (PROFILE, costly)]
    # The second step is by length: both short prompts, and a chunk of the long one, which ends in the third.
    added = [after.ttft_s - before.ttft_s for before, after in zip(*jobs, strict=True)]  # type: ignore
    assert added == pytest.approx([0.03, 0.02, 0.02])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("context_s", [0.0, 1e-12, 1e-7])
def test_what_happens_late_takes_as_long(context_s: float) -> None:
    """Times of millions of seconds are rounded by more than a billionth of a step: it ends all the same."""
    profile = replace(PROFILE, decode_context_s=context_s)
    rows = poisson(5.0, 300)
    late = [replace(row, at_s=row.at_s + 5e6) for row in rows]
    for one, other in zip(
        simulate(rows, profile, 1, 2).jobs, simulate(late, profile, 1, 2).jobs, strict=True
    ):
        assert one.end_s is not None
        assert other.end_s is not None
        assert other.end_s - 5e6 == pytest.approx(one.end_s, abs=0.05)


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
    rows = poisson(5.0, 200)
    targets = Targets(0.5, 0.02)
    tried = recommend(rows, PROFILE, targets, 4)
    assert {one.cluster.step_tokens for one in tried if one.cluster.both} == {256, 64}
    splits = [one for one in tried if not one.cluster.both]
    assert {split.cluster.prefill for split in splits} == {1, 2, 3}
    assert splits[0].max_rate > 1.3 * splits[-1].max_rate
    own_rate = mean_rate(rows)
    best = splits[0].cluster.simulate(denser(rows, 0.99 * splits[0].max_rate / own_rate), PROFILE)
    assert best.attainment(targets) >= 0.88
    over = splits[0].cluster.simulate(denser(rows, 1.2 * splits[0].max_rate / own_rate), PROFILE)
    assert over.attainment(targets) < 0.9


def test_no_rate_is_recommended_that_the_workers_cannot_keep_up() -> None:
    """Forty requests sent at once would all be answered within these targets, whatever their rate."""
    rows = poisson(5.0, 40)
    split = judge(rows, PROFILE, Targets(5.0, 1.0), Cluster(2, 2), 0.9)
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
    assert len(tried) <= 10
    assert all(cluster.workers == 1000 for cluster in tried)
    assert all(cluster.both or 1 <= cluster.prefill < 1000 for cluster in tried)


def test_a_thousand_workers_are_simulated_in_seconds() -> None:
    rows = superpose(poisson(20.0, 1000), 20)
    begun = time.monotonic()
    done = simulate(denser(rows, 5.0), PROFILE, 500, 500)
    assert time.monotonic() - begun < 60
    assert len(done.jobs) == 20_000
    assert all(job.end_s is not None for job in done.jobs)


def every_step_of_both(arrivals: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    """A co-located worker that takes each step: (at, prompt of one chunk at most, answer) -> first, last."""
    coming = sorted((at, i) for i, (at, _, _) in enumerate(arrivals))
    asking: list[int] = []
    granted: list[int] = []
    times = [(0.0, 0.0)] * len(arrivals)
    left: dict[int, int] = {}
    now = 0.0
    while coming or asking or granted or left:
        prompts, granted = granted, []
        budget, chosen = PROFILE.max_step_tokens - len(left), []
        for i in prompts:
            if arrivals[i][1] <= budget:
                budget -= arrivals[i][1]
                chosen.append(i)
            else:
                granted.append(i)
        if not chosen and not left:
            now, i = coming.pop(0)
            granted.append(i)  # an idle worker grants at once
            continue
        context = sum(arrivals[i][1] + arrivals[i][2] - left[i] for i in left)
        now += 0.005 + 0.0002 * len(left) + 1e-7 * context
        now += sum(arrivals[i][1] * 1e-4 + arrivals[i][1] ** 2 / 2 * 1e-8 for i in chosen)
        for i in list(left):
            left[i] -= 1
            if not left[i]:
                times[i] = times[i][0], now
                del left[i]
        for i in chosen:
            times[i] = now, now
            left[i] = arrivals[i][2] - 1
        # What came in this step is granted now, and is computed from the next but one on.
        granted += asking
        asking = []
        while coming and coming[0][0] <= now:
            asking.append(coming.pop(0)[1])
    return times


def test_a_colocated_worker_takes_the_steps_that_it_should() -> None:
    """Against one that takes each step by itself; prompts of one chunk that fit, far enough apart."""
    random = np.random.default_rng(5)
    arrivals = [
        (0.03 * i + float(random.uniform(0, 0.02)), int(random.integers(5, 100)), int(random.integers(2, 60)))
        for i in range(200)
    ]
    done = simulate_colocated([TraceRow(*row) for row in arrivals], PROFILE, 1)
    expected = every_step_of_both(arrivals)
    assert [job.first_s for job in done.jobs] == pytest.approx([first + 0.003 for first, _ in expected])
    assert [job.end_s for job in done.jobs] == pytest.approx([last + 0.003 for _, last in expected])
    assert 0.2 < done.prefill_share < 0.6


def test_one_request_on_a_colocated_worker_is_plain_arithmetic() -> None:
    (job,) = simulate_colocated([TraceRow(1.0, 600, 11)], PROFILE, 2).jobs
    # The larger fixed part counts: 0.005 of decode, for each of three steps.
    first = 1.0 + 3 * 0.005 + 600 * 0.0001 + 600 * 300 * 1e-8
    assert job.ttft_s == pytest.approx(first - 1.0 + 0.003)
    assert job.end_s == pytest.approx(first + sum(0.0052 + 1e-7 * (601 + i) for i in range(10)) + 0.003)
    (single,) = simulate_colocated([TraceRow(0.0, 100, 1)], PROFILE, 1).jobs
    assert single.end_s == single.first_s


def test_colocated_workers_share_prefixes_and_full_pools_and_lose_nobody() -> None:
    shared = [TraceRow(10.0 * i, 1024, 2, (1, 2), 512) for i in range(3)]
    assert [job.cached_tokens for job in simulate_colocated(shared, PROFILE, 2).jobs] == [0, 1023, 1023]
    tight = simulate_colocated([TraceRow(0.0, 900, 50)] * 20, replace(PROFILE, decode_tokens=2000), 1)
    assert all(job.end_s is not None and job.first_s is not None for job in tight.jobs)
    many = simulate_colocated(denser(poisson(20.0, 2000), 2.0), PROFILE, 100)
    assert all(job.end_s is not None for job in many.jobs)


def test_colocated_workers_of_one_machine_slow_each_other_down() -> None:
    slow = replace(PROFILE, prefill_slowdown=2.0, decode_slowdown=1.5)
    (alone,), (two,) = (simulate_colocated([TraceRow(0.0, 100, 3)], slow, n).jobs for n in (1, 2))
    chunk_s, steps_s = 0.005 + 0.01 + 0.5e-4, 2 * 0.0052 + 1e-7 * (101 + 102)
    assert alone.end_s == pytest.approx(chunk_s + steps_s + 0.003)
    assert two.end_s == pytest.approx(2 * chunk_s + 1.5 * steps_s + 0.003)


def test_smaller_steps_make_streams_evener_and_first_tokens_later() -> None:
    rows = poisson(4.0, 300)
    large, small = (simulate_colocated(rows, replace(PROFILE, max_step_tokens=n), 2) for n in (512, 32))
    ttft = [np.mean([job.ttft_s for job in one.jobs]) for one in (large, small)]
    assert ttft[0] < ttft[1]


def test_apart_pays_where_prompts_are_long_and_tokens_must_be_even_only() -> None:
    """With a target for tokens that chunks break, prefill has to go; where any will do, both is as good."""
    rows = [replace(row, input_tokens=1500, output_tokens=60) for row in poisson(3.0, 100)]

    def tried(targets: Targets) -> list[Judged]:
        clusters = Cluster(2, 1), Cluster(both=3, step_tokens=128)
        return [judge(rows, PROFILE, targets, cluster, 0.9) for cluster in clusters]

    apart, both = tried(Targets(2.0, 0.01))
    assert gain([apart, both]) > CLEAR_GAIN
    assert gain([apart, replace(both, max_rate=0.0)]) == math.inf
    assert gain(tried(Targets(2.0, 0.5))) < 1


@pytest.mark.parametrize("text", ["", "1", "0:1", "1:0", "b", "0b", "2b/", "2b/0", "1:1b", "-1:2"])
def test_a_cluster_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="predict: P:D"):
        Cluster.parse(text, PROFILE)


def test_clusters_are_named_as_on_the_command_line() -> None:
    assert Cluster.parse("2:3", PROFILE) == Cluster(2, 3)
    assert Cluster.parse("5b", PROFILE) == Cluster(both=5, step_tokens=256)
    assert str(Cluster.parse("5b/64", PROFILE)) == "5 co-located, steps of 64"
    assert str(Cluster(2, 3)) == "2 prefill + 3 decode"


def test_costs_are_found_again_and_never_negative() -> None:
    random = np.random.default_rng(2)
    rows, contexts = random.integers(1, 32, 60).astype(float), random.integers(10, 5000, 60).astype(float)
    times = 0.004 + 0.0003 * rows + 1e-8 * rows * contexts
    columns = [[1.0] * 60, rows.tolist(), (rows * contexts).tolist()]
    assert fit_costs(columns, times.tolist()) == pytest.approx([0.004, 0.0003, 1e-8], rel=1e-6)
    assert min(fit_costs([[1.0] * 60, (-rows).tolist()], times.tolist())) >= 0


def test_the_mean_of_profiles_before_and_after_is_of_one_cluster() -> None:
    after = replace(PROFILE, prefill_step_s=0.004, decode_slowdown=1.5)
    mean = Profile.mean([PROFILE, after])
    assert mean == replace(PROFILE, prefill_step_s=0.003, decode_slowdown=1.25)
    assert Profile.mean([PROFILE]) == PROFILE
    with pytest.raises(UsageError, match="max_step_tokens: 256, 512 are of several"):
        Profile.mean([PROFILE, replace(PROFILE, max_step_tokens=512)])


def test_a_profile_survives_its_file_and_bad_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    PROFILE.write(path)
    assert Profile.read(path) == PROFILE
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a profile"):
        Profile.read(path)
