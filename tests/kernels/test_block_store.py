"""Blocks in pinned host memory, and an engine on a GPU that swaps, one step ahead."""

from __future__ import annotations

import dataclasses
import queue
from pathlib import Path

import pytest
import torch

from engine.backends.base import KVPool
from engine.build import build_engine, read_layout
from engine.config import EngineConfig
from engine.events import RequestFailed, StepEvents, TokenSampled
from engine.request import FinishReason, Request
from engine.runner.cuda.block_store import PinnedBlockStore
from engine.sampling_params import SamplingParams
from engine.stats import EngineStats
from tests.support.tiny_families import create_family

NUM_REQUESTS = 24


def test_blocks_come_back_and_saves_see_all_that_came_before() -> None:
    shape = (3, 2, 2, 64, 64)
    blocks = torch.randn((32, *shape), device="cuda", dtype=torch.bfloat16)
    store = PinnedBlockStore(KVPool(group=None, blocks=blocks, memory=None), 20)  # type: ignore[arg-type]
    wanted = torch.randn((32, *shape), device="cuda", dtype=torch.bfloat16)
    order = torch.randperm(32).tolist()
    slots = torch.randperm(20).tolist()[:16]
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        blocks.copy_(wanted)
        store.save(order[:16], slots)
        store.join()
        blocks.zero_()
        store.load(slots, order[16:])
        torch.cuda.current_stream().synchronize()
    for source, target in zip(order[:16], order[16:], strict=True):
        assert torch.equal(blocks[target], wanted[source])
        assert not blocks[source].any()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swap")
    create_family("llama3", path, head_dim=64)
    return path


def answer(
    directory: Path, num_blocks: int, num_host_blocks: int, ahead: bool
) -> tuple[list[list[int]], EngineStats]:
    """Answers to prompts that come together, greedy and sampled in turns, from a pool of so many blocks."""
    config = EngineConfig(
        str(directory),
        "tiny",
        backend="cuda",
        block_size=64,
        max_step_tokens=256,
        batch_invariant=True,
        prefix_cache=False,
        ahead=ahead,
    )
    block_bytes = read_layout(config).groups[0].block_bytes
    config = dataclasses.replace(
        config, kv_bytes=num_blocks * block_bytes, swap_bytes=num_host_blocks * block_bytes
    )
    events: queue.Queue[StepEvents] = queue.Queue()
    built = build_engine(config, events.put)
    generator = torch.Generator().manual_seed(3)
    answers: dict[str, list[int]] = {str(index): [] for index in range(NUM_REQUESTS)}
    built.engine.start()
    try:
        for name in answers:
            index = int(name)
            prompt = torch.randint(3, 97, (40 + 3 * index,), generator=generator).tolist()
            sampling = SamplingParams(
                temperature=0.8 * (index % 2),
                max_tokens=100,
                ignore_eos=True,
                seed=index,
                frequency_penalty=0.3,
            )
            built.engine.submit(Request(name, prompt, len(prompt), sampling))
        running = set(answers)
        while running:
            for event in events.get(timeout=60).events:
                assert not isinstance(event, RequestFailed), event
                if isinstance(event, TokenSampled):
                    answers[event.request_id].append(event.token.token_id)
                    if event.finish_reason is FinishReason.LENGTH:
                        running.remove(event.request_id)
        built.engine.check_invariants()
        return list(answers.values()), built.engine.stats()
    finally:
        built.engine.stop()


def test_an_engine_that_swaps_and_runs_ahead_gives_the_same_tokens(directory: Path) -> None:
    wanted, roomy = answer(directory, 200, 0, ahead=False)
    assert roomy.preemptions == 0
    assert answer(directory, 200, 0, ahead=True)[0] == wanted
    swapped, tight = answer(directory, 24, 200, ahead=True)
    assert swapped == wanted
    assert tight.preemptions > 0
    assert tight.saved_blocks == tight.loaded_blocks > 0
