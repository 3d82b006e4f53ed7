"""The command against a cluster of `baton up` with the real model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton import Client
from baton.errors import CancelledError, InvalidRequestError, NotFoundError, RequestError
from baton.v1.inference_pb2 import Delta
from tests.support.command import BATON, baton, environ_with_cache

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, str]:
    return environ_with_cache(tmp_path_factory.mktemp("cache"), model_dir)


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
        # What it makes of a story that was cut somewhere may be as long as the story.
        out, err = chat.communicate(b"/reset\nSay hello.\n/exit\n", timeout=60)
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
