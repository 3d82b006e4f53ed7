"""Prompts that come together: what they share is computed once."""

import random

import pytest

from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.support import engine_driver
from tests.support.engine_builders import create_config, create_request, create_scheduler
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner, expected_tokens


def create_driver(ahead: bool, num_blocks: int = 256, **config: int) -> EngineDriver:
    return engine_driver.create_driver(num_blocks, (16,), create_config(**config), ahead=ahead)


def samples(prompt: list[int], count: int, **fields: object) -> list[Request]:
    return [
        create_request(prompt, sampling=SamplingParams(max_tokens=4, temperature=0.0, seed=seed), **fields)
        for seed in range(count)
    ]


both = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "ahead"])


@both
@pytest.mark.parametrize("hold", [False, True], ids=["decodes", "prefills only"])
def test_four_answers_to_one_prompt_compute_it_once(ahead: bool, hold: bool) -> None:
    """All but the last, partial block: a full one that is shared is never written again."""
    driver = create_driver(ahead, max_step_tokens=512, max_chunk_tokens=512)
    requests = samples([i % 97 for i in range(100)], 4, hold_blocks=hold)
    expected = [expected_tokens(request, 1 if hold else 4) for request in requests]
    driver.submit(*requests)
    driver.run()
    assert [driver.tokens[request.request_id] for request in requests] == expected
    decoded = 0 if hold else 4 * 3
    assert driver.scheduler.stats().computed_tokens - decoded == 100 + 3 * 4
    if hold:
        assert all(len(driver.filled[request.request_id]) == 7 for request in requests)


@both
def test_a_long_prompt_in_chunks_is_computed_once(ahead: bool) -> None:
    driver = create_driver(ahead, max_step_tokens=96, max_chunk_tokens=32)
    requests = samples([i % 97 for i in range(200)], 5)
    driver.submit(*requests)
    driver.run()
    assert driver.scheduler.stats().computed_tokens == 200 + 4 * (200 % 16) + 5 * 3


def test_nobody_waits_for_a_little() -> None:
    """The others run beside the first: of 64 tokens they share 16."""
    driver = create_driver(False, max_step_tokens=512, max_chunk_tokens=512)
    head = list(range(16))
    requests = [create_request(head + [50 + i] * 48, max_tokens=1) for i in range(3)]
    driver.submit(*requests)
    driver.step()
    assert len(driver.tokens) == 3


def test_what_is_not_shared_does_not_wait() -> None:
    """Tenants, requests for log-probabilities of the prompt, and a cache that is off."""
    prompt = [i % 97 for i in range(64)]
    driver = create_driver(False, max_step_tokens=512, max_chunk_tokens=512)
    asking = SamplingParams(max_tokens=1, prompt_logprobs=1)
    driver.submit(*(create_request(prompt, max_tokens=1, cache_salt=salt) for salt in ("a", "b")))
    driver.submit(*(create_request(prompt, sampling=asking, cache_salt="c") for _ in range(2)))
    driver.step()
    assert len(driver.tokens) == 4
    scheduler = create_scheduler(64, (16,), create_config(512, 512, prefix_cache=False))
    driver = EngineDriver(scheduler, VerifyingRunner(64, (16,)))
    driver.submit(*samples(prompt, 3))
    driver.step()
    assert len(driver.tokens) == 3


@both
def test_whoever_waited_goes_on_if_the_first_does_not(ahead: bool) -> None:
    driver = create_driver(ahead, max_step_tokens=512, max_chunk_tokens=512)
    requests = samples([i % 97 for i in range(100)], 3)
    expected = expected_tokens(requests[1], 4)
    driver.submit(*requests)
    driver.step()
    driver.scheduler.cancel(requests[0].request_id)
    driver.run()
    assert driver.tokens[requests[1].request_id] == driver.tokens[requests[2].request_id] == expected


@both
def test_random_families_of_prompts(ahead: bool) -> None:
    """All answers are right, and nothing is left, whatever is shared, cancelled or short of blocks."""
    rng = random.Random()
    driver = create_driver(ahead, num_blocks=40, max_step_tokens=64, max_chunk_tokens=48)
    families = [[rng.randrange(97) for _ in range(rng.randrange(1, 90))] for _ in range(4)]
    expected: dict[str, list[int]] = {}
    for _ in range(60):
        family = rng.choice(families)
        prompt = family[: rng.randrange(1, len(family) + 1)]
        (request,) = samples(prompt, 1, priority=rng.randrange(2))
        expected[request.request_id] = expected_tokens(request, 4)
        driver.submit(request)
        for _ in range(rng.randrange(3)):
            driver.step()
        if rng.random() < 0.1:
            driver.scheduler.cancel(rng.choice(list(expected)))
    driver.run()
    for request_id, tokens in expected.items():
        assert request_id in driver.cancelled or driver.tokens[request_id] == tokens
    assert driver.scheduler.stats().used_blocks == 0
