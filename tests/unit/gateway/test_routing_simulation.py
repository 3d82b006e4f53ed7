"""The gateway's selection on made-up traffic, in the simulation that bench/routing.py runs on traces."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from bench.routing import POLICIES, shared_hits
from bench.routing_simulation import BLOCK_SIZE, NUM_WORKERS, Outcome, Simulation, TracePrompt


def conversations(count: int) -> list[TracePrompt]:
    """Return prompts of 60 conversations at a time, which begin alike; each turn adds one to four blocks."""
    draw = random.Random(5)
    names = (index.to_bytes(16, "little") for index in itertools.count(1))
    system = tuple(itertools.islice(names, 2))
    so_far = [system] * 60
    prompts = []
    for index in range(count):
        turn = draw.randrange(len(so_far))
        blocks = so_far[turn] + tuple(itertools.islice(names, draw.randint(1, 4)))
        so_far[turn] = blocks if draw.random() < 0.85 else system
        tokens = len(blocks) * BLOCK_SIZE + draw.randrange(BLOCK_SIZE)
        prompts.append(TracePrompt(index * 0.06, tokens, draw.randint(20, 400), blocks))
    return prompts


@pytest.fixture(scope="module")
def prompts() -> list[TracePrompt]:
    return conversations(800)


def run(prompts: list[TracePrompt], policy: str, num_blocks: int = 4000) -> Outcome:
    return Simulation(prompts, num_blocks, 5000.0, *POLICIES[policy]).run(lambda share: None)


@pytest.mark.parametrize("num_blocks", [4000, 400])
def test_prefixes_are_found_again_and_no_worker_runs_hot(prompts: list[TracePrompt], num_blocks: int) -> None:
    shared = shared_hits(prompts, num_blocks * NUM_WORKERS)
    baton, in_turn = run(prompts, "baton", num_blocks), run(prompts, "round robin", num_blocks)
    assert baton.prefill_hits >= 0.9 * shared
    assert baton.decode_hits >= 0.8 * shared
    # Two and a half minutes of traffic even out less than the hour of a trace.
    assert baton.prefill_hottest <= 1.4
    assert baton.decode_hottest <= 1.2
    assert in_turn.prefill_hits < 0.8 * shared
    assert sum(baton.ttft_s) < sum(in_turn.ttft_s)


def test_affinity_alone_runs_hot(prompts: list[TracePrompt]) -> None:
    assert run(prompts, "affinity").prefill_hottest > 2


def documents(count: int, gap_s: float) -> list[TracePrompt]:
    """Return questions about documents of 10 to 40 blocks, the next few of which take turns."""
    draw = random.Random(6)
    names = (index.to_bytes(16, "little") for index in itertools.count(1))
    prompts = []
    texts = [tuple(itertools.islice(names, draw.randint(10, 40))) for _ in range(30)]
    for index in range(count):
        which = draw.randrange(len(texts))
        blocks = texts[which] + tuple(itertools.islice(names, 1))
        prompts.append(TracePrompt(index * gap_s, len(blocks) * BLOCK_SIZE, 30, blocks))
        if draw.random() < 0.2:
            texts[which] = tuple(itertools.islice(names, draw.randint(10, 40)))
    return prompts


def test_prefixes_are_found_again_behind_a_long_queue() -> None:
    prompts = documents(600, gap_s=0.02)
    outcome = run(prompts, "baton", num_blocks=100)
    assert statistics.median(outcome.ttft_s) > 20
    assert outcome.prefill_hits >= 0.95 * shared_hits(prompts, 100 * NUM_WORKERS)
    assert outcome.prefill_hottest <= 1.25
