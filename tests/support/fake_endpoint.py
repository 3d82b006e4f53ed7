"""An OpenAI-compatible endpoint that answers with scripted delays and notes when it wrote what."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

MODEL = "fake"


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    Attributes:
        ttft_s: from receipt to the first token.
        gaps_s: between tokens.
        status: of a refusal, sent instead.
        cut_after: the connection breaks after so many tokens.
        words: the tokens' texts; None: "w0 ", "w1 ", …
    """

    ttft_s: float
    gaps_s: tuple[float, ...] = ()
    status: int = 200
    cut_after: int | None = None
    words: tuple[str, ...] | None = None


@dataclass
class Served:
    """What the endpoint did: time.monotonic() of receipt and of each token; the request's body."""

    body: dict[str, object]
    received_at: float
    wrote_at: list[float] = field(default_factory=list)
    hung_up: bool = False


class FakeEndpoint:
    """Serves on a thread a connection, so that delays are exact.

    Args:
        script: the answer to the n-th request (in order of receipt) with this body.

    Attributes:
        stall: (from, until) in time.monotonic(): nothing is written in between.
        served: every request, in order of receipt.
    """

    def __init__(self, script: Callable[[int, dict[str, object]], Script]) -> None:
        self.script = script
        self.stall = (0.0, 0.0)
        self.served: list[Served] = []
        self.lock = threading.Lock()
        self.url = ""

    def take(self, body: dict[str, object]) -> tuple[Served, Script]:
        with self.lock:
            served = Served(body, time.monotonic())
            self.served.append(served)
            return served, self.script(len(self.served) - 1, body)

    def sleep_until(self, at: float) -> None:
        start, end = self.stall
        if start <= at < end:
            at = end
        time.sleep(max(0.0, at - time.monotonic()))


@contextmanager
def fake_endpoint(script: Callable[[int, dict[str, object]], Script]) -> Iterator[FakeEndpoint]:
    """Run an endpoint on a free port of the loopback."""
    endpoint = FakeEndpoint(script)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.endpoint = endpoint
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512
    endpoint: FakeEndpoint


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            while self._one():
                pass
        except OSError:
            return

    def _one(self) -> bool:
        first = self.rfile.readline().decode()
        if not first:
            return False
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = json.loads(self.rfile.read(length) or b"{}")
        if first.split()[1] == "/v1/models":
            self._whole(200, {"data": [{"id": MODEL}]})
        else:
            self._answer(body)
        return True

    def _answer(self, body: dict[str, object]) -> None:
        endpoint = cast(_Server, self.server).endpoint
        served, script = endpoint.take(body)
        due = served.received_at + script.ttft_s
        endpoint.sleep_until(due)
        if script.status != 200:
            self._whole(script.status, {"error": {"code": "queue_full", "message": "scripted"}})
            return
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number, gap_s in enumerate((0.0, *script.gaps_s)):
            due += gap_s
            endpoint.sleep_until(due)
            if number == script.cut_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                raise OSError("scripted")
            text = script.words[number] if script.words else f"w{number} "
            served.wrote_at.append(time.monotonic())
            try:
                self._event({"choices": [{"text": text, "index": 0}]})
            except OSError:
                served.hung_up = True
                raise
        tokens = 1 + len(script.gaps_s)
        usage = {"prompt_tokens": len(cast(list[int], body["prompt"])), "completion_tokens": tokens}
        self._event({"choices": [{"text": "", "index": 0, "finish_reason": "length"}]})
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: object) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _whole(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.wfile.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
