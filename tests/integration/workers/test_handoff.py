"""Prefill to decode over real gRPC and real transports gives what one engine alone gives."""

import asyncio
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from baton.v1 import prefill_pb2, sampling_pb2
from engine.build import build_engine
from engine.events import StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.support.told_layers import tell_of_layers
from tests.support.workers import (
    BLOCK_SIZE,
    Pair,
    all_free,
    decode_worker,
    engine_config,
    greedy,
    prefill_worker,
)


def engine_alone(model: Path, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[list[int]]:
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    left = set(tokens)
    done = threading.Event()

    def on_events(step: StepEvents) -> None:
        for event in step.events:
            assert isinstance(event, TokenSampled), event
            tokens[event.request_id].append(event.token.token_id)
            if event.finish_reason is not None:
                left.discard(event.request_id)
        if not left:
            done.set()

    built = build_engine(engine_config(model, num_blocks=256), on_events)
    built.engine.start()
    for i, prompt in enumerate(prompts):
        built.engine.submit(Request(str(i), list(prompt), len(prompt), sampling))
    assert done.wait(60)
    built.engine.stop()
    return [tokens[str(i)] for i in range(len(prompts))]


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 259) for _ in range(length)] for length in lengths]


def assert_chunks_cover(first: prefill_pb2.FirstToken, num_tokens: int) -> None:
    """Each token of the prompt was cached or computed in one step; steps follow one another."""
    at, at_s = first.cached_tokens, first.queue_s - 1e-3
    for chunk in first.chunks:
        assert chunk.start == at
        assert chunk.begin_s >= at_s
        assert chunk.duration_s > 0
        at, at_s = at + chunk.num_tokens, chunk.begin_s + chunk.duration_s - 1e-6
    assert at == num_tokens
    assert sum(chunk.duration_s for chunk in first.chunks) <= first.compute_s + 1e-3


@pytest.mark.parametrize("transport", ["shared_memory", "zmq_tcp"])
async def test_layers_that_go_ahead_of_the_rest_change_nothing(
    tiny_model: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts([5, 16, 33, 100, 200, 90, 70, 130, 220, 48] * 2, seed=7)
    sampling = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    expected = engine_alone(tiny_model, prompts, sampling)
    told = tell_of_layers(monkeypatch)
    async with (
        prefill_worker(engine_config(tiny_model), transports=[transport]) as prefill,
        decode_worker(engine_config(tiny_model), transports=[transport]) as decode,
        Pair(prefill, decode) as pair,
    ):
        answers = await asyncio.gather(*(pair.generate(prompt, greedy(6)) for prompt in prompts))
        for prompt, want, (tokens, _, handed_over) in zip(prompts, expected, answers, strict=True):
            assert tokens == want, f"prompt of {len(prompt)} tokens"
            assert handed_over.blocks + handed_over.skipped_blocks == -(-len(prompt) // BLOCK_SIZE)
        await all_free(prefill, decode)
    assert told.num_waits > 10


@pytest.mark.parametrize("transport", ["shared_memory", "zmq_tcp"])
async def test_handed_over_greedy_tokens_equal_the_engine_alone(tiny_model: Path, transport: str) -> None:
    prompts = random_prompts([1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 200])
    expected = engine_alone(
        tiny_model, prompts, SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    )
    async with (
        prefill_worker(engine_config(tiny_model), transports=[transport]) as prefill,
        decode_worker(engine_config(tiny_model), transports=[transport]) as decode,
        Pair(prefill, decode) as pair,
    ):
        answers = await asyncio.gather(*(pair.generate(prompt, greedy(20)) for prompt in prompts))
        for prompt, want, (tokens, first, handed_over) in zip(prompts, expected, answers, strict=True):
            assert tokens == want, f"prompt of {len(prompt)} tokens"
            assert handed_over is not None
            assert handed_over.transport == transport
            assert handed_over.blocks == -(-len(prompt) // BLOCK_SIZE)
            block_bytes = decode.host.regions[0].block_bytes
            assert handed_over.bytes == handed_over.blocks * block_bytes
            assert 0 <= handed_over.exposed_s < 5
            assert first.queue_s >= 0
            assert first.compute_s > 0
            assert_chunks_cover(first, len(prompt))
        await all_free(prefill, decode)


async def test_cached_blocks_are_neither_computed_nor_sent(tiny_model: Path) -> None:
    shared, *tails = random_prompts([5 * BLOCK_SIZE, 3, 21], seed=1)
    prompts = [shared + tail for tail in tails]
    expected = engine_alone(tiny_model, prompts, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        for number, prompt in enumerate(prompts):
            tokens, first, handed_over = await pair.generate(prompt, greedy(8))
            assert tokens == expected[number]
            assert handed_over is not None
            if number:
                assert first.cached_tokens == 5 * BLOCK_SIZE
                assert handed_over.skipped_blocks == 5
                assert handed_over.blocks == 2
        # All but the last token, which prefill computes: the block that holds it is sent.
        tokens, _, handed_over = await pair.generate(shared, greedy(8))
        assert handed_over is not None
        assert (handed_over.blocks, handed_over.skipped_blocks) == (1, 4)
        assert (
            tokens
            == engine_alone(
                tiny_model, [shared], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
            )[0]
        )
        await all_free(prefill, decode)


async def test_a_salt_keeps_caches_apart(tiny_model: Path) -> None:
    (prompt,) = random_prompts([3 * BLOCK_SIZE + 1], seed=2)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        await pair.generate(prompt, greedy(2))
        reserved = await pair.reserve(prompt, greedy(2), request_id="salted", cache_salt="tenant")
        assert reserved.target.num_cached_tokens == 0
        await pair.cancel("salted")
        plain = await pair.reserve(prompt, greedy(2), request_id="plain")
        assert plain.target.num_cached_tokens == 3 * BLOCK_SIZE
        await pair.cancel("plain")
        await all_free(prefill, decode)


async def test_a_first_token_that_ends_the_answer_hands_nothing_over(tiny_model: Path) -> None:
    (prompt,) = random_prompts([40], seed=3)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        (first, *_), _, _ = await pair.generate(prompt, greedy(4))
        stop = sampling_pb2.SamplingParams(temperature=0, stop_token_ids=[first])
        _, stopped, handed_over = await pair.generate(prompt, stop)
        assert handed_over is None
        assert stopped.finish_reason == sampling_pb2.FINISH_REASON_STOP
        _, single, handed_over = await pair.generate(prompt, greedy(1))
        assert handed_over is None
        assert single.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
        await all_free(prefill, decode)


async def test_without_a_target_only_the_first_token_is_computed(tiny_model: Path) -> None:
    (prompt,) = random_prompts([40], seed=3)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        responses = [r async for r in pair.start_prefill(prompt, greedy(4, logprobs=2), None)]
        assert len(responses) == 1
        first = responses[0].first_token
        assert first.logprobs.sampled.token_id == first.token_id
        assert first.logprobs.top[0].token_id == first.token_id
        assert len(first.logprobs.top) == 2
        await all_free(prefill, decode)


async def test_one_message_a_step(tiny_model: Path) -> None:
    prompts = random_prompts([20] * 8, seed=4)
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        await asyncio.gather(*(pair.generate(prompt, greedy(60, logprobs=0)) for prompt in prompts))
        assert pair.messages[0].incarnation == decode.identity.incarnation
        assert not pair.messages[0].events
        steps = [message.step for message in pair.messages[1:]]
        assert steps == sorted(set(steps))
        assert max(len(message.events) for message in pair.messages) > 1
        for message in pair.messages[1:]:
            assert len({event.request_id for event in message.events}) == len(message.events)
            assert all(event.logprobs[0].sampled.token_id == event.token_ids[0] for event in message.events)
        await all_free(prefill, decode)
