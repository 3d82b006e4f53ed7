"""What the servers under the gateway cost by themselves: python -m bench.gateway_parts.bare KIND ARGUMENTS

    echo                      grpc.aio, gives back each message of a bidirectional stream
    emit  TOKENS_PER_S COUNT  grpc.aio, sends COUNT equal messages to whoever asks
    sse   TOKENS_PER_S COUNT  uvicorn, sends COUNT equal server-sent events

All pace their streams together, as a decode worker's steps do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import grpc
import uvicorn
import uvloop

from baton.v1.inference_pb2 import Delta, GenerateResponse
from services.common.channel import server_options
from services.common.server import StopSignals, print_ready

MESSAGE = GenerateResponse(delta=Delta(text="a", token_ids=[100])).SerializeToString()
# With the time of the tick in place of other fields, so that delays can be told.
EVENT = (
    'data: {"id": "cmpl-0123456789abcdef0123", "sent": %.9f, "model": "bench", '
    '"object": "text_completion", "choices": [{"index": 0, "text": "a", "logprobs": null, '
    '"finish_reason": null}]}\n\n'
)


class Clock:
    """Ticks for all streams at once."""

    def __init__(self, per_s: float) -> None:
        self._period_s = 1 / per_s
        self._tick = asyncio.Event()
        self.message = self.event = b""
        self._task = asyncio.create_task(self._run())

    async def next(self) -> None:
        await self._tick.wait()

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self._period_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            self.message = struct.pack("d", now) + MESSAGE[8:]
            self.event = (EVENT % now).encode()
            self._tick.set()
            self._tick = asyncio.Event()


async def serve_grpc(per_s: float, count: int) -> None:
    signals = StopSignals()
    clock = Clock(per_s)

    async def emit(request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            await clock.next()
            yield clock.message

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[bytes, None]:
        async for message in requests:
            yield message

    handlers = {
        "Emit": grpc.unary_stream_rpc_method_handler(emit),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),  # type: ignore[arg-type]
    }
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print_ready(address=f"127.0.0.1:{port}")
    await signals.first.wait()
    await server.stop(0)


class Server(uvicorn.Server):
    """Leaves signals to StopSignals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_http(per_s: float, count: int) -> None:
    signals = StopSignals()
    clock = Clock(per_s)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(count):
            await clock.next()
            await send({"type": "http.response.body", "body": clock.event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    host, port = listening.getsockname()
    print_ready(address=f"{host}:{port}")
    await signals.first.wait()
    server.should_exit = server.force_exit = True
    await serving


if __name__ == "__main__":
    kind, per_s, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    uvloop.run((serve_http if kind == "sse" else serve_grpc)(per_s, count))
