"""Tokens that go from the step stream to the client's connection without waking the request's task."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.gateway.http.protocol import BoundedProtocol, Chunks
from services.gateway.pace import Pace
from tests.integration.gateway.conftest import MakeSetup, Setup
from tests.support.byte_tokenizer import ids_of, text_of
from tests.support.scripted_workers import expected

PROMPT = ids_of("the prompt")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What went out that way."""
    chunks: list[bytes] = []
    write = Chunks.write

    def note(self: Chunks, body: bytes) -> None:
        chunks.append(body)
        write(self, body)

    monkeypatch.setattr(Chunks, "write", note)
    return chunks


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[BoundedProtocol]:
    made: list[BoundedProtocol] = []
    connect = BoundedProtocol.connection_made

    def note(self: BoundedProtocol, transport: asyncio.BaseTransport) -> None:
        made.append(self)
        connect(self, transport)

    monkeypatch.setattr(BoundedProtocol, "connection_made", note)
    return made


async def stream(setup: Setup, max_tokens: int, **fields: object) -> AsyncIterator[dict[str, Any]]:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": max_tokens, "stream": True, **fields}
    async with setup.http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def text(events: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


async def test_nearly_every_token_takes_it_and_is_an_event_of_its_own(
    make_setup: MakeSetup, written: list[bytes]
) -> None:
    setup = await make_setup()
    options = {"include_usage": True}
    events = [event async for event in stream(setup, 100, stream_options=options)]
    assert text(events) == text_of(expected(PROMPT, 100))
    assert len(written) >= 90
    shown = [json.loads(chunk.removeprefix(b"data: ")) for chunk in written]
    assert all(len(event["choices"][0]["text"]) == 1 for event in shown)
    assert events[-1]["usage"]["completion_tokens"] == 100
    await setup.nothing_held()


async def test_admission_hears_of_every_token(
    make_setup: MakeSetup, written: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last one, which takes the other way, would seem to end a pause as long as the answer."""
    gaps: list[float] = []
    monkeypatch.setattr(Pace, "on_gap", lambda self, gap_s: gaps.append(gap_s))
    setup = await make_setup()
    [_ async for _ in stream(setup, 100)]
    assert len(written) >= 90
    assert len(gaps) >= len(written)
    assert gaps[-1] < sum(gaps) / 2
    await setup.nothing_held()


async def test_what_every_chunk_tells_of_usage_counts_those_tokens(
    make_setup: MakeSetup, written: list[bytes]
) -> None:
    setup = await make_setup()
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = [event async for event in stream(setup, 30, stream_options=options)]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 30
    assert len(written) >= 20


async def test_a_stop_string_ends_it(make_setup: MakeSetup, written: list[bytes]) -> None:
    setup = await make_setup()
    whole = text_of(expected(PROMPT, 200))
    stop = whole[60:64]
    events = [event async for event in stream(setup, 200, stop=stop)]
    assert text(events) == whole[: whole.index(stop)]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(written) >= 40
    await setup.nothing_held()


async def test_a_slow_reader_gets_nothing_until_it_reads_and_then_all(
    make_setup: MakeSetup, written: list[bytes], connections: list[BoundedProtocol]
) -> None:
    setup = await make_setup()
    events: list[dict[str, Any]] = []
    async for event in stream(setup, 300):
        events.append(event)
        if len(events) == 20:
            (connection,) = connections
            connection.pause_writing()
            num_written = len(written)
            await asyncio.sleep(0.05)
            assert len(written) == num_written
            connection.resume_writing()
    assert text(events) == text_of(expected(PROMPT, 300))
    assert len(events) < 300  # those that waited came together
    assert len(written) > num_written
    await setup.nothing_held()


async def test_decode_dies_in_mid_stream_and_the_stream_goes_on(
    make_setup: MakeSetup, written: list[bytes]
) -> None:
    setup = await make_setup(decodes=2)
    events: list[dict[str, Any]] = []
    async for event in stream(setup, 200):
        events.append(event)
        if len(events) == 50:
            (worker,) = (name for name, decode in setup.workers.decodes.items() if decode.held)
            await setup.workers.kill(worker)
            setup.workers.decodes.pop(worker)
    assert text(events) == text_of(expected(PROMPT, 200))
    assert len(written) >= 150
    await setup.nothing_held()


async def test_one_that_fails_there_fails_alone(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = await make_setup()
    write = Chunks.write

    def break_down(self: Chunks, body: bytes) -> None:
        if b'"usage"' in body:
            raise RuntimeError("a defect")
        write(self, body)

    monkeypatch.setattr(Chunks, "write", break_down)

    async def collect(**fields: object) -> list[dict[str, Any]]:
        return [event async for event in stream(setup, 150, **fields)]

    good, bad = await asyncio.gather(collect(), collect(stream_options={"include_usage": True}))
    assert text(good) == text_of(expected(PROMPT, 150))
    assert bad[-1]["error"]["code"] == "internal"
    assert "a defect" in caplog.text
    await setup.nothing_held()
