"""The engine's side of a hand-off, with a transfer that only notes what it is told."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import pytest

from baton.v1 import kv_pb2
from engine.errors import StepFailedError
from engine.events import BlocksFilled, RequestCancelled, RequestFailed, TokenSampled
from engine.request import FinishReason
from engine.step import SampledToken
from kvtransfer.transfer_stats import TransferStats
from services.common.tracing import PassedOn
from services.prefill.hand_off import HandOff

TOKEN = TokenSampled("r", SampledToken(7), None, 0)


class Transfer:
    """Stands where an `OutboundTransfer` does."""

    transport = "shared_memory"

    def __init__(self) -> None:
        self.done: Future[TransferStats] = Future()
        self.told: list[Any] = []
        self.commits: list[kv_pb2.KvCommit] = []

    def push(self, group: int, first_index: int, block_ids: tuple[int, ...]) -> None:
        if not block_ids[0]:
            raise RuntimeError("a bug")
        self.told.append((group, first_index, block_ids))

    def commit(self, payload: bytes) -> None:
        self.told.append("commit")
        self.commits.append(kv_pb2.KvCommit.FromString(payload))

    def settle(self) -> None:
        self.told.append("settle")

    def fail(self, reason: str, message: str) -> None:
        self.told.append(reason)


def hand_off(transfer: Transfer, *, skip: int = 0, in_place: bool = False) -> HandOff:
    stand_in: Any = transfer
    return HandOff(stand_in, [skip], 40, None, PassedOn("00-trace"), in_place=in_place)


def say(made: HandOff, *events: Any) -> None:
    for event in events:
        made.on_event(event, time.monotonic())


def test_blocks_that_the_receiver_has_are_not_pushed() -> None:
    transfer = Transfer()
    made = hand_off(transfer, skip=3)
    say(made, BlocksFilled("r", 0, 0, (4, 5)), BlocksFilled("r", 0, 2, (6, 7, 8)), TOKEN)
    assert transfer.told == [(0, 3, (7, 8)), "commit"]
    commit = transfer.commits[0]
    assert (commit.num_blocks, commit.num_tokens, commit.first_token) == (2, 40, 7)
    assert (commit.transport, commit.traceparent) == ("shared_memory", "00-trace")
    assert 0 <= made.before_commit_s < 1


def test_an_answer_that_ends_with_its_first_token_is_not_committed() -> None:
    transfer = Transfer()
    say(hand_off(transfer), BlocksFilled("r", 0, 0, (4,)), TOKEN._replace(finish_reason=FinishReason.STOP))
    assert transfer.told == [(0, 0, (4,))]


def test_nothing_is_said_after_the_stop() -> None:
    transfer = Transfer()
    made = hand_off(transfer)
    assert made.stop()
    say(made, BlocksFilled("r", 0, 0, (4,)), TOKEN)
    assert transfer.told == []


def test_pushed_blocks_stay_until_the_transfer_is_done() -> None:
    made = hand_off(Transfer())
    say(made, BlocksFilled("r", 0, 0, (4,)))
    assert not made.stop()


@pytest.mark.parametrize(
    "last_word", [TOKEN, RequestCancelled("r"), RequestFailed("r", StepFailedError("a step"))]
)
def test_in_place_it_is_settled_once_the_engine_has_said_its_last_word(last_word: Any) -> None:
    transfer = Transfer()
    made = hand_off(transfer, in_place=True)
    say(made, BlocksFilled("r", 0, 0, (4,)))
    assert made.stop()  # the engine is to stop writing; nobody reads
    say(made, last_word, RequestCancelled("r"))
    made.settle()
    assert transfer.told == [(0, 0, (4,)), "settle"]


def test_the_engine_is_spared_a_bug_of_the_hand_off(caplog: pytest.LogCaptureFixture) -> None:
    transfer = Transfer()
    made = hand_off(transfer)
    say(made, BlocksFilled("r", 0, 0, (0,)), TOKEN)
    assert transfer.told == ["INTERNAL"]
    assert "a bug" in caplog.text


def test_a_transfer_that_is_over_is_not_failed() -> None:
    transfer = Transfer()
    transfer.done.set_exception(RuntimeError("over"))
    hand_off(transfer).fail("CANCELLED", "")
    assert transfer.told == []
