"""Log-probabilities of tokens in the shape of chats and responses."""

from __future__ import annotations

from baton.v1.sampling_pb2 import TokenLogprob, TokenLogprobs
from services.gateway.http.values import Json
from services.gateway.text.tokenizer import Tokenizer

_LEAST = -9999.0


def clamp(logprob: float) -> float:
    """Return a number that JSON can hold: it has no infinity."""
    return max(logprob, _LEAST)


def show_token(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Json]:
    """Return the drawn token and the likeliest ones."""
    return {
        **_show(tokenizer, entry.sampled),
        "top_logprobs": [_show(tokenizer, top) for top in entry.top],
    }


def _show(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Json]:
    spelled = tokenizer.token_bytes(entry.token_id)
    return {
        "token": spelled.decode(errors="replace"),
        "logprob": clamp(entry.logprob),
        "bytes": list(spelled),
    }
