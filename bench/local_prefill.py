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
    client: AsyncClient,
    name: str,
    streams: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    samples: Samples,
) -> list[tuple[int, ...]]:
    """Send the prompts while the streams run; their answers."""
    draw = random.Random(len(prompts[0]))
    answers = []
    running = Streams(client, streams)
    await running.begun()
    start = time.monotonic()
    for prompt in prompts:
        await asyncio.sleep(draw.expovariate(1 / MEAN_GAP_S) if streams else 0.02)
        answer = await client.complete(token_ids=prompt, max_tokens=NUM_OUT, ignore_eos=True, temperature=0.0)
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


async def compare(
    addresses: dict[str, str], source: Prompts, rounds: int, num_streams: int
) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """Measure both clusters in turn; figures by what else runs, length and cluster."""
    samples = {
        beside(n): {length: {name: Samples() for name in LIMITS} for length in LENGTHS}
        for n in (0, num_streams)
    }
    async with AsyncClient(addresses["apart"]) as apart, AsyncClient(addresses["local"]) as local:
        clients = {"apart": apart, "local": local}
        for name, client in clients.items():
            await measure(client, name, (), source.take(4, 32), Samples())
        for round_, n, length in itertools.product(range(rounds), (0, num_streams), LENGTHS):
            print(f"round {round_ + 1} of {rounds}: {length} tokens, {beside(n)}", file=sys.stderr)
            streams, prompts = source.take(n, NUM_STREAM_IN), source.take(NUM_PROMPTS, length)
            answers = []
            for name in sorted(clients, reverse=bool(round_ % 2)):
                into = samples[beside(n)][length][name]
                answers.append(await measure(clients[name], name, streams, prompts, into))
            if answers[0] != answers[1]:
                raise SystemExit("the two clusters give different answers")
    return {
        kind: {n: {name: one.figures() for name, one in by.items()} for n, by in lengths.items()}
        for kind, lengths in samples.items()
    }


def beside(num_streams: int) -> str:
    return f"beside {num_streams} streams" if num_streams else "idle"


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

    worker = ["--threads", "1"]

    def cluster(limit: str) -> LocalCluster:
        gateway = ["--local-prefill-tokens", limit]
        return LocalCluster(gateway_args=gateway, prefill_args=worker, decode_args=worker)

    source = Prompts(models.fetch(progress=models.show_progress))
    with cluster(LIMITS["apart"]) as apart, cluster(LIMITS["local"]) as local:
        addresses = {"apart": apart.gateway_address, "local": local.gateway_address}
        figures = asyncio.run(compare(addresses, source, args.rounds, args.streams))
    for kind, found in figures.items():
        show(kind, found)
    best = threshold(figures[beside(args.streams)], args.slack)
    print(f"--local-prefill-tokens {best} is the greatest that pays here")
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
