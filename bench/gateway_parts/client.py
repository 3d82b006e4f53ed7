"""Clients that cost little: they count messages, and note when each came."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from baton.v1.inference_pb2 import GenerateRequest, GenerateResponse, TokenIds
from baton.v1.sampling_pb2 import SamplingParams
from services.common.channel import client_options
from tests.support.byte_tokenizer import NUM_SPECIAL

_SENT = re.compile(rb'"sent": ([0-9.]+)')
_TEXT = re.compile(rb'"text": "(a*)"')


@dataclass
class Arrivals:
    """What one stream brought.

    Attributes:
        tokens: when each came, seconds, time.monotonic().
        messages: when each message came that had any.
        sent: when each was sent, where messages say so.
    """

    tokens: list[float] = field(default_factory=list)
    messages: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)

    def add(self, num_tokens: int) -> None:
        """Note a message."""
        if num_tokens:
            now = time.monotonic()
            self.tokens += [now] * num_tokens
            self.messages.append(now)


def prompt_of(stream: int) -> list[int]:
    """Return a prompt that tells the worker which stream it is."""
    return [NUM_SPECIAL + stream // 256, NUM_SPECIAL + stream % 256, NUM_SPECIAL + 1]


async def read_grpc(address: str, num_streams: int, num_tokens: int) -> list[Arrivals]:
    """Read Generate streams; returns when each delta came."""

    async def one(stream: int) -> Arrivals:
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        request = GenerateRequest(token_ids=TokenIds(ids=prompt_of(stream)), sampling=sampling)
        arrivals = Arrivals()
        async for message in generate(request.SerializeToString()):
            arrivals.add(len(GenerateResponse.FromString(message).delta.token_ids))
        return arrivals

    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        generate = channel.unary_stream("/baton.v1.InferenceService/Generate")
        return await asyncio.gather(*(one(stream) for stream in range(num_streams)))


async def read_emit(address: str, num_streams: int) -> list[Arrivals]:
    """Read the bare server's streams."""

    async def one() -> Arrivals:
        arrivals = Arrivals()
        async for message in emit(b""):
            arrivals.add(1)
            arrivals.sent.append(struct.unpack_from("d", message)[0])
        return arrivals

    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        emit = channel.unary_stream("/bench.Bare/Emit")
        return await asyncio.gather(*(one() for _ in range(num_streams)))


async def read_echo(
    address: str, num_streams: int, message: bytes, per_s: float, count: int
) -> list[Arrivals]:
    """Send paced messages and read them back."""

    async def one() -> Arrivals:
        async def send():  # type: ignore[no-untyped-def]
            due = time.monotonic()
            for _ in range(count):
                due += 1 / per_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                yield message

        arrivals = Arrivals()
        async for _ in echo(send()):
            arrivals.add(1)
        return arrivals

    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        echo = channel.stream_stream("/bench.Bare/Echo")
        return await asyncio.gather(*(one() for _ in range(num_streams)))


class SseReader(asyncio.Protocol):
    """Posts one body and notes when each event of the answer came."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._tail = b""
        self.arrivals = Arrivals()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(self._body)}\r\n"
        transport.write(head.encode() + b"content-type: application/json\r\n\r\n" + self._body)

    def data_received(self, data: bytes) -> None:
        *events, self._tail = (self._tail + data).split(b"\n\n")
        for event in events:
            found = _TEXT.search(event)
            self.arrivals.add(len(found[1]) if found else 0)
            if found and (sent := _SENT.search(event)):
                self.arrivals.sent.append(float(sent[1]))
        if events and b"[DONE]" in events[-1] and not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed before the end"))


async def read_sse(address: str, num_streams: int, num_tokens: int) -> list[Arrivals]:
    """Read streams of server-sent events."""
    host, _, port = address.rpartition(":")

    async def one(stream: int) -> Arrivals:
        body = {"prompt": prompt_of(stream), "max_tokens": num_tokens, "stream": True, "ignore_eos": True}
        reader = SseReader(json.dumps(body).encode())
        await asyncio.get_running_loop().create_connection(lambda: reader, host, int(port))
        await reader.done
        return reader.arrivals

    return await asyncio.gather(*(one(stream) for stream in range(num_streams)))


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]
