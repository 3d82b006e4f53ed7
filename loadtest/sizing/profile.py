"""What a worker needs for its work: the few numbers that the simulation knows of a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from loadtest.errors import UsageError


@dataclass(frozen=True, slots=True)
class Profile:
    """Costs of one prefill worker, one decode worker, and the way between them. Times in seconds.

    A prefill step costs step_s + tokens * token_s + (sum of tokens * their context) * attention_s
    + prompts that it completes * prompt_s; a decode step costs step_s + rows * row_s
    + (sum of contexts) * context_s.

    Attributes:
        overhead_s: what a request costs outside the workers until its first token: gateway, network.
        prefill_slowdown, decode_slowdown: factor on a step while a worker of the other kind works that
            shares its machine; 1: they share none.
        handoff_s, handoff_token_s: from the end of prefill until decode may run: fixed, and a token.
        max_step_tokens: of the prefill worker.
        prefill_tokens, decode_tokens: tokens that the pool of such a worker holds.
        measured_on: where it comes from, for people.
    """

    prefill_step_s: float
    prefill_token_s: float
    prefill_attention_s: float
    decode_step_s: float
    decode_row_s: float
    decode_context_s: float
    handoff_s: float
    handoff_token_s: float
    overhead_s: float
    max_step_tokens: int
    prefill_tokens: int
    decode_tokens: int
    prefill_prompt_s: float = 0.0
    prefill_slowdown: float = 1.0
    decode_slowdown: float = 1.0
    measured_on: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError if a cost is negative, or a step costs nothing."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise UsageError(f"profile: {field.name}: must be at least 0, got {value}")
        if self.prefill_step_s + self.prefill_token_s <= 0 or self.decode_step_s + self.decode_row_s <= 0:
            raise UsageError("profile: a step that takes no time")
        if min(self.prefill_slowdown, self.decode_slowdown) < 1:
            raise UsageError("profile: a slowdown must be at least 1")
        if min(self.max_step_tokens, self.prefill_tokens, self.decode_tokens) < 1:
            raise UsageError("profile: max_step_tokens, prefill_tokens and decode_tokens must be at least 1")

    def prefill_chunk_s(self, start: int, num_tokens: int) -> float:
        """Return what one chunk adds to a step."""
        context = num_tokens * (start + num_tokens / 2)
        return num_tokens * self.prefill_token_s + context * self.prefill_attention_s

    def prompt_s(self, num_tokens: int, cached_tokens: int = 0) -> float:
        """Return the time to compute a prompt that has the worker to itself."""
        total, at = 0.0, min(cached_tokens, num_tokens - 1)
        while at < num_tokens:
            size = min(self.max_step_tokens, num_tokens - at)
            total += self.prefill_step_s + self.prefill_chunk_s(at, size)
            at += size
        return total + self.prefill_prompt_s

    @classmethod
    def mean(cls, profiles: Sequence[Profile]) -> Profile:
        """Return the mean of several that were measured on the same cluster, before and after a run.

        Raises:
            UsageError: they are of clusters that differ.
        """
        first = profiles[0]
        values: dict[str, float] = {}
        for field in fields(cls):
            found = [getattr(profile, field.name) for profile in profiles]
            if isinstance(found[0], float):
                values[field.name] = sum(found) / len(found)
            elif any(value != found[0] for value in found):
                raise UsageError(
                    f"profile: {field.name}: {', '.join(map(str, found))} are of several clusters"
                )
        return cls(**{**asdict(first), **values})

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Return a profile from its file. UsageError: it is none."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path}: not a profile: {error}") from error
