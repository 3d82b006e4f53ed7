"""How the tokens of one request are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling; every default means "off".

    Raises:
        InvalidRequestError: a field is out of range; the message names field and limit.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        _check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "must be at least 1")
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _check("top_p", 0.0 < self.top_p <= 1.0, f"must be above 0 and at most 1, got {self.top_p}")
        _check("top_k", self.top_k >= 0, "must be at least 0")
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _check(
            "repetition_penalty",
            0.0 < self.repetition_penalty <= 2.0,
            f"must be above 0 and at most 2, got {self.repetition_penalty}",
        )
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check("logit_bias", len(self.logit_bias) <= MAX_LOGIT_BIAS, f"at most {MAX_LOGIT_BIAS} entries")
        for token_id, bias in self.logit_bias.items():
            _in_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0)
        _check("seed", 0 <= self.seed < 2**64, "must fit 64 bits")
        _check(
            "stop_token_ids",
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            f"at most {MAX_STOP_TOKEN_IDS} entries",
        )
        _check("min_tokens", self.min_tokens >= 0, "must be at least 0")
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            _check(name, count is None or 0 <= count <= MAX_LOGPROBS, f"must be from 0 to {MAX_LOGPROBS}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


def _check(name: str, ok: bool, message: str) -> None:
    if not ok:
        raise InvalidRequestError(name, message)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    _check(
        name, math.isfinite(value) and low <= value <= high, f"must be from {low:g} to {high:g}, got {value}"
    )
