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
_STOP, _LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH


class Answer:
    """One answer.

    Attributes:
        token_ids: generated so far.
        finish_reason: set (not 0) when the answer is complete.
        matched_stop: the stop string that ended it; empty: none.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._sampling = request.sampling
        self._detokenizer = Detokenizer(tokenizer, request.shown_tokens)
        self._stop = StopStrings(request.stop)
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
            self.token_ids.append(token.token_id)
            delta.token_ids.append(token.token_id)
            if token.logprobs is not None:
                delta.logprobs.append(token.logprobs)
            if token.finish_reason != _STOP:
                texts.append(self._show(self._detokenizer.push(token.token_id)))
            self._end(token, texts)
            if self.finish_reason:
                break
        delta.text = "".join(texts)
        return delta

    def _show(self, text: str) -> str:
        """Return the part of the text that may be shown; stop strings do not count before min_tokens."""
        return text if len(self.token_ids) <= self._sampling.min_tokens else self._stop.push(text)

    def _end(self, token: Token, texts: list[str]) -> None:
        """Set the finish reason if this token is the last."""
        reason = token.finish_reason
        if not reason and len(self.token_ids) >= self._sampling.max_tokens:
            reason = _LENGTH
        if reason and not self._stop.matched:
            texts.append(self._show(self._detokenizer.flush()))
        if self._stop.matched:
            reason = _STOP
        elif reason:
            texts.append(self._stop.flush())
        self.finish_reason = reason
