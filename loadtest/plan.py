"""Every request of a scenario, each from (seed, index) alone: all generator processes see the same plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.arrivals import ArrivalProcess, arrival_times
from loadtest.lengths import Lengths
from loadtest.scenario import Scenario
from loadtest.traces import TraceRow, TraceScale, read_trace

_LENGTHS, _CLIENT = 2, 3  # streams of draws
MOST_CANCEL_DELAY_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the plan.

    Attributes:
        index: position in the plan.
        at_s: when it is due, seconds from the start; None: closed loop.
        content: equal contents are equal prompts.
        input_tokens: length of the prompt.
        output_tokens: length of the answer.
        hash_ids: names of its leading blocks, `block_tokens` each.
        block_tokens: 0 without hash_ids.
        cancel_after: cancelled once so many tokens are there; None: never.
        cancel_delay_s: with `cancel_after` 0: cancelled so long after it was sent.
        read_delay_s: what a slow client waits after each read; 0: an ordinary client.
    """

    index: int
    at_s: float | None
    content: int
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    cancel_after: int | None = None
    cancel_delay_s: float = 0.0
    read_delay_s: float = 0.0


class Plan:
    """The requests of a scenario.

    Attributes:
        size: how many there are; None: no end (a closed loop by duration).
    Raises:
        TraceError: the trace cannot be read.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._input = Lengths.parse(scenario.input)
        self._output = Lengths.parse(scenario.output)
        self._rows: list[TraceRow] = []
        self._times: list[float] = []
        if scenario.trace:
            scale = TraceScale(
                scenario.time_scale, scenario.length_scale, scenario.max_input, scenario.max_output
            )
            rows = read_trace(Path(scenario.trace), scale)
            limit = scenario.duration_s or float("inf")
            self._rows = [row for row in rows if row.at_s < limit][: scenario.requests or None]
            self._times = [row.at_s for row in self._rows]
        elif scenario.is_open_loop:
            self._times = arrival_times(
                ArrivalProcess(scenario.arrivals),
                scenario.rate,
                seed=scenario.seed,
                burstiness=scenario.burstiness,
                ramp_to=scenario.ramp_to or None,
                duration_s=scenario.duration_s or None,
                num_requests=scenario.requests or None,
            )
        self.size = len(self._times) if scenario.is_open_loop else scenario.requests or None

    def request(self, index: int) -> Request:
        """Return one request; `index` < size."""
        scenario = self._scenario
        content = index % scenario.distinct if scenario.distinct else index
        cancel_after, cancel_delay_s, read_delay_s = None, 0.0, 0.0
        row = self._rows[content] if self._rows else self._made(content)
        if scenario.cancel_share or scenario.slow_share:
            random = np.random.default_rng([scenario.seed, _CLIENT, index])
            cancels, slows = random.random(2)
            if cancels < scenario.cancel_share:
                cancel_after = int(random.integers(0, row.output_tokens))
                cancel_delay_s = float(random.uniform(0, MOST_CANCEL_DELAY_S))
            if slows < scenario.slow_share:
                read_delay_s = scenario.slow_delay_s
        return Request(
            index=index,
            at_s=self._times[index] if self._times else None,
            content=content,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            hash_ids=row.hash_ids,
            block_tokens=row.block_tokens,
            cancel_after=cancel_after,
            cancel_delay_s=cancel_delay_s,
            read_delay_s=read_delay_s,
        )

    def _made(self, content: int) -> TraceRow:
        scenario = self._scenario
        random = np.random.default_rng([scenario.seed, _LENGTHS, content])
        input_tokens, output_tokens = self._input.draw(random), self._output.draw(random)
        prefix = min(scenario.prefix_tokens, input_tokens)
        return TraceRow(
            0.0, input_tokens, output_tokens, (content % scenario.prefix_groups,) if prefix else (), prefix
        )
