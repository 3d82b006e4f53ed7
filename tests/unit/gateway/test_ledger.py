"""Limits that several processes of one gateway keep together."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from services.common.errors import BatonError, ErrorReason
from services.common.keys import Limits
from services.gateway import ledger
from services.gateway.access import Caller
from services.gateway.admission import Admission
from services.gateway.config import LimitsConfig
from services.gateway.ledger import Ledger
from tests.unit.gateway.test_admission import Clock, Demand, admit


@pytest.fixture
def fd() -> Iterator[int]:
    fd = Ledger.create(3)
    yield fd
    os.close(fd)


def admissions(fd: int, clock: Clock, **limits: int) -> list[Admission]:
    return [Admission(LimitsConfig(**limits), 256, clock, Ledger(fd, 3, index)) for index in range(3)]


def refusal(admission: Admission, *demands: Demand) -> BatonError:
    with pytest.raises(BatonError) as caught:
        admit(admission, *demands)
    return caught.value


def test_requests_in_flight_are_those_of_all_processes(fd: int) -> None:
    one, two, three = admissions(fd, Clock(), max_in_flight=3)
    first = admit(one)
    admit(two), admit(three)
    for admission in (one, two, three):
        error = refusal(admission)
        assert error.reason is ErrorReason.QUEUE_FULL
        assert "3 requests in flight; the limit is 3" in error.message
        assert admission.in_flight == 1, "drains and gauges are each process's own"
    first[0].release()
    admit(three)


def test_tokens_and_minutes_are_shared_too(fd: int) -> None:
    clock = Clock()
    one, two, _ = admissions(fd, clock, max_tokens_in_flight=50, requests_per_minute=3)
    tickets = [*admit(one), *admit(two)]
    assert "40 tokens in flight" in refusal(two).message
    for ticket in tickets:
        ticket.release(10)
    admit(one)
    error = refusal(two)
    assert (error.reason, error.retry_after_s) == (ErrorReason.RATE_LIMITED, 20.0)
    clock.now += 20
    admit(two)


def test_keys_have_accounts_of_their_own(fd: int) -> None:
    one, two, three = admissions(fd, Clock())
    limits = Limits(max_requests=2)
    a, b = (Caller(key_id=name * 6, tenant=name, limits=limits) for name in ("aa", "bb"))
    admit(one, Demand(a))
    admit(two, Demand(b))
    admit(three, Demand(a))
    assert refusal(two, Demand(a)).reason is ErrorReason.RATE_LIMITED
    admit(one, Demand(b))
    assert refusal(three, Demand(b)).reason is ErrorReason.RATE_LIMITED


def test_what_a_dead_process_had_counts_no_more(fd: int) -> None:
    one, two, _ = admissions(fd, Clock(), max_in_flight=4)
    admit(one), admit(one), admit(one), admit(two)
    refusal(two)
    Ledger(fd, 3).clear(0)
    admit(two), admit(two), admit(two)
    assert "4 requests" in refusal(two).message


def test_too_many_accounts(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_ACCOUNTS", 2)
    own = Ledger(fd, 3)
    own.account("a"), own.account("b")
    Ledger(fd, 3, 1).account("b")
    with pytest.raises(BatonError, match="at most 2 keys"):
        own.account("c")


def _take_and_give(fd: int, index: int, rounds: int, result: Connection) -> None:
    admission = Admission(LimitsConfig(max_in_flight=2), 256, Clock(), Ledger(fd, 3, index))
    taken = 0
    for _ in range(rounds):
        try:
            (ticket,) = admit(admission)
        except BatonError:
            continue
        taken += 1
        with admission.ledger.locked():
            assert admission.ledger.account("").requests <= 2
        ticket.release(5)
    result.send((taken, admission.in_flight))


def test_processes_that_race_never_exceed_a_limit(fd: int) -> None:
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(3)]
    children = [
        context.Process(target=_take_and_give, args=(fd, index, 2000, end[1]))
        for index, end in enumerate(ends)
    ]
    for child in children:
        child.start()
    for _, sender in ends:
        sender.close()  # so that a child that fails is not waited for
    results = [receiver.recv() for receiver, _ in ends]
    for child in children:
        child.join(10)
        assert child.exitcode == 0
    assert all(taken > 0 and left == 0 for taken, left in results)
    assert Ledger(fd, 3).account("").requests == Ledger(fd, 3).account("").tokens == 0


def _die_with_the_lock(fd: int) -> None:
    own = Ledger(fd, 3, 1)
    with own.locked():
        own.account("").add(1, 10)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_with_the_lock_holds_up_nobody(fd: int) -> None:
    child = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(fd,))
    child.start()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    own = Ledger(fd, 3)
    assert own.account("").requests == 1
    own.clear(1)
    assert own.account("").requests == 0
