"""Events wait in order; one that is handled where it comes never passes one that waits."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.session.mailbox import Mailbox


async def test_a_reader_takes_all_that_came() -> None:
    mailbox: Mailbox[int] = Mailbox()
    reading = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(1)
    mailbox.put(2)
    assert await reading == [1, 2]
    assert mailbox.take_now() == []


async def test_what_is_handled_wakes_nobody_and_never_passes_what_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    handled: list[int] = []

    def handle(event: int) -> bool:
        handled.append(event)
        return event < 3

    reading = asyncio.create_task(mailbox.take(handle))
    await asyncio.sleep(0)
    mailbox.put(1)
    mailbox.put(2)
    await asyncio.sleep(0)
    assert not reading.done()
    mailbox.put(3)  # refused
    mailbox.put(1)  # comes after it
    assert await reading == [3, 1]
    assert handled == [1, 2, 3]
    mailbox.put(2)
    assert (mailbox.take_now(), handled) == ([2], [1, 2, 3])


async def test_events_that_wait_are_not_offered() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    assert await mailbox.take(lambda event: pytest.fail("offered")) == [1]


async def test_wake_ends_waiting_with_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    reading = asyncio.create_task(mailbox.take(lambda event: True))
    await asyncio.sleep(0)
    mailbox.wake()
    mailbox.put(1)
    assert await reading == [1]
    reading = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.wake()
    assert await reading == []


async def test_a_reader_that_was_cancelled_handles_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    reading = asyncio.create_task(mailbox.take(lambda event: True))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    mailbox.put(1)
    assert mailbox.take_now() == [1]


async def test_the_deadline_ends_waiting_but_loses_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.set_deadline(0.01)
    with pytest.raises(TimeoutError):
        await mailbox.take(lambda event: True)
    mailbox.put(1)
    assert await mailbox.take() == [1]
    with pytest.raises(TimeoutError):
        await mailbox.take()
    mailbox.close()
