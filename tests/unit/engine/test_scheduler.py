import pytest

from engine.errors import OutOfBlocksError, QueueFullError
from engine.request import FinishReason
from engine.sampling_params import SamplingParams
from engine.step import SampledToken, StepResult
from tests.support.engine_builders import (
    EOS,
    create_config,
    create_request,
    create_requests,
    create_scheduler,
)
from tests.support.engine_driver import EngineDriver, create_driver
from tests.support.verifying_runner import expected_tokens


def rows_of(driver: EngineDriver) -> list[list[tuple[str, int, int]]]:
    return [[(r.request.request_id, r.start, r.num_tokens) for r in o.rows] for o in driver.runner.outputs]


def test_a_request_is_prefilled_in_chunks_then_decoded() -> None:
    driver = create_driver(config=create_config(max_step_tokens=16))
    request = create_request(37, "a", max_tokens=3)
    expected = expected_tokens(request, 3)
    driver.submit(request)
    driver.run()
    assert rows_of(driver) == [
        [("a", 0, 16)], [("a", 16, 16)], [("a", 32, 5)], [("a", 37, 1)], [("a", 38, 1)],
    ]  # fmt: skip
    assert driver.tokens["a"] == expected
    assert driver.reasons["a"] is FinishReason.LENGTH
    assert driver.scheduler.stats().used_blocks == 0


def test_decode_rows_come_before_chunks_and_share_the_budget() -> None:
    driver = create_driver(config=create_config(max_step_tokens=16))
    driver.submit(create_request(8, "a", max_tokens=4))
    driver.step()
    driver.submit(create_request(40, "b"))
    driver.step()
    assert rows_of(driver)[1] == [("a", 8, 1), ("b", 0, 12)]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    driver = create_driver(num_blocks=400, config=create_config(max_step_tokens=64))
    driver.submit(create_request(1000, "long"))
    driver.step()
    driver.submit(create_request(20, "short"))
    driver.step()
    driver.step()
    assert "short" in driver.tokens
    assert "long" not in driver.tokens


def test_a_stream_of_short_prompts_does_not_starve_a_long_one() -> None:
    driver = create_driver(num_blocks=400, config=create_config(max_step_tokens=64))
    driver.submit(create_request(640, "long", max_tokens=1))
    for _ in range(20):
        driver.submit(*create_requests(4, 60, max_tokens=1))
        driver.step()
    assert "long" in driver.tokens


def test_priority_then_arrival() -> None:
    driver = create_driver(config=create_config(max_running=1))
    requests = [
        create_request(4, name, max_tokens=1, priority=p) for name, p in (("a", 1), ("b", 0), ("c", 1))
    ]
    driver.submit(*requests)
    driver.run()
    assert [row[0][0] for row in rows_of(driver)] == ["b", "a", "c"]


def test_the_batch_is_limited() -> None:
    driver = create_driver(config=create_config(max_running=3))
    driver.submit(*create_requests(10))
    while driver.step():
        assert driver.scheduler.stats().running <= 3
    assert len(driver.ended) == 10


def test_the_least_urgent_is_preempted_and_ends_with_the_same_tokens() -> None:
    driver = create_driver(num_blocks=10)
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    driver.run()
    assert driver.tokens == expected
    assert driver.scheduler.stats().preemptions > 0
    assert requests[0].num_preemptions == 0
    assert driver.scheduler.stats().used_blocks == 0


def test_a_recompute_after_preemption_is_cut_into_chunks() -> None:
    driver = create_driver(num_blocks=16, config=create_config(max_step_tokens=8, prefix_cache=False))
    old, young = create_request(8, "old", max_tokens=40), create_request(24, "young", max_tokens=30)
    expected = expected_tokens(young, 30)
    driver.submit(old, young)
    driver.run()
    assert young.num_preemptions >= 1
    assert driver.tokens["young"] == expected
    assert max(n for step in rows_of(driver) for _, _, n in step) == 8


def test_admission_keeps_a_spare_block_for_each_that_grows() -> None:
    driver = create_driver(num_blocks=8)
    driver.submit(create_request(12, "a", max_tokens=30))
    driver.step()
    # "a" holds 4 of 8; "b" needs 4, which would leave "a" none to grow into.
    driver.submit(create_request(12, "b"))
    driver.step()
    assert driver.scheduler.stats().waiting == 1


def test_a_lone_request_that_outgrows_the_pool_fails() -> None:
    driver = create_driver(num_blocks=4)
    driver.submit(create_request(10, "a", max_tokens=100), create_request(10, "b", max_tokens=2))
    driver.run()
    assert isinstance(driver.failed["a"], OutOfBlocksError)
    assert "pool of 4 KV blocks" in str(driver.failed["a"])
    assert len(driver.tokens["a"]) == 7, "16 slots hold 10 tokens and 6 more; a seventh was drawn"
    assert driver.reasons["b"] is FinishReason.LENGTH
    assert driver.scheduler.stats().used_blocks == 0


def test_a_request_that_outgrew_the_pool_while_it_shared_blocks_fails() -> None:
    driver = create_driver(num_blocks=4)
    parent = create_request(10, "parent", max_tokens=6)
    expected = expected_tokens(parent, 6)
    driver.submit(parent)
    while parent.num_tokens < 15:
        driver.step()
    child = create_request(list(parent.token_ids), "child", max_tokens=50)
    driver.requests["child"] = child
    driver.scheduler.fork("parent", child)
    # The parent needs the last block for itself; 15 tokens and one more fit again, 17 do not.
    driver.run()
    assert driver.tokens["parent"] == expected
    assert child.num_preemptions == 1
    assert isinstance(driver.failed["child"], OutOfBlocksError)
    assert driver.scheduler.stats().used_blocks == 0


def test_a_preempted_request_too_large_to_come_back_fails() -> None:
    driver = create_driver(num_blocks=4)
    parent = create_request(10, "parent", max_tokens=7)
    driver.submit(parent)
    while parent.num_tokens < 16:
        driver.step()
    child = create_request(list(parent.token_ids), "child", max_tokens=50)
    driver.requests["child"] = child
    driver.scheduler.fork("parent", child)
    driver.run()
    assert "16 tokens and the next one do not fit the pool of 4" in str(driver.failed["child"])
    assert driver.reasons["parent"] is FinishReason.LENGTH


def test_two_hundred_requests_on_a_pool_for_twenty() -> None:
    driver = create_driver(num_blocks=20 * 5, config=create_config(max_running=256, max_step_tokens=512))
    requests = create_requests(200, 10, max_tokens=10)
    expected = {r.request_id: expected_tokens(r, 10) for r in requests}
    driver.submit(*requests)
    driver.run()
    assert driver.tokens == expected
    assert not driver.failed
    assert driver.scheduler.stats().used_blocks == 0
    first_runs = [request.first_run_s for request in requests]
    assert first_runs == sorted(first_runs), "served in order of arrival"


def test_the_second_of_two_equal_prefixes_computes_its_own_blocks_alone() -> None:
    driver = create_driver(num_blocks=600, config=create_config(max_step_tokens=256))
    common = [i % 89 for i in range(1000)]
    driver.submit(create_request([*common, 1, 2, 3], "a", max_tokens=1))
    driver.run()
    driver.submit(create_request([*common, 4, 5], "b", max_tokens=1))
    driver.run()
    assert driver.runner.num_tokens_run["b"] == 2
    assert driver.requests["b"].num_cached_tokens == 1000
    stats = driver.scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (2005, 1000)


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    driver = create_driver(num_blocks=100, config=create_config(max_step_tokens=32))
    common = [i % 89 for i in range(64)]
    requests = [create_request([*common, i], max_tokens=1) for i in range(3)]
    expected = {r.request_id: expected_tokens(r, 1) for r in requests}
    driver.submit(*requests)
    driver.run()
    assert sum(driver.runner.num_tokens_run.values()) == 64 + 3
    assert driver.tokens == expected


def test_a_fully_cached_prompt_still_computes_its_last_block() -> None:
    driver = create_driver()
    driver.submit(create_request(list(range(8)), "a", max_tokens=1))
    driver.run()
    driver.submit(create_request(list(range(8)), "b", max_tokens=1))
    driver.run()
    assert driver.runner.num_tokens_run["b"] == 4
    assert driver.tokens["a"] == driver.tokens["b"]


@pytest.mark.parametrize("token", [100, 42])
def test_stop_tokens_end_the_answer(token: int) -> None:
    scheduler = create_scheduler()
    sampling = SamplingParams(stop_token_ids=(42,), max_tokens=1)
    request = create_request(5, sampling=sampling)
    scheduler.add(request)
    output = scheduler.schedule()
    scheduler.commit(output, StepResult({request.request_id: SampledToken(token)}))
    (event,) = scheduler.take_events()
    assert event.finish_reason is FinishReason.STOP, "goes before max_tokens"
    assert scheduler.stats().used_blocks == 0


def test_ignore_eos_and_context_length() -> None:
    scheduler = create_scheduler(context_length=7)
    request = create_request(5, sampling=SamplingParams(ignore_eos=True))
    scheduler.add(request)
    reasons = []
    for _ in range(2):
        output = scheduler.schedule()
        scheduler.commit(output, StepResult({request.request_id: SampledToken(min(EOS))}))
        reasons += [event.finish_reason for event in scheduler.take_events()]
    assert reasons == [None, FinishReason.LENGTH]


@pytest.mark.parametrize("state", ["waiting", "queued", "reserved", "prefilling", "decoding", "held"])
def test_cancel_in_any_state(state: str) -> None:
    driver = create_driver(num_blocks=8, config=create_config(max_step_tokens=8))
    request = create_request(10, "a", hold_blocks=state == "held")
    if state in ("waiting", "queued"):
        driver.submit(create_request(20, "other", max_tokens=1, hold_blocks=True))
        driver.run()
        (driver.submit if state == "waiting" else driver.reserve)(request)
        driver.step()
        driver.scheduler.cancel("other")
    elif state == "reserved":
        driver.reserve(request)
        driver.step()
    else:
        driver.submit(request)
        for _ in range({"prefilling": 1, "decoding": 3, "held": 2}[state]):
            driver.step()
    driver.scheduler.cancel("a")
    driver.scheduler.cancel("a")
    driver.scheduler.cancel("unknown")
    assert driver.step() is False
    assert "a" in driver.cancelled
    assert driver.scheduler.stats().used_blocks == 0
    assert driver.scheduler.request_ids == ()


def test_a_failing_step_fails_its_requests_and_no_other() -> None:
    driver = create_driver(config=create_config(max_running=2))
    requests = create_requests(3)
    expected = expected_tokens(requests[2], 8)
    driver.submit(*requests)
    driver.runner.fail_steps = 1
    driver.run()
    assert set(driver.failed) == {r.request_id for r in requests[:2]}
    assert "the device is on fire" in str(driver.failed[requests[0].request_id])
    assert driver.tokens[requests[2].request_id] == expected
    assert driver.scheduler.stats().used_blocks == 0


def test_the_runner_hears_of_ended_requests_once_even_after_a_failed_step() -> None:
    driver = create_driver()
    driver.submit(create_request(4, "a", max_tokens=1))
    driver.run()
    driver.submit(create_request(4, "b", max_tokens=1))
    driver.runner.fail_steps = 1
    driver.run()
    driver.submit(create_request(4, "c", max_tokens=1))
    driver.run()
    assert [set(output.finished_request_ids) for output in driver.runner.outputs] == [
        set(), {"a"}, {"a", "b"},
    ]  # fmt: skip


def test_a_runner_that_forgets_a_row_fails_the_step() -> None:
    driver = create_driver()
    driver.runner._sample = lambda requests, values: {}  # type: ignore[method-assign]
    driver.submit(create_request(4, "a"))
    driver.run()
    assert "sampled nothing for ['a']" in str(driver.failed["a"])


def test_a_fork_shares_blocks_until_it_writes() -> None:
    driver = create_driver(block_sizes=(4, 8))
    parent = create_request(10, "parent", max_tokens=12)
    expected = expected_tokens(parent, 12)
    driver.submit(parent)
    driver.step()
    driver.step()
    child = create_request(list(parent.token_ids), "child", max_tokens=10)
    driver.requests["child"] = child
    driver.scheduler.fork("parent", child)
    driver.run()
    assert driver.tokens["parent"] == expected
    assert driver.tokens["child"] == expected[2:]
    copies = [copy for output in driver.runner.outputs for copy in output.copies]
    assert {copy.group for copy in copies} == {0, 1}
    assert driver.scheduler.stats().used_blocks == 0


def test_a_fork_needs_a_place_in_the_batch() -> None:
    driver = create_driver(config=create_config(max_running=1))
    parent = create_request(10, "parent")
    driver.submit(parent)
    driver.step()
    with pytest.raises(QueueFullError, match="max_running"):
        driver.scheduler.fork("parent", create_request(list(parent.token_ids), "child"))
    driver.run()
