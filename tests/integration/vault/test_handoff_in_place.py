"""Prefill and decode on one vault: what one engine alone gives, and no byte is moved."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from baton.v1 import prefill_pb2
from engine.sampling_params import SamplingParams
from services.decode.config import LeaseConfig
from tests.integration.vault.conftest import RunningVault
from tests.integration.workers.test_handoff import engine_alone, random_prompts
from tests.support.workers import (
    BLOCK_SIZE,
    Pair,
    all_free,
    decode_worker,
    engine_config,
    eventually,
    greedy,
    prefill_worker,
)

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


async def test_tokens_are_those_of_one_engine_and_nothing_moves(vault: RunningVault) -> None:
    prompts = random_prompts([1, 15, 16, 17, 33, 64, 100, 200])
    expected = engine_alone(vault.model, prompts, GREEDY)
    socket = vault.config.socket
    async with (
        prefill_worker(vault.engine(4), vault=socket) as prefill,
        decode_worker(vault.engine(60), vault=socket) as decode,
        Pair(prefill, decode) as pair,
    ):
        assert decode.host.regions[0].num_blocks == 96
        for round_number in range(2):
            answers = await asyncio.gather(*(pair.generate(prompt, greedy(12)) for prompt in prompts))
            for prompt, want, (tokens, first, handed_over) in zip(prompts, expected, answers, strict=True):
                assert tokens == want, f"prompt of {len(prompt)} tokens"
                assert handed_over is not None
                cached = (len(prompt) - 1) // BLOCK_SIZE if round_number else 0
                assert first.cached_tokens == cached * BLOCK_SIZE
                assert handed_over.transport == "shared_memory"
                assert handed_over.bytes == 0
                assert handed_over.blocks == -(-len(prompt) // BLOCK_SIZE) - cached
                assert handed_over.skipped_blocks == cached
        await all_free(prefill, decode)
        # Longer than prefill's own share: nothing of it was used.
        assert prefill.host.built.num_blocks * BLOCK_SIZE < max(map(len, prompts))
        assert prefill.metrics.transferred_bytes == 0
        assert prefill.metrics.transferred_blocks > 0


async def test_to_a_worker_with_memory_of_its_own_blocks_are_moved(vault: RunningVault) -> None:
    (prompt,) = random_prompts([50])
    expected = engine_alone(vault.model, [prompt], GREEDY)
    async with (
        prefill_worker(vault.engine(30), vault=vault.config.socket) as prefill,
        decode_worker(engine_config(vault.model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        tokens, _, handed_over = await pair.generate(prompt, greedy(12))
        assert tokens == expected[0]
        assert handed_over is not None
        assert handed_over.bytes == 4 * decode.host.regions[0].block_bytes
        await all_free(prefill, decode)


@pytest.mark.parametrize("side", ["decode", "prefill", "call"])
async def test_a_prompt_that_ends_early_leaves_nothing_behind(vault: RunningVault, side: str) -> None:
    (prompt,) = random_prompts([400])
    slow = {"max_step_tokens": 4, "max_chunk_tokens": 4}
    socket = vault.config.socket
    async with (
        prefill_worker(vault.engine(4, **slow), vault=socket) as prefill,
        decode_worker(vault.engine(60), vault=socket) as decode,
        Pair(prefill, decode) as pair,
    ):
        for number in range(5):
            name = f"r{number}"
            reserved = await pair.reserve(prompt, greedy(4), request_id=name)
            call = pair.start_prefill(prompt, greedy(4), reserved.target, request_id=name)
            running = asyncio.create_task(read(call))
            steps = prefill.host.engine.stats().steps + number
            await eventually(lambda steps=steps: prefill.host.engine.stats().steps > steps)
            if side == "decode":
                await pair.cancel(name)
            elif side == "prefill":
                await pair.prefill.Cancel(prefill_pb2.PrefillServiceCancelRequest(request_id=name), timeout=5)
            else:
                call.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if side != "decode":
                await pair.cancel(name)
            await all_free(prefill, decode)
            # Nothing is written any more, whoever gets these blocks next.
            blocks = decode.host.regions[0].blocks()
            ids = list(reserved.target.block_ids[0].ids)
            before = blocks[ids].copy()
            await asyncio.sleep(0.05)
            assert np.array_equal(blocks[ids], before)
            del blocks
        answer, _, _ = await pair.generate(prompt[:100], greedy(4))
        assert answer == engine_alone(vault.model, [prompt[:100]], GREEDY)[0][:4]
        await all_free(prefill, decode)


async def test_a_second_attempt_waits_for_the_first_to_stop_computing(vault: RunningVault) -> None:
    (prompt,) = random_prompts([300])
    expected = engine_alone(vault.model, [prompt], GREEDY)
    slow = {"max_step_tokens": 4, "max_chunk_tokens": 4}
    socket = vault.config.socket
    async with (
        prefill_worker(vault.engine(4, **slow), vault=socket) as first,
        prefill_worker(vault.engine(4), vault=socket) as second,
        decode_worker(vault.engine(60), vault=socket, leases=LeaseConfig(lease_s=5.0)) as decode,
        Pair(first, decode) as pair,
        Pair(second, decode, gateway_id="other") as other,
    ):
        reserved = await pair.reserve(prompt, greedy(12), request_id="r")
        late = asyncio.create_task(
            read(pair.start_prefill(prompt, greedy(12), reserved.target, request_id="r"))
        )
        await eventually(lambda: first.host.engine.stats().steps > 3)
        again = await pair.reserve(
            prompt, greedy(12), request_id="r", reservation_id=reserved.target.reservation_id
        )
        assert again.target.epoch == 2
        responses = await read(other.start_prefill(prompt, greedy(12), again.target, request_id="r"))
        await asyncio.gather(late, return_exceptions=True)
        assert responses[1].handed_over.bytes == 0
        await eventually(lambda: "r" in pair.finished)
        assert [responses[0].first_token.token_id, *pair.tokens["r"]] == expected[0]
        await all_free(first, second, decode)


async def read(call) -> list[prefill_pb2.PrefillResponse]:
    return [response async for response in call]
