"""The engine's side of a hand-off, with a transfer that only notes what it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from baton.v1 import kv_pb2
from engine.errors import StepFailedError
from engine.events import (
    BlocksFilled,
    BlocksFilling,
    FilledPart,
    RequestCancelled,
    RequestFailed,
    TokenSampled,
)
from engine.request import FinishReason
from engine.step import SampledToken
from kvtransfer.transfer_stats import TransferStats
from services.common.tracing import PassedOn
from services.prefill.hand_off import HandOff
from services.prefill.layer_watch import LayerWatch

TOKEN = TokenSampled("r", SampledToken(7), None, 0)


class Transfer:
    """Stands where an `OutboundTransfer` does."""

    transport = "shared_memory"

    def __init__(self) -> None:
        self.done: Future[TransferStats] = Future()
        self.told: list[Any] = []
        self.commits: list[kv_pb2.KvCommit] = []
        self.on_push: Callable[[], object] = lambda: None

    def push(
        self, group: int, first_index: int, block_ids: tuple[int, ...], part: range | None = None
    ) -> None:
        if not block_ids[0]:
            raise RuntimeError("a bug")
        self.told.append((group, first_index, block_ids) if part is None else (first_index, block_ids, part))
        self.on_push()

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


PARTS = tuple(FilledPart(num_bytes, lambda: None) for num_bytes in (60, 90, 96))
LAST = BlocksFilling("r", 0, 2, (6, 7), PARTS)


def test_what_was_pushed_in_parts_is_completed_and_not_pushed_again() -> None:
    transfer = Transfer()
    made = hand_off(transfer, skip=1)
    made.push_part(LAST, 60)
    say(made, BlocksFilled("r", 0, 0, (4, 5)))  # of the step before, which was under way
    made.push_part(LAST, 90)
    say(made, BlocksFilled("r", 0, 2, (6, 7)), TOKEN)
    made.push_part(LAST, 96)
    assert transfer.told == [
        (2, (6, 7), range(60)),
        (0, 1, (5,)),
        (2, (6, 7), range(60, 90)),
        (2, (6, 7), range(90, 96)),
        "commit",
    ]
    assert transfer.commits[0].num_blocks == 3


def test_parts_that_are_all_there_leave_nothing_to_push_at_the_end() -> None:
    transfer = Transfer()
    made = hand_off(transfer, skip=3)
    for part in PARTS:
        made.push_part(LAST, part.num_bytes)
    say(made, BlocksFilled("r", 0, 0, (4, 5, 6, 7)), TOKEN)
    assert transfer.told[:-1] == [(3, (7,), range(60)), (3, (7,), range(60, 90)), (3, (7,), range(90, 96))]
    assert transfer.commits[0].num_blocks == 1


def test_parts_that_come_after_the_whole_are_not_pushed() -> None:
    transfer = Transfer()
    made = hand_off(transfer)
    say(made, BlocksFilled("r", 0, 0, (4, 5, 6, 7)), TOKEN)
    made.push_part(LAST, 60)
    made.push_part(LAST, 96)
    assert transfer.told == [(0, 0, (4, 5, 6, 7)), "commit"]


def test_parts_are_not_pushed_after_the_stop_and_count_as_pushed() -> None:
    transfer = Transfer()
    made = hand_off(transfer)
    made.push_part(LAST, 60)
    assert not made.stop()
    made.push_part(LAST, 90)
    assert transfer.told == [(2, (6, 7), range(60))]
    assert hand_off(transfer, skip=4).stop()


def test_a_bug_with_one_request_does_not_cost_the_others_of_the_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Transfer(), Transfer()
    watch = LayerWatch()
    watch.follow([(hand_off(bad), replace(LAST, block_ids=(0,))), (hand_off(good), LAST)])
    watch.close()
    assert bad.told == ["INTERNAL"]
    assert [part for _, _, part in good.told] == [range(60), range(60, 90), range(90, 96)]
    assert "a bug" in caplog.text


def test_layers_go_when_their_moment_has_come_step_by_step() -> None:
    moments = [threading.Event() for _ in range(3)]
    pushed = threading.Semaphore(0)
    parts = tuple(FilledPart(num, moment.wait) for num, moment in zip((60, 90, 96), moments, strict=True))
    one, two, late = Transfer(), Transfer(), Transfer()
    for transfer in (one, two, late):
        transfer.on_push = pushed.release
    watch = LayerWatch()
    event = replace(LAST, parts=parts)
    watch.follow([(hand_off(one), event), (hand_off(two), event)])
    watch.follow([(hand_off(late), LAST)])
    for count, moment in enumerate(moments, 1):
        assert not pushed.acquire(timeout=0.02)
        moment.set()
        for _ in range(2 if count < 3 else 5):
            assert pushed.acquire(timeout=5)
    watch.close()
    assert one.told == two.told == late.told


def test_moments_that_never_come_leave_it_to_the_end_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    def lost() -> None:
        raise RuntimeError("the GPU is lost")

    transfer = Transfer()
    made = hand_off(transfer)
    watch = LayerWatch()
    watch.follow([(made, replace(LAST, parts=(FilledPart(60, lost), *PARTS[1:])))])
    watch.close()
    assert transfer.told == []
    assert "the GPU is lost" in caplog.text


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
