"""The ladder of rates on real processes with a tiny model: two calls, in one of which a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bench.goodput.main import main

SERVED = ["--backend", "cpu", "--shape", "tiny", "--worker-args", "--kv-bytes 32M --threads 1"]
SENT = ["--long-rates", "3", "--input", "40", "--output", "8", "--generators", "1", "--warm-batch", "2"]
TIMES = ["--warmup", "0.3", "--window", "2", "--cooldown", "0.2"]
LATE = ["--targets", "60/60000", "0.000001/0.001"]  # met by all, and by none


def kill_decode(logs: Path) -> None:
    """End the decode worker, a child of this process, soon after it is ready."""
    while not any('"ready"' in log.read_text() for log in logs.glob("*/decode-0.log")):
        time.sleep(0.02)
    time.sleep(0.5)
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"services.decode.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)


def test_two_calls_make_one_result_and_a_lost_worker_ends_the_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_COMMIT", "abc")
    flags = [*SERVED, *SENT, *TIMES, *LATE]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*flags, "--only", "2b", "--out", str(first)]) == 0
    document = json.loads((tmp_path / "first.json").read_text())
    (point,) = document["points"]
    assert (point["topology"], point["load"], point["gpus"]) == ("2b", "long", 2)
    assert point["answered"] == point["requests"] > 0
    assert list(point["met"].values()) == [point["requests"], 0]
    assert point["agreement"] == {"asked": 4, "equal": 4, "first": 4}
    assert (point["blocks_left"], point["short"], point["errors"]) == (0, 0, {})
    assert {"gateway", "both-0", "both-1"} <= set(point["cores"])
    assert document["runs"][0]["environment"]["commit"] == "abc"
    out = capsys.readouterr().out
    assert "| long | 2b | ≥ 3.00 | < 3.00 |" in out
    assert "4 of 4 prompts asked alone got the same answer twice" in out

    logs = tmp_path / "logs"
    killer = threading.Thread(target=kill_decode, args=[logs], daemon=True)
    killer.start()
    have = ["--have", str(tmp_path / "first.json"), "--out", str(second), "--logs", str(logs)]
    assert main([*flags, *have]) == 1
    killer.join()
    captured = capsys.readouterr()
    assert "2 co-located: ready" not in captured.out
    assert "was ended by SIGKILL" in captured.err
    assert "| long | 2b | ≥ 3.00 | < 3.00 |" in captured.out
    assert len(json.loads((tmp_path / "second.json").read_text())["points"]) == 1
    assert (tmp_path / "second.html").read_text().count("<svg") == 5
