"""Clients that cost little: they count messages, and note when the kernel got each."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import grpc

from baton.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from baton.v1.inference_pb2 import GenerateRequest, GenerateResponse, TokenIds
from baton.v1.sampling_pb2 import SamplingParams
from bench.gateway_parts.http2 import GrpcConnection
from bench.gateway_parts.stamped import StampedConnection
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

    def add(self, num_tokens: int, arrived_s: float) -> None:
        """Note a message."""
        if num_tokens:
            self.tokens += [arrived_s] * num_tokens
            self.messages.append(arrived_s)


def prompt_of(stream: int) -> list[int]:
    """Return a prompt that tells the worker which stream it is."""
    return [NUM_SPECIAL + stream // 256, NUM_SPECIAL + stream % 256, NUM_SPECIAL + 1]


async def read_grpc(address: str, num_streams: int, num_tokens: int) -> list[Arrivals]:
    """Read Generate streams."""
    arrivals = [Arrivals() for _ in range(num_streams)]

    def on_message(stream: int, message: bytes, arrived_s: float) -> None:
        arrivals[stream].add(len(GenerateResponse.FromString(message).delta.token_ids), arrived_s)

    with closing(GrpcConnection(address, "/baton.v1.InferenceService/Generate", on_message)) as connection:
        for stream in range(num_streams):
            request = GenerateRequest(
                token_ids=TokenIds(ids=prompt_of(stream)), sampling=_sampling(num_tokens)
            )
            connection.write((connection.call(), request.SerializeToString()), ends=True)
        await connection.done
    return arrivals


async def read_direct(worker: str, num_streams: int, num_tokens: int) -> list[Arrivals]:
    """Ask a worker without a gateway, and read its steps; of each stream the first token is prefill's."""
    arrivals = {str(stream): Arrivals([0.0], [0.0]) for stream in range(num_streams)}
    left = num_streams

    def on_message(call: int, message: bytes, arrived_s: float) -> None:
        nonlocal left
        for event in decode_pb2.StreamStepsResponse.FromString(message).events:
            arrivals[event.request_id].add(len(event.token_ids), arrived_s)
            left -= bool(event.finish_reason)
        if left == 0 and not steps.done.done():
            steps.done.set_result(None)

    async with grpc.aio.insecure_channel(worker, options=client_options()) as channel:
        decode = decode_pb2_grpc.DecodeServiceStub(channel)
        prefill = prefill_pb2_grpc.PrefillServiceStub(channel)

        async def begin(stream: int) -> None:
            name = str(stream)
            sampling = _sampling(num_tokens)
            reserved = await decode.Reserve(
                decode_pb2.ReserveRequest(
                    request_id=name, transfer_id=name, token_ids=prompt_of(stream), sampling=sampling
                )
            )
            async for _ in prefill.Prefill(
                prefill_pb2.PrefillRequest(request_id=name, target=reserved.target)
            ):
                pass

        with closing(GrpcConnection(worker, "/baton.v1.DecodeService/StreamSteps", on_message)) as steps:
            request = decode_pb2.StreamStepsRequest(gateway_id="direct")
            steps.write((steps.call(), request.SerializeToString()), ends=True)
            await asyncio.gather(*(begin(stream) for stream in range(num_streams)))
            await steps.done
    return [arrivals[str(stream)] for stream in range(num_streams)]


async def read_emit(address: str, num_streams: int) -> list[Arrivals]:
    """Read the bare server's streams."""
    arrivals = [Arrivals() for _ in range(num_streams)]

    def on_message(stream: int, message: bytes, arrived_s: float) -> None:
        arrivals[stream].add(1, arrived_s)
        arrivals[stream].sent.append(struct.unpack_from("d", message)[0])

    with closing(GrpcConnection(address, "/bench.Bare/Emit", on_message)) as connection:
        for _ in range(num_streams):
            connection.write((connection.call(), b""), ends=True)
        await connection.done
    return arrivals


async def read_echo(
    address: str, num_streams: int, message: bytes, per_s: float, count: int
) -> list[Arrivals]:
    """Send messages on all streams at once, `per_s` times a second, and read them back."""
    arrivals = [Arrivals() for _ in range(num_streams)]

    def on_message(stream: int, message: bytes, arrived_s: float) -> None:
        arrivals[stream].add(1, arrived_s)

    with closing(GrpcConnection(address, "/bench.Bare/Echo", on_message)) as connection:
        streams = [connection.call() for _ in range(num_streams)]
        due = time.monotonic()
        for number in range(count):
            due = max(due + 1 / per_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            connection.write(*((stream, message) for stream in streams), ends=number == count - 1)
        await connection.done
    return arrivals


class SseReader(StampedConnection):
    """Posts one body and notes when each event of the answer came."""

    def __init__(self, address: str, body: bytes) -> None:
        super().__init__(address)
        self._tail = b""
        self.arrivals = Arrivals()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        self.send(head.encode() + b"content-type: application/json\r\n\r\n" + body)

    def received(self, data: bytes, arrived_s: float) -> None:
        """Take events, whole or in parts."""
        *events, self._tail = (self._tail + data).split(b"\n\n")
        for event in events:
            found = _TEXT.search(event)
            self.arrivals.add(len(found[1]) if found else 0, arrived_s)
            if found and (sent := _SENT.search(event)):
                self.arrivals.sent.append(float(sent[1]))
        if events and b"[DONE]" in events[-1]:
            self.done.set_result(None)


async def read_sse(address: str, num_streams: int, num_tokens: int) -> list[Arrivals]:
    """Read streams of server-sent events."""

    async def one(stream: int) -> Arrivals:
        body = {"prompt": prompt_of(stream), "max_tokens": num_tokens, "stream": True, "ignore_eos": True}
        with closing(SseReader(address, json.dumps(body).encode())) as reader:
            await reader.done
        return reader.arrivals

    return await asyncio.gather(*(one(stream) for stream in range(num_streams)))


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


def _sampling(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
