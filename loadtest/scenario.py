"""What to send: all of it, so that a run can be repeated from its result's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loadtest.arrivals import ArrivalProcess
from loadtest.errors import UsageError
from loadtest.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load. Exactly one of `concurrency`, `rate` and `trace` says when requests are sent.

    Attributes:
        target: "http://host:port" (OpenAI-compatible) or "grpc://host:port" (Baton).
        model: name to ask for; empty: the only one.
        api: HTTP only: "completions" or "chat".
        concurrency: closed loop: so many at a time; 0: not a closed loop.
        rate: open loop: requests a second; 0: not by rate.
        arrivals: how the gaps are drawn.
        burstiness: coefficient of variation of gamma's gaps.
        ramp_to: rate at the end of the run; 0: no ramp.
        trace: path of a trace to replay; empty: none.
        time_scale, length_scale, max_input, max_output: see traces.TraceScale.
        duration_s: nothing is sent after this; 0: no limit.
        requests: nothing is sent after so many; 0: no limit.
        warmup_s: requests due earlier are sent, but not measured.
        input, output: lengths (lengths.FORMS); a trace has its own.
        lengths: path of a trace that lengths alone are drawn from, prompt and answer of one row together;
            empty: by `input` and `output`. length_scale, max_input and max_output hold.
        corpus: file or folder of text that prompts are cut from; empty: random token ids.
        chars_per_token: of the corpus.
        first_token, last_token: random ids are drawn from these, both included.
        distinct: prompts repeat after so many; 0: each is its own.
        prefix_tokens: the first tokens of each prompt are shared; 0: none.
        prefix_groups: by one in so many prompts.
        turns: requests of a session: each prompt is the one before, as many tokens as it was answered with,
            and new ones. What `rate`, `trace`, `concurrency` and `requests` count are then sessions.
        think_s: from the end of an answer until the session's next request.
        cancel_share: share of requests, 0 to 1, that the client cancels.
        slow_share: share of requests, 0 to 1, whose client reads slowly.
        slow_delay_s: how long a slow client waits after each read.
        temperature: 0 is greedy.
        stop_at_eos: answers may end before their planned length.
        timeout_s: a request that takes longer is given up.
        seed: of every draw.
    """

    target: str
    model: str = ""
    api: str = "completions"
    concurrency: int = 0
    rate: float = 0.0
    arrivals: str = "poisson"
    burstiness: float = 2.0
    ramp_to: float = 0.0
    trace: str = ""
    time_scale: float = 1.0
    length_scale: float = 1.0
    max_input: int = 0
    max_output: int = 0
    duration_s: float = 0.0
    requests: int = 0
    warmup_s: float = 0.0
    input: str = "fixed:128"
    output: str = "fixed:64"
    lengths: str = ""
    corpus: str = ""
    chars_per_token: float = 4.0
    first_token: int = 1000
    last_token: int = 30000
    distinct: int = 0
    prefix_tokens: int = 0
    prefix_groups: int = 1
    turns: int = 1
    think_s: float = 1.0
    cancel_share: float = 0.0
    slow_share: float = 0.0
    slow_delay_s: float = 0.5
    temperature: float = 0.0
    stop_at_eos: bool = False
    timeout_s: float = 600.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Raise UsageError if a field is out of range or two contradict each other."""
        scheme = self.target.partition("://")[0]
        _check(scheme in ("http", "https", "grpc"), "target", "must begin with http://, https:// or grpc://")
        _check(self.api in ("completions", "chat"), "api", "must be completions or chat")
        ways = sum((self.concurrency > 0, self.rate > 0 or self.ramp_to > 0, bool(self.trace)))
        _check(ways == 1, "load", "give exactly one of concurrency, rate and trace")
        _check(
            self.duration_s > 0 or self.requests > 0 or bool(self.trace), "load", "give duration or requests"
        )
        _check(not self.ramp_to or self.duration_s > 0, "ramp_to", "needs a duration")
        _check(self.arrivals in {kind.value for kind in ArrivalProcess}, "arrivals", "no such process")
        for name in ("cancel_share", "slow_share"):
            _check(0 <= getattr(self, name) <= 1, name, "must be from 0 to 1")
        for name in ("burstiness", "time_scale", "length_scale", "chars_per_token", "timeout_s"):
            _check(getattr(self, name) > 0, name, "must be more than 0")
        _check(0 <= self.first_token <= self.last_token, "token ids", "the first must not exceed the last")
        for name in ("prefix_groups", "turns"):
            _check(getattr(self, name) >= 1, name, "must be at least 1")
        _check(self.think_s >= 0, "think_s", "must be at least 0")
        _check(not (self.corpus and self.prefix_tokens), "prefix_tokens", "needs prompts of token ids")
        _check(
            not (self.api == "chat" and not self.corpus), "api", "chat needs a corpus: ids cannot be a turn"
        )
        _check(not (self.trace and self.lengths), "lengths", "a trace that is replayed has its own")
        for name in ("trace", "lengths"):
            path = getattr(self, name)
            _check(not path or Path(path).exists(), name, f"no such file: {path}")
        Lengths.parse(self.input)
        Lengths.parse(self.output)

    @property
    def is_open_loop(self) -> bool:
        """Whether requests have planned times."""
        return self.concurrency == 0


def _check(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise UsageError(f"{field}: {message}")
