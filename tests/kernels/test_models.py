"""Whole models in bf16 on the GPU against Transformers in float32 on the same GPU, weights rounded alike.

Tolerance: our logits must be as near to the float32 ones as those of Transformers in bf16 are, times
SLACK; and greedy tokens must agree wherever the two best logits are further apart than that error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.backends.cuda.backend import CudaBackend
from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from tests.support.answers import AnsweringEngine
from tests.support.model_steps import ModelSteps
from tests.support.tiny_families import FAMILIES, create_family

LENGTHS = (1, 53, 210)
CHUNKS = (1, 7, 30, 64, 16, 33, 100)
DECODE_STEPS = 12
SLACK = 1.5
CASES = [(name, 64) for name in sorted(FAMILIES)] + [("llama3", 128), ("qwen3", 128), ("qwen2-window", 128)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@dataclass
class Family:
    """A tiny model, its directory, and its Transformers twins: exact, and in bf16."""

    directory: Path
    exact: PreTrainedModel
    rounded: PreTrainedModel

    def logits(self, tokens: list[int]) -> tuple[torch.Tensor, float]:
        """Exact logits [T, V], and the largest error that bf16 makes in Transformers."""
        ids = torch.tensor([tokens], device="cuda")
        with torch.inference_mode():
            exact = self.exact(ids).logits[0]
            return exact, float((self.rounded(ids).logits[0].float() - exact).abs().max())


def create(name: str, head_dim: int, directory: Path) -> Family:
    exact = create_family(name, directory, head_dim=head_dim).to("cuda")
    # Parameters alone: in bf16 the rotary frequencies would not be the model's any more.
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16().float()
    rounded = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="eager"
    )
    return Family(directory, exact, rounded.to("cuda").eval())


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return create(*request.param, tmp_path_factory.mktemp(request.param[0]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return create("llama3", 64, tmp_path_factory.mktemp("engine"))


def steps_of(family: Family, num_blocks: int = 64) -> ModelSteps:
    return ModelSteps(str(family.directory), num_blocks, 16, CudaBackend(torch.bfloat16))


def random_tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length + seed)).tolist()


def check(ours: torch.Tensor, exact: torch.Tensor, error: float) -> None:
    limit = SLACK * error
    assert float((ours - exact).abs().max()) <= limit
    best = exact.topk(2).values
    if best[0] - best[1] > 2 * limit:
        assert ours.argmax() == exact.argmax()


def check_greedy(family: Family, prompt: list[int], answer: list[int]) -> None:
    """Every token is the best one, or as good as the best within the error."""
    exact, error = family.logits(prompt + answer)
    for at, token in enumerate(answer, len(prompt) - 1):
        assert exact[at].max() - exact[at, token] <= 2 * SLACK * error, f"token {at - len(prompt) + 1}"


def test_chunked_prefill_then_decode(family: Family) -> None:
    steps = steps_of(family)
    texts = [random_tokens(length + DECODE_STEPS) for length in LENGTHS]
    wanted = [family.logits(text) for text in texts]
    requests = [steps.request(text, len(text)) for text in texts]
    for index, request in enumerate(requests):
        chunks = iter(CHUNKS)
        while request.num_computed_tokens < LENGTHS[index]:
            n = min(next(chunks), LENGTHS[index] - request.num_computed_tokens)
            (logits,) = steps.step([(request, n)])
            check(logits, wanted[index][0][request.num_computed_tokens - 1], wanted[index][1])
    for _ in range(DECODE_STEPS):
        for index, logits in enumerate(steps.step([(request, 1) for request in requests])):
            check(logits, wanted[index][0][requests[index].num_computed_tokens - 1], wanted[index][1])


def test_decodes_and_chunks_in_one_step(family: Family) -> None:
    steps = steps_of(family)
    texts = [random_tokens(length) for length in (40, 41, 60, 175)]
    requests = [steps.request(text, len(text)) for text in texts]
    for request, n in zip(requests, (39, 40, 11, 0), strict=True):
        if n:
            steps.step([(request, n)])
    parts = [(requests[0], 1), (requests[1], 1), (requests[2], 49), (requests[3], 175)]
    for text, logits in zip(texts, steps.step(parts), strict=True):
        exact, error = family.logits(text)
        check(logits, exact[-1], error)


def test_pool_outside_the_slots_is_untouched(llama: Family) -> None:
    steps = steps_of(llama, num_blocks=8)
    request = steps.request(random_tokens(21), 21)
    steps.step([(request, 20)])
    stored = ~steps.pool.blocks.isnan()
    first, second = request.block_ids[0]
    assert stored[first].all()
    assert stored[second, :, :, :, :4].all()
    assert not stored[second, :, :, :, 4:].any()
    assert not stored[[block for block in range(8) if block not in (first, second)]].any()


def config(family: Family, **changes: object) -> EngineConfig:
    values = {
        "kv_bytes": 64 << 20,
        "max_step_tokens": 96,
        "max_running": 16,
        "block_size": 16,
    } | changes
    return EngineConfig(model=str(family.directory), model_name="tiny", backend="cuda", **values)


@pytest.mark.parametrize("changes", [{}, {"graphs": False}, {"ahead": False}, {"block_size": 64}], ids=str)
def test_engine_answers_as_transformers(llama: Family, changes: dict[str, object]) -> None:
    prompts = [random_tokens(n, seed=5) for n in (1, 16, 45, 170, 300, 64, 65, 2, 3, 90, 17, 8)]
    with AnsweringEngine(config(llama, **changes)) as engine:
        for _ in range(2):  # sizes are captured when they come the second time
            for prompt, answer in zip(prompts, engine.answer(prompts, GREEDY), strict=True):
                assert len(answer.tokens) == GREEDY.max_tokens
                check_greedy(llama, prompt, answer.tokens)


def test_too_small_a_pool_preempts_and_answers(llama: Family) -> None:
    block_bytes = 3 * 2 * 2 * 16 * 64 * 2
    prompts = [random_tokens(n, seed=6) for n in (45, 60, 50, 70, 33, 34)]
    with AnsweringEngine(config(llama, kv_bytes=14 * block_bytes, prefix_cache=False)) as engine:
        for prompt, answer in zip(prompts, engine.answer(prompts, GREEDY), strict=True):
            check_greedy(llama, prompt, answer.tokens)
        assert engine.built.engine.stats().preemptions > 0


def test_prefix_cache_is_read(llama: Family) -> None:
    prompt = random_tokens(200)
    with AnsweringEngine(config(llama)) as engine:
        engine.answer([prompt], GREEDY)
        (answer,) = engine.answer([[*prompt[:190], 5, 6, 7]], GREEDY)
        assert answer.num_cached_tokens == 176
        check_greedy(llama, [*prompt[:190], 5, 6, 7], answer.tokens)


def test_seeded_draws_and_logprobs_follow_the_logits(llama: Family) -> None:
    """The same batch draws the same tokens, and the log-probabilities are those of the model."""
    samplings = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=16, ignore_eos=True, logprobs=3, top_k=40)
        for seed in range(8)
    ]
    prompts = [random_tokens(20 + seed) for seed in range(8)]
    with AnsweringEngine(config(llama, prefix_cache=False)) as engine:
        first, second = engine.answer(prompts, samplings), engine.answer(prompts, samplings)
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert len({tuple(answer.tokens) for answer in first}) == 8
    for prompt, answer in zip(prompts, first, strict=True):
        exact, error = llama.logits(prompt + answer.tokens)
        wanted = exact.log_softmax(-1)
        for at, (token, logprobs) in enumerate(
            zip(answer.tokens, answer.logprobs, strict=True), len(prompt) - 1
        ):
            assert logprobs is not None
            assert logprobs.sampled == pytest.approx(float(wanted[at, token]), abs=2 * SLACK * error)
            assert len(logprobs.top) == 3
            assert logprobs.top[0] == pytest.approx(float(wanted[at].max()), abs=2 * SLACK * error)


def test_bias_minimum_and_penalties_apply(llama: Family) -> None:
    prompt = random_tokens(30)
    samplings = [
        SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logit_bias={11: 100.0}),
        SamplingParams(temperature=0.0, max_tokens=12, min_tokens=12, logit_bias={2: 100.0}),
        SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, presence_penalty=2.0,
                       frequency_penalty=2.0, repetition_penalty=2.0),
        SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    ]  # fmt: skip
    with AnsweringEngine(config(llama)) as engine:
        biased, least, penalised, plain = engine.answer([prompt] * 4, samplings)
    assert biased.tokens == [11] * 12
    assert 2 not in least.tokens
    assert len(least.tokens) == 12
    assert len(set(penalised.tokens)) > len(set(plain.tokens)) or len(set(penalised.tokens)) > 20
    assert penalised.tokens != plain.tokens


def test_log_probabilities_of_a_prompt(llama: Family) -> None:
    prompts = [random_tokens(150, seed=2), random_tokens(40, seed=2)]
    samplings = [
        SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, prompt_logprobs=wish)
        for wish in (4, 0)
    ]
    with AnsweringEngine(config(llama)) as engine:
        for prompt, sampling, answer in zip(
            prompts, samplings, engine.answer(prompts, samplings), strict=True
        ):
            exact, error = llama.logits(prompt)
            wanted = exact.log_softmax(-1)
            assert len(answer.prompt_logprobs) == len(prompt) - 1
            for at, entry in enumerate(answer.prompt_logprobs):
                assert entry.sampled == pytest.approx(
                    float(wanted[at, prompt[at + 1]]), abs=2 * SLACK * error
                )
                assert len(entry.top) == sampling.prompt_logprobs
