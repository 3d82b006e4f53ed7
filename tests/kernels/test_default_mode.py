"""Default mode: batches may change roundings, so answers alone and together agree up to near-ties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from engine.step import Logprobs
from tests.support.answers import Answer, AnsweringEngine
from tests.support.tiny_families import create_family

NUM_REQUESTS, NUM_OUT = 200, 36
SLACK = 1.5
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_OUT, ignore_eos=True, logprobs=2)


def config(directory: Path, **changes: object) -> EngineConfig:
    values = {
        "kv_bytes": 256 << 20,
        "max_step_tokens": 256,
        "block_size": 16,
        "prefix_cache": False,
    } | changes
    return EngineConfig(str(directory), "tiny", backend="cuda", context_length=512, **values)


def top(answer: Answer, at: int) -> tuple[float, ...]:
    logprobs: Logprobs | None = answer.logprobs[at]
    assert logprobs is not None
    return logprobs.top


def num_equal(one: Answer, other: Answer) -> int:
    """Tokens before the first that differs: up to there both have the same behind them."""
    pairs = zip(one.tokens, other.tokens, strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), NUM_OUT)


@pytest.mark.parametrize("changes", [{}, {"graphs": False}, {"max_chunk_tokens": 13}], ids=str)
def test_answers_differ_at_near_ties_alone(changes: dict[str, object], tmp_path: Path) -> None:
    create_family("llama3", tmp_path, head_dim=64)
    random = torch.Generator().manual_seed(torch.seed() % 2**31)
    lengths = torch.randint(1, 180, (NUM_REQUESTS,), generator=random).tolist()
    prompts = [torch.randint(3, 97, (length,), generator=random).tolist() for length in lengths]
    with AnsweringEngine(config(tmp_path)) as engine:
        alone = [engine.answer([prompt], [GREEDY])[0] for prompt in prompts]
    with AnsweringEngine(config(tmp_path, **changes)) as engine:
        together = engine.answer(prompts, GREEDY)
    pairs = [(one, other, num_equal(one, other)) for one, other in zip(alone, together, strict=True)]
    # What rounding does to the best log-probability.
    error = max(
        abs(top(one, at)[0] - top(other, at)[0]) for one, other, equal in pairs for at in range(equal)
    )
    assert error < 0.1
    for one, _, equal in pairs:
        if equal < NUM_OUT:
            first, second = top(one, equal)
            assert first - second <= 2 * SLACK * error, (
                f"token {equal}: {first} against {second}, error {error}"
            )
    assert sum(equal == NUM_OUT for *_, equal in pairs) > NUM_REQUESTS // 2
