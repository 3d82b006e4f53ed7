"""What is sent: arrivals, lengths, traces, prompts, ill-behaved clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.arrivals import ArrivalProcess, arrival_times
from loadtest.errors import TraceError, UsageError
from loadtest.lengths import Lengths
from loadtest.plan import Plan
from loadtest.prompts import Prompts
from loadtest.scenario import Scenario
from loadtest.traces import TraceScale, read_trace

URL = "http://127.0.0.1:1"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:47,10,1
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1500, "output_length": 7, "hash_ids": [4, 5, 6]}
{"timestamp": 1500, "input_length": 1100, "output_length": 9, "hash_ids": [4, 5, 9]}
"""


@pytest.mark.parametrize(
    ("process", "variation"),
    [(ArrivalProcess.POISSON, 1.0), (ArrivalProcess.GAMMA, 3.0), (ArrivalProcess.CONSTANT, 0.0)],
)
def test_gaps_have_the_rate_and_the_burstiness(process: ArrivalProcess, variation: float) -> None:
    times = arrival_times(process, 8.0, seed=1, burstiness=3.0, num_requests=40_000)
    gaps = np.diff(times)
    assert len(times) == 40_000
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-6)
    assert times == arrival_times(process, 8.0, seed=1, burstiness=3.0, num_requests=40_000)


@pytest.mark.parametrize(("start", "end"), [(0.0, 20.0), (20.0, 2.0)])
def test_a_ramp_changes_the_rate_linearly(start: float, end: float) -> None:
    times = arrival_times(ArrivalProcess.CONSTANT, start, seed=1, ramp_to=end, duration_s=100.0)
    assert len(times) == pytest.approx(100 * (start + end) / 2, abs=1)
    quarter = sum(at < 25 for at in times)
    assert quarter == pytest.approx(25 * (start + (end - start) / 8), abs=1)
    assert max(times) < 100


def test_lengths_follow_their_distribution() -> None:
    random = np.random.default_rng(0)
    assert Lengths.parse("77").draw(random) == 77
    uniform = [Lengths.parse("uniform:3:5").draw(random) for _ in range(300)]
    assert set(uniform) == {3, 4, 5}
    drawn = [Lengths.parse("lognormal:1000:0.5:1500").draw(random) for _ in range(4000)]
    assert np.median(drawn) == pytest.approx(1000, rel=0.05)
    assert max(drawn) == 1500


@pytest.mark.parametrize("text", ["", "0", "fixed", "uniform:5:3", "lognormal:10", "normal:1:2", "fixed:x"])
def test_unknown_lengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        Lengths.parse(text)


def test_azure_rows_are_ordered_and_scaled(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(AZURE)
    rows = read_trace(trace, TraceScale(time=0.5, max_input=380, max_output=50))
    assert [row.at_s for row in rows] == pytest.approx([0.0, 0.1597, 2.15729], abs=1e-4)
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(374, 44), (10, 1), (380, 50)]


def test_lengths_of_a_trace_come_in_pairs_at_any_rate(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(AZURE)
    plan = Plan(Scenario(URL, rate=50, requests=200, lengths=str(trace), max_output=50))
    requests = [plan.request(index) for index in range(200)]
    drawn = [(request.input_tokens, request.output_tokens) for request in requests]
    assert set(drawn) == {(374, 44), (396, 50), (10, 1)}
    assert min(drawn.count(pair) for pair in set(drawn)) > 40
    assert requests[-1].at_s == pytest.approx(4.0, rel=0.3)
    assert not requests[0].hash_ids
    with pytest.raises(UsageError, match="its own"):
        Scenario(URL, trace=str(trace), lengths=str(trace))


def test_mooncake_blocks_become_shared_prefixes(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(MOONCAKE)
    scenario = Scenario(URL, trace=str(trace), length_scale=0.5, time_scale=2.0)
    plan, prompts = Plan(scenario), Prompts(scenario)
    first, second = plan.request(0), plan.request(1)
    assert (first.at_s, second.at_s, first.block_tokens) == (0.0, 3.0, 256)
    one, two = prompts.prompt(first), prompts.prompt(second)
    assert (len(one), len(two)) == (750, 550)
    assert one[:512] == two[:512]
    assert one[512:550] != two[512:]


def test_a_cut_prompt_keeps_its_leading_blocks(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(MOONCAKE)
    rows = read_trace(trace, TraceScale(max_input=600))
    assert [(row.input_tokens, row.hash_ids) for row in rows] == [(600, (4, 5)), (600, (4, 5))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", AZURE + "nonsense,1,2\n", "row 4"),
        ("t.jsonl", '{"timestamp": 1}\n', "input_length"),
        ("t.txt", "", "Azure"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no rows"),
    ],
)
def test_a_bad_trace_names_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    trace = tmp_path / name
    trace.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_trace(trace)


def test_requests_depend_on_seed_and_index_alone() -> None:
    scenario = Scenario(URL, rate=5, requests=50, input="uniform:10:400", cancel_share=0.3, slow_share=0.2)
    ahead, back = Plan(scenario), Plan(scenario)
    forward = [ahead.request(index) for index in range(50)]
    assert forward == [back.request(index) for index in reversed(range(50))][::-1]
    assert Prompts(scenario).prompt(forward[7]) == Prompts(scenario).prompt(forward[7])
    assert Prompts(scenario).prompt(forward[7]) != Prompts(scenario).prompt(forward[8])


def test_shares_of_clients_are_kept() -> None:
    scenario = Scenario(URL, concurrency=1, requests=4000, cancel_share=0.3, slow_share=0.05)
    requests = [Plan(scenario).request(index) for index in range(4000)]
    assert sum(r.cancel_after is not None for r in requests) == pytest.approx(1200, rel=0.08)
    assert sum(r.read_delay_s > 0 for r in requests) == pytest.approx(200, rel=0.2)
    assert all(r.cancel_after < r.output_tokens for r in requests if r.cancel_after is not None)


def test_distinct_prompts_repeat_and_prefixes_are_shared() -> None:
    scenario = Scenario(
        URL, rate=1, requests=9, distinct=4, prefix_tokens=20, prefix_groups=2, input="fixed:30"
    )
    plan, prompts = Plan(scenario), Prompts(scenario)
    texts = [prompts.prompt(plan.request(index)) for index in range(9)]
    assert texts[0] == texts[4] == texts[8]
    assert texts[0][:20] == texts[2][:20]
    assert texts[0][20:] != texts[2][20:]
    assert texts[0][:20] != texts[1][:20]


def test_a_corpus_gives_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick brown fox jumps. " * 60)
    (tmp_path / "a.dat").write_bytes(b"\0\1\2")
    scenario = Scenario(URL, rate=1, requests=2, corpus=str(tmp_path), input="fixed:500", chars_per_token=4.0)
    text = Prompts(scenario).prompt(Plan(scenario).request(0))
    assert isinstance(text, str)
    assert len(text) == 2000
    with pytest.raises(TraceError, match="1000 characters"):
        Prompts(Scenario(URL, rate=1, requests=2, corpus=str(tmp_path / "a.dat")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1.0, "concurrency": 2, "requests": 1}, "exactly one"),
        ({"rate": 1.0}, "duration or requests"),
        ({"rate": 1.0, "ramp_to": 3.0, "requests": 5}, "ramp_to"),
        ({"rate": 1.0, "requests": 1, "cancel_share": 1.5}, "cancel_share"),
        ({"trace": "/nowhere.csv"}, "no such file"),
        ({"rate": 1.0, "requests": 1, "api": "chat"}, "chat needs a corpus"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scenario(URL, **changes)  # type: ignore[arg-type]
