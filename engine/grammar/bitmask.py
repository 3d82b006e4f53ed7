"""Allowed tokens of the sampled rows of a step, as samplers on any device take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.grammar.state import Words
from engine.request import Request


def num_words(vocab_size: int) -> int:
    """Words of one row."""
    return -(-vocab_size // 32)


def allowed_tokens(requests: Sequence[Request], vocab_size: int) -> Words | None:
    """Return the bitmask of a step's sampled rows.

    Every token of each request must be known to the host. Takes some 40 us a row with a
    grammar (50k tokens), so do it while the device runs the model.

    Returns:
        int32[R, ceil(V / 32)]; bit i % 32 of word i // 32 is 1 if token i is allowed; a row without a
        grammar allows all. None: no row has a grammar.
    """
    if not any(request.grammar for request in requests):
        return None
    words = np.full((len(requests), num_words(vocab_size)), -1, dtype=np.int32)
    for row, request in zip(words, requests, strict=True):
        if request.grammar is not None:
            request.grammar.allow(request.token_ids[request.num_prompt_tokens :], row)
    return words


def forbid(row: npt.NDArray[np.float32], words: Words) -> None:
    """Set the logits of tokens that are not allowed to -inf.

    Args:
        row: float32[V], changed in place.
        words: int32[ceil(V / 32)].
    """
    bits = np.unpackbits(words.view(np.uint8), count=len(row), bitorder="little")
    row[bits == 0] = -np.inf
