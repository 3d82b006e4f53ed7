"""Goodput of a local cluster as load grows beyond capacity, with limits and without.

    python -m bench.overload [--seconds 17] [--svg docs/images/overload.svg] [--json FILE]

Requests come as a Poisson process whatever the cluster does (open loop). One counts as good if its
first token comes within --target-ttft and its tokens, on average, no more than --target-tpot apart;
every answer must have the length that was asked for. Goodput is the rate of good ones. Capacity is what
a closed loop of --max-running clients gets. With limits the gateway runs so many at once, lets others
wait for at most --max-queue-s, and refuses the rest at once; without them it refuses only what cannot be
answered before its deadline. Every request has one: --target-ttft and twice --target-tpot for each token.
*In time* is the rate of answers before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.aio import AsyncClient
from baton.cluster import LocalCluster
from baton.errors import DeadlineError, OverloadedError, RequestError
from baton.generation import Delta
from bench.svg import Curve, line_chart

RATES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
RATES_OPEN = (1.0, 1.5, 2.0, 3.0)
INPUT, OUTPUT = 32, 16
WARM_SHARE = 0.25


@dataclass
class Outcome:
    """One request.

    Attributes:
        due, ended: seconds, time.monotonic().
        ttft_s, tpot_s: None: it had no such.
        refused_s: how long it took to be told to come again; None: it was not.
        tokens: that came.
    """

    due: float
    ended: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    refused_s: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Point:
    """What one rate gave."""

    factor: float
    offered: float
    goodput: float
    in_time: float
    refused: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    refusal_p99_ms: float


class Load:
    """Sends requests to one gateway and notes what became of them."""

    def __init__(self, client: AsyncClient, args: argparse.Namespace) -> None:
        self._client = client
        self._args = args
        self._draw = random.Random(1)

    async def capacity(self) -> float:
        """Return the requests a second of a closed loop."""
        done: list[float] = []
        until = time.monotonic() + self._args.seconds * 0.7

        async def loop() -> None:
            while time.monotonic() < until:
                outcome = await self._one()
                if outcome.tokens == OUTPUT:
                    done.append(outcome.ended)

        await asyncio.gather(*(loop() for _ in range(self._args.max_running)))
        kept = sorted(done)[len(done) // 5 :]
        if len(kept) < 2:
            raise SystemExit("hardly a request was answered: the machine is too busy to measure anything")
        return (len(kept) - 1) / (kept[-1] - kept[0])

    async def at(self, factor: float, rate: float) -> Point:
        """Send at a rate, and judge what was due after the warm-up."""
        started = time.monotonic()
        tasks: list[asyncio.Task[Outcome]] = []
        due = started
        while (due := due + self._draw.expovariate(rate)) < started + self._args.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(due)))
        ended = time.monotonic()
        _, late = await asyncio.wait(tasks, timeout=self._args.target_ttft)
        for task in late:
            task.cancel()
        outcomes = [o for o in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(o, Outcome)]
        measured_from = started + WARM_SHARE * (ended - started)
        seconds = ended - measured_from
        counted = [o for o in outcomes if o.due >= measured_from]
        whole = [o for o in outcomes if measured_from <= o.ended <= ended and o.tokens == OUTPUT]
        good = [o for o in whole if self._is_good(o)]
        refusals = sorted(o.refused_s for o in counted if o.refused_s is not None)
        ttfts = sorted(o.ttft_s for o in counted if o.ttft_s is not None)
        tpots = sorted(o.tpot_s for o in counted if o.tpot_s is not None)
        num_due = sum(task_due >= measured_from for task_due in (o.due for o in outcomes)) + len(late)
        return Point(
            factor,
            num_due / seconds,
            len(good) / seconds,
            len(whole) / seconds,
            len(refusals) / seconds,
            _quantile(ttfts, 0.5),
            _quantile(ttfts, 0.99),
            _quantile(tpots, 0.5),
            1000 * _quantile(refusals, 0.99),
        )

    async def _one(self, due: float | None = None) -> Outcome:
        outcome = Outcome(due or time.monotonic())
        prompt = [self._draw.randrange(1000, 40000) for _ in range(INPUT)]
        first = last = 0.0
        args = self._args
        deadline_s = args.target_ttft + 2 * args.target_tpot * OUTPUT
        try:
            events = self._client.generate(
                token_ids=prompt, max_tokens=OUTPUT, ignore_eos=True, temperature=0.0, timeout_s=deadline_s
            )
            async for event in events:
                if isinstance(event, Delta) and event.token_ids:
                    last = time.monotonic()
                    first = first or last
                    outcome.tokens += len(event.token_ids)
        except OverloadedError:
            outcome.refused_s = time.monotonic() - outcome.due
        except DeadlineError:
            pass
        except RequestError as error:
            raise SystemExit(f"a request failed: {error.reason}: {error}") from error
        outcome.ended = time.monotonic()
        if first:
            outcome.ttft_s = first - outcome.due
            outcome.tpot_s = (last - first) / max(1, outcome.tokens - 1)
        return outcome

    def _is_good(self, outcome: Outcome) -> bool:
        if outcome.tokens != OUTPUT or outcome.ttft_s is None or outcome.tpot_s is None:
            return False
        return outcome.ttft_s <= self._args.target_ttft and outcome.tpot_s <= self._args.target_tpot


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measure(args: argparse.Namespace, flags: Sequence[str], factors: Sequence[float], capacity: float):  # type: ignore[no-untyped-def]
    """Run one cluster over some rates; capacity 0: find it first."""
    worker = ("--kv-bytes", "256M", "--threads", "1")
    cluster = LocalCluster(gateway_args=flags, prefill_args=worker, decode_args=worker)

    async def run() -> tuple[float, list[Point]]:
        async with AsyncClient(cluster.gateway_address) as client:
            load = Load(client, args)
            known = capacity or await load.capacity()
            return known, [await load.at(factor, factor * known) for factor in factors]

    with cluster:
        return asyncio.run(run())


def show(title: str, points: Sequence[Point]) -> None:
    """Print a table."""
    print(f"\n{title}\n")
    print(
        "| load | offered/s | goodput/s | in time/s | refused/s | TTFT p50 / p99 | TPOT p50 | refusal p99 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for p in points:
        print(
            f"| {p.factor:g} × | {p.offered:.1f} | **{p.goodput:.2f}** | {p.in_time:.2f} | {p.refused:.1f} "
            f"| {p.ttft_p50:.2f} / {p.ttft_p99:.2f} s | {1000 * p.tpot_p50:.0f} ms |"
            f" {p.refusal_p99_ms:.0f} ms |"
        )


def main() -> int:
    """Measure, print, draw; 1 if goodput at some load above capacity is below 90 % of its peak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=17.0, help="at each rate")
    parser.add_argument("--max-running", type=int, default=12)
    parser.add_argument("--max-queue-s", type=float, default=0.8)
    parser.add_argument("--target-ttft", type=float, default=1.5)
    parser.add_argument("--target-tpot", type=float, default=0.15)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    limits = ("--max-running", str(args.max_running), "--max-queue-s", str(args.max_queue_s))
    capacity, managed = measure(args, limits, RATES, 0.0)
    _, unmanaged = measure(args, (), RATES_OPEN, capacity)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(
        f"{platform.processor() or platform.machine()}, commit {commit.stdout.strip()}: {' '.join(sys.argv)}"
    )
    print(
        f"capacity {capacity:.2f} requests/s ({INPUT} in, {OUTPUT} out, {args.max_running} at a time); "
        f"targets TTFT {args.target_ttft:g} s, TPOT {args.target_tpot:g} s"
    )
    show("with limits", managed)
    show("without limits", unmanaged)
    peak = max(point.goodput for point in managed)
    worst = min((point for point in managed if point.factor > 1), key=lambda point: point.goodput)
    share = worst.goodput / peak
    print(f"\nabove capacity goodput is at least {100 * share:.0f} % of its peak, {peak:.2f}/s")
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "capacity": capacity,
                    "managed": [vars(p) for p in managed],
                    "unmanaged": [vars(p) for p in unmanaged],
                },
                indent=1,
            )
        )
    if args.svg:
        curves = [
            Curve("with limits", [(p.factor, p.goodput) for p in managed]),
            Curve("without limits", [(p.factor, p.goodput) for p in unmanaged]),
        ]
        args.svg.write_text(line_chart(curves, "load, × capacity", "goodput, requests/s"))
    print(f"mean TTFT p50 under load {statistics.mean(p.ttft_p50 for p in managed):.2f} s")
    return 0 if share >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
