"""A real engine whose pool is far too small gives the tokens of one with room, from host memory."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.events import RequestCancelled, RequestFailed, StepEvents, TokenSampled
from engine.request import FinishReason, Request
from engine.sampling_params import SamplingParams
from engine.stats import EngineStats
from tests.support.tiny_models import save_tiny_llama

BLOCK_BYTES = 2 * 2 * 2 * 16 * 8 * 4
NUM_REQUESTS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def answer(
    model: Path, prompts: list[list[int]], together: bool, **settings: int | bool
) -> tuple[list[list[int]], EngineStats]:
    """Answers to prompts that come together or one after the other, greedy and sampled in turns."""
    events: queue.Queue[StepEvents] = queue.Queue()
    built = build_engine(
        EngineConfig(model=str(model), model_name="tiny", max_step_tokens=64, **settings), events.put
    )
    answers: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    built.engine.start()
    try:
        ended: set[str] = set()
        for index, prompt in enumerate(prompts):
            sampling = SamplingParams(
                temperature=0.8 * (index % 2),
                max_tokens=60,
                ignore_eos=True,
                seed=index,
                presence_penalty=0.5,
            )
            built.engine.submit(Request(str(index), list(prompt), len(prompt), sampling))
            while len(ended) < (0 if together else index + 1) or (
                index + 1 == len(prompts) and len(ended) < len(prompts)
            ):
                for event in events.get(timeout=60).events:
                    assert not isinstance(event, RequestFailed | RequestCancelled)
                    if isinstance(event, TokenSampled):
                        answers[event.request_id].append(event.token.token_id)
                        if event.finish_reason is FinishReason.LENGTH:
                            ended.add(event.request_id)
        built.engine.check_invariants()
        return list(answers.values()), built.engine.stats()
    finally:
        built.engine.stop()


def test_a_pool_far_too_small_gives_the_same_tokens_from_host_memory(model: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(3, 259, (20 + 5 * n,), generator=generator).tolist() for n in range(NUM_REQUESTS)
    ]
    roomy, plenty = answer(model, prompts, True, kv_bytes=200 * BLOCK_BYTES, prefix_cache=False)
    assert plenty.preemptions == 0
    swapped, tight = answer(
        model,
        prompts,
        True,
        kv_bytes=20 * BLOCK_BYTES,
        swap_bytes=200 * BLOCK_BYTES,
        prefix_cache=False,
    )
    assert swapped == roomy
    assert tight.preemptions >= NUM_REQUESTS // 2
    assert tight.saved_blocks == tight.loaded_blocks > 0
    assert tight.computed_tokens == plenty.computed_tokens, "nothing was computed twice"


def test_prefixes_that_the_pool_has_no_room_for_come_back_from_host_memory(model: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(3, 259, (150,), generator=generator).tolist() for _ in range(6)]
    lost, without = answer(model, prompts * 2, False, kv_bytes=32 * BLOCK_BYTES)
    kept, with_host = answer(
        model, prompts * 2, False, kv_bytes=32 * BLOCK_BYTES, host_cache_bytes=200 * BLOCK_BYTES
    )
    assert kept == lost
    assert with_host.loaded_blocks > 0
    assert with_host.prefix_hit_tokens == 6 * 144
    assert without.prefix_hit_tokens == 0
