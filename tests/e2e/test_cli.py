"""The command and the launcher with real processes and the real model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baton import Client, LocalCluster, models
from baton.cli.demo import QUESTION
from baton.errors import CancelledError, ClusterError, InvalidRequestError, NotFoundError, RequestError
from baton.v1.inference_pb2 import Delta

pytestmark = pytest.mark.slow

BATON = [sys.executable, "-m", "baton.cli.main"]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, str]:
    """An environment with a cache of its own, so that no other cluster is found; the model is linked."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "models").mkdir()
    (cache / "models" / model_dir.name).symlink_to(model_dir)
    return {**os.environ, "BATON_CACHE": str(cache)}


def baton(environ: dict[str, str], *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BATON, *arguments], env=environ, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def up(environ: dict[str, str]) -> Iterator[str]:
    """`baton up --detach` on free ports, stopped by `baton down`; gives what it printed."""
    started = baton(environ, "up", "--detach", "--grpc-port", "0", "--http-port", "0")
    assert started.returncode == 0, started.stderr + started.stdout
    yield started.stdout
    stopped = baton(environ, "down")
    assert (stopped.returncode, stopped.stderr) == (0, "stopped\n")
    assert baton(environ, "status", "--address", address_in(started.stdout)).returncode == 1


def address_in(text: str) -> str:
    found = re.search(r"gRPC +(\S+)", text)
    assert found, text
    return found[1]


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


def test_demo_answers(environ: dict[str, str]) -> None:
    shown = baton(environ, "demo", timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert QUESTION in shown.stdout
    assert "Paris" in shown.stdout
    assert re.search(r"TTFT \d+\.\d ms, TPOT \d+\.\d ms, \d+\.\d tokens/s", shown.stdout)
    assert re.search(
        r"[1-9]\d* KV blocks \([\d.]+ [KM]iB\) handed over from prefill-0 to decode-0", shown.stdout
    )


def test_generate_prints_answer_and_figures_apart(up: str, environ: dict[str, str]) -> None:
    answer = baton(environ, "generate", "Say hello.", "--max-tokens", "8")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    assert "ended by" in answer.stderr
    again = baton(environ, "generate", "Say hello.", "--max-tokens", "8", "--quiet")
    assert (again.stdout, again.stderr) == (answer.stdout, "")


def test_status_and_models(up: str, environ: dict[str, str]) -> None:
    status = baton(environ, "status").stdout
    assert f"gateway {address_in(up)}: 0 in flight, 0 waiting, 2 workers" in status
    assert re.search(r"decode-0 +decode +127\.0\.0\.1:\d+ +seen \d+ ms ago +\d+/\d+ ", status), status
    assert "SmolLM2-135M-Instruct: context 8192, vocabulary 49152" in baton(environ, "models").stdout


def test_chat_remembers_and_survives_bad_turns(up: str, environ: dict[str, str]) -> None:
    chat = subprocess.run(
        [*BATON, "chat", "--max-tokens", "12"],
        env=environ,
        input="What is the capital of France?\n\n/reset\nSay hello.\n/exit\nnever asked\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (chat.returncode, chat.stderr) == (0, "")
    answers = [line for line in chat.stdout.splitlines() if line.strip()]
    assert len(answers) >= 2
    assert "Paris" in answers[0]


def test_ctrl_c_stops_the_answer_not_the_chat(up: str, environ: dict[str, str]) -> None:
    command = [*BATON, "chat", "--max-tokens", "4000"]
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"Write a very long story about the sea.\n")
        chat.stdin.flush()
        assert chat.stdout.read(20)
        chat.send_signal(signal.SIGINT)
        out, err = chat.communicate(b"Say hello.\n/exit\n", timeout=60)
    assert (chat.returncode, err) == (0, b"")
    assert out.count(b"\n") >= 2, out  # the end of the stopped answer, and another one
    assert out.strip()
    with Client(address_in(up)) as client:
        deadline = time.monotonic() + 1
        while any(worker.load.running for worker in client.workers().workers):
            assert time.monotonic() < deadline + 2, "the stopped answer still runs"
            time.sleep(0.1)


def test_openai_request(up: str) -> None:
    url = re.search(r"http://\S+/v1", up)
    assert url, up
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url[0]}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert "Paris" in json.load(response)["choices"][0]["message"]["content"]


def test_client_errors(up: str) -> None:
    with Client(address_in(up)) as client:
        with pytest.raises(NotFoundError, match="no-such-model"):
            client.complete("Hi", model="no-such-model")
        with pytest.raises(InvalidRequestError) as caught:
            client.complete("Hi", top_p=7.0)
        assert "top_p" in caught.value.field
        with pytest.raises(RequestError):
            client.complete("Hi", max_tokens=4000, timeout_s=0.05, ignore_eos=True)
        assert client.tokenize("\n\n1.") == client.tokenize("\n\n") + client.tokenize("1") + client.tokenize(
            "."
        )
        assert len(client.tokenize_chat([{"role": "user", "content": "Hi"}])) > 10


def test_closing_a_stream_cancels_it(up: str) -> None:
    with Client(address_in(up)) as client:
        stream = client.generate("Once upon a time", max_tokens=4000, ignore_eos=True, temperature=0.0)
        next(event for event in stream if isinstance(event, Delta))
        stream.close()
        deadline = time.monotonic() + 3
        while client.workers().gateway_in_flight:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_closing_the_client_ends_its_streams(up: str) -> None:
    client = Client(address_in(up))
    stream = client.generate("Once upon a time", max_tokens=4000, ignore_eos=True)
    next(stream)
    client.close()
    with pytest.raises(CancelledError):
        list(stream)


@contextmanager
def launcher(environ: dict[str, str], *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [*BATON, "up", "--grpc-port", "0", "--http-port", "0", *flags]
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


@pytest.fixture
def own_cache(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """As `environ`, apart from the cluster of `up`."""
    (tmp_path / "models").symlink_to(Path(environ["BATON_CACHE"]) / "models")
    return {**environ, "BATON_CACHE": str(tmp_path)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(own_cache: dict[str, str], number: signal.Signals) -> None:
    with launcher(own_cache) as up:
        children = children_of(up.pid)
        assert len(children) == 3
        up.send_signal(number)
        assert up.wait(20) == 0
        assert not any(is_running(child) for child in children)


def test_children_go_when_the_launcher_is_killed(own_cache: dict[str, str]) -> None:
    with launcher(own_cache) as up:
        children = children_of(up.pid)
        assert len(children) == 3
        up.kill()
        wait_until_gone(children, timeout_s=15)


def test_a_dead_worker_is_reported_and_started_again(own_cache: dict[str, str]) -> None:
    with launcher(own_cache, "--restart") as up:
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
        while baton(own_cache, "generate", "Hi", "--max-tokens", "2", "--timeout-s", "10").returncode != 0:
            assert time.monotonic() < deadline


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_service_that_cannot_start_is_named(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)decode-0 .* ended with status 2.*--block-size") as caught:
        LocalCluster(str(model_dir), decode_args=["--block-size", "lots"], run_dir=tmp_path).start()
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


def test_workers_come_and_go(model_dir: Path, tmp_path: Path) -> None:
    with LocalCluster(str(model_dir), run_dir=tmp_path) as cluster, Client(cluster.gateway_address) as client:
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
