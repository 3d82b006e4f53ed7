"""What prefill and decode workers ask of the scheduler: held blocks, and reservations."""

import pytest

from engine.events import BlocksFilled, TokenSampled
from engine.request import FinishReason, RequestStatus
from tests.support.engine_builders import (
    EOS,
    create_config,
    create_request,
    create_requests,
)
from tests.support.engine_driver import EngineDriver, create_driver
from tests.support.verifying_runner import expected_tokens


def rows_of(driver: EngineDriver) -> list[list[tuple[str, int, int]]]:
    return [[(r.request.request_id, r.start, r.num_tokens) for r in o.rows] for o in driver.runner.outputs]


# Prefill role.


def test_blocks_are_reported_as_they_fill_and_held() -> None:
    driver = create_driver(config=create_config(max_step_tokens=8))
    request = create_request(18, "a", hold_blocks=True)
    expected = expected_tokens(request, 1)
    driver.submit(request)
    filled = []
    while driver.step():
        filled.append(len(driver.filled["a"]))
    assert filled == [2, 4, 5]
    assert driver.tokens["a"] == expected
    assert driver.reasons["a"] is None, "it stops only because of max_new_tokens"
    assert driver.filled["a"] == request.block_ids[0]
    assert driver.scheduler.stats().used_blocks == 5
    assert driver.scheduler.stats().running == 0
    driver.scheduler.cancel("a")
    driver.run()
    assert driver.cancelled == {"a"}
    assert driver.scheduler.stats().used_blocks == 0


def test_cached_blocks_are_reported_at_admission() -> None:
    driver = create_driver()
    driver.submit(create_request(list(range(18)), "a", hold_blocks=True))
    driver.run()
    second = create_request(list(range(18)), "b", hold_blocks=True)
    driver.scheduler.add(second)
    output = driver.scheduler.schedule()
    cached = tuple(driver.filled["a"][:4])
    assert driver.scheduler.take_events() == [BlocksFilled("b", 0, 0, cached)], "before the step runs"
    driver.scheduler.commit(output, driver.runner.launch(output).wait())
    filled, sampled = driver.scheduler.take_events()
    assert filled == BlocksFilled("b", 0, 4, (second.block_ids[0][4],))
    assert isinstance(sampled, TokenSampled)
    assert sampled.num_cached_tokens == 16


def test_held_requests_are_never_preempted_and_block_those_behind() -> None:
    driver = create_driver(num_blocks=10)
    driver.submit(*[create_request(15, f"held{i}", hold_blocks=True) for i in range(3)])
    driver.run()
    assert set(driver.tokens) == {"held0", "held1"}
    driver.scheduler.cancel("held0")
    driver.run()
    assert "held2" in driver.tokens
    assert driver.scheduler.stats().preemptions == 0


# Decode role.


def test_a_reservation_joins_the_batch_on_commit() -> None:
    driver = create_driver()
    request = create_request(10, "a", max_tokens=5)
    expected = expected_tokens(request, 5)
    driver.reserve(request)
    driver.run()
    grant = driver.granted["a"]
    assert [len(ids) for ids in grant.block_ids] == [3]
    assert grant.num_cached_tokens == 0
    assert driver.scheduler.stats().reserved == 1
    driver.fill_and_commit(request, expected[0])
    driver.run()
    assert driver.tokens["a"] == expected[1:]
    assert driver.reasons["a"] is FinishReason.LENGTH
    assert driver.runner.num_tokens_run["a"] == 4
    assert driver.scheduler.stats().used_blocks == 0


def test_a_reservation_pins_cached_blocks_but_never_the_last_token() -> None:
    driver = create_driver()
    for name in ("a", "b"):
        request = create_request(list(range(8)), name, max_tokens=3)
        expected = expected_tokens(request, 3)
        driver.reserve(request)
        driver.run()
        driver.fill_and_commit(request, expected[0])
        driver.run()
        assert driver.tokens[name] == expected[1:]
    assert driver.granted["a"].num_cached_tokens == 0
    assert driver.granted["b"].num_cached_tokens == 4


def test_committed_blocks_are_cached_at_once_even_if_the_answer_ends() -> None:
    driver = create_driver()
    first = create_request(list(range(9)), "a")
    driver.reserve(first)
    driver.step()
    driver.fill_and_commit(first, min(EOS))
    driver.reserve(create_request(list(range(9)), "b"))
    driver.step()
    assert driver.granted["b"].num_cached_tokens == 8


def test_nothing_runs_before_commit() -> None:
    driver = create_driver()
    driver.reserve(create_request(10, "a"))
    assert driver.step() is False
    assert not driver.runner.outputs


@pytest.mark.parametrize(
    ("first_token", "max_tokens"), [(100, 5), (7, 1)], ids=["end-of-sequence", "max_tokens"]
)
def test_a_first_token_that_ends_the_answer_frees_at_once(first_token: int, max_tokens: int) -> None:
    driver = create_driver()
    request = create_request(10, "a", max_tokens=max_tokens)
    driver.reserve(request)
    driver.run()
    driver.fill_and_commit(request, first_token)
    assert driver.scheduler.stats().used_blocks == 0
    driver.run()
    assert driver.cancelled == {"a"}
    assert not driver.runner.outputs


def test_the_head_of_the_queue_is_not_overtaken() -> None:
    driver = create_driver(num_blocks=12)
    for name, length in (("a", 30), ("big", 30), ("small", 2)):
        driver.reserve(create_request(length, name))
    driver.run()
    assert set(driver.granted) == {"a"}
    driver.scheduler.cancel("a")
    driver.run()
    assert set(driver.granted) == {"a", "big", "small"}


def test_a_reservation_holds_its_place_in_the_batch() -> None:
    driver = create_driver(config=create_config(max_running=2))
    driver.reserve(*create_requests(3))
    driver.run()
    assert len(driver.granted) == 2


def test_a_preempted_request_goes_before_younger_reservations() -> None:
    driver = create_driver(num_blocks=12)
    requests = create_requests(3, 10, max_tokens=24)
    expected = {r.request_id: expected_tokens(r, 24) for r in requests}
    driver.reserve(*requests)
    for _ in range(300):
        driver.step()
        for request in requests:
            if request.request_id in driver.granted and request.status is RequestStatus.RESERVED:
                driver.fill_and_commit(request, expected[request.request_id][0])
    assert driver.tokens == {name: tokens[1:] for name, tokens in expected.items()}
    assert driver.scheduler.stats().used_blocks == 0


@pytest.mark.parametrize("length", [8, 10])
def test_a_reservation_can_be_computed_in_place(length: int) -> None:
    driver = create_driver()
    for name in ("a", "b"):
        request = create_request(list(range(length)), name, max_tokens=5)
        expected = expected_tokens(request, 5)
        driver.reserve(request)
        driver.run()
        blocks = driver.granted[name].block_ids
        driver.scheduler.compute_reservation(name)
        driver.step()
        assert tuple(tuple(ids) for ids in request.block_ids) == blocks
        driver.run()
        assert driver.tokens[name] == expected
        assert driver.reasons[name] is FinishReason.LENGTH
        assert driver.scheduler.stats().used_blocks == 0
    assert driver.granted["b"].num_cached_tokens == 4 * ((length - 1) // 4)
    assert driver.runner.num_tokens_run["b"] == 4 + length - driver.granted["b"].num_cached_tokens


def test_compute_of_what_is_gone_or_runs_already_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver = create_driver()
    request = create_request(10, "a", max_tokens=5)
    expected = expected_tokens(request, 5)
    driver.scheduler.compute_reservation("unknown")
    driver.reserve(request)
    driver.scheduler.compute_reservation("a")
    driver.run()
    driver.scheduler.compute_reservation("a")
    driver.step()
    driver.scheduler.compute_reservation("a")
    driver.run()
    assert driver.tokens["a"] == expected
    assert len(caplog.records) == 3


def test_commit_of_what_is_gone_or_runs_already_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    driver = create_driver()
    request = create_request(10, "a", max_tokens=5)
    expected = expected_tokens(request, 5)
    driver.scheduler.commit_reservation("unknown", 1)
    driver.reserve(request)
    driver.scheduler.commit_reservation("a", 1)
    driver.run()
    driver.fill_and_commit(request, expected[0])
    driver.scheduler.commit_reservation("a", 1)
    driver.run()
    assert driver.tokens["a"] == expected[1:]
    assert len(caplog.records) == 3
