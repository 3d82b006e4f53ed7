import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import SamplingError
from engine.request import Request
from engine.sampler.philox import fill_words, gumbel, philox4x32
from engine.sampler.race import run_race
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.step import Logprobs, SampledToken
from tests.support.engine_builders import create_request

EOS = frozenset({3})


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected: str) -> None:
    words = philox4x32(*(np.uint32(word) for word in (*counter, *key)))
    assert " ".join(f"{word:08x}" for word in words) == expected


def scalar_gumbel(seed: int, position: int, token_id: int) -> float:
    """The docstring of philox.py, word for word, in Python's integers."""
    c0, c1, c2, c3 = token_id >> 2, position, 0, 0
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    v = ((c0, c1, c2, c3)[token_id & 3] + 0.5) * 2.0**-32
    return -math.log(-math.log1p(-v))


def test_noise_is_what_the_docstring_says() -> None:
    rng = np.random.default_rng()
    seed, position = int(rng.integers(2**63)) * 2 + 1, int(rng.integers(100_000))
    k0, k1, row = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32), np.uint32(position)
    words = np.zeros((4, 1000), dtype=np.uint32)
    fill_words(k0, k1, row, words)
    for token_id in rng.permutation(4000)[:50]:
        expected = scalar_gumbel(seed, position, int(token_id))
        assert gumbel(k0, k1, row, np.uint32(token_id)) == pytest.approx(expected, rel=1e-12)
        v = (int(words[token_id % 4, token_id // 4]) + 0.5) * 2.0**-32
        assert -math.log(-math.log1p(-v)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e6])
def test_sifting_loses_no_winner(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    for position in range(20):
        scaled = rng.normal(0, spread, 2001).astype(np.float32)
        noise = np.array([scalar_gumbel(5, position, t) for t in range(len(scaled))])
        best = int(scaled.argmax())
        floor = float(np.median(scaled))
        everyone = int(np.argmax(scaled + noise))
        some = int(np.argmax(np.where(scaled >= floor, scaled + noise, -np.inf)))
        assert run_race(scaled, best, -math.inf, 5, position) == everyone
        assert run_race(scaled, best, floor, 5, position) == some


def reference_adjusted(logits: np.ndarray, request: Request) -> np.ndarray:
    """One token after the other, float64."""
    sampling, result = request.sampling, logits.astype(np.float64)
    output = request.token_ids[request.num_prompt_tokens :]
    for token_id in range(len(result)):
        if token_id in request.token_ids:
            factor = sampling.repetition_penalty
            result[token_id] = (
                result[token_id] / factor if result[token_id] > 0 else result[token_id] * factor
            )
        result[token_id] -= sampling.frequency_penalty * output.count(token_id)
        result[token_id] -= sampling.presence_penalty * (token_id in output)
        result[token_id] += sampling.logit_bias.get(token_id, 0.0)
        ends = token_id in EOS or token_id in sampling.stop_token_ids
        if ends and len(output) < sampling.min_tokens:
            result[token_id] = -math.inf
    return result


def reference_kept(adjusted: np.ndarray, sampling: SamplingParams) -> dict[int, float]:
    """Token id -> scaled logit of the tokens that stay; float64, by sorting."""
    scaled = {t: x / sampling.temperature for t, x in enumerate(adjusted) if x > -math.inf}
    order = sorted(scaled, key=lambda t: -scaled[t])
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = [math.exp(scaled[t] - scaled[order[0]]) for t in order]
    mass, total, kept = 0.0, sum(weights), []
    for token_id, weight in zip(order, weights, strict=True):
        kept.append(token_id)
        mass += weight
        if sampling.top_p < 1.0 and mass >= sampling.top_p * total:
            break
    largest = scaled[order[0]]
    if sampling.min_p:
        kept = [t for t in kept if scaled[t] >= largest + math.log(sampling.min_p)]
    return {t: scaled[t] for t in kept}


def reference_token(logits: np.ndarray, request: Request) -> int:
    adjusted = reference_adjusted(logits, request)
    if request.sampling.is_greedy:
        return int(np.argmax(adjusted))
    kept = reference_kept(adjusted, request.sampling)
    return max(kept, key=lambda t: kept[t] + scalar_gumbel(request.sampling.seed, request.num_tokens, t))


def random_params(rng: np.random.Generator, vocab_size: int) -> SamplingParams:
    def maybe(value, off, chance=0.5):
        return value if rng.random() < chance else off

    return SamplingParams(
        temperature=maybe(float(rng.uniform(0.1, 2)), 0.0, 0.8),
        top_k=maybe(int(rng.integers(1, vocab_size + 10)), 0),
        top_p=maybe(float(rng.uniform(0.05, 0.999)), 1.0),
        min_p=maybe(float(rng.uniform(0.001, 1)), 0.0, 0.3),
        repetition_penalty=maybe(float(rng.uniform(0.5, 2)), 1.0, 0.3),
        presence_penalty=maybe(float(rng.uniform(-2, 2)), 0.0, 0.3),
        frequency_penalty=maybe(float(rng.uniform(-2, 2)), 0.0, 0.3),
        logit_bias=maybe(
            {int(t): float(rng.uniform(-5, 5)) for t in rng.integers(0, vocab_size, 5)}, {}, 0.3
        ),
        seed=int(rng.integers(2**63)),
        stop_token_ids=maybe((5, 6), (), 0.3),
        min_tokens=maybe(30, 0, 0.2),
        logprobs=maybe(int(rng.integers(0, 5)), None, 0.3),
    )


def random_request(rng: np.random.Generator, vocab_size: int) -> Request:
    tokens = rng.integers(0, vocab_size, int(rng.integers(1, 40))).tolist()
    request = create_request(tokens, sampling=random_params(rng, vocab_size))
    request.num_prompt_tokens = int(rng.integers(1, len(tokens) + 1))
    return request


@pytest.mark.parametrize("vocab_size", [8, 97, 1000])
def test_tokens_equal_a_naive_reference(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    sampler = Sampler(EOS)
    requests = [random_request(rng, vocab_size) for _ in range(24)]
    for _ in range(10):
        logits = rng.normal(0, 3, (len(requests), vocab_size)).astype(np.float32)
        before = logits.copy()
        tokens = sampler.sample(torch.from_numpy(logits), requests)
        np.testing.assert_array_equal(logits, before)
        expected = [reference_token(row, request) for row, request in zip(logits, requests, strict=True)]
        assert [token.token_id for token in tokens] == expected
        for token, request in zip(tokens, requests, strict=True):
            request.token_ids.append(token.token_id)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng()
    requests = [random_request(rng, 300) for _ in range(16)]
    logits = torch.from_numpy(rng.normal(0, 3, (16, 300)).astype(np.float32))
    together = Sampler(EOS).sample(logits, requests)
    alone = [Sampler(EOS).sample(logits[row : row + 1], [requests[row]])[0] for row in range(16)]
    assert [t.token_id for t in together] == [t.token_id for t in alone]
    order = rng.permutation(16)
    shuffled = Sampler(EOS).sample(logits[order], [requests[row] for row in order])
    assert [t.token_id for t in shuffled] == [together[row].token_id for row in order]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 12},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_draws_follow_softmax(sampling: dict[str, float]) -> None:
    """Chi-square over 20,000 draws: 100 neighbouring seeds, 200 positions. All fixed: it cannot flicker."""
    vocab_size, count = 50, 20_000
    logits = np.random.default_rng(11).normal(0, 2, vocab_size).astype(np.float32)
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    kept = reference_kept(logits.astype(np.float64), params)
    weights = np.array([math.exp(kept[t]) for t in kept])
    probabilities = dict(zip(kept, weights / weights.sum(), strict=True))

    drawn = np.zeros(vocab_size)
    rows = torch.from_numpy(logits).expand(200, vocab_size)
    for seed in range(count // 200):
        params = replace(params, seed=2**40 + seed)
        requests = [Request("r", [1] * position, 1, params) for position in range(1, 201)]
        for token in Sampler(EOS).sample(rows, requests):
            drawn[token.token_id] += 1
    assert drawn.sum() == sum(drawn[t] for t in kept), "a token that was cut was drawn"
    # Rare tokens in one bin, as the test wants an expectation of at least 5 in each.
    common = [t for t in kept if probabilities[t] * count >= 5]
    rare = [t for t in kept if t not in common]
    observed = [drawn[t] for t in common] + ([sum(drawn[t] for t in rare)] if rare else [])
    expected = [probabilities[t] * count for t in common]
    expected += [sum(probabilities[t] for t in rare) * count] if rare else []
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    degrees = len(observed) - 1
    # Wilson-Hilferty: the 99.9th percentile of chi-square.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_square < limit
    assert degrees >= 2


def test_different_seeds_and_positions_draw_differently() -> None:
    logits = torch.zeros(200, 5000)
    seeds = [create_request(5, sampling=SamplingParams(seed=seed)) for seed in range(100)]
    high = [create_request(5, sampling=SamplingParams(seed=seed << 32)) for seed in range(1, 101)]
    tokens = [token.token_id for token in Sampler(EOS).sample(logits, seeds + high)]
    assert len(set(tokens)) > 180
    one = [create_request(length, sampling=SamplingParams(seed=1)) for length in range(1, 201)]
    assert len({token.token_id for token in Sampler(EOS).sample(logits, one)}) > 180


def test_ties_at_the_floor_all_stay() -> None:
    requests = [create_request(n, sampling=SamplingParams(top_k=2, seed=9)) for n in range(1, 101)]
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -3.0]]).expand(100, 6)
    drawn = {token.token_id for token in Sampler(frozenset()).sample(logits, requests)}
    assert drawn == {1, 2, 3, 4}


def test_a_tie_of_the_largest_goes_to_the_smallest_id() -> None:
    request = create_request(5, sampling=SamplingParams(temperature=0.0))
    logits = torch.zeros(1, 1000)
    logits[0, [400, 17, 900]] = 2.0
    assert Sampler(EOS).sample(logits, [request])[0].token_id == 17


def test_tiny_temperature_is_greedy_and_not_nan() -> None:
    request = create_request(5, sampling=SamplingParams(temperature=1e-30, seed=4))
    logits = torch.tensor([[3.0, 3.1, -50.0, 1.0]])
    assert Sampler(EOS).sample(logits, [request])[0].token_id == 1


def test_logprobs_are_of_the_raw_distribution() -> None:
    rng = np.random.default_rng()
    logits = torch.from_numpy(rng.normal(0, 3, (3, 40)).astype(np.float32))
    params = [
        SamplingParams(logprobs=3, temperature=0.0, logit_bias={7: 100.0}),
        SamplingParams(logprobs=0, temperature=0.3, top_k=2),
        SamplingParams(),
    ]
    requests = [create_request(5, sampling=sampling) for sampling in params]
    first, second, third = Sampler(EOS).sample(logits, requests)
    exact = logits.double().log_softmax(-1)
    assert first.token_id == 7
    assert first.logprobs is not None
    assert first.logprobs.sampled == pytest.approx(exact[0, 7].item(), abs=1e-5)
    best = exact[0].topk(3)
    assert first.logprobs.top_ids == tuple(best.indices.tolist())
    assert first.logprobs.top == pytest.approx(best.values.tolist(), abs=1e-5)
    assert second.logprobs == Logprobs(pytest.approx(exact[1, second.token_id].item(), abs=1e-5))
    assert third.logprobs is None


def test_history_follows_a_growing_request_and_a_reused_id() -> None:
    sampler = Sampler(EOS)
    sampling = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    logits = torch.tensor([[1.0, 0.9, 0.5, -5.0]])
    request = create_request([3], "a", sampling=sampling)
    drawn = []
    for _ in range(200):
        drawn.append(sampler.sample(logits, [request])[0].token_id)
        assert drawn[-1] == reference_token(logits[0].numpy(), request)
        request.token_ids.append(drawn[-1])
    again = create_request([3], "a", sampling=sampling)
    assert sampler.sample(logits, [again])[0].token_id == 0
    sampler.forget(["a", "unknown"])
    assert not sampler._histories


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_cost_their_row_alone(value: float) -> None:
    requests = [create_request(5) for _ in range(3)]
    logits = torch.zeros(3, 10)
    logits[:, 7] = 1.0
    logits[1, 4] = value
    first, bad, last = Sampler(EOS).sample(logits, requests)
    assert (first, last) == (SampledToken(7), SampledToken(7))
    assert isinstance(bad, SamplingError)
    assert "not finite" in str(bad)


def test_a_row_that_cannot_be_adjusted_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    bad = create_request(5, "bad", sampling=SamplingParams(temperature=0.0, logit_bias={10: 1.0}))
    logits = torch.zeros(2, 10)
    error, token = Sampler(EOS).sample(logits, [bad, create_request(5)])
    assert isinstance(error, SamplingError)
    assert "IndexError" in str(error)
    assert "sampling of bad failed" in caplog.text
    assert token == SampledToken(0)


def test_no_rows() -> None:
    assert Sampler(EOS).sample(torch.zeros(0, 10), []) == []
