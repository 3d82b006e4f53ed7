"""Checks sampling parameters and fills in what workers need."""

from __future__ import annotations

import math
import secrets

from baton.v1.sampling_pb2 import SamplingParams
from services.common.errors import BatonError, ErrorReason

MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20

_RANGES = {
    "temperature": (0.0, 2.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
# A logit over a smaller repetition penalty may be infinite; a float32 of 0.01 is a little less.
_LEAST_PENALTY = 0.00999


def check_sampling(params: SamplingParams, *, vocab_size: int, prefix: str = "") -> None:
    """Check every field's range.

    Args:
        prefix: of field names in messages, such as "sampling.".
    Raises:
        BatonError: INVALID_ARGUMENT; names the field and the limit.
    """

    def check(name: str, ok: bool, message: str) -> None:
        if not ok:
            raise bad_field(prefix + name, message)

    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        check(
            name,
            math.isfinite(value) and low <= value <= high,
            f"must be from {low:g} to {high:g}, got {value:g}",
        )
    if params.HasField("top_p"):
        check("top_p", 0 < params.top_p <= 1, f"must be above 0 and at most 1, got {params.top_p:g}")
    if params.HasField("repetition_penalty"):
        value = params.repetition_penalty
        check("repetition_penalty", _LEAST_PENALTY <= value <= 2, f"must be from 0.01 to 2, got {value:g}")
    check("max_tokens", not params.HasField("max_tokens") or params.max_tokens >= 1, "must be at least 1")
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        check(name, count <= MAX_LOGPROBS, f"must be at most {MAX_LOGPROBS}, got {count}")
    check("stop", len(params.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings")
    check("stop", all(params.stop), "a stop string must not be empty")
    check(
        "stop_token_ids",
        len(params.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
        f"at most {MAX_STOP_TOKEN_IDS} ids",
    )
    check("logit_bias", len(params.logit_bias) <= MAX_LOGIT_BIAS, f"at most {MAX_LOGIT_BIAS} entries")
    for token_id in params.stop_token_ids:
        check("stop_token_ids", token_id < vocab_size, f"ids must be below {vocab_size}, got {token_id}")
    for token_id, bias in params.logit_bias.items():
        check("logit_bias", token_id < vocab_size, f"ids must be below {vocab_size}, got {token_id}")
        check(
            f"logit_bias[{token_id}]", math.isfinite(bias) and -100 <= bias <= 100, "must be from -100 to 100"
        )
    for name in ("ignore_eos", "min_tokens"):
        ends = params.HasField("grammar") and getattr(params, name)
        check(name, not ends, "cannot be had with a grammar, which says where the answer ends")
    max_tokens = params.max_tokens if params.HasField("max_tokens") else math.inf
    check("min_tokens", params.min_tokens <= max_tokens, f"must be at most max_tokens ({max_tokens})")


def for_workers(params: SamplingParams, max_tokens: int, grammar: str = "") -> SamplingParams:
    """Return a copy in which nothing is left to chance or to the worker.

    The seed is fixed here, so that a request that moves to another worker draws what
    it would have drawn; stop strings are the gateway's own business.

    Args:
        grammar: as workers take it; empty: none.
    """
    fixed = SamplingParams()
    fixed.CopyFrom(params)
    fixed.max_tokens = max_tokens
    if not fixed.HasField("seed"):
        fixed.seed = secrets.randbits(64)
    if grammar:
        fixed.grammar.lark = grammar
    del fixed.stop[:]
    return fixed


def bad_field(field: str, message: str) -> BatonError:
    """Return the error of a field that is out of range."""
    return BatonError(ErrorReason.INVALID_ARGUMENT, f"{field}: {message}", field=field)
