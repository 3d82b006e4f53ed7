"""Which of COMMIT, the next attempt and the end comes first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from engine.request import Request
from engine.sampling_params import SamplingParams
from services.decode.reservation import Phase, Reservation


def make() -> Reservation:
    async def build() -> Reservation:
        return Reservation("r", "g", "t", Request("e", [1, 2], 2, SamplingParams()))

    made = asyncio.run(build())
    assert made.advance(Phase.QUEUED, Phase.RESERVED, 1)
    return made


def test_commit_of_an_earlier_attempt_comes_too_late() -> None:
    reservation = make()
    assert reservation.reopen()
    assert not reservation.advance(Phase.RESERVED, Phase.RUNNING, 1)
    assert reservation.advance(Phase.RESERVED, Phase.RUNNING, 2)


def test_a_filled_one_is_not_opened_again() -> None:
    reservation = make()
    assert reservation.advance(Phase.RESERVED, Phase.RUNNING, 1)
    assert not reservation.reopen()
    assert reservation.epoch == 1
    assert not reservation.advance(Phase.RESERVED, Phase.COMPUTING, 1)


def test_one_that_has_ended_is_not_filled() -> None:
    reservation = make()
    assert reservation.finish() is Phase.RESERVED
    assert not reservation.advance(Phase.RESERVED, Phase.RUNNING, 1)
    assert not reservation.reopen()
    assert reservation.finish() is Phase.ENDED


@pytest.mark.parametrize("round_number", range(20))
def test_of_commit_and_the_next_attempt_one_wins(round_number: int) -> None:
    reservation, start = make(), threading.Barrier(2)
    won: dict[str, bool] = {}

    def race(name: str, act: Callable[[], bool]) -> None:
        start.wait()
        won[name] = act()

    acts = {
        "commit": lambda: reservation.advance(Phase.RESERVED, Phase.RUNNING, 1),
        "reopen": reservation.reopen,
    }
    threads = [threading.Thread(target=race, args=pair) for pair in acts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won.values()) == [False, True]
    assert reservation.epoch == 1 + won["reopen"]
