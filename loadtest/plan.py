"""Every request of a scenario, each from (seed, index) alone: all generator processes see the same plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        at_s: when it is due, seconds from the start; None: closed loop, or a later turn.
        content: equal contents are equal prompts.
        stream: prompts of one stream begin alike.
        turn: of its session, from 0.
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
    stream: int = 0
    turn: int = 0


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
        self._lengths: list[TraceRow] = []
        scale = TraceScale(
            scenario.time_scale, scenario.length_scale, scenario.max_input, scenario.max_output
        )
        if scenario.lengths:
            self._lengths = read_trace(Path(scenario.lengths), scale)
        if scenario.trace:
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
        sessions = len(self._times) if scenario.is_open_loop else scenario.requests
        self.size = sessions * scenario.turns or (0 if scenario.is_open_loop else None)

    def following(self, request: Request) -> Request | None:
        """Return the next turn of a session; None: that was the last, or the next prompt is too long."""
        if request.turn + 1 >= self._scenario.turns:
            return None
        following = self.request(request.index + 1)
        most = self._scenario.max_input
        return None if most and following.input_tokens > most else following

    def request(self, index: int) -> Request:
        """Return one request; `index` < size. Those of one session follow each other."""
        scenario = self._scenario
        session, turn = divmod(index, scenario.turns)
        stream = session % scenario.distinct if scenario.distinct else session
        cancel_after, cancel_delay_s, read_delay_s = None, 0.0, 0.0
        row = self._row(stream, turn)
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
            at_s=self._times[session] if self._times and turn == 0 else None,
            content=stream * scenario.turns + turn,
            stream=stream,
            turn=turn,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            hash_ids=row.hash_ids,
            block_tokens=row.block_tokens,
            cancel_after=cancel_after,
            cancel_delay_s=cancel_delay_s,
            read_delay_s=read_delay_s,
        )

    def _row(self, stream: int, turn: int) -> TraceRow:
        """Lengths of a turn; its prompt holds those before it, and room for their answers."""
        first = self._rows[stream] if self._rows else self._made(stream)
        total, row = first.input_tokens, first
        for number in range(1, turn + 1):
            total += row.output_tokens
            row = self._made(stream, number)
            total += row.input_tokens
        return replace(first, input_tokens=total, output_tokens=row.output_tokens)

    def _made(self, stream: int, turn: int = 0) -> TraceRow:
        scenario = self._scenario
        random = np.random.default_rng([scenario.seed, _LENGTHS, stream, *([turn] if turn else [])])
        if self._lengths:
            row = self._lengths[int(random.integers(len(self._lengths)))]
            input_tokens, output_tokens = row.input_tokens, row.output_tokens
        else:
            input_tokens, output_tokens = self._input.draw(random), self._output.draw(random)
        prefix = min(scenario.prefix_tokens, input_tokens)
        return TraceRow(
            0.0, input_tokens, output_tokens, (stream % scenario.prefix_groups,) if prefix else (), prefix
        )
