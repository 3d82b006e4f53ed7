"""Whatever happens to the others, a request ends with the tokens of an undisturbed run."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import Request, RequestStatus
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from tests.support.engine_builders import EOS, create_config, create_request, create_scheduler
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner, expected_tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(12, 60),
    max_step_tokens=st.sampled_from([4, 16, 64]),
    max_chunk_tokens=st.sampled_from([3, 16, 64]),
    max_running=st.sampled_from([2, 8, 64]),
    prefix_cache=st.booleans(),
)
def test_a_random_workload(
    seed, num_blocks, max_step_tokens, max_chunk_tokens, max_running, prefix_cache
) -> None:
    rng = random.Random(seed)
    config = create_config(max_step_tokens, max_chunk_tokens, max_running, prefix_cache=prefix_cache)
    driver = EngineDriver(create_scheduler(num_blocks, config=config), VerifyingRunner(num_blocks))
    waiting = [random_request(rng) for _ in range(30)]
    expected = {r.request_id: expected_tokens(r, r.sampling.max_tokens or 0) for r in waiting}
    kinds = {
        r.request_id: "hold" if r.hold_blocks else rng.choice(["submit", "reserve", "in_place"])
        for r in waiting
    }
    reserved: list[Request] = []
    cancelled: set[str] = set()
    for _ in range(5000):
        for _ in range(rng.randrange(3) if waiting else 0):
            if waiting:
                request = waiting.pop()
                if kinds[request.request_id] in ("reserve", "in_place"):
                    driver.reserve(request)
                    reserved.append(request)
                else:
                    driver.submit(request)
        busy = driver.step()
        for request in [r for r in reserved if r.status is RequestStatus.RESERVED and rng.random() < 0.3]:
            reserved.remove(request)
            if kinds[request.request_id] == "in_place":
                driver.scheduler.compute_reservation(request.request_id)
            else:
                driver.fill_and_commit(request, expected[request.request_id][0])
        for request_id in driver.scheduler.request_ids:
            held = driver.requests[request_id].status is RequestStatus.FINISHED
            if held and rng.random() < 0.2:
                driver.scheduler.cancel(request_id)
            elif rng.random() < 0.002:
                driver.scheduler.cancel(request_id)
                cancelled.add(request_id)
        if not busy and not waiting and not driver.scheduler.request_ids:
            break
    assert driver.scheduler.request_ids == (), "somebody starved"
    driver.step()
    assert not driver.failed
    assert driver.scheduler.stats().used_blocks == 0
    for request_id, tokens in expected.items():
        wanted = {"hold": tokens[:1], "reserve": tokens[1:]}.get(kinds[request_id], tokens)
        drawn = driver.tokens.get(request_id, [])
        assert drawn == wanted[: len(drawn)] if request_id in cancelled else drawn == wanted


def random_request(rng: random.Random) -> Request:
    # Prefixes of a few texts, so that the prefix cache has work.
    text = [[i * k % 13 for i in range(40)] for k in (1, 2)][rng.randrange(2)]
    prompt = text[: rng.randrange(1, 25)]
    return create_request(
        prompt,
        max_tokens=rng.randrange(1, 16),
        priority=rng.randrange(2),
        cache_salt=rng.choice(["", "tenant"]),
        hold_blocks=rng.random() < 0.3,
    )


SAMPLED = SamplingParams(
    max_tokens=40,
    temperature=0.9,
    top_k=30,
    top_p=0.95,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    seed=7,
)


def run_sampled(num_others: int, num_blocks: int) -> tuple[Request, list[int]]:
    sampler = Sampler(EOS)
    driver = EngineDriver(create_scheduler(num_blocks), VerifyingRunner(num_blocks, sampler=sampler))
    more_urgent = num_others // 2
    others = [
        create_request(9, sampling=SamplingParams(max_tokens=30, temperature=0.5 + i / 10, seed=i))
        for i in range(num_others)
    ]
    request = create_request(list(range(20)), "sampled", sampling=SAMPLED, priority=-1)
    for urgent in others[:more_urgent]:
        urgent.priority = -1
    driver.submit(*others, request)
    driver.run()
    assert len(driver.ended) == num_others + 1
    return request, driver.tokens["sampled"]


def test_a_sampled_request_is_the_same_alone_in_a_batch_and_after_preemption() -> None:
    _, alone = run_sampled(0, 200)
    in_batch, same = run_sampled(15, 400)
    assert same == alone
    assert in_batch.num_preemptions == 0
    preempted, again = run_sampled(15, 48)
    assert preempted.num_preemptions > 0
    assert again == alone
    assert len(set(alone)) > 5
