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
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_OUT, ignore_eos=True, logprobs=2)


def config(directory: Path, **changes: object) -> EngineConfig:
    values = {
        "kv_bytes": 256 << 20,
        "max_step_tokens": 256,
        "block_size": 16,
        "prefix_cache": False,
    } | changes
    return EngineConfig(str(directory), "tiny", backend="cuda", context_length=512, **values)


def best_two(logprobs: Logprobs | None) -> tuple[float, float]:
    assert logprobs is not None
    return logprobs.top[0], logprobs.top[1]


def check(alone: Answer, together: Answer, error: float) -> bool:
    """Whether the tokens are equal; where they part, the two best were within the error."""
    for at, (one, other) in enumerate(zip(alone.tokens, together.tokens, strict=True)):
        if one != other:
            first, second = best_two(alone.logprobs[at])
            assert first - second <= 2 * error, (
                f"token {at}: the best was ahead by {first - second}, error {error}"
            )
            return False
    return True


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
    # What rounding does to a log-probability, seen where both still have the same tokens behind them.
    error = max(
        abs(best_two(one.logprobs[0])[0] - best_two(other.logprobs[0])[0])
        for one, other in zip(alone, together, strict=True)
    )
    assert error < 0.05
    equal = sum(check(one, other, max(error, 2**-7)) for one, other in zip(alone, together, strict=True))
    assert equal > NUM_REQUESTS // 2, f"{equal} of {NUM_REQUESTS} equal"
