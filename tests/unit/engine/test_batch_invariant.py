"""With batch_invariant a token's KV comes from the same kernel however often it is computed.

attention_prefill computes prompts, attention_decode answers, and they round differently. So the device of
these tests marks what it writes with the kernel that wrote it.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from engine.config import EngineConfig
from engine.kv.host_tier import HostSlots
from engine.request import Request
from tests.support.engine_builders import create_config, create_request, create_scheduler
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import LaunchedRow, VerifyingRunner, expected_tokens, fingerprints

BY_DECODE = 1 << 40
NUM_BLOCKS = 24


class TwoKernels(VerifyingRunner):
    """Asserts that each token that a row attends to was computed by the kernel of its first time.

    Attributes:
        num_alone: rows of one token of an answer that is computed again.
    """

    num_alone = 0

    def _run_row(self, row: LaunchedRow) -> int:
        request, start, prompt = row.request, row.start, row.request.num_prompt_tokens
        tokens = [*row.token_ids, self._drawn.get(request.request_id, 0)] if row.pending else row.token_ids
        known = fingerprints(tokens, request.cache_salt)
        wanted = [value ^ (BY_DECODE * (at >= prompt)) for at, value in enumerate(known)]
        mark = BY_DECODE * (row.num_tokens == 1 and start >= prompt)
        self.num_alone += bool(mark) and not row.sample
        for group, ids in enumerate(row.tables):
            assert self.read(group, ids, start) == wanted[:start], "KV of the other kernel"
            self._write(group, ids, start, [value ^ mark for value in known[start:]])
        return known[-1]


def run(
    config: EngineConfig, ahead: bool, host_slots: HostSlots, seed: int
) -> tuple[EngineDriver, TwoKernels]:
    """Conversations: later prompts hold earlier answers; some requests come with half of theirs."""
    rng = random.Random(seed)
    scheduler = create_scheduler(NUM_BLOCKS, (4,), config, host_slots=host_slots)
    runner = TwoKernels(NUM_BLOCKS, (4,), late=ahead, num_host_slots=host_slots.total)
    driver = EngineDriver(scheduler, runner, ahead)
    wanted: dict[str, list[int]] = {}
    texts: list[list[int]] = [[1, 2, 3, 4, 5, 6]]
    for _ in range(12):
        requests: list[Request] = []
        for _ in range(4):
            text = rng.choice(texts)[:30]
            request = create_request(
                [*text, *(rng.randrange(97) for _ in range(rng.randrange(1, 5)))], max_tokens=16
            )
            request.token_ids += expected_tokens(request, rng.choice((0, 0, 5)))
            requests.append(request)
            wanted[request.request_id] = expected_tokens(request, 16 - request.num_output_tokens)
        driver.submit(*requests)
        for _ in range(rng.randrange(4, 40)):
            driver.step()
        texts += [list(request.token_ids) for request in requests]
    driver.run()
    assert not driver.failed
    assert driver.tokens == wanted
    return driver, runner


@pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "ahead"])
@pytest.mark.parametrize("host_slots", [HostSlots(), HostSlots(40, 16)], ids=["recomputed", "swapped"])
@pytest.mark.parametrize("max_chunk", [64, 5])
def test_a_token_is_computed_by_one_kernel(ahead: bool, host_slots: HostSlots, max_chunk: int) -> None:
    config = dataclasses.replace(
        create_config(max_chunk_tokens=max_chunk, max_step_tokens=32), batch_invariant=True
    )
    driver, runner = run(config, ahead, host_slots, seed=max_chunk)
    stats = driver.scheduler.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
    assert runner.num_alone > 0
    assert stats.used_blocks == 0


def test_without_it_the_device_would_notice() -> None:
    with pytest.raises(AssertionError):
        run(create_config(max_step_tokens=32), False, HostSlots(), seed=1)
