from __future__ import annotations

import pytest

from services.common.errors import BatonError, ErrorReason
from services.gateway.admission import Admission


def test_waiting_requests_are_limited_and_running_ones_are_not() -> None:
    admission = Admission(max_in_flight=0, max_queue=2)
    first, second = admission.admit(2)
    with pytest.raises(BatonError, match="the limit is 2") as caught:
        admission.admit()
    assert caught.value.reason is ErrorReason.QUEUE_FULL
    assert caught.value.retry_after_s
    first.run()
    (third,) = admission.admit()
    assert (admission.waiting, admission.in_flight) == (2, 3)
    for ticket in (first, second, third):
        ticket.release()
    assert (admission.waiting, admission.in_flight) == (0, 0)


def test_in_flight_is_limited() -> None:
    admission = Admission(max_in_flight=1, max_queue=10)
    (ticket,) = admission.admit()
    ticket.run()
    with pytest.raises(BatonError, match="1 requests in flight"):
        admission.admit()
    ticket.release()
    admission.admit()


def test_several_are_admitted_together_or_not_at_all() -> None:
    admission = Admission(max_in_flight=0, max_queue=3)
    with pytest.raises(BatonError):
        admission.admit(4)
    assert (admission.waiting, admission.in_flight) == (0, 0)


def test_places_are_given_back_once() -> None:
    admission = Admission(max_in_flight=0, max_queue=3)
    (ticket,) = admission.admit()
    ticket.run()
    ticket.run()
    ticket.release()
    ticket.release()
    assert (admission.waiting, admission.in_flight) == (0, 0)


def test_draining_refuses() -> None:
    admission = Admission(max_in_flight=0, max_queue=3)
    admission.is_draining = True
    with pytest.raises(BatonError) as caught:
        admission.admit()
    assert caught.value.reason is ErrorReason.DRAINING
