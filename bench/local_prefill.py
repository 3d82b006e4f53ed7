"""Which prompts are better computed by the decode worker itself: `python -m bench.local_prefill`.

    python -m bench.local_prefill [--rounds 2] [--streams 4] [--json out.json]

Two clusters of one prefill and one decode worker, of one thread each; in one the decode worker computes
every prompt (--local-prefill-tokens), in the other none. Prompts of each length come at random times, while
--streams long answers are being written and while none is: the same prompts for both clusters, in turn, and
their answers must be equal. Printed: time to their first token, and the gaps in the streams.

A length pays if it is no worse for anybody, within --slack: the first token, the 99th percentile of the gaps,
the streams' tokens a second. The threshold to give is the greatest length up to which all pay.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton import models
from baton.aio import AsyncClient
from baton.cluster import LocalCluster
from baton.v1.inference_pb2 import Delta
from bench.cluster import Prompts
from loadtest.environment import environment

LENGTHS = (8, 16, 32, 64, 128, 256)
NUM_STREAM_IN, NUM_STREAM_OUT = 64, 2000
NUM_OUT = 4
NUM_PROMPTS = 10
MEAN_GAP_S = 0.2
LIMITS = {"apart": "0", "local": str(1 << 20)}


@dataclass
class Samples:
    """Of one cluster and length: seconds; and tokens a second of a stream."""

    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return medians and the gaps' 99th percentile, milliseconds; streams: tokens/s."""
        figures = {"ttft_ms": 1000 * statistics.median(self.ttft_s)}
        if self.gaps_s:
            gaps = sorted(self.gaps_s)
            figures["gap_ms"] = 1000 * statistics.median(gaps)
            figures["gap_p99_ms"] = 1000 * gaps[int(0.99 * len(gaps))]
            figures["stream_tokens_per_s"] = statistics.fmean(self.rates)
        return figures


class Streams:
    """Long answers under way.

    Attributes:
        times: when the tokens of each came, time.monotonic().
    """

    def __init__(self, client: AsyncClient, prompts: Sequence[Sequence[int]]) -> None:
        self._client = client
        self.times: list[list[float]] = [[] for _ in prompts]
        self._tasks = [
            asyncio.create_task(self._read(prompt, times))
            for prompt, times in zip(prompts, self.times, strict=True)
        ]

    async def begun(self) -> None:
        """Wait until each has some tokens."""
        while any(len(times) < 5 for times in self.times):
            self.check()
            await asyncio.sleep(0.02)

    def check(self) -> None:
        """Fail if one has ended."""
        for task in self._tasks:
            if task.done():
                task.result()
                raise SystemExit(f"a stream ended too soon, after its {NUM_STREAM_OUT} tokens")

    async def stop(self) -> None:
        """Cancel all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, prompt: Sequence[int], times: list[float]) -> None:
        events = self._client.generate(
            token_ids=prompt, max_tokens=NUM_STREAM_OUT, ignore_eos=True, temperature=0.0
        )
        async for event in events:
            if isinstance(event, Delta):
                times.append(time.monotonic())


async def measure(
    cluster: LocalCluster,
    name: str,
    streams: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    samples: Samples,
) -> list[tuple[int, ...]]:
    """Send the prompts while the streams run; their answers."""
    draw = random.Random(len(prompts[0]))
    answers = []
    async with AsyncClient(cluster.gateway_address) as client:
        running = Streams(client, streams)
        await running.begun()
        start = time.monotonic()
        for prompt in prompts:
            await asyncio.sleep(draw.expovariate(1 / MEAN_GAP_S) if streams else 0.02)
            answer = await client.complete(
                token_ids=prompt, max_tokens=NUM_OUT, ignore_eos=True, temperature=0.0
            )
            worker = answer.finished.handoff.prefill_worker
            if worker != {"apart": "prefill-0", "local": "decode-0"}[name]:
                raise SystemExit(f"a prompt was computed by {worker}")
            samples.ttft_s.append(answer.finished.timing.ttft_s)
            answers.append(answer.token_ids)
        running.check()
        end = time.monotonic()
        await running.stop()
    for times in running.times:
        seen = [at for at in times if start <= at <= end]
        samples.gaps_s.extend(b - a for a, b in itertools.pairwise(seen))
        samples.rates.append(len(seen) / (end - start))
    return answers


def pays(apart: dict[str, float], local: dict[str, float], slack: float) -> bool:
    """Whether computing by the decode worker is no worse for anybody."""
    later = any(local[name] > (1 + slack) * apart[name] for name in ("ttft_ms", "gap_p99_ms"))
    return not later and local["stream_tokens_per_s"] >= (1 - slack) * apart["stream_tokens_per_s"]


def threshold(figures: dict[int, dict[str, dict[str, float]]], slack: float) -> int:
    """Return the greatest length up to which all pay; 0: not even the shortest does."""
    best = 0
    for length in sorted(figures):
        if not pays(figures[length]["apart"], figures[length]["local"], slack):
            break
        best = length
    return best


def show(title: str, figures: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print a table: apart / local."""
    names = list(next(iter(figures.values()))["apart"])
    table = Table("prompt, tokens", *names, title=f"{title}: prefill worker / decode worker itself")
    for length, found in figures.items():
        pairs = (f"{found['apart'][name]:.1f} / {found['local'][name]:.1f}" for name in names)
        table.add_row(str(length), *pairs)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that everything is measured (default 2)")
    parser.add_argument("--streams", type=int, default=4, help="answers being written (default 4)")
    parser.add_argument("--slack", type=float, default=0.1, help="what counts as no worse (default 0.1)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    flags = ["--threads", "1"]
    source = Prompts(models.fetch(progress=models.show_progress))
    kinds = {"idle": 0, f"beside {args.streams} streams": args.streams}
    samples = {kind: {n: {name: Samples() for name in LIMITS} for n in LENGTHS} for kind in kinds}
    with (
        LocalCluster(
            gateway_args=["--local-prefill-tokens", LIMITS["apart"]], prefill_args=flags, decode_args=flags
        ) as apart,
        LocalCluster(
            gateway_args=["--local-prefill-tokens", LIMITS["local"]], prefill_args=flags, decode_args=flags
        ) as local,
    ):
        clusters = {"apart": apart, "local": local}
        for name, cluster in clusters.items():
            asyncio.run(measure(cluster, name, (), source.take(4, 32), Samples()))
        for round_ in range(args.rounds):
            for kind, num_streams in kinds.items():
                for length in LENGTHS:
                    print(f"round {round_ + 1} of {args.rounds}: {length} tokens, {kind}", file=sys.stderr)
                    streams = source.take(num_streams, NUM_STREAM_IN)
                    prompts = source.take(NUM_PROMPTS, length)
                    answers = []
                    for name in sorted(clusters, reverse=bool(round_ % 2)):
                        into = samples[kind][length][name]
                        answers.append(asyncio.run(measure(clusters[name], name, streams, prompts, into)))
                    if answers[0] != answers[1]:
                        raise SystemExit("the two clusters give different answers")
    figures = {
        kind: {n: {name: one.figures() for name, one in by.items()} for n, by in lengths.items()}
        for kind, lengths in samples.items()
    }
    for kind, found in figures.items():
        show(kind, found)
    best = threshold(figures[f"beside {args.streams} streams"], args.slack)
    print(f"--local-prefill-tokens {best} is the greatest that pays here")
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
