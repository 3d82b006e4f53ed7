"""500 random strings, byte by byte as tokens, through every way out: nothing lost, doubled or split."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence

import pytest

from tests.integration.gateway.conftest import MakeSetup, Setup
from tests.support import scripted_workers
from tests.support.byte_tokenizer import EOS, NUM_SPECIAL
from tests.support.strings import random_bytes

COUNT = 500
MARK = 1


def repeat(token_ids: Sequence[int], seed: int = 0) -> int:
    """Answer with what stands before the mark."""
    at = list(token_ids).index(MARK)
    said = len(token_ids) - at - 1
    return token_ids[said] if said < at else EOS


async def stream_http(setup: Setup, prompt: list[int]) -> list[str]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 200, "temperature": 0, "stream": True}
    parts: list[str] = []
    async with setup.http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                parts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
    return parts


async def stream_grpc(setup: Setup, prompt: list[int]) -> list[str]:
    return [delta.text for delta in (await setup.generate(prompt, max_tokens=200)).deltas]


@pytest.mark.parametrize("stream", [stream_http, stream_grpc])
async def test_random_strings_come_as_they_were(
    make_setup: MakeSetup, monkeypatch: pytest.MonkeyPatch, stream
) -> None:
    monkeypatch.setattr(scripted_workers, "next_token", repeat)
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    setup = await make_setup()
    strings = [random_bytes(rng) for _ in range(COUNT)]
    at_once = asyncio.Semaphore(64)

    async def one(data: bytes) -> list[str]:
        async with at_once:
            return await stream(setup, [*(NUM_SPECIAL + byte for byte in data), MARK])

    answers = await asyncio.gather(*map(one, strings))
    for data, parts in zip(strings, answers, strict=True):
        expected = data.decode(errors="replace")
        assert "".join(parts) == expected, (seed, data)
        if "\ufffd" not in expected:
            assert not any("\ufffd" in part for part in parts)
    assert sum(b"\xff" in data for data in strings) > 10, "bytes that are no text are among them"
    await setup.nothing_held()
