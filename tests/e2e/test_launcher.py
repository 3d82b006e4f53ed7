"""`baton up`, `baton demo` and LocalCluster as launchers: they start, watch and stop real processes.

What does not depend on the model starts a tiny one, which takes half the time.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baton import Client, LocalCluster, models
from baton.cli.demo import QUESTION
from baton.errors import ClusterError
from tests.support.command import BATON, baton, environ_with_cache
from tests.support.tiny_models import save_tiny_llama

pytestmark = pytest.mark.slow

SMALL = ("--kv-bytes", "4M", "--threads", "1")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def environ(tmp_path: Path, model_dir: Path) -> dict[str, str]:
    return environ_with_cache(tmp_path / "cache", model_dir)


def test_demo_answers(environ: dict[str, str]) -> None:
    shown = baton(environ, "demo", timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert QUESTION in shown.stdout
    assert "Paris" in shown.stdout
    assert re.search(r"TTFT \d+\.\d ms, TPOT \d+\.\d ms, \d+\.\d tokens/s", shown.stdout)
    assert re.search(
        r"[1-9]\d* KV blocks \([\d.]+ [KM]iB\) handed over from prefill-0 to decode-0", shown.stdout
    )


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


@contextmanager
def launcher(environ: dict[str, str], model: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    small = [f"--{role}-args={' '.join(SMALL)}" for role in ("prefill", "decode")]
    command = [*BATON, "up", "--model", str(model), "--grpc-port", "0", "--http-port", "0", *small, *flags]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        try:
            assert up.stdout is not None
            for line in up.stdout:
                if line.strip().startswith("logs"):
                    break
            yield up
        finally:
            up.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(environ: dict[str, str], tiny_model: Path, number: signal.Signals) -> None:
    with launcher(environ, tiny_model) as up:
        children = children_of(up.pid)
        assert len(children) == 3
        up.send_signal(number)
        assert up.wait(20) == 0
        assert not any(is_running(child) for child in children)


def test_children_go_when_the_launcher_is_killed(environ: dict[str, str], tiny_model: Path) -> None:
    with launcher(environ, tiny_model) as up:
        children = children_of(up.pid)
        assert len(children) == 3
        up.kill()
        wait_until_gone(children, timeout_s=15)


def test_a_dead_worker_is_reported_and_started_again(environ: dict[str, str], tiny_model: Path) -> None:
    with launcher(environ, tiny_model, "--restart") as up:
        victim = next(pid for pid in children_of(up.pid) if "prefill-0" in cmdline(pid))
        os.kill(victim, signal.SIGKILL)
        assert up.stderr is not None
        text = ""
        while "starting prefill-0 again" not in text:
            line = up.stderr.readline()
            assert line, text
            text += line
        assert f"prefill-0 (pid {victim}) was ended by SIGKILL" in text
        deadline = time.monotonic() + 30
        while baton(environ, "generate", "Hi", "--max-tokens", "2", "--timeout-s", "10").returncode != 0:
            assert time.monotonic() < deadline


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_service_that_cannot_start_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)decode-0 .* ended with status 2.*--block-size") as caught:
        LocalCluster(str(tiny_model), decode_args=["--block-size", "lots"], run_dir=tmp_path).start()
    assert str(tmp_path / "decode-0.log") in str(caught.value)


def test_a_gguf_file_is_served_with_a_tokenizer_from_elsewhere(model_dir: Path, tmp_path: Path) -> None:
    gguf = models.packaged_file(models.SOURCES[models.DEFAULT_MODEL])
    with (
        LocalCluster(
            str(gguf), tokenizer=str(model_dir), model_name="quantized", run_dir=tmp_path
        ) as cluster,
        Client(cluster.gateway_address) as client,
    ):
        question = [{"role": "user", "content": QUESTION}]
        answer = client.complete(messages=question, model="quantized", max_tokens=12, temperature=0.0)
    assert "Paris" in answer.text


def test_workers_come_and_go(tiny_model: Path, tmp_path: Path) -> None:
    with (
        LocalCluster(str(tiny_model), prefill_args=SMALL, decode_args=SMALL, run_dir=tmp_path) as cluster,
        Client(cluster.gateway_address) as client,
    ):
        first = client.complete("1, 2, 3,", max_tokens=12, temperature=0.0)
        added = cluster.add_worker("decode")
        assert [worker.name for worker in cluster.workers] == ["prefill-0", "decode-0", "decode-1"]
        cluster.kill(cluster.workers[1])
        assert cluster.new_deaths() == []
        second = client.complete("1, 2, 3,", max_tokens=12, temperature=0.0)
        assert second.token_ids == first.token_ids
        assert second.finished.handoff.decode_worker == added.name
        pids = [cluster.gateway.pid, *(worker.pid for worker in cluster.workers)]
    assert not any(is_running(pid) for pid in pids)
    cluster.stop()
