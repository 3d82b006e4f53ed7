"""The workloads: how many requests, how long; what their figure is.

Five are of throughput. *interrupted* is of evenness: answers are written while prompts of 8,192 tokens come
in, and what counts is how far apart their tokens are, 99th percentile over median. *undisturbed* is the same
without those prompts.

Token ids are drawn at random and end-of-sequence is ignored, so that every request has the length
that it says. The seeds are fixed; each round has other token ids, so that no prefix cache helps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

SEED = 1
CHAT_SIGMA = 1.0
MIN_CHAT, MAX_CHAT = 4, 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that all arrive at once.

    Attributes:
        name: of the workload.
        sizes: tokens in, tokens out of each request.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]

    @property
    def tokens_in(self) -> int:
        """Of all requests."""
        return sum(size[0] for size in self.sizes)

    @property
    def tokens_out(self) -> int:
        """Of all requests."""
        return sum(size[1] for size in self.sizes)

    @property
    def unit(self) -> str:
        """Of `figure`."""
        if self.is_of_evenness:
            return "ITL p99/p50"
        return {"single": "ms a token", "prefill": "in tok/s"}.get(self.name, "out tok/s")

    @property
    def is_of_evenness(self) -> bool:
        """Whether the figure is the evenness of gaps, not a rate."""
        return self.name in _OF_EVENNESS

    @property
    def watched(self) -> tuple[bool, ...]:
        """Whose gaps between tokens count; where it is of evenness, answers longer than their prompt."""
        return tuple(not self.is_of_evenness or num_out > num_in for num_in, num_out in self.sizes)

    def figure(self, seconds: float, itl_ratio: float = 1.0) -> float:
        """What a run comes to, in `unit`; less is better for "single" and those of evenness.

        Args:
            seconds: that it took.
            itl_ratio: of watched gaps between tokens, 99th percentile over median.
        """
        if self.is_of_evenness:
            return itl_ratio
        if self.name == "single":
            return seconds / self.tokens_out * 1e3
        return (self.tokens_in if self.name == "prefill" else self.tokens_out) / seconds

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Draw the token ids."""
        rng = random.Random(seed)
        return [[rng.randrange(vocab_size) for _ in range(size)] for size, _ in self.sizes]


def _single(rng: random.Random) -> list[tuple[int, int]]:
    return [(1024, 256)]


def _decode(rng: random.Random) -> list[tuple[int, int]]:
    return [(128, 512)] * 256


def _prefill(rng: random.Random) -> list[tuple[int, int]]:
    return [(8192, 1)] * 32


def _mixed(rng: random.Random) -> list[tuple[int, int]]:
    return [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(256)]


def _chat(rng: random.Random) -> list[tuple[int, int]]:
    return list(zip(lognormal(rng, 1000, 161), lognormal(rng, 1000, 338), strict=True))


def _interrupted(rng: random.Random) -> list[tuple[int, int]]:
    # Long prompts, more than the answers' time lasts for, among short ones.
    return [*[(128, 512)] * 8, *[(8192, 8)] * 3] * 8


def _undisturbed(rng: random.Random) -> list[tuple[int, int]]:
    return [size for size in _interrupted(rng) if size[0] < size[1]]


MAKERS = {
    "single": _single,
    "decode": _decode,
    "prefill": _prefill,
    "mixed": _mixed,
    "chat": _chat,
    "interrupted": _interrupted,
    "undisturbed": _undisturbed,
}
_OF_EVENNESS = ("interrupted", "undisturbed")
DEFAULT = tuple(name for name in MAKERS if name not in _OF_EVENNESS)


def lognormal(rng: random.Random, count: int, mean: float) -> list[int]:
    """Draw lengths from a lognormal distribution, clipped to 4 to 1024, whose mean is `mean`."""
    draws = [rng.gauss(0.0, CHAT_SIGMA) for _ in range(count)]

    def lengths(mu: float) -> list[int]:
        return [min(MAX_CHAT, max(MIN_CHAT, round(2.718281828 ** (mu + draw)))) for draw in draws]

    low, high = 0.0, 10.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(lengths(middle)) < mean * count else (low, middle)
    return lengths(low)


def make_workload(name: str, scale: float, context_length: int) -> Workload:
    """Make one workload.

    Args:
        scale: factor on numbers of requests and on lengths, each at least 1 afterwards.
        context_length: prompts are cut so that prompt and answer fit.
    """
    sizes = MAKERS[name](random.Random(f"{SEED} {name}"))
    count = max(1, round(len(sizes) * scale))
    scaled = [(max(1, round(a * scale)), max(1, round(b * scale))) for a, b in sizes[:count]]
    return Workload(name, tuple((min(a, context_length - 1 - b), b) for a, b in scaled))


def warm_up_workload(workloads: Sequence[Workload]) -> Workload:
    """A short one with as many requests at once as any of the others has."""
    count = max(len(workload.sizes) for workload in workloads)
    longest = max(size for workload in workloads for size, _ in workload.sizes)
    return Workload("warm-up", ((longest, 2), *(((8, 8),) * (count - 1))))
