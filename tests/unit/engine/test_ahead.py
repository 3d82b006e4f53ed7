"""One step ahead: what is scheduled before the last step is known, and what becomes of it."""

import pytest

from engine.errors import EngineStoppedError, OutOfBlocksError, StepFailedError
from engine.events import TokenSampled
from engine.kv.block_pool import BlockPool
from engine.request import FinishReason, GivenBlocks, Request, RequestStatus
from engine.sampling_params import SamplingParams
from engine.scheduler.scheduler import Scheduler
from tests.support.engine_builders import (
    EOS,
    create_config,
    create_group,
    create_request,
    create_requests,
    create_scheduler,
)
from tests.support.engine_driver import EngineDriver
from tests.support.verifying_runner import VerifyingRunner, expected_tokens


def create_driver(num_blocks: int = 64, config=None, context_length: int = 1000) -> EngineDriver:
    scheduler = create_scheduler(num_blocks, (4,), config, context_length)
    return EngineDriver(scheduler, VerifyingRunner(num_blocks, late=True), ahead=True)


def rows_of(driver: EngineDriver) -> list[list[tuple[str, int, int, bool]]]:
    return [
        [(row.request.request_id, row.start, row.num_tokens, row.pending) for row in output.rows]
        for output in driver.runner.outputs
    ]


def step_until(driver: EngineDriver, request: Request, num_tokens: int) -> None:
    while request.num_tokens < num_tokens:
        assert driver.step()


def test_a_step_is_launched_before_the_one_in_front_of_it_is_known() -> None:
    driver = create_driver(config=create_config(max_step_tokens=8))
    request = create_request(10, "a", max_tokens=4)
    expected = expected_tokens(request, 4)
    driver.submit(request)
    known = []
    while driver.step():
        known.append(len(driver.tokens.get("a", [])))
    assert rows_of(driver) == [
        [("a", 0, 8, False)], [("a", 8, 2, False)],
        [("a", 10, 1, True)], [("a", 11, 1, True)], [("a", 12, 1, True)],
    ]  # fmt: skip
    assert known == [0, 0, 1, 2, 3, 4], "each a step late"
    assert driver.tokens["a"] == expected
    assert driver.reasons["a"] is FinishReason.LENGTH


def limited(**fields: int) -> Request:
    request = create_request(5, max_tokens=None)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "num_tokens"),
    [
        (create_request(5, max_tokens=1), 1),
        (create_request(5, max_tokens=6), 6),
        (limited(max_new_tokens=3), 3),
        (limited(), 11),
    ],
    ids=["one token", "max_tokens", "max_new_tokens", "context_length"],
)
def test_an_end_that_is_known_before_costs_no_row(request_: Request, num_tokens: int) -> None:
    driver = create_driver(context_length=16)
    driver.submit(request_)
    driver.run()
    assert len(driver.tokens[request_.request_id]) == num_tokens
    assert driver.runner.num_wasted_rows == 0
    assert driver.runner.num_tokens_run[request_.request_id] == 5 + num_tokens - 1


def test_a_prompt_that_is_only_prefilled_costs_no_row() -> None:
    driver = create_driver(config=create_config(max_step_tokens=8))
    request = create_request(18, "a", hold_blocks=True)
    expected = expected_tokens(request, 1)
    driver.submit(request)
    filled = []
    while driver.step():
        filled.append(len(driver.filled.get("a", [])))
    assert filled == [0, 2, 4, 5], "blocks are reported when the step that fills them is over"
    assert driver.tokens["a"] == expected
    assert driver.runner.num_tokens_run["a"] == 18
    assert driver.filled["a"] == request.block_ids[0]


def test_an_end_that_nobody_could_know_costs_one_row_which_is_dropped() -> None:
    driver = create_driver()
    request = create_request(5, "a")
    third = expected_tokens(request, 3)[2]
    request.sampling = SamplingParams(temperature=0.0, stop_token_ids=(third,))
    driver.submit(request)
    driver.run()
    assert len(driver.tokens["a"]) == 3
    assert driver.reasons["a"] is FinishReason.STOP
    assert driver.runner.num_wasted_rows == 1
    assert driver.scheduler.stats().sampled_tokens == 3
    assert driver.scheduler.stats().used_blocks == 0


class FreeGrammar:
    """Allows everything; what matters is that there is one."""

    error = None


def test_a_request_whose_tokens_the_host_must_know_waits_for_each() -> None:
    driver = create_driver()
    bound, free = create_request(5, "bound", max_tokens=4), create_request(5, "free", max_tokens=4)
    bound.grammar = FreeGrammar()
    expected = {r.request_id: expected_tokens(r, 4) for r in (bound, free)}
    driver.submit(bound, free)
    driver.run()
    assert driver.tokens == expected
    pending = {(row[0], row[3]) for rows in rows_of(driver) for row in rows}
    assert pending == {("bound", False), ("free", False), ("free", True)}


def test_the_giver_of_blocks_hears_of_an_end_when_no_step_writes_them() -> None:
    config = create_config(max_step_tokens=8)
    scheduler = Scheduler(config, (create_group(),), 8, 1000, EOS, first_block=8)
    driver = EngineDriver(scheduler, VerifyingRunner(16, late=True), ahead=True)
    request = create_request(30, "a", hold_blocks=True)
    request.given = GivenBlocks((tuple(range(8)),), 0, lambda: True)
    driver.submit(request)
    driver.step()
    driver.step()
    assert request.num_rows_under_way == 1
    driver.scheduler.cancel("a")
    driver.loop.publish(0)
    assert "a" not in driver.cancelled
    assert "a" not in driver.ended
    driver.run()
    assert "a" in driver.cancelled
    assert "a" in driver.ended
    assert driver.runner.num_tokens_run["a"] == 16, "nothing more was launched"


def test_a_cancelled_request_leaves_nothing_behind() -> None:
    driver = create_driver()
    request = create_request(5, "a", max_tokens=None)
    driver.submit(request)
    step_until(driver, request, 8)
    driver.scheduler.cancel("a")
    # The id may come back at once, with another request behind it.
    again = create_request(3, "a", max_tokens=2)
    driver.ended.clear()
    driver.tokens.clear()
    expected = expected_tokens(again, 2)
    driver.scheduler.take_ended()
    driver.submit(again)
    driver.run()
    assert driver.tokens["a"] == expected
    assert driver.scheduler.stats().used_blocks == 0


def test_blocks_of_a_step_under_way_are_not_granted() -> None:
    """Another process writes into granted blocks at once; the runner checks that no step uses them."""
    driver = create_driver(num_blocks=4)
    running = create_request(10, "running", max_tokens=None)
    driver.submit(running)
    step_until(driver, running, 12)
    driver.scheduler.cancel("running")
    reserved = create_request(8, "reserved", max_tokens=3)
    expected = expected_tokens(reserved, 3)
    driver.reserve(reserved)
    assert driver.step()
    assert "reserved" not in driver.granted, "all blocks but one may still be written"
    while "reserved" not in driver.granted:
        driver.step()
    driver.fill_and_commit(reserved, expected[0])
    driver.run()
    assert driver.tokens["reserved"] == expected[1:]


def test_without_the_rule_the_guard_stops_a_block_from_being_written_by_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = create_driver(num_blocks=4)
    running = create_request(10, "running", max_tokens=None)
    driver.submit(running)
    step_until(driver, running, 12)
    for pool in driver.scheduler._kv._pools:
        monkeypatch.setattr(pool, "release", lambda block_id, pool=pool: release_at_once(pool, block_id))
    driver.scheduler.cancel("running")
    driver.reserve(create_request(12, "reserved"))
    with pytest.raises(AssertionError, match=r"block \d is given away while step \d writes it"):
        driver.loop.step()


def release_at_once(pool: BlockPool, block_id: int) -> None:
    pool._refs[block_id] -= 1
    pool._blank.append(block_id)


def test_a_preempted_request_keeps_the_token_under_way() -> None:
    driver = create_driver(num_blocks=10)
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    landed_while_waiting = 0
    while True:
        before = {r.request_id: r.num_tokens for r in requests}
        if not driver.step():
            break
        landed_while_waiting += sum(
            r.status is RequestStatus.WAITING and r.num_tokens > before[r.request_id] for r in requests
        )
    assert driver.tokens == expected
    assert requests[0].num_preemptions == 0
    assert driver.scheduler.stats().preemptions > 0
    assert landed_while_waiting > 0
    assert driver.scheduler.stats().sampled_tokens == 80, "no token was drawn twice"
    assert driver.runner.num_wasted_rows == 0


def test_who_is_short_of_blocks_waits_for_those_that_retire_and_preempts_nobody() -> None:
    driver = create_driver(num_blocks=8, config=create_config(prefix_cache=False))
    old, young = create_request(7, "old", max_tokens=4), create_request(15, "young", max_tokens=4)
    other = create_request(2, "other", max_tokens=None)
    expected = {r.request_id: expected_tokens(r, 4) for r in (old, young)}
    driver.submit(old, young, other)
    step_until(driver, other, 3)
    # Both need a block for their next rows; one is free, and one was the other's.
    driver.scheduler.cancel("other")
    driver.step()
    assert [row[0] for row in rows_of(driver)[-1]] == ["old"]
    driver.run()
    del driver.tokens["other"]
    assert driver.tokens == expected
    assert driver.scheduler.stats().preemptions == 0


def test_a_lone_request_that_outgrows_the_pool_has_the_same_tokens() -> None:
    driver = create_driver(num_blocks=4)
    driver.submit(create_request(10, "a", max_tokens=100), create_request(10, "b", max_tokens=2))
    driver.run()
    assert isinstance(driver.failed["a"], OutOfBlocksError)
    assert len(driver.tokens["a"]) == 7
    assert driver.reasons["b"] is FinishReason.LENGTH
    assert driver.scheduler.stats().used_blocks == 0


def test_a_fork_of_a_request_under_way_draws_its_own_token() -> None:
    driver = create_driver()
    parent = create_request(6, "parent", max_tokens=9)
    expected = expected_tokens(parent, 9)
    driver.submit(parent)
    step_until(driver, parent, 9)
    assert parent.num_pending_tokens == 1
    child = create_request(list(parent.token_ids), "child", max_tokens=6)
    driver.requests["child"] = child
    driver.scheduler.fork("parent", child)
    driver.run()
    assert driver.tokens == {"parent": expected, "child": expected[3:]}


def test_a_step_that_fails_when_launched_costs_its_own_requests_only() -> None:
    driver = create_driver(config=create_config(max_step_tokens=8))
    ending, other = create_request(5, "ending", max_tokens=1), create_request(5, "other", max_tokens=None)
    driver.submit(ending)
    driver.step()
    driver.submit(other)
    driver.runner.fail_steps = 1
    driver.run()
    assert driver.reasons["ending"] is FinishReason.LENGTH
    assert isinstance(driver.failed["other"], StepFailedError)
    assert driver.scheduler.stats().used_blocks == 0


def test_a_step_that_fails_on_the_device_takes_its_rows_behind_with_it_and_no_others() -> None:
    driver = create_driver()
    lost = create_requests(3, 5, max_tokens=None)
    driver.submit(*lost)
    for _ in range(4):
        driver.step()
    late = create_request(9, "late", max_tokens=4)
    expected = expected_tokens(late, 4)
    driver.submit(late)
    driver.runner.fail_waits = 1
    driver.step()
    assert set(driver.failed) == {r.request_id for r in lost}
    # The blocks of the lost ones are still written by the step behind.
    assert driver.scheduler._kv._pools[0].num_retiring > 0
    driver.run()
    assert driver.tokens["late"] == expected
    assert driver.scheduler.stats().used_blocks == 0


def test_stopping_waits_for_the_device_and_publishes_no_more_tokens() -> None:
    driver = create_driver()
    request = create_request(5, "a", max_tokens=None)
    driver.submit(request)
    step_until(driver, request, 8)
    drawn = len(driver.tokens["a"])
    driver.loop.fail_all(EngineStoppedError("stop"))
    driver.scheduler.check_invariants()
    assert len(driver.tokens["a"]) == drawn
    assert set(driver.failed) == {"a"}
    assert driver.scheduler.stats().used_blocks == 0
    assert driver.scheduler._kv._pools[0].num_retiring == 0


def test_blocks_are_cached_once_the_step_that_fills_them_is_over() -> None:
    driver = create_driver(config=create_config(max_step_tokens=8))
    driver.submit(create_request(list(range(30)), "a", max_tokens=1))
    driver.step()
    second = create_request(list(range(30)), "b", max_tokens=1)
    driver.submit(second)
    assert second.num_cached_tokens == 0
    driver.run()
    assert driver.tokens["a"] == driver.tokens["b"]
    third = create_request(list(range(30)), "c", max_tokens=1)
    driver.submit(third)
    driver.run()
    assert third.num_cached_tokens == 28


def test_events_of_a_step_come_when_it_is_over() -> None:
    scheduler = create_scheduler()
    runner = VerifyingRunner(64, late=True)
    request = create_request(5, "a", max_tokens=None)
    scheduler.add(request)
    first = scheduler.schedule()
    pending = runner.launch(first)
    second = scheduler.schedule()
    assert [row.pending for row in second.rows] == [True]
    assert scheduler.take_events() == []
    scheduler.commit(first, pending.wait())
    (event,) = scheduler.take_events()
    assert isinstance(event, TokenSampled)
    assert request.num_pending_tokens == 1
