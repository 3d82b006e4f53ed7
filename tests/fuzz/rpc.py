"""The gRPC API: messages of random fields, valid ones with flipped bytes, and plain noise."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from baton.cluster import LocalCluster
from baton.v1 import inference_pb2, registry_pb2
from tests.fuzz.watch import HANG_S, Findings

METHODS: dict[str, type[Message]] = {
    "InferenceService/Generate": inference_pb2.GenerateRequest,
    "InferenceService/ListModels": inference_pb2.ListModelsRequest,
    "InferenceService/Tokenize": inference_pb2.TokenizeRequest,
    "InferenceService/Detokenize": inference_pb2.DetokenizeRequest,
    "RegistryService/ListWorkers": registry_pb2.ListWorkersRequest,
    "RegistryService/Register": registry_pb2.RegisterRequest,
    "RegistryService/Beat": registry_pb2.BeatRequest,
    "RegistryService/Deregister": registry_pb2.DeregisterRequest,
}
# Most that is sent are requests that run, or nearly do.
WEIGHTS = (12, 1, 3, 3, 1, 1, 1, 1)
BAD = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
TEXTS = ("", "a", "hello there", "\x00", "é😀", "<|im_start|>", "{", "x" * 300, "tiny")
INTS = (0, 1, 2, 3, 15, 16, 100, 127, 128, 271, 272, 2**31 - 1, 2**32 - 1)
FLOATS = (0.0, 1.0, 0.5, -1.0, 2.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
SCHEMAS = (
    "",
    "{}",
    '{"type": "object", "properties": {"to": {"enum": ["left", "right"]}}}',
    '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}',
    '{"type": "objet"}',
    "[1]",
)
TASKS = 6


def fuzz_rpc(cluster: LocalCluster, findings: Findings, until: float) -> None:
    """Send until the time is up, several at once."""
    asyncio.run(_send_all(cluster.gateway_address, findings, until))


async def _send_all(address: str, findings: Findings, until: float) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(_send(channel, random.Random(seed), findings, until) for seed in range(TASKS)))


async def _send(channel: grpc.aio.Channel, draw: random.Random, findings: Findings, until: float) -> None:
    while time.monotonic() < until and len(findings.faults) < 20:
        method = draw.choices(list(METHODS), WEIGHTS)[0]
        body = _body(METHODS[method], draw)
        status = await _call(channel, method, body, draw)
        findings.answers[f"{method} {status.name}"] += 1
        if status in BAD:
            findings.fault(f"{method}: {status.name} for {body!r}")
        elif status is grpc.StatusCode.DEADLINE_EXCEEDED:
            findings.fault(f"{method}: no end within {HANG_S:g} s for {body!r}")


async def _call(channel: grpc.aio.Channel, method: str, body: bytes, draw: random.Random) -> grpc.StatusCode:
    path = f"/baton.v1.{method}"
    if not method.endswith("/Generate"):
        unary = channel.unary_unary(path)(body, timeout=HANG_S)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await unary
        return await unary.code()
    stream = channel.unary_stream(path)(body, timeout=HANG_S)
    leave_after = draw.choice((None, None, 0, 1, 3))
    count = 0
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        async for _ in stream:
            count += 1
            if leave_after is not None and count > leave_after:
                stream.cancel()
                break
    return await stream.code()


def _body(kind: type[Message], draw: random.Random) -> bytes:
    if draw.random() < 0.05:
        return draw.randbytes(draw.choice((0, 1, 10, 1000)))
    body = fill(kind(), draw).SerializeToString()
    if draw.random() < 0.2 and body:
        mutated = bytearray(body)
        for _ in range(draw.choice((1, 1, 4))):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        body = bytes(mutated[: draw.choice((len(mutated), draw.randrange(len(mutated) + 1)))])
    return body


def fill(message: Message, draw: random.Random, depth: int = 0) -> Message:
    """Set some of a message's fields to something; a Generate request is mostly one that could run."""
    if isinstance(message, inference_pb2.GenerateRequest) and draw.random() < 0.7:
        message.token_ids.ids.extend(draw.randrange(272) for _ in range(draw.choice((1, 5, 40, 120))))
        message.sampling.max_tokens = draw.choice((1, 2, 8))
        fields = draw.sample(list(message.sampling.DESCRIPTOR.fields), draw.choice((0, 0, 1, 2)))
        for field in fields:
            _set(message.sampling, field, draw, depth)
        return message
    if isinstance(message, inference_pb2.GenerateRequest) and draw.random() < 0.5:
        return _converse(message, draw, depth)
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if draw.random() < 0.5:
            _set(message, field, draw, depth)
    return message


def _converse(request: inference_pb2.GenerateRequest, draw: random.Random, depth: int) -> Message:
    """A conversation with tools, most of which could run."""
    for role in ("user", *draw.choices(("assistant", "tool", "user", "system"), k=draw.choice((0, 1, 3)))):
        turn = request.messages.messages.add(role=role, content=draw.choice(TEXTS))
        if role == "assistant":
            turn.tool_calls.add(id="1", name="f0", arguments=draw.choice(SCHEMAS))
    for i in range(draw.choice((0, 1, 2))):
        request.tools.add(name=f"f{i}", parameters=draw.choice(SCHEMAS), strict=draw.random() < 0.5)
    request.tool_choice.mode = draw.choice((0, 1, 2, 2, 2, 3, 9))  # type: ignore[assignment]
    request.tool_choice.names.extend(draw.choice(([], [], [], ["f0"], ["f9"])))
    request.tool_choice.single = draw.random() < 0.5
    request.sampling.max_tokens = draw.choice((1, 8, 40))
    if draw.random() < 0.2:
        fill(request.sampling, draw, depth)
    return request


def _set(message: Message, field: FieldDescriptor, draw: random.Random, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries = getattr(message, field.name)
        for _ in range(draw.choice((0, 1, 3))):
            entries[draw.choice(INTS)] = draw.choice(FLOATS)
    elif field.message_type is not None:
        if depth > 4:
            return
        if field.is_repeated:
            for _ in range(draw.choice((0, 1, 2))):
                fill(getattr(message, field.name).add(), draw, depth + 1)
        else:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), draw, depth + 1)
    elif field.is_repeated:
        getattr(message, field.name).extend(_value(field, draw) for _ in range(draw.choice((0, 1, 5, 70))))
    else:
        setattr(message, field.name, _value(field, draw))


def _value(field: FieldDescriptor, draw: random.Random) -> object:
    kinds: dict[int, Callable[[], object]] = {
        FieldDescriptor.CPPTYPE_STRING: lambda: (
            draw.randbytes(draw.choice((0, 3, 16)))
            if field.type == FieldDescriptor.TYPE_BYTES
            else draw.choice(TEXTS)
        ),
        FieldDescriptor.CPPTYPE_BOOL: lambda: draw.random() < 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: lambda: draw.choice(FLOATS),
        FieldDescriptor.CPPTYPE_DOUBLE: lambda: draw.choice(FLOATS),
        FieldDescriptor.CPPTYPE_INT32: lambda: draw.choice((-(2**31), -101, -1, 0, 1, 100, 2**31 - 1)),
        FieldDescriptor.CPPTYPE_INT64: lambda: draw.choice((-(2**63), -1, 0, 1, 2**63 - 1)),
        FieldDescriptor.CPPTYPE_UINT32: lambda: draw.choice(INTS),
        FieldDescriptor.CPPTYPE_UINT64: lambda: draw.choice((*INTS, 2**64 - 1)),
        FieldDescriptor.CPPTYPE_ENUM: lambda: draw.choice((0, 1, 2, 99)),
    }
    return kinds[field.cpp_type]()
