"""The text of an answer: tokens in, deltas out, until something ends it."""

from __future__ import annotations

from collections.abc import Sequence

from baton.v1.inference_pb2 import Delta
from baton.v1.sampling_pb2 import FinishReason
from services.gateway.request import Request
from services.gateway.session.events import Token
from services.gateway.text.detokenizer import Detokenizer
from services.gateway.text.stop import StopStrings
from services.gateway.text.tokenizer import Tokenizer

# Looked up with every token.
_NONE = FinishReason.FINISH_REASON_UNSPECIFIED
_STOP, _LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH


class Answer:
    """One answer.

    Attributes:
        token_ids: generated so far.
        finish_reason: set (not 0) when the answer is complete.
        matched_stop: the stop string that ended it; empty: none.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._min_tokens = request.sampling.min_tokens
        self._max_tokens = request.sampling.max_tokens
        self._detokenizer = Detokenizer(tokenizer, request.shown_tokens)
        self._stop = StopStrings(request.stop)
        self._has_stops = bool(request.stop)
        self.token_ids: list[int] = []
        self.finish_reason = FinishReason.FINISH_REASON_UNSPECIFIED

    @property
    def matched_stop(self) -> str:
        """The stop string that ended the answer; empty: none."""
        return self._stop.matched

    def push(self, tokens: Sequence[Token]) -> Delta:
        """Append tokens; those after the end are dropped.

        The text of an end-of-sequence or stop token is not part of the answer.
        """
        delta = Delta()
        texts: list[str] = []
        for token in tokens:
            delta.token_ids.append(token.token_id)
            if token.logprobs is not None:
                delta.logprobs.append(token.logprobs)
            texts.append(self.push_token(token.token_id, token.finish_reason))
            if self.finish_reason:
                break
        delta.text = "".join(texts)
        return delta

    def push_token(self, token_id: int, reason: FinishReason = _NONE) -> str:
        """Append a token; return the text that it adds."""
        token_ids = self.token_ids
        token_ids.append(token_id)
        text = "" if reason == _STOP else self._detokenizer.push(token_id)
        if self._has_stops:
            text = self._show(text)
        if not reason and len(token_ids) >= self._max_tokens:
            reason = _LENGTH
        if reason or (self._has_stops and self._stop.matched):
            text += self._end(reason)
        return text

    def _show(self, text: str) -> str:
        """Return the part of the text that may be shown; stop strings do not count before min_tokens."""
        return text if len(self.token_ids) <= self._min_tokens else self._stop.push(text)

    def _end(self, reason: FinishReason) -> str:
        """Set the finish reason; return the text that was held back."""
        rest = "" if self._stop.matched else self._show(self._detokenizer.flush())
        if self._stop.matched:
            reason = _STOP
        else:
            rest += self._stop.flush()
        self.finish_reason = reason
        return rest
