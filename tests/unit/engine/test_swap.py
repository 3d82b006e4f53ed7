"""Host memory behind the pool: swapped requests and evicted prefixes come back as they were."""

import pytest

from engine.errors import InvalidRequestError, StepFailedError
from engine.events import BlocksFilled
from engine.kv.host_tier import HostSlots, slots_in
from engine.request import RequestStatus
from tests.support.engine_builders import (
    create_config,
    create_group,
    create_request,
    create_requests,
)
from tests.support.engine_driver import EngineDriver, create_driver
from tests.support.verifying_runner import expected_tokens

pytestmark = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "ahead"])


@pytest.mark.parametrize("block_sizes", [(4,), (4, 6)])
def test_a_swapped_request_goes_on_where_it_was(ahead: bool, block_sizes) -> None:
    config = create_config(prefix_cache=False)
    driver = create_driver(12, block_sizes, config, ahead=ahead, host_slots=HostSlots(40, 0))
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    swapped = 0
    while driver.step():
        swapped = max(swapped, driver.scheduler.stats().swapped)
    assert driver.tokens == expected
    stats = driver.scheduler.stats()
    assert stats.preemptions > 0
    assert swapped > 0
    assert stats.saved_blocks == stats.loaded_blocks > 0
    assert set(driver.runner.num_tokens_run.values()) == {26}, "nothing is computed twice"
    assert stats.used_blocks == 0
    assert stats.swapped == 0


def test_without_room_on_the_host_it_is_computed_again(ahead: bool) -> None:
    driver = create_driver(
        10, config=create_config(prefix_cache=False), ahead=ahead, host_slots=HostSlots(1, 0)
    )
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    driver.run()
    assert driver.tokens == expected
    assert driver.scheduler.stats().preemptions > 0
    assert driver.scheduler.stats().saved_blocks == 0
    assert max(driver.runner.num_tokens_run.values()) > 26


def test_blocks_that_are_still_cached_on_the_device_are_not_loaded(ahead: bool) -> None:
    driver = create_driver(10, ahead=ahead, host_slots=HostSlots(40, 0))
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    driver.run()
    stats = driver.scheduler.stats()
    assert driver.tokens == expected
    assert 0 < stats.loaded_blocks < stats.saved_blocks


def test_a_swapped_request_that_is_cancelled_leaves_no_slot_behind(ahead: bool) -> None:
    driver = create_driver(
        10, config=create_config(prefix_cache=False), ahead=ahead, host_slots=HostSlots(40, 0)
    )
    requests = create_requests(4, 7, max_tokens=20)
    driver.submit(*requests)
    while driver.scheduler.stats().swapped == 0:
        assert driver.step()
    for request in requests:
        if request.status is RequestStatus.WAITING:
            driver.scheduler.cancel(request.request_id)
    driver.scheduler.check_invariants()
    assert driver.scheduler.stats().swapped == 0
    driver.run()
    assert driver.scheduler._kv.host._swap[0].num_free == 40


def prefix_run(driver: EngineDriver, name: str, prompt: list[int]) -> int:
    """Tokens that were computed for a prompt."""
    driver.submit(create_request(prompt, name, max_tokens=1))
    driver.run()
    return driver.runner.num_tokens_run[name]


def test_an_evicted_prefix_comes_back_from_the_host(ahead: bool) -> None:
    driver = create_driver(16, ahead=ahead, host_slots=HostSlots(0, 60))
    prompts = [[salt, *range(30)] for salt in range(6)]
    for index, prompt in enumerate(prompts):
        assert prefix_run(driver, f"first{index}", prompt) == 31
    assert len(driver.scheduler.block_journal.read(0, 0, 1000).stored) == 6 * 7, "nothing is lost"
    for index, prompt in enumerate(prompts):
        assert prefix_run(driver, f"second{index}", prompt) == 3
        assert driver.tokens[f"second{index}"] == driver.tokens[f"first{index}"]
    assert driver.scheduler.stats().loaded_blocks > 0


def test_what_neither_tier_holds_is_reported_as_evicted(ahead: bool) -> None:
    driver = create_driver(16, ahead=ahead, host_slots=HostSlots(0, 8))
    journal = driver.scheduler.block_journal
    for salt in range(12):
        prefix_run(driver, str(salt), [salt, *range(30)])
    kv = driver.scheduler._kv
    stored = set(journal.read(0, 0, 1000).stored)
    assert stored == kv._pools[0]._cached.keys() | kv.host.caches[0]._cached.keys()
    assert len(kv.host.caches[0]._cached) == 8


def test_a_reservation_has_blocks_from_the_host(ahead: bool) -> None:
    driver = create_driver(16, ahead=ahead, host_slots=HostSlots(0, 60))
    prompts = [[salt, *range(30)] for salt in range(4)]
    for index, prompt in enumerate(prompts):
        prefix_run(driver, f"first{index}", prompt)
    num_loaded = driver.scheduler.stats().loaded_blocks
    request = create_request(prompts[0], "reserved", max_tokens=4)
    expected = expected_tokens(request, 4)
    driver.reserve(request)
    driver.run()
    assert driver.granted["reserved"].num_cached_tokens > 0
    assert driver.scheduler.stats().loaded_blocks > num_loaded
    driver.fill_and_commit(request, expected[0])
    driver.run()
    assert driver.tokens["reserved"] == expected[1:]


def test_blocks_from_the_host_are_reported_when_they_are_there(ahead: bool) -> None:
    driver = create_driver(16, ahead=ahead, host_slots=HostSlots(0, 60))
    prompts = [[salt, *range(30)] for salt in range(4)]
    for index, prompt in enumerate(prompts):
        prefix_run(driver, f"first{index}", prompt)
    request = create_request(prompts[0], "held", hold_blocks=True)
    driver.requests["held"] = request
    driver.scheduler.add(request)
    while not (output := driver.scheduler.schedule()).swap_ins:
        driver.loop._launch(output)
        driver.loop._finish_oldest()
    assert request.num_cached_tokens > 0
    arriving = {swap.block_id for swap in output.swap_ins}
    for event in driver.scheduler.take_events():
        assert isinstance(event, BlocksFilled)
        assert not arriving & set(event.block_ids)
    driver.loop._launch(output)
    driver.run()
    assert arriving <= set(driver.filled["held"])


def test_what_a_failed_step_was_to_save_is_computed_again(ahead: bool) -> None:
    driver = create_driver(
        10, config=create_config(prefix_cache=False), ahead=ahead, host_slots=HostSlots(40, 0)
    )
    requests = create_requests(4, 7, max_tokens=20)
    expected = {r.request_id: expected_tokens(r, 20) for r in requests}
    driver.submit(*requests)
    while True:
        output = driver.scheduler.schedule()
        if output.swap_outs:
            driver.runner.fail_steps = 1
        driver.loop.publish(output.step)
        driver.loop._launch(output)
        while len(driver.loop._launched) > ahead:
            driver.loop._finish_oldest()
        driver.scheduler.check_invariants()
        if output.swap_outs:
            break
    assert driver.scheduler.stats().swapped == 0
    driver.run()
    for request_id, error in driver.failed.items():
        assert isinstance(error, StepFailedError)
        assert request_id in {row.request.request_id for row in output.rows}
    survivors = expected.keys() - driver.failed.keys()
    assert survivors
    assert {name: driver.tokens[name] for name in survivors} == {name: expected[name] for name in survivors}
    assert driver.scheduler.stats().used_blocks == 0


def test_what_a_failed_step_was_to_load_is_read_by_nobody(ahead: bool) -> None:
    driver = create_driver(16, ahead=ahead, host_slots=HostSlots(0, 60))
    prompts = [[salt, *range(30)] for salt in range(4)]
    for index, prompt in enumerate(prompts):
        prefix_run(driver, f"first{index}", prompt)
    request = create_request(prompts[0], "reserved", max_tokens=4)
    driver.reserve(request)
    while not (output := driver.scheduler.schedule()).swap_ins:
        driver.loop._launch(output)
        driver.loop._finish_oldest()
    driver.loop.publish(output.step)
    assert "reserved" not in driver.granted, "what it is granted is not there yet"
    driver.runner.fail_steps = 1
    driver.loop._launch(output)
    assert isinstance(driver.failed["reserved"], StepFailedError)
    # Whatever is cached still holds what it should, on both tiers.
    for index, prompt in enumerate(prompts):
        prefix_run(driver, f"second{index}", prompt)
        assert driver.tokens[f"second{index}"] == driver.tokens[f"first{index}"]
    assert driver.scheduler.stats().used_blocks == 0


def test_sizes_are_whole_blocks(ahead: bool) -> None:
    group = create_group()
    assert slots_in(0, 0, (group,)) == HostSlots(0, 0)
    assert slots_in(3 * group.block_bytes + 1, group.block_bytes, (group,)) == HostSlots(3, 1)
    with pytest.raises(InvalidRequestError, match="host_cache_bytes: 5 holds no block of"):
        slots_in(0, 5, (group,))


@pytest.mark.parametrize("num_tokens", range(1, 250, 7))
def test_a_request_that_waits_for_prefixes_to_be_saved_is_not_forgotten(ahead: bool, num_tokens: int) -> None:
    """However few blocks it wants, and though nothing else runs."""
    driver = create_driver(64, ahead=ahead, host_slots=HostSlots(0, 64))
    driver.submit(create_request(20, max_tokens=1), create_request(200, max_tokens=1))
    driver.run()
    driver.submit(create_request(240, max_tokens=1))
    driver.run()
    driver.submit(create_request(num_tokens, "late", max_tokens=1))
    driver.run()
    assert driver.scheduler.num_queued == 0
    assert len(driver.tokens["late"]) == 1
