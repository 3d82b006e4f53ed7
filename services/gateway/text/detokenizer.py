"""Turns tokens into text as they come, never giving half a character or one twice."""

from __future__ import annotations

import codecs
from collections.abc import Set

from services.gateway.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer.

    A token is bytes, and a character may span tokens, so bytes go through an
    incremental UTF-8 decoder: it keeps an unfinished character until the rest of
    it comes, and gives U+FFFD only for what can no longer become one. Control
    tokens have no text, except those `shown`. The leading space of a SentencePiece
    token stays, because an answer continues a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_between = True

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; may be empty."""
        if self._is_between:
            text = self._tokenizer.whole_text(token_id)
            if text is not None:
                return text
        if self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return ""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        unfinished, _flags = self._decoder.getstate()
        self._is_between = not unfinished
        return text

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, or nothing."""
        self._is_between = True
        return self._decoder.decode(b"", final=True)
