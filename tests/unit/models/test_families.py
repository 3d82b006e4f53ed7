"""Every family against Transformers, logits within 1e-4, over a shuffled and poisoned pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.model_steps import ModelSteps
from tests.support.tiny_families import FAMILIES, create_family

LENGTHS = (1, 53, 90)
CHUNKS = (1, 7, 30, 16, 33, 100)
DECODE_STEPS = 20
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp(request.param)
    return create_family(request.param, directory), directory


def reference(model, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def random_tokens(length: int) -> list[int]:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def test_chunked_prefill_then_decode_matches(family) -> None:
    model, directory = family
    steps = ModelSteps(str(directory))
    texts = [random_tokens(length + DECODE_STEPS) for length in LENGTHS]
    wanted = [reference(model, text) for text in texts]
    requests = [steps.request(text, len(text)) for text in texts]
    for index, request in enumerate(requests):
        chunks = iter(CHUNKS)
        while request.num_computed_tokens < LENGTHS[index]:
            n = min(next(chunks), LENGTHS[index] - request.num_computed_tokens)
            (logits,) = steps.step([(request, n)])
            torch.testing.assert_close(
                logits, wanted[index][request.num_computed_tokens - 1], rtol=0, atol=TOLERANCE
            )
    for _ in range(DECODE_STEPS):
        for index, logits in enumerate(steps.step([(request, 1) for request in requests])):
            at = requests[index].num_computed_tokens - 1
            torch.testing.assert_close(logits, wanted[index][at], rtol=0, atol=TOLERANCE)


def test_decodes_and_chunks_in_one_step_match(family) -> None:
    model, directory = family
    steps = ModelSteps(str(directory))
    texts = [random_tokens(length) for length in (40, 41, 60, 75)]
    requests = [steps.request(text, len(text)) for text in texts]
    for request, n in zip(requests, (39, 40, 11, 0), strict=True):
        if n:
            steps.step([(request, n)])
    parts = [(requests[0], 1), (requests[1], 1), (requests[2], 49), (requests[3], 75)]
    for text, logits in zip(texts, steps.step(parts), strict=True):
        torch.testing.assert_close(logits, reference(model, text)[-1], rtol=0, atol=TOLERANCE)


def test_pool_outside_the_slots_is_untouched(family) -> None:
    _, directory = family
    steps = ModelSteps(str(directory), num_blocks=8)
    request = steps.request(random_tokens(21), 21)
    steps.step([(request, 20)])
    stored = ~steps.pool.blocks.isnan()
    first, second = request.block_ids[0]
    assert stored[first].all()
    assert stored[second, :, :, :, :4].all()
    assert not stored[second, :, :, :, 4:].any()
    others = [block for block in range(8) if block not in (first, second)]
    assert not stored[others].any()


def test_bf16_shards_load_as_their_float32_values(tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    create_family("smollm2", tmp_path / "float32").to(torch.bfloat16).save_pretrained(
        directory, max_shard_size="50KB"
    )
    assert len(list(directory.glob("*.safetensors"))) > 2
    steps = ModelSteps(str(directory))
    tokens = random_tokens(30)
    (logits,) = steps.step([(steps.request(tokens, 30), 30)])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.testing.assert_close(logits, reference(model, tokens)[-1], rtol=0, atol=TOLERANCE)
