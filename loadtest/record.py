"""What became of one request."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields

from loadtest.plan import Request
from loadtest.prompts import Prompt

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Outcome(enum.StrEnum):
    """How a request ended."""

    OK = "ok"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(slots=True)
class Record:
    """One request: what was asked, and what came when. Times are seconds from the start of the run.

    Attributes:
        index, content, input_tokens, output_tokens: as planned.
        slow: its client read slowly on purpose.
        planned_s: when it was due (closed loop: when its turn came). Latencies count from here.
        sent_s: when it was sent; later than planned only if the generator was late.
        token_s: when each message with tokens came.
        token_counts: tokens in each.
        end_s: when the stream ended.
        outcome: how.
        reason, message: of an error.
        finish_reason: as the server names it, in lower case.
        prompt_tokens, cached_tokens, completion_tokens: as the server counted; None: it did not say.
        queue_s, exposed_s: as the server reports them; None: it does not.
        prefill_worker, decode_worker, transport, retries: of the hand-off, if the server tells.
        answer: token ids, or text; kept only where answers are verified.
    """

    index: int
    content: int
    input_tokens: int
    output_tokens: int
    slow: bool
    planned_s: float
    sent_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    end_s: float = 0.0
    outcome: Outcome = Outcome.ERROR
    reason: str = ""
    message: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    queue_s: float | None = None
    exposed_s: float | None = None
    prefill_worker: str = ""
    decode_worker: str = ""
    transport: str = ""
    retries: int = 0
    answer: list[int] | str | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated: as the server counted, or as they were seen."""
        return sum(self.token_counts) if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token; None: there was none."""
        return self.token_s[0] - self.planned_s if self.token_s else None

    @property
    def e2e_s(self) -> float:
        """Time to the end."""
        return self.end_s - self.planned_s

    @property
    def tpot_s(self) -> float | None:
        """(last token - first token) / (N - 1); None: fewer than two tokens."""
        if self.tokens < 2 or not self.token_s:
            return None
        return (self.token_s[-1] - self.token_s[0]) / (self.tokens - 1)

    def gaps_s(self) -> list[float]:
        """Return each gap between tokens; those that came in one message have gaps of 0 between them."""
        gaps: list[float] = []
        for before, at_s, count in zip(self.token_s, self.token_s[1:], self.token_counts[1:], strict=False):
            gaps.append(at_s - before)
            gaps.extend([0.0] * (count - 1))
        return gaps

    def to_json(self) -> dict[str, Json]:
        """Return it as JSON; times to a microsecond."""
        values = asdict(self)
        values["token_s"] = [round(at_s, 6) for at_s in self.token_s]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Json]) -> Record:
        """Return what `to_json` gave; unknown members are ignored."""
        known = {entry.name for entry in fields(cls)}
        record = cls(**{name: value for name, value in values.items() if name in known})  # type: ignore[arg-type]
        record.outcome = Outcome(record.outcome)
        return record


@dataclass(slots=True)
class Call:
    """A request on its way, as a target sees it.

    Attributes:
        request: from the plan.
        prompt: what it says.
        record: filled in as the answer comes.
        now: the run's clock, seconds.
        on_tokens: called after each message with tokens.
        keep_answer: whether `record.answer` is wanted.
        cache_salt: keeps its cached blocks apart from other salts'; empty: the common cache.
    """

    request: Request
    prompt: Prompt
    record: Record
    now: Callable[[], float]
    on_tokens: Callable[[], None]
    keep_answer: bool = False
    cache_salt: str = ""

    def tokens(self, count: int, part: list[int] | str) -> None:
        """Note that `count` tokens came just now; `part` continues the answer."""
        record = self.record
        record.token_s.append(self.now())
        record.token_counts.append(count)
        if self.keep_answer:
            if record.answer is None:
                record.answer = part
            else:
                record.answer += part  # type: ignore[operator]  # both are ids, or both are text
        self.on_tokens()
