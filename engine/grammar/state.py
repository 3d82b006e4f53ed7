"""Where one answer is in its grammar.

The state is a function of the grammar and of the answer's tokens, and follows them
by itself: whoever prefills again after a preemption, takes a hand-off, or goes on
with the answer of a lost worker, hands over the tokens and is where the other was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import llguidance
import numpy as np
import numpy.typing as npt

from engine.errors import GrammarError

_log = logging.getLogger(__name__)

Words = npt.NDArray[np.int32]
"""int32[ceil(V / 32)]: bit i % 32 of word i // 32 is 1 if token i may come next."""
MAX_MASK_S = 0.25
"""CPU time. All requests wait for a mask, so the request whose mask takes longer is failed."""


class GrammarState:
    """State of one request; the engine thread alone uses it.

    Attributes:
        error: why the answer cannot go on; None: it can. A request with an error is failed at the next
            commit; until then only an end-of-sequence token is allowed.
    """

    def __init__(self, matcher: llguidance.LLMatcher, sha256: bytes, eos_token_ids: frozenset[int]) -> None:
        """`matcher` becomes this state's own; `sha256` is that of the grammar."""
        self.sha256 = sha256
        self.error: GrammarError | None = None
        self._matcher = matcher
        self._eos_token_ids = eos_token_ids
        self._num_taken = 0

    def allow(self, answer: Sequence[int], words: Words) -> None:
        """Write which tokens may follow.

        Args:
            answer: all tokens after the prompt; those of the last call, and perhaps more.
            words: int32[ceil(V / 32)], overwritten; at least one bit is set.
        """
        if self.error is None:
            try:
                self._advance(answer[self._num_taken :])
                self._mask(words)
            except GrammarError as error:
                self.error = error
            except Exception as bug:  # the library's; the requests beside this one are not to suffer
                _log.exception("a grammar failed")
                self.error = GrammarError(f"grammar: {type(bug).__name__}: {bug}")
        if self.error is not None:
            words[:] = 0
            for token_id in self._eos_token_ids:
                words[token_id >> 5] |= np.int32(np.uint32(1 << (token_id & 31)).view(np.int32))

    def _mask(self, words: Words) -> None:
        started_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if time.thread_time() - started_s > MAX_MASK_S:
            raise GrammarError(f"grammar: too complex: one mask took over {MAX_MASK_S:g} s")
        if self._matcher.is_error():
            raise GrammarError(f"grammar: {self._reason()}")
        if not words.any():
            raise GrammarError("grammar: no token can follow")

    def _advance(self, tokens: Sequence[int]) -> None:
        for token_id in tokens:
            if not self._matcher.consume_token(token_id):
                reason = self._reason() if self._matcher.is_error() else "the grammar does not allow it"
                raise GrammarError(f"grammar: token {self._num_taken} of the answer: {reason}")
            self._num_taken += 1

    def _reason(self) -> str:
        return self._matcher.get_error().split("\n", 1)[0]
