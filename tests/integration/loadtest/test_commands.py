"""The commands as a user runs them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from loadtest.main import main
from tests.support.fake_endpoint import Script, fake_endpoint


async def test_sweep_finds_where_the_server_slows_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint takes 10 ms for a first token up to 6 requests in the last second, then 1 s."""

    def script(order: int, body: dict[str, object]) -> Script:
        now = endpoint.served[-1].received_at
        recent = sum(now - served.received_at < 1.0 for served in endpoint.served)
        return Script(0.01 if recent <= 6 else 1.0)

    with fake_endpoint(script) as endpoint:
        flags = "--rate 2 --arrivals constant --duration 3 --input 4 --output 1 --precision 0.5 --quiet"
        where = ["--target-ttft", "0.5", "--scales", "0.5", "--out", str(tmp_path / "s")]
        status = await asyncio.to_thread(main, ["sweep", endpoint.url, *flags.split(), *where])
    assert status == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert 4 <= result["goodput"]["1.0"] <= 8
    assert result["goodput"]["0.5"] == result["goodput"]["1.0"]
    assert [probe["rate"] for probe in result["probes"]] == sorted(
        probe["rate"] for probe in result["probes"]
    )
    prompts = [str(served.body["prompt"]) for served in endpoint.served]
    assert len(set(prompts)) == len(prompts), "a later run would find the prompts of an earlier one cached"
    low, high = result["probes"][0]["bounds"]["1.0"]
    assert low < result["probes"][0]["attainment"]["1.0"] <= high
    assert "<svg" in (tmp_path / "s.html").read_text()
    assert "goodput" in capsys.readouterr().out


@pytest.mark.parametrize("is_right", [True, False])
async def test_run_fails_for_a_wrong_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_right: bool
) -> None:
    def script(order: int, body: dict[str, object]) -> Script:
        word = "right " if is_right or order != 2 else "wrong "
        return Script(0.0, (0.0,), words=("so ", word))

    with fake_endpoint(script) as endpoint:
        flags = "--concurrency 1 --requests 4 --input 4 --output 2 --verify"
        command = ["run", endpoint.url, *flags.split(), "--out", str(tmp_path / "r")]
        status = await asyncio.to_thread(main, command)
    out = capsys.readouterr().out
    assert status == (0 if is_right else 1)
    assert ("FAILED: 1 answers differ" in out) == (not is_right)
    assert "verified 4 answers to 4 prompts" in out
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4
