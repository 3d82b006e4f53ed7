"""Log-probabilities of a prompt's own tokens: in chunks, beside others, past the prefix cache."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from baton.v1 import sampling_pb2
from tests.integration.workers.test_handoff import random_prompts
from tests.support.workers import Pair, all_free, decode_worker, engine_config, greedy, prefill_worker


@pytest.fixture(scope="module")
def reference(tiny_model: Path):
    """Transformers' log-probabilities: float32[T, V] of a prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    @torch.inference_mode()
    def logprobs(prompt: list[int]) -> torch.Tensor:
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0], dim=-1)

    return logprobs


def check(
    found: list[sampling_pb2.TokenLogprobs], prompt: list[int], expected: torch.Tensor, count: int
) -> None:
    assert [entry.sampled.token_id for entry in found] == prompt[1:]
    for position, entry in enumerate(found):
        row = expected[position]
        assert entry.sampled.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=2e-4)
        assert len(entry.top) == count
        best = torch.topk(row, count).values.tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(best, abs=2e-4)


async def test_prompts_of_any_length_beside_others(tiny_model: Path, reference) -> None:
    async with (
        prefill_worker(engine_config(tiny_model)) as prefill,
        decode_worker(engine_config(tiny_model)) as decode,
        Pair(prefill, decode) as pair,
    ):
        prompts = random_prompts([1, 2, 16, 17, 33, 100, 150])
        plain = asyncio.gather(*(pair.generate(prompt, greedy(8)) for prompt in prompts))
        scored = await asyncio.gather(
            *(pair.generate(prompt, greedy(8, prompt_logprobs=2)) for prompt in prompts)
        )
        answers = await plain
        # Now that the prefix cache holds them all.
        again = await asyncio.gather(
            *(pair.generate(prompt, greedy(8, prompt_logprobs=0)) for prompt in prompts)
        )
        for prompt, answer, first, second in zip(prompts, answers, scored, again, strict=True):
            expected = reference(prompt)
            check(list(first[1].prompt_logprobs), prompt, expected, 2)
            check(list(second[1].prompt_logprobs), prompt, expected, 0)
            assert second[1].cached_tokens == 0
            assert answer[0] == first[0] == second[0], "the answer is the same"
            assert not answer[1].prompt_logprobs
        await all_free(prefill, decode)
