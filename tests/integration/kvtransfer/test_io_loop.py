"""Turns of a loop, its own and other threads'."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from kvtransfer.io_loop import IoLoop
from tests.integration.kvtransfer.rig import wait_until


@pytest.fixture
def loop() -> Iterator[IoLoop]:
    made = IoLoop("kv-test", lambda: None, lambda: False)
    made.start()
    yield made
    made.stop()


def test_at_rest_a_command_runs_on_the_thread_that_brings_it(loop: IoLoop) -> None:
    ran: list[int] = []
    for _ in range(50):
        loop.run(lambda: ran.append(threading.get_ident()))
        time.sleep(0.001)  # it comes to rest
    assert len(ran) == 50
    assert threading.get_ident() in ran


def test_while_another_has_the_turn_it_goes_to_the_loop_in_order(loop: IoLoop) -> None:
    entered, leave, done = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def hold() -> None:
        entered.set()
        leave.wait(5)
        order.append("first")

    loop.post(hold)
    assert entered.wait(5)
    loop.post(lambda: order.append("second"))
    loop.run(lambda: (order.append("third"), done.set()))
    assert not order
    leave.set()
    assert done.wait(5)
    assert order == ["first", "second", "third"]


def test_a_turn_does_not_contain_another(loop: IoLoop) -> None:
    order: list[str] = []

    def outer() -> None:
        loop.run(lambda: order.append("inner"))
        order.append("outer")

    loop.run(outer)
    wait_until(lambda: len(order) == 2)
    assert order == ["outer", "inner"]


def test_turns_of_many_threads_do_not_overlap(loop: IoLoop) -> None:
    inside, ran = [0], [0]
    overlaps: list[int] = []

    def turn() -> None:
        inside[0] += 1
        overlaps.append(inside[0] - 1)
        ran[0] += 1
        inside[0] -= 1

    def run(take: str) -> None:
        for _ in range(500):
            getattr(loop, take)(turn)

    threads = [threading.Thread(target=run, args=(take,)) for take in ("run", "post", "run", "post")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: ran[0] == 2000)
    assert not any(overlaps)


def test_a_command_that_fails_ends_nothing(loop: IoLoop, caplog: pytest.LogCaptureFixture) -> None:
    loop.run(lambda: 1 / 0)
    assert loop.call(lambda: 7) == 7
    assert "ZeroDivisionError" in caplog.text


def test_after_stop_nothing_runs() -> None:
    loop = IoLoop("kv-test", lambda: None, lambda: False)
    loop.start()
    loop.stop()
    ran: list[int] = []
    loop.run(lambda: ran.append(1))
    assert not loop.post(lambda: ran.append(2))
    assert not ran
