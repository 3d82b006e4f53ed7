"""Measures a Profile on a live cluster, through its gateway, with prompts and streams of known size.

On one prefill and one decode worker with nothing else to do. Where the two share a machine they slow each
other down: `together` measures each kind once more while the other one works, and how much slower it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TypedDict, Unpack

from baton.aio import AsyncClient
from baton.v1.registry_pb2 import WorkerInfo, WorkerRole
from loadtest.errors import UsageError
from loadtest.record import Outcome, Record
from loadtest.run import run
from loadtest.scenario import Scenario
from loadtest.sizing.fit import fit_costs
from loadtest.sizing.profile import Profile

BATCHES = (1, 4, 12)
_PROMPTS = 40
_PROMPTS_TOGETHER = 24
_BURSTS = 6
_TOGETHER, _SHORT = 8, 28  # prompts of a burst at most, tokens of each: all come while the first is computed
_STREAM_TOKENS = 96
_ROUND_TRIPS = 20
_SETTLE_S = 0.3
_START_S = 30.0
_TIMEOUT_S = 60.0


class Load(TypedDict, total=False):
    """Fields of a Scenario that tell the loads of a calibration apart."""

    concurrency: int
    requests: int
    duration_s: float
    distinct: int
    input: str
    output: str


class Calibration:
    """One cluster under measurement.

    Args:
        target: "grpc://host:port" of its gateway.
        most_input: longest prompt tried, tokens.
        together: measure how workers of the two kinds slow each other down.
        seed: of the prompts; a calibration of the same cluster before must have had another.
        say: told what is going on.
    """

    def __init__(
        self, target: str, most_input: int, *, together: bool, seed: int, say: Callable[[str], None]
    ) -> None:
        if not target.startswith("grpc://"):
            raise UsageError("target: needs grpc://host:port, the address of a Baton gateway")
        self._target = target
        self._most_input = most_input
        self._together = together
        self._seed = 1000 * seed
        self._say = say

    async def measure(self) -> Profile:
        """Return the profile; takes about a minute, and half of one more for `together`."""
        prefill, decode = await self._workers()
        step_tokens = prefill.max_step_tokens
        self._say("round trips")
        round_trip_s = await self._round_trip_s()
        self._say("prompts")
        prompts = await self._prompts(_PROMPTS)
        self._say("prompts that come together")
        bursts = [await self._burst(round_trip_s, step_tokens) for _ in range(_BURSTS)]
        # What lies outside of the worker is taken off before; bursts, whose prompts share a step, tell
        # apart what a prompt and what a step costs.
        step_s, prompt_s, token_s, attention_s = fit_costs(
            [
                [float(-(-record.input_tokens // step_tokens)) for record in prompts] + [2.0] * _BURSTS,
                [1.0] * len(prompts) + [float(count) for count, _, _ in bursts],
                [float(record.input_tokens) for record in prompts]
                + [float(count * length) for count, length, _ in bursts],
                [record.input_tokens**2 / 2 for record in prompts]
                + [count * length**2 / 2 for count, length, _ in bursts],
            ],
            [_compute_s(record, round_trip_s) for record in prompts] + [seconds for _, _, seconds in bursts],
        )
        handed = [record for record in prompts if record.exposed_s is not None]
        handoff_s, handoff_token_s = fit_costs(
            [[1.0] * len(handed), [float(record.input_tokens) for record in handed]],
            [record.exposed_s or 0.0 for record in handed],
        )
        points = [
            await self._streams(batch, context) for context in (64, self._most_input) for batch in BATCHES
        ]
        decode_s, row_s, context_s = fit_costs(
            [
                [1.0] * len(points),
                [rows for rows, _, _ in points],
                [rows * context for rows, context, _ in points],
            ],
            [seconds for _, _, seconds in points],
        )
        alone = Profile(
            prefill_step_s=step_s,
            prefill_prompt_s=prompt_s,
            prefill_token_s=token_s,
            prefill_attention_s=attention_s,
            decode_step_s=decode_s,
            decode_row_s=row_s,
            decode_context_s=context_s,
            handoff_s=handoff_s,
            handoff_token_s=handoff_token_s,
            overhead_s=round_trip_s + statistics.median(record.queue_s or 0.0 for record in prompts),
            max_step_tokens=step_tokens,
            prefill_tokens=prefill.num_blocks * prefill.block_size,
            decode_tokens=decode.num_blocks * decode.block_size,
            measured_on=f"{prefill.model}, {prefill.device} and {decode.device}",
        )
        return await self._slowed(alone, round_trip_s) if self._together else alone

    async def _slowed(self, alone: Profile, round_trip_s: float) -> Profile:
        """Measure each kind while the other one works; medians, since the other one pauses now and then."""
        self._say("prompts, decode at work")
        async with self._background(concurrency=4, input="fixed:64", output="fixed:256"):
            prompts = await self._prompts(_PROMPTS_TOGETHER)
        prefill = [
            _compute_s(record, round_trip_s) / alone.prompt_s(record.input_tokens) for record in prompts
        ]
        decode = []
        for context in (64, self._most_input):
            for batch in BATCHES[:2]:
                async with self._background(
                    concurrency=1, input=f"fixed:{self._most_input}", output="fixed:1"
                ):
                    # Longer than alone: the other one's prompts come and go.
                    rows, mean, seconds = await self._streams(batch, context, 2, ", prefill at work")
                wanted = alone.decode_step_s + rows * (alone.decode_row_s + mean * alone.decode_context_s)
                decode.append(seconds / wanted)
        return replace(
            alone,
            prefill_slowdown=max(1.0, statistics.median(prefill)),
            decode_slowdown=max(1.0, statistics.median(decode)),
        )

    async def _workers(self) -> tuple[WorkerInfo, WorkerInfo]:
        async with AsyncClient(self._target.removeprefix("grpc://")) as client:
            infos = [status.info for status in (await client.workers()).workers]
        found = []
        for role in (WorkerRole.WORKER_ROLE_PREFILL, WorkerRole.WORKER_ROLE_DECODE):
            same = [info for info in infos if info.role == role]
            if len(same) != 1:
                name = WorkerRole.Name(role).removeprefix("WORKER_ROLE_").lower()
                raise UsageError(f"target: needs exactly one {name} worker, has {len(same)}")
            found.append(same[0])
        return found[0], found[1]

    async def _round_trip_s(self) -> float:
        """Median time of a call that the gateway answers by itself."""
        times = []
        async with AsyncClient(self._target.removeprefix("grpc://")) as client:
            for _ in range(_ROUND_TRIPS):
                begun = time.perf_counter()
                await client.workers()
                times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def _scenario(self, **load: Unpack[Load]) -> Scenario:
        """Return a load; its prompts are no other's, so that none is cached by accident."""
        self._seed += 1
        return Scenario(target=self._target, seed=self._seed, timeout_s=_TIMEOUT_S, **load)

    async def _prompts(self, count: int) -> list[Record]:
        """Prompts of all lengths, one after the other; two tokens each, so that they are handed over."""
        scenario = self._scenario(
            concurrency=1,
            requests=count,
            # As many short ones as long ones: what a trace has most of must not be judged by its tail.
            input=f"lognormal:{round(math.sqrt(16 * self._most_input))}:1:{self._most_input}",
            output="fixed:2",
        )
        return _done((await run(scenario)).records)[2:]  # the first ones pay for warming up

    async def _burst(self, round_trip_s: float, step_tokens: int) -> tuple[int, int, float]:
        """Send short prompts at once: the first one has a step for itself, the others share the next one.

        Returns:
            Prompts, tokens of each, and seconds until the last one's first token.
        """
        count = max(2, min(_TOGETHER, step_tokens // _SHORT))
        scenario = self._scenario(
            concurrency=count, requests=count, input=f"fixed:{_SHORT}", output="fixed:1"
        )
        records = _done((await run(scenario)).records)
        begin_s = min(record.planned_s for record in records)
        return count, _SHORT, max(record.token_s[0] for record in records) - begin_s - round_trip_s

    async def _streams(
        self, batch: int, context: int, length: int = 1, beside: str = ""
    ) -> tuple[float, float, float]:
        """Run streams side by side, `length` times as long as usual.

        Returns:
            Rows, their mean context, and seconds of a step while all ran.
        """
        self._say(f"{batch} streams of {context} tokens{beside}")
        for tokens in (length * _STREAM_TOKENS, 4 * length * _STREAM_TOKENS):
            scenario = self._scenario(
                concurrency=batch,
                requests=batch,
                distinct=1,  # its prefix is cached: all start almost at once
                input=f"fixed:{context}",
                output=f"fixed:{tokens + 2 * batch}",
            )
            await run(replace(scenario, concurrency=1, requests=1, output="fixed:2"))
            records = _done((await run(scenario)).records)
            begin_s = max(record.token_s[0] for record in records)
            end_s = min(record.token_s[-1] for record in records)
            counts = [_tokens_between(record, begin_s, end_s) for record in records]
            if len(records) == batch and min(counts) >= _STREAM_TOKENS // 4:
                steps = sum(counts) / batch
                return float(batch), context + tokens / 2, (end_s - begin_s) / steps
        raise UsageError(f"target: {batch} streams did not run side by side; is it busy?")

    @contextlib.asynccontextmanager
    async def _background(self, **load: Unpack[Load]) -> AsyncIterator[None]:
        """Keep one kind of worker busy meanwhile."""
        load["duration_s"] = 600.0
        scenario = self._scenario(**load)
        begun = asyncio.Event()
        task = asyncio.create_task(run(scenario, on_progress=lambda which, progress: begun.set()))
        try:
            await asyncio.wait_for(begun.wait(), _START_S)
            await asyncio.sleep(_SETTLE_S)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(_SETTLE_S)


def _compute_s(record: Record, round_trip_s: float) -> float:
    """Return what a prompt took on the prefill worker: without the way there and the wait for room."""
    return max(0.0, (record.ttft_s or 0.0) - round_trip_s - (record.queue_s or 0.0))


def _done(records: list[Record]) -> list[Record]:
    failed = [record for record in records if record.outcome is not Outcome.OK]
    if failed:
        raise UsageError(f"target: a request failed: {failed[0].reason} {failed[0].message}")
    return records


def _tokens_between(record: Record, begin_s: float, end_s: float) -> int:
    """Count tokens after `begin_s`, up to `end_s`."""
    return sum(
        count
        for at_s, count in zip(record.token_s, record.token_counts, strict=True)
        if begin_s < at_s <= end_s
    )
