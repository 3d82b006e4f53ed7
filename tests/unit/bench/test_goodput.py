"""The ladder of rates: parts and their times, goodput from shares, what counts as wrong, merged results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench.goodput.answers import Agreement
from bench.goodput.curve import Bound, Goodput, goodput
from bench.goodput.draw import even_seed
from bench.goodput.main import main
from bench.goodput.page import chart, results_page
from bench.goodput.plan import Load, Step, Topology, parts, plan_lines, share_s
from bench.goodput.point import Point, make_point
from bench.goodput.report import goodputs, markdown
from bench.goodput.results import Results, read_results
from bench.goodput.search import next_rate
from loadtest.measures import Targets
from loadtest.plan import Plan
from loadtest.record import Outcome, Record
from loadtest.scenario import Scenario

PD, TWO = Topology.parse("1p1d"), Topology.parse("2b")
TALK = Load("talk", "talk", (2.0, 1.0), warmup_s=1, window_s=4, cooldown_s=1)
LONG = Load("long", "long", (3.0,), warmup_s=1, window_s=8, cooldown_s=1)
TARGETS = {"1 s / 20 ms": Targets(1.0, 0.02), "0.5 s / 10 ms": Targets(0.5, 0.01)}
LEVELS = ("p50", "p99", "p99_low", "p99_high")


def point(topology: str = "1p1d", rate: float = 1.0, met: int = 95, **changes: object) -> Point:
    names = ("ttft", "tpot", "itl", "worst_gap", "first_gap", "queue", "exposed")
    made = Point(
        run=0,
        topology=topology,
        load="talk",
        rate=rate,
        gpus=2,
        sent=120,
        requests=100,
        answered=100,
        refused=0,
        met={"1 s / 20 ms": 100, "0.5 s / 10 ms": met},
        errors={},
        short=0,
        offered_rate=2 * rate,
        output_rate=100.0,
        latencies={name: dict.fromkeys(LEVELS, 0.01 * rate) for name in names},
        cores={"gateway": 0.4},
        agreement=Agreement(4, 4, 4),
        blocks_left=0,
        wall_s=1.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def results(*points: Point) -> Results:
    found = Results([{"environment": {"time": "2026-11-22T23:00:00", "cpu": "a CPU"}, "command": "x"}])
    for one in points:
        found.add(one)
    return found


@pytest.mark.parametrize(
    ("name", "gpus", "title"),
    [
        ("1p1d", 2, "1 prefill + 1 decode"),
        ("2b", 2, "2 co-located"),
        ("3p1d", 4, "3 prefill + 1 decode"),
        ("1d1b", 2, "1 decode + 1 co-located"),
    ],
)
def test_a_cluster_is_named_by_its_workers(name: str, gpus: int, title: str) -> None:
    topology = Topology.parse(name)
    assert (topology.gpus, topology.title, topology.name) == (gpus, title, name)


@pytest.mark.parametrize("name", ["", "1p", "2d", "pd", "0b", "1d1p"])
def test_a_cluster_that_could_not_answer_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1p1d"):
        Topology.parse(name)


def test_parts_go_cluster_by_cluster() -> None:
    def names(*only: str) -> list[tuple[str, str]]:
        return [(part.topology.name, part.load.name) for part in parts([PD, TWO], [TALK, LONG], only)]

    assert names() == [("1p1d", "talk"), ("1p1d", "long"), ("2b", "talk"), ("2b", "long")]
    assert names("1p1d") == names()[:2]
    assert names("long") == [("1p1d", "long"), ("2b", "long")]
    assert names("2b", "talk") == [("2b", "talk")]
    with pytest.raises(ValueError, match="nonsense: known are 1p1d, 2b, long, talk"):
        names("nonsense")


def test_the_time_left_is_shared_among_what_is_left() -> None:
    planned = parts([PD, TWO], [TALK, LONG])
    assert share_s(530, planned, 0, start_s=30) == 125  # one more start, and four parts
    assert share_s(400, planned, 1, start_s=30) == pytest.approx(370 / 3)
    assert share_s(250, planned, 2, start_s=30) == 125
    assert share_s(90, planned, 3, start_s=30) == 90


def test_the_plan_says_how_far_the_time_goes() -> None:
    lines = plan_lines(parts([PD], [TALK, LONG]), start_s=50, budget_s=250)
    assert f"of 1, 2 requests/s per GPU about {int(100 / TALK.usual_s)}, 1 + 4 + 1 s each" in lines[1]
    assert "about 12 measured requests each" in lines[1]  # 1.5/s on 2 GPUs for 4 s
    assert lines[-1] == "together at most 250 s"


def searched(rungs: list[float], limits: dict[str, float]) -> list[float]:
    """Rates in the order in which they are measured where targets are met up to these limits."""
    shares: dict[float, dict[str, float]] = {}
    while (rate := next_rate(rungs, shares, list(limits), 0.9)) is not None:
        assert rate not in shares
        shares[rate] = {name: 0.95 if rate <= limit else 0.5 for name, limit in limits.items()}
    return list(shares)


def test_rates_are_searched_by_bisection_for_all_targets() -> None:
    rungs = [float(rate) for rate in range(6, 21)]
    assert searched(rungs, {"a": 16.5}) == [13, 17, 15, 16]
    assert searched(rungs, {"a": 1.0}) == [13, 9, 7, 6]
    assert searched(rungs, {"a": 99.0}) == [13, 17, 19, 20]
    apart = searched(rungs, {"a": 9.5, "b": 16.5})
    assert {9, 10, 16, 17} <= set(apart)
    assert apart[:3] == [13, 9, 17]  # the widest gaps first, of equal ones the lower
    assert len(apart) <= 8
    assert searched([3.0], {"a": 1.0}) == [3.0]
    # A lucky rate above one that failed says nothing: the search goes on below.
    assert next_rate([1, 2, 3, 4], {2: {"a": 0.5}, 4: {"a": 1.0}}, ["a"], 0.9) == 1


def test_plan_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--plan", "--long-rates", "2", "4", "--only", "2b", "--out", str(tmp_path / "g")]) == 0
    out = capsys.readouterr().out
    assert "of 2, 4 requests/s per GPU" in out
    assert "1p1d" not in out
    assert not list(tmp_path.iterdir())


def test_a_report_is_one_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    have, out, charts = tmp_path / "have.json", tmp_path / "all", tmp_path / "charts"
    results(point(), point(rate=2.0, met=80), point("2b")).write(have)
    flags = ["--report", "--shape", "llama-3.1-8b", "--targets", "1/20", "0.5/10"]
    assert main([*flags, "--have", str(have), "--out", str(out), "--charts", str(charts)]) == 0
    assert "| talk | 1p1d | ≥ 2.00 | 1.33 |" in capsys.readouterr().out
    assert read_results([tmp_path / "all.json"]).points == read_results([have]).points
    assert "<svg" in (tmp_path / "all.html").read_text()
    assert sorted(file.name for file in charts.iterdir()) == [
        "goodput-talk-0.5s-10ms.svg",
        "goodput-talk-1s-20ms.svg",
    ]


def test_goodput_lies_between_the_rates_around_it() -> None:
    assert goodput([(2, 0.8), (1, 1.0)], 0.9) == Goodput(1.5, Bound.AT)
    assert goodput([(1, 1.0), (2, 0.9)], 0.9) == Goodput(2, Bound.AT_LEAST)
    assert goodput([(1, 0.5), (2, 0.95)], 0.9) == Goodput(1, Bound.BELOW)
    assert goodput([], 0.9) is None
    lucky = goodput([(1, 1.0), (2, 0.85), (3, 0.95)], 0.9)
    assert lucky is not None
    assert lucky.rate == pytest.approx(1 + 0.1 / 0.15)
    assert str(lucky) == "1.67"
    assert str(Goodput(2, Bound.AT_LEAST)) == "≥ 2.00"


def test_the_draw_that_is_sent_has_the_load_that_its_rate_says() -> None:
    def scenario(seed: int) -> Scenario:
        return Scenario(
            "grpc://x", rate=20, duration_s=12, seed=seed, input="uniform:10:1000", output="lognormal:50:1"
        )

    def off(seed: int) -> float:
        plan = Plan(scenario(seed))
        due = [plan.request(index) for index in range(plan.size or 0)]
        due = [one for one in due if one.at_s is not None and 1 <= one.at_s < 11]
        return max(
            abs(len(due) / 200 - 1),
            abs(sum(one.input_tokens for one in due) / (200 * 505) - 1),
            abs(sum(one.output_tokens for one in due) / (200 * 50 * math.exp(0.5)) - 1),
        )

    seed = even_seed(scenario, 1, 11, first=7)
    assert seed == even_seed(scenario, 1, 11, first=7)
    assert 7 <= seed < 7 + 24
    assert off(seed) < 0.06
    assert sum(off(other) > 0.06 for other in range(7, 31)) > 12


def record(planned_s: float, ttft_s: float, gap_s: float, tokens: int = 3, **changes: object) -> Record:
    first = planned_s + ttft_s
    times = [first + gap_s * i for i in range(tokens)]
    made = Record(0, 0, 10, 3, False, planned_s, planned_s, times, [1] * tokens, times[-1], Outcome.OK)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_point_counts_its_window_alone_and_every_short_answer() -> None:
    late = record(4.0, 0.7, 0.005)
    refused = record(2.0, 0.1, 0.01, outcome=Outcome.ERROR, reason="QUEUE_FULL", token_s=[], token_counts=[])
    lost, slow = replace(refused, reason="WORKER_LOST"), replace(refused, reason="TIMEOUT")
    cut = record(5.5, 0.1, 0.01, tokens=2)
    outside = [record(0.5, 9.0, 1.0), cut]
    made = make_point(
        Step(PD, TALK, 2.0),
        [record(1.0, 0.1, 0.005), late, refused, lost, slow, *outside],
        TARGETS,
        run=0,
        cores={},
        agreement=Agreement(4, 3, 4),
        blocks_left=2,
        wall_s=1.0,
        warnings=[],
    )
    assert (made.sent, made.requests, made.answered) == (7, 5, 2)
    assert (made.refused, made.given_up, made.failed) == (1, 1, 1)
    assert made.met == {"1 s / 20 ms": 2, "0.5 s / 10 ms": 1}
    assert made.share("0.5 s / 10 ms") == 0.2
    assert made.ms("ttft", "p99") == pytest.approx(700)
    assert made.output_rate == 6 / 4
    assert [text.partition(": ")[2] for text in made.wrong(exact=True)] == [
        "1 answers had a wrong number of tokens",
        "1 requests failed (1 x QUEUE_FULL, 1 x WORKER_LOST, 1 x TIMEOUT)",
        "2 KV blocks were left",
        "1 of 4 answers differ from those given alone",
    ]
    assert not point(agreement=Agreement(4, 0, 3)).wrong(exact=False)
    assert "2 of 4 first tokens differ" in point(agreement=Agreement(4, 0, 2)).wrong(exact=False)[0]


def test_results_of_two_calls_are_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    results(point(rate=1.0), point(rate=2.0, met=10)).write(one)
    later = results(point(rate=2.0, met=80), point("2b", rate=1.0, run=1))
    later.runs.append({"environment": {"time": "2026-11-22T23:30:00"}, "command": "y"})
    later.write(two)
    merged = read_results([one, two])
    assert [entry["command"] for entry in merged.runs] == ["x", "y"]
    assert [found.run for found in merged.of("2b", "talk")] == [1]
    assert [found.share("0.5 s / 10 ms") for found in merged.of("1p1d", "talk")] == [0.95, 0.8]
    found = goodputs(merged, list(TARGETS), 0.9)
    assert found["talk", "1p1d", "0.5 s / 10 ms"].rate == pytest.approx(1 + 0.05 / 0.15)
    assert found["talk", "2b", "1 s / 20 ms"] == Goodput(1.0, Bound.AT_LEAST)
    two.write_text("{}")
    with pytest.raises(SystemExit, match="not a result"):
        read_results([two])


def test_table_page_and_chart_show_points_and_warnings() -> None:
    found = results(point(), point(rate=2.0, met=80, warnings=["<slow> generator"]), point("2b"))
    text = markdown(found, TARGETS, 0.9)
    assert "| talk | 1p1d | ≥ 2.00 | 1.33 |" in text
    assert "95.0 % (89–98)" in text
    assert "vLLM" not in text
    beside = markdown(results(point(load="long")), TARGETS, 0.9, beside_vllm=True)
    assert "| long | vLLM 0.26, co-located | 5.29 | 2.66 |" in beside
    assert "warning: 1p1d talk at 2: <slow> generator" in text
    page = results_page(found, {"talk": "a <title>"}, TARGETS, 0.9, beside_vllm=True)
    assert page.count("<svg") == len(TARGETS) + 3
    for part in ("a &lt;title&gt;", "&lt;slow&gt; generator", "1.33", "a CPU"):
        assert part in page
    assert "http" not in page
    assert "<polyline" in chart(results(point(met=0)), "talk", "0.5 s / 10 ms", beside_vllm=False)
    drawn = chart(found, "talk", "0.5 s / 10 ms", beside_vllm=True)
    assert drawn.count("<polyline") == 2
    assert (
        chart(results(point(load="long")), "long", "0.5 s / 10 ms", beside_vllm=True).count("<polyline") == 2
    )
