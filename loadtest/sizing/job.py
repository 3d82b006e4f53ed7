"""One request in the simulation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Job:
    """A request, and when what happened to it. Times in seconds of the simulation.

    Attributes:
        number: order of arrival.
        hash_ids, block_tokens: names of the prompt's leading blocks, as in a trace.
        cached_tokens: leading tokens that its prefill worker had.
        done_tokens: computed so far, cached ones included.
        first_s: when the first token reached the client; None: not yet.
        end_s: when the last one did.
        decode: index of its decode worker.
    """

    number: int
    at_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    cached_tokens: int = 0
    done_tokens: int = 0
    first_s: float | None = field(default=None)
    end_s: float | None = field(default=None)
    decode: int = -1

    @property
    def remaining_tokens(self) -> int:
        """Tokens of the prompt to compute."""
        return self.input_tokens - self.done_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return None if self.first_s is None else self.first_s - self.at_s

    @property
    def tpot_s(self) -> float:
        """(last - first) / (N - 1); 0 with one token."""
        if self.end_s is None or self.first_s is None or self.output_tokens < 2:
            return 0.0
        return (self.end_s - self.first_s) / (self.output_tokens - 1)
