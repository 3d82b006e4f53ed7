"""sampling draws what the CPU sampler draws, from the same logits, seed and position."""

import math

import numpy as np
import pytest
import torch

from engine.backends.cuda.sampling import IN_PROMPT, SamplingRow, SamplingRows, logprobs, new_history, sample
from engine.sampler.logprobs import compute_logprobs
from engine.sampler.race import run_race
from engine.sampler.truncation import find_floor
from engine.sampling_params import SamplingParams

TRUNCATIONS = [
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 1},
    {"top_k": 40, "min_p": 0.1},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"top_k": 500, "top_p": 0.5, "min_p": 0.01},
    {"top_k": 3000, "top_p": 0.95},
    {},
]


def drawn_on_cpu(logits: np.ndarray, row: SamplingRow) -> int:
    best = int(logits.argmax())
    if row.temperature == 0:
        return best
    scaled = logits / np.float32(row.temperature)
    sampling = SamplingParams(temperature=row.temperature, top_k=row.top_k, top_p=row.top_p, min_p=row.min_p)
    floor = find_floor(scaled, float(scaled[best]), sampling)
    return run_race(scaled, best, floor, row.seed, row.position)


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("vocabulary", [1000, 32003, 128256])
def test_same_tokens_as_the_cpu(vocabulary: int, spread: float) -> None:
    rows = [
        SamplingRow(
            temperature=t, seed=int(torch.randint(2**62, ())), position=int(torch.randint(9000, ())), **cut
        )
        for cut in TRUNCATIONS
        for t in (0.0, 0.6, 1.0, 1.7)
    ]
    logits = torch.randn(len(rows), vocabulary, device="cuda") * spread
    tokens = sample(logits, SamplingRows(rows, logits.device)).tolist()
    expected = [drawn_on_cpu(line, row) for line, row in zip(logits.cpu().numpy(), rows, strict=True)]
    assert tokens == expected


def test_many_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -math.inf, 0.5]], device="cuda").expand(4000, 5).contiguous()
    rows = [SamplingRow(temperature=1.0, seed=3, position=i) for i in range(4000)]
    counts = torch.bincount(sample(logits, SamplingRows(rows, logits.device)), minlength=5).cpu() / 4000
    assert (counts - logits[0].softmax(0).cpu()).abs().max() < 0.04


def test_ties_go_to_the_smallest_id() -> None:
    logits = torch.zeros(2, 4097, device="cuda")
    logits[1, [77, 4000]] = 5.0
    assert sample(logits, SamplingRows([SamplingRow()] * 2, logits.device)).tolist() == [0, 77]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_token(bad: float) -> None:
    logits = torch.randn(2, 500, device="cuda")
    logits[1, 400] = bad
    tokens = sample(logits, SamplingRows([SamplingRow(temperature=1.0)] * 2, logits.device)).tolist()
    assert tokens[0] >= 0
    assert tokens[1] == -1


@pytest.mark.sanitize
def test_penalties_bias_and_masks() -> None:
    vocabulary = 999
    logits = torch.randn(3, vocabulary, device="cuda") * 2
    before = logits.clone()
    history = new_history(2, vocabulary, logits.device)
    history[1, [5, 6, 7]] = IN_PROMPT
    history[1, [6, 8]] += torch.tensor([2, 1], dtype=torch.int16, device="cuda")
    rows = [
        SamplingRow(history=1, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25,
                    logit_bias={8: 30.0, 700: 29.0}, masked=[8]),
        SamplingRow(masked=[int(logits[1].argmax())]),
        SamplingRow(history=0),
    ]  # fmt: skip
    work = torch.full_like(logits, math.nan)
    tokens = sample(logits, SamplingRows(rows, logits.device), history, work)
    expected = before.clone()
    for token, count in ((5, 0), (6, 2), (7, 0), (8, 1)):
        value = before[0, token]
        value = value / 1.3 if value > 0 else value * 1.3
        expected[0, token] = value - 0.25 * count - (0.5 if count else 0.0)
    expected[0, 700] += 29.0
    expected[0, 8] = -math.inf
    expected[1, before[1].argmax()] = -math.inf
    assert torch.equal(logits, before)
    torch.testing.assert_close(work[:2], expected[:2])
    assert tokens.tolist() == expected.argmax(-1).tolist()
    assert history[0].sum() == 1
    assert history[0, tokens[2]] == 1
    assert history[1, tokens[0]] == (1 if tokens[0] not in (5, 6, 7, 8) else history[1, tokens[0]])


@pytest.mark.parametrize("vocabulary", [pytest.param(999, marks=pytest.mark.sanitize), 128256])
def test_bitmask_of_allowed_tokens(vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, device="cuda") * 2
    open_tokens = torch.rand(2, vocabulary, device="cuda") < 0.01
    open_tokens[1] = False
    words = -(-vocabulary // 32)
    bits = torch.zeros(2, words * 32, dtype=torch.int64, device="cuda")
    bits[:, :vocabulary] = open_tokens
    packed = (bits.view(2, words, 32) << torch.arange(32, device="cuda")).sum(-1)
    allowed = packed.where(packed < 2**31, packed - 2**32).int()
    rows = [
        SamplingRow(allowed=0),
        SamplingRow(),
        SamplingRow(temperature=0.9, top_p=0.95, seed=5, position=3, allowed=0),
        SamplingRow(allowed=1),
    ]
    tokens = sample(logits, SamplingRows(rows, logits.device), allowed=allowed).tolist()
    masked = logits.masked_fill(~open_tokens[0], -math.inf)
    assert tokens[0] == masked[0].argmax()
    assert tokens[1] == logits[1].argmax()
    assert tokens[2] == drawn_on_cpu(masked[2].cpu().numpy(), rows[2])
    assert tokens[3] == -1


@pytest.mark.parametrize("vocabulary", [pytest.param(300, marks=pytest.mark.sanitize), 128256])
def test_logprobs(vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, device="cuda") * 3
    tokens = torch.randint(0, vocabulary, (4,), device="cuda", dtype=torch.int32)
    wishes = torch.tensor([20, 0, -1, 7], dtype=torch.int32, device="cuda")
    values, ids = logprobs(logits, wishes, tokens)
    for i, wish in enumerate(wishes.tolist()):
        if wish < 0:
            continue
        expected = compute_logprobs(logits[i].cpu().numpy(), int(tokens[i]), wish)
        assert ids[i, 0] == tokens[i]
        assert ids[i, 1 : wish + 1].tolist() == list(expected.top_ids)
        numbers = [expected.sampled, *expected.top]
        assert values[i, : wish + 1].cpu().numpy() == pytest.approx(np.array(numbers), abs=2e-5)


@pytest.mark.parametrize("vocabulary", [97, 1001, 32003])
def test_rows_of_any_alignment_get_the_same_bits(vocabulary: int) -> None:
    """The vocabulary is odd, so each row is aligned in another way."""
    logits = (torch.randn(1, vocabulary, device="cuda") * 3).expand(64, vocabulary).contiguous()
    wishes = torch.full((64,), 5, dtype=torch.int32, device="cuda")
    values, ids = logprobs(
        logits, wishes, torch.full((64,), vocabulary // 2, dtype=torch.int32, device="cuda")
    )
    assert (values[:, :6] == values[:1, :6]).all()
    assert (ids[:, :6] == ids[:1, :6]).all()
    for cut in TRUNCATIONS:
        rows = [SamplingRow(temperature=0.8, seed=5, position=7, **cut)] * 64
        assert sample(logits, SamplingRows(rows, logits.device)).unique().numel() == 1
