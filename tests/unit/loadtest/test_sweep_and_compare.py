"""The search for goodput, and two results side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.compare import compare, differing_settings
from loadtest.errors import UsageError
from loadtest.main import COMMANDS, main
from loadtest.measures import Measures, Targets, measure
from loadtest.record import Outcome, Record
from loadtest.report.run_page import run_page
from loadtest.report.sweep_page import sweep_page
from loadtest.result import Result, read_json, write_json, write_records
from loadtest.scenario import Scenario
from loadtest.sweep import SCALES, Bounds, Probe, sweep
from loadtest.verify import Mismatch, Verification

TARGETS = Targets(0.2, 0.05)


def records(pace_s: float, count: int = 200) -> list[Record]:
    made = []
    for index in range(count):
        at_s = index / 20
        times = [at_s + 0.1 + pace_s * token * (1 + index % 7 / 50) for token in range(8)]
        made.append(Record(index, index, 10, 8, False, at_s, at_s, times, [1] * 8, times[-1], Outcome.OK))
    return made


def result(name: str, pace_s: float, **scenario: float) -> tuple[Result, list[Record]]:
    made = records(pace_s)
    load = Scenario("http://127.0.0.1:1", rate=20, duration_s=10, **scenario)  # type: ignore[arg-type]
    return Result(name, load, measure(made, targets=TARGETS), 0.0, 10.0, {"cpu": "<x>"}), made


class Server:
    """Meets the targets of a scale up to 10 * scale requests a second."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.measures: Measures = measure(records(0.01), targets=TARGETS)

    async def probe(self, rate: float) -> Probe:
        self.rates.append(rate)
        attainment = {scale: 1.0 if rate <= 10 * scale else 0.5 for scale in SCALES}
        return Probe(rate, attainment, dict.fromkeys(SCALES, (0.0, 1.0)), self.measures)


async def test_the_sweep_finds_the_highest_rate_of_each_scale() -> None:
    server = Server()
    goodput, probes = await sweep(server.probe, SCALES, Bounds(precision=0.05))
    for scale, rate in goodput.items():
        assert 10 * scale / 1.05 <= rate <= 10 * scale
    assert len(server.rates) == len(set(server.rates)) == len(probes)
    assert len(probes) < 35


async def test_a_sweep_ends_where_nothing_or_everything_is_met() -> None:
    server = Server()
    none, _ = await sweep(server.probe, [0.4], Bounds(start=64.0, least=8.0))
    assert none == {0.4: 0.0}
    server = Server()
    everything, _ = await sweep(server.probe, [1.6], Bounds(most=12.0))
    assert everything == {1.6: 12.0}


def test_compare_tells_chance_from_change(tmp_path: Path) -> None:
    for name, pace_s in (("a", 0.01), ("b", 0.02)):
        write_json(tmp_path / f"{name}.json", result(name, pace_s, seed=1 if name == "a" else 2)[0])
    before, after = read_json(tmp_path / "a.json"), read_json(tmp_path / "b.json")
    changes = {change.name: change for change in compare(before, after)}
    assert changes["tpot p50"].ratio == pytest.approx(1.0, abs=0.01)
    assert changes["tpot p50"].is_sure
    assert not changes["tpot p50"].is_better
    assert changes["ttft p50"].is_sure is False
    assert differing_settings(before, after) == [("seed", "1", "2")]
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    with pytest.raises(UsageError):
        compare(before, {"format": 1})


def test_a_result_survives_its_files(tmp_path: Path) -> None:
    one, made = result("one", 0.01)
    write_records(tmp_path / "one.jsonl", made)
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    again = measure([Record.from_json(line) for line in lines], targets=TARGETS)
    assert again.itl.mean == pytest.approx(one.measures.itl.mean, abs=1e-6)
    assert again.outcomes == one.measures.outcomes
    write_json(tmp_path / "one.json", one)
    values = json.loads((tmp_path / "one.json").read_text())
    assert values["scenario"]["rate"] == 20
    assert values["measures"]["ttft"]["count"] == 200
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UsageError, match="not a result"):
        read_json(tmp_path / "bad.json")


def test_pages_are_whole_and_load_nothing() -> None:
    one, made = result("<one> & only", 0.01)
    page = run_page(one, made)
    assert "&lt;one&gt; &amp; only" in page
    assert page.count("<svg") == page.count("</svg>") == 5
    met, bounds = dict.fromkeys(SCALES, 0.95), dict.fromkeys(SCALES, (0.91, 0.97))
    probes = [Probe(rate, met, bounds, one.measures) for rate in (1.0, 2.0)]
    swept = sweep_page("s", one.scenario, TARGETS, 0.9, dict.fromkeys(SCALES, 2.0), probes, ["careful"])
    for text in (page, swept):
        assert "<script" not in text
        assert "src=" not in text
        assert "href=" not in text
        assert "nan" not in text
    assert "careful" in swept


def test_wrong_answers_and_lost_blocks_fail_a_run() -> None:
    one, made = result("one", 0.01)
    wrong = Verification(3, 3, [Mismatch(1, 0, "a", "b")], 0)
    failed = Result(
        "x", one.scenario, one.measures, 0.0, 1.0, {}, verification=wrong, blocks_held={"d0": 2, "p0": 0}
    )
    assert failed.failures == ["1 answers differ from those given alone", "KV blocks left: d0 2"]
    assert "KV blocks left: d0 2" in run_page(failed, made)
    assert one.failures == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "http://127.0.0.1:1", "--rate", "2"]) == 2
    assert capsys.readouterr().err == "loadtest: load: give duration or requests\n"
    assert main(["sweep", "http://127.0.0.1:1", "--rate", "2"]) == 2
    assert main(["run", "ftp://x", "--rate", "2", "--requests", "1"]) == 2
