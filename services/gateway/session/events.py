"""What reaches a session's mailbox: from prefill's answer, from decode's step stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from baton.v1.decode_pb2 import TokenEvent
from baton.v1.prefill_pb2 import PrefillResponse
from baton.v1.sampling_pb2 import FinishReason, TokenLogprobs
from services.common.errors import BatonError


class Token(NamedTuple):
    """A generated token; `finish_reason` is set (not 0) if it is the last."""

    token_id: int
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class PrefillEvent:
    """What a prefill under `epoch` said; neither response nor error: it ended well."""

    epoch: int
    response: PrefillResponse | None = None
    error: BatonError | None = None


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """The decode worker's stream broke."""

    error: BatonError


AttemptEvent = PrefillEvent | StreamBroken | TokenEvent


_GOES_ON = FinishReason.FINISH_REASON_UNSPECIFIED


def tokens_of(event: TokenEvent) -> list[Token]:
    """Return the tokens of one step; the event's finish reason goes to the last."""
    if len(event.token_ids) == 1 and not event.logprobs:  # nearly always
        return [Token(event.token_ids[0], None, event.finish_reason)]
    last = len(event.token_ids) - 1
    return [
        Token(
            token_id,
            event.logprobs[i] if i < len(event.logprobs) else None,
            event.finish_reason if i == last else _GOES_ON,
        )
        for i, token_id in enumerate(event.token_ids)
    ]
