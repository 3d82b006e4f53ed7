"""Whatever happens to the others, a request ends with the tokens of an undisturbed run."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.kv.host_tier import NO_HOST_SLOTS, HostSlots
from engine.request import FinishReason, Request, RequestStatus
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from tests.support.engine_builders import EOS, create_config, create_request, create_scheduler
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner, expected_tokens


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(12, 60),
    max_step_tokens=st.sampled_from([4, 16, 64]),
    max_chunk_tokens=st.sampled_from([3, 16, 64]),
    max_running=st.sampled_from([2, 8, 64]),
    block_sizes=st.sampled_from([(4,), (4, 6)]),
    prefix_cache=st.booleans(),
    ahead=st.booleans(),
    host_slots=st.sampled_from([NO_HOST_SLOTS, HostSlots(12, 0), HostSlots(0, 12), HostSlots(30, 30)]),
)
def test_a_random_workload(
    seed,
    num_blocks,
    max_step_tokens,
    max_chunk_tokens,
    max_running,
    block_sizes,
    prefix_cache,
    ahead,
    host_slots,
) -> None:
    config = create_config(max_step_tokens, max_chunk_tokens, max_running, prefix_cache=prefix_cache)
    workload = RandomWorkload(random.Random(seed), num_blocks, block_sizes, config, ahead, host_slots)
    workload.run(num_requests=30)


@pytest.mark.parametrize("host_slots", [NO_HOST_SLOTS, HostSlots(100, 100)], ids=["recompute", "swap"])
def test_thousands_of_requests_one_step_ahead(host_slots: HostSlots) -> None:
    """Streams equal those of an undisturbed synchronous run; so does every step's KV."""
    config = create_config(max_step_tokens=64, max_chunk_tokens=16, max_running=32)
    workload = RandomWorkload(random.Random(4), 40, (4,), config, True, host_slots)
    workload.run(num_requests=3000, max_arrivals=4, max_tokens=50)
    stats = workload.driver.scheduler.stats()
    assert stats.preemptions > 100
    assert workload.num_forks > 50
    assert len(workload.cancelled) > 50
    # A row runs in vain after an end that nobody could know, and never twice.
    assert 100 < workload.driver.runner.num_wasted_rows < 3000 + workload.num_forks
    assert len(workload.stopped) > 100
    assert (stats.loaded_blocks > 500) == (host_slots is not NO_HOST_SLOTS)
    assert stats.swapped == 0


class RandomWorkload:
    """Requests of all kinds come at random, are cancelled and forked at random; checked at every step."""

    def __init__(
        self,
        rng: random.Random,
        num_blocks: int,
        block_sizes: tuple[int, ...],
        config: EngineConfig,
        ahead: bool,
        host_slots: HostSlots,
    ) -> None:
        self.rng = rng
        runner = VerifyingRunner(num_blocks, block_sizes, late=ahead, num_host_slots=host_slots.total)
        scheduler = create_scheduler(num_blocks, block_sizes, config, host_slots=host_slots)
        self.driver = EngineDriver(scheduler, runner, ahead)
        self.kinds: dict[str, str] = {}
        self.expected: dict[str, list[int]] = {}
        self.reserved: list[Request] = []
        self.cancelled: set[str] = set()
        self.stopped: set[str] = set()
        self.num_forks = 0

    def run(self, num_requests: int, max_arrivals: int = 2, max_tokens: int = 15) -> None:
        driver, rng = self.driver, self.rng
        num_new = num_requests
        for _ in range(200 * num_requests):
            for _ in range(min(rng.randint(0, max_arrivals), num_new)):
                self._submit(random_request(rng, max_tokens))
                num_new -= 1
            busy = driver.step()
            self._commit_some()
            self._disturb_some()
            if not busy and not num_new and not driver.scheduler.request_ids:
                break
        assert driver.scheduler.request_ids == (), "somebody starved"
        driver.step()
        assert not driver.failed
        assert driver.scheduler.stats().used_blocks == 0
        for request_id, tokens in self.expected.items():
            wanted = {"hold": tokens[:1], "reserve": tokens[1:]}.get(self.kinds[request_id], tokens)
            drawn = driver.tokens.get(request_id, [])
            if request_id in self.cancelled:
                wanted = wanted[: len(drawn)]
            assert drawn == wanted
            if driver.reasons.get(request_id) is FinishReason.STOP:
                self.stopped.add(request_id)

    def _submit(self, request: Request) -> None:
        kind = "hold" if request.hold_blocks else self.rng.choice(["submit", "reserve", "in_place"])
        self.kinds[request.request_id] = kind
        self.expected[request.request_id] = undisturbed(request)
        if kind in ("reserve", "in_place"):
            self.driver.reserve(request)
            self.reserved.append(request)
        else:
            self.driver.submit(request)

    def _commit_some(self) -> None:
        for request in [r for r in self.reserved if r.status is RequestStatus.RESERVED]:
            if request.request_id in self.driver.granted and self.rng.random() < 0.3:
                self.reserved.remove(request)
                first = self.expected[request.request_id][0]
                if self.kinds[request.request_id] == "in_place":
                    self.driver.scheduler.compute_reservation(request.request_id)
                else:
                    self.driver.fill_and_commit(request, first)
                    if first in request.sampling.stop_token_ids or request.sampling.max_tokens == 1:
                        self.cancelled.add(request.request_id)

    def _disturb_some(self) -> None:
        scheduler, rng = self.driver.scheduler, self.rng
        for request_id in scheduler.request_ids:
            request = self.driver.requests[request_id]
            held = request.status is RequestStatus.FINISHED
            if held and rng.random() < 0.2:
                scheduler.cancel(request_id)
            elif rng.random() < 0.002:
                scheduler.cancel(request_id)
                self.cancelled.add(request_id)
            elif rng.random() < 0.01 and decodes(request) and scheduler._roster.running.num_places:
                self._fork(request)

    def _fork(self, parent: Request) -> None:
        child = create_request(list(parent.token_ids), cache_salt=parent.cache_salt, sampling=parent.sampling)
        child.num_prompt_tokens = parent.num_prompt_tokens
        self.num_forks += 1
        self.kinds[child.request_id] = "submit"
        self.expected[child.request_id] = undisturbed(child)
        self.driver.requests[child.request_id] = child
        self.driver.scheduler.fork(parent.request_id, child)


def decodes(request: Request) -> bool:
    running = request.status is RequestStatus.RUNNING and not request.hold_blocks
    return running and request.num_uncomputed_tokens == 1


def undisturbed(request: Request) -> list[int]:
    """What an undisturbed run draws, up to the first stop token."""
    tokens = expected_tokens(request, (request.sampling.max_tokens or 0) - request.num_output_tokens)
    stops = [i for i, token in enumerate(tokens) if token in request.sampling.stop_token_ids]
    return tokens[: stops[0] + 1] if stops else tokens


def random_request(rng: random.Random, max_tokens: int) -> Request:
    # Prefixes of a few texts, so that the prefix cache has work.
    text = [[i * k % 13 for i in range(40)] for k in (1, 2)][rng.randrange(2)]
    prompt = [*text[: rng.randrange(1, 25)], *rng.choices(range(97), k=rng.randrange(3))]
    stops = tuple(rng.sample(range(97), 10)) if rng.random() < 0.5 else ()
    return create_request(
        prompt,
        sampling=SamplingParams(max_tokens=rng.randint(1, max_tokens), temperature=0.0, stop_token_ids=stops),
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


def run_sampled(num_others: int, num_blocks: int, ahead: bool) -> tuple[Request, list[int]]:
    runner = VerifyingRunner(num_blocks, sampler=Sampler(EOS), late=ahead)
    driver = EngineDriver(create_scheduler(num_blocks), runner, ahead)
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


@pytest.mark.parametrize("ahead", [False, True])
def test_a_sampled_request_is_the_same_alone_in_a_batch_and_after_preemption(ahead: bool) -> None:
    _, alone = run_sampled(0, 200, ahead=False)
    in_batch, same = run_sampled(15, 400, ahead)
    assert same == alone
    assert in_batch.num_preemptions == 0
    preempted, again = run_sampled(15, 48, ahead)
    assert preempted.num_preemptions > 0
    assert again == alone
    assert len(set(alone)) > 5
