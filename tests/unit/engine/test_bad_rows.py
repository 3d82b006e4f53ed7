"""A request for which no token can be drawn costs nobody but itself."""

import pytest

from engine.errors import SamplingError
from engine.kv.host_tier import HostSlots
from tests.support.engine_builders import create_request, create_requests
from tests.support.engine_driver import create_driver
from tests.support.verifying_runner import expected_tokens

both = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "ahead"])


@both
def test_the_others_of_the_step_go_on(ahead: bool) -> None:
    driver = create_driver(ahead=ahead)
    requests = create_requests(5, 10)
    expected = {request.request_id: expected_tokens(request, 8) for request in requests}
    driver.submit(*requests)
    for _ in range(3):
        driver.step()
    bad = requests[2].request_id
    driver.runner.undrawable.add(bad)
    driver.run()
    assert isinstance(driver.failed.pop(bad), SamplingError)
    assert not driver.failed
    assert len(driver.tokens.pop(bad)) < 8
    del expected[bad]
    assert driver.tokens == expected
    assert driver.scheduler.stats().used_blocks == 0


@both
def test_nobody_gets_its_blocks_from_the_cache(ahead: bool) -> None:
    """What made its logits useless may be in them."""
    driver = create_driver(ahead=ahead)
    prompt = list(range(20))
    driver.submit(create_request(prompt, "good", max_tokens=1))
    driver.run()
    driver.runner.undrawable.add("bad")
    driver.submit(create_request(prompt, "bad"))
    driver.run()
    assert isinstance(driver.failed["bad"], SamplingError)
    driver.submit(create_request(prompt, "again", max_tokens=1))
    driver.run()
    assert driver.runner.num_tokens_run["bad"] <= 5, "the rest it had from the cache"
    assert driver.runner.num_tokens_run["again"] == 20


def test_nor_from_the_hosts() -> None:
    driver = create_driver(host_slots=HostSlots(swap=0, cache=64))
    prompt = list(range(20))
    driver.submit(create_request(prompt, "good", max_tokens=1))
    driver.run()
    driver.submit(create_request(240, "evicts", max_tokens=1))
    driver.run()
    driver.runner.undrawable.add("bad")
    driver.submit(create_request(prompt, "bad"))
    driver.run()
    assert driver.runner.num_tokens_run["bad"] == 4, "the host had it"
    driver.submit(create_request(prompt, "again", max_tokens=1))
    driver.run()
    assert driver.runner.num_tokens_run["again"] == 20
