"""`baton bench engine` on a tiny shape: both roles, the JSON file, and a trace that Perfetto can read."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from baton.cli.main import main
from bench.engine.trace import PHASES
from tests.support.tiny_models import save_tiny_llama

FLAGS = ["--backend", "cpu", "--scale", "0.02", "--rounds", "2", "--kv-bytes", "16M", "--threads", "1"]


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("shape"))


def test_both_roles_and_the_trace(shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, trace = tmp_path / "results.json", tmp_path / "trace.json.gz"
    profile = ["--profile", str(trace), "--profile-from", "2", "--profile-steps", "4"]
    flags = [*FLAGS, "--config", str(shape), "--role", "both,apart", "--json", str(results), *profile]
    assert main(["bench", "engine", *flags, "--workloads", "decode,prefill,interrupted"]) == 0
    shown = capsys.readouterr()
    assert "of floor" in shown.out
    assert "decode, round 2 of 2" in shown.err
    document = json.loads(results.read_text())
    assert [(row["role"], row["workload"]) for row in document["results"]] == [
        ("both", "decode"),
        ("both", "prefill"),
        ("both", "interrupted"),
        ("apart", "decode"),
        ("apart", "prefill"),
        ("apart", "interrupted"),
    ]
    for row in document["results"]:
        assert len(row["rounds"]) == 2
        if row["workload"] == "interrupted":
            assert row["figure"] >= row["floor"] == 1.0
        else:
            assert 0 < row["figure"] < row["floor"]
    assert document["roles"]["apart"]["transports"] == ["shared_memory"]
    assert document["environment"]["command"].startswith("baton bench engine --backend cpu")
    assert document["settings"]["max_step_tokens"] == 256
    events = json.loads(gzip.decompress((tmp_path / "trace-decode.json.gz").read_bytes()))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["name"] for span in spans} == set(PHASES)
    launches = [span for span in spans if span["name"] == "launch"]
    assert len(launches) == 4
    assert all(span["args"]["rows"] == 5 for span in launches)
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1 for a, b in itertools.pairwise(launches))


def test_wrong_usage_is_told(shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "--workloads fly": "known are single, decode, prefill, mixed, chat, interrupted",
        f"--config {tmp_path}": "--config",
        f"--config {shape} --kv-bytes lots": "lots",
        f"--config {shape} --no-such-flag": "no-such-flag",
    }
    for flags, told in cases.items():
        with pytest.raises(SystemExit) as ended:
            main(["bench", "engine", "--backend", "cpu", *flags.split()])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["bench", "coffee"])
    assert ended.value.code == 2
