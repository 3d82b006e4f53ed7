"""The driver of a GPU session, with shell commands in place of tests and benches."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.engine.main import _parser as engine_parser
from bench.gpu_session import driver
from bench.gpu_session.driver import Outcome, Part, run_parts
from bench.gpu_session.parts import KERNELS, OURS, SANITIZED, Inputs, all_parts, choose
from engine.config import EngineConfig
from services.common.config import parse_config

ROOT = Path(__file__).resolve().parents[3]


def part(name: str, *scripts: str, gpus: int = 1, expected_s: float = 0.1, limit_s: float = 20.0) -> Part:
    return Part(
        name, gpus, expected_s, limit_s, tuple(("/bin/sh", "-c", script) for script in scripts), show="seen"
    )


def run(out: Path, *parts: Part, gpus: int = 2, total_s: float = 20.0) -> dict[str, Outcome]:
    told: list[Outcome] = []
    outcomes = run_parts(parts, gpus, out, out, total_s, told.append)
    assert told == outcomes
    return {outcome.name: outcome for outcome in outcomes}


def test_failures_stop_nothing_and_lines_are_shown(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        part("bad", "echo seen before; echo other; exit 3"),
        part("good", "echo seen after"),
        part("half", "exit 0", "echo seen; exit 1", "echo seen too"),
    )
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "bad": "failed",
        "good": "passed",
        "half": "failed",
    }
    assert outcomes["bad"].exit_statuses == [3]
    assert outcomes["bad"].lines == ["seen before"]
    assert outcomes["half"].lines == ["seen", "seen too"]
    assert (tmp_path / "bad-0.log").read_text() == "seen before\nother\n"


def test_parts_share_the_gpus(tmp_path: Path) -> None:
    """Two at once on one GPU each; one that wants both waits, and a later small one does not wait for it."""
    script = "echo seen $CUDA_VISIBLE_DEVICES; sleep 0.3"
    outcomes = run(
        tmp_path,
        part("one", script + "; sleep 0.3"),
        part("two", script),
        part("both", script, gpus=2),
        part("beside", "echo seen $CUDA_VISIBLE_DEVICES", gpus=0),
        part("last", script),
    )
    seen = {name: outcome.lines[0].removeprefix("seen ") for name, outcome in outcomes.items()}
    assert seen == {"one": "0", "two": "1", "both": "0,1", "beside": "0", "last": "1"}
    assert list(outcomes) == ["beside", "two", "one", "last", "both"] or list(outcomes)[-1] == "both"


def test_a_part_past_its_limit_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    marker = tmp_path / "outlived"
    start = time.monotonic()
    outcomes = run(
        tmp_path,
        part("slow", f"(sleep 2; touch {marker}) & echo seen; wait", limit_s=0.3),
        part("next", "true"),
    )
    assert time.monotonic() - start < 1.8
    assert outcomes["slow"].status == "late"
    assert outcomes["slow"].lines == ["seen"]
    assert outcomes["next"].status == "passed"
    time.sleep(max(0.0, start + 2.4 - time.monotonic()))
    assert not marker.exists()


def test_a_part_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "KILL_AFTER_S", 0.2)
    deaf = part("deaf", "trap '' TERM; while :; do sleep 0.05; done", limit_s=0.2)
    assert run(tmp_path, deaf)["deaf"].status == "late"


def test_what_there_is_no_time_or_gpu_for_is_skipped(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        part("first", "sleep 0.6"),
        part("too long", "true", expected_s=60.0),
        part("two gpus", "true", gpus=2),
        part("endless", "sleep 60", gpus=0),
        gpus=1,
        total_s=1.0,
    )
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "first": "passed",
        "too long": "skipped",
        "two gpus": "skipped",
        "endless": "late",
    }
    assert not outcomes["two gpus"].is_good


def test_the_parts_name_what_exists(tmp_path: Path) -> None:
    parts = all_parts(Inputs(tmp_path, tmp_path, tmp_path / "fa3.so", tmp_path / "trace.csv", 3))
    assert len({one.name for one in parts}) == len(parts)
    for one in parts:
        assert one.expected_s < one.limit_s
        for command in one.commands:
            if "bench" in command[2]:
                assert (ROOT / command[2].replace(".", "/")).with_suffix(".py").exists() or (
                    ROOT / command[2].replace(".", "/") / "__main__.py"
                ).exists(), command[2]
            for argument in command:
                if argument.startswith("tests/"):
                    assert (ROOT / argument).exists(), argument
    assert [one.name for one in choose(parts, ["ipc", "kernels"])] == ["ipc", "kernels"]
    with pytest.raises(ValueError, match="no part"):
        choose(parts, ["coffee"])


def test_the_engine_knows_the_flags_that_parts_give_it(tmp_path: Path) -> None:
    seen = 0
    for one in all_parts(Inputs(tmp_path, tmp_path, None, None, 3)):
        for command in one.commands:
            if "bench.engine" in command:
                _, rest = engine_parser("bench").parse_known_args(command[3:])
                parse_config(EngineConfig, "bench", ["--model", "m", "--model-name", "m", *rest])
                seen += 1
    assert seen >= 6


def test_every_sanitized_file_has_a_small_case() -> None:
    """Else pytest would find nothing to run and say that it failed."""
    for name in SANITIZED:
        assert "mark.sanitize" in (ROOT / KERNELS / f"test_{name}.py").read_text(), name


def test_the_filter_of_the_sanitizer_knows_every_kernel() -> None:
    for source in (ROOT / "cuda").glob("*.cu"):
        assert any(name in source.stem + "_" for name in OURS), source.stem
