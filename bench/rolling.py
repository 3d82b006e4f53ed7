"""A rolling restart under load: every worker of a local cluster is replaced, one by one, while requests flow.

    python -m bench.rolling [--prefill 2 --decode 2 | --both 2] [--rate 20] [--in 32] [--out 8]

The same as a rolling update on Kubernetes (deploy/helm: maxUnavailable 1, maxSurge 0): SIGTERM to the old
worker, which drains and ends, and at once the start of a new one; the next follows when the new one's
readiness probe (GET /health) says 200, the gateway lists it, and the old one has ended with status 0.

Requests are sent at a constant rate whatever the cluster does, and time counts from when each was due.
Checked in the same run: no request fails, every greedy answer is the one that the same prompt gave
alone, the old worker's probe never says 200 again once it says 503 (or nothing: a worker that has nothing
to drain is gone at once), and no block is held at the end. Fails (status 1) if p99 TTFT during the restart
is above 3 x its steady value.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton import models
from baton.aio import AsyncClient
from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import RequestError
from baton.generation import Delta
from baton.process import ServiceProcess
from loadtest.environment import environment
from tests.support.golden import varied_prompts
from tests.support.traffic import hold_nothing, wait_for

MAX_RATIO = 3.0
NUM_PROMPTS = 40


@dataclass(slots=True)
class Sent:
    """One request: when it was due, its first token and its end; seconds since the start of the load."""

    due_s: float
    first_s: float = 0.0
    end_s: float = 0.0
    failure: str = ""


@dataclass(slots=True)
class Load:
    """Sends requests at a constant rate until `stop`.

    Attributes:
        sent: every request, in order.
    """

    address: str
    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    rate: float
    sent: list[Sent] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _start: float = field(default_factory=time.perf_counter)

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self._start

    async def run(self) -> None:
        async with AsyncClient(self.address) as client, asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                request = Sent(len(self.sent) / self.rate)
                await asyncio.sleep(max(0.0, request.due_s - self.now_s))
                tasks.create_task(self._send(client, request, len(self.sent) % len(self.prompts)))
                self.sent.append(request)

    def stop(self) -> None:
        self._stopping.set()

    async def _send(self, client: AsyncClient, request: Sent, which: int) -> None:
        answer = self.answers[which]
        tokens: list[int] = []
        try:
            async for event in client.generate(token_ids=self.prompts[which], **_options(len(answer))):
                if isinstance(event, Delta) and event.token_ids:
                    request.first_s = request.first_s or self.now_s
                    tokens += event.token_ids
        except RequestError as error:
            request.failure = f"{error.reason}: {error}"
        request.end_s = self.now_s
        if not request.failure and tokens != list(answer):
            request.failure = f"another answer: {tokens} instead of {list(answer)}"

    def ttfts_s(self, begin_s: float, end_s: float) -> list[float]:
        """Times to first token of the requests that were due then, sorted."""
        due = [request for request in self.sent if begin_s <= request.due_s < end_s]
        return sorted(request.first_s - request.due_s for request in due if not request.failure)


def _options(num_out: int) -> dict[str, object]:
    return {"temperature": 0.0, "ignore_eos": True, "max_tokens": num_out}


def probe(worker: ServiceProcess) -> int:
    """Ask a worker's /health as a readiness probe does; 0: no answer."""
    assert worker.ready is not None
    try:
        with urllib.request.urlopen(f"http://{worker.ready['metrics_address']}/health", timeout=3) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def _probed(worker: ServiceProcess, seen: list[int]) -> Iterator[asyncio.Task[None]]:
    async def ask() -> None:
        while worker.exit_status is None:
            status = await asyncio.to_thread(probe, worker)
            if [status] != seen[-1:]:
                seen.append(status)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(ask())
    try:
        yield task
    finally:
        task.cancel()


async def roll(cluster: LocalCluster, load: Load, settle_s: float = 1.0) -> list[dict[str, object]]:
    """Replace every worker, one by one; what each took."""
    told = []
    for old in tuple(cluster.workers):
        begin_s, seen = load.now_s, list[int]()
        with _probed(old, seen):
            new = await asyncio.to_thread(cluster.replace, old)
        assert probe(new) == 200, "the gateway has it, but its readiness probe says no"
        facts: dict[str, object] = {"old": old.name, "new": new.name, "at_s": round(begin_s, 2)}
        facts |= {"took_s": round(load.now_s - begin_s, 2), "old_probe": seen}
        told.append(facts)
        print(f"{old.name} -> {new.name} after {load.now_s - begin_s:.1f} s", file=sys.stderr)
        await asyncio.sleep(settle_s)
    return told


async def measure(
    cluster: LocalCluster, prompts: Sequence[Sequence[int]], num_out: int, rate: float, steady_s: float
) -> tuple[Load, float, float, list[dict[str, object]]]:
    """Load first alone, then with the restart; returns the load, the restart's begin and end, its parts."""
    async with AsyncClient(cluster.gateway_address) as client:
        answers = [
            (await client.complete(token_ids=prompt, **_options(num_out))).token_ids for prompt in prompts
        ]
    load = Load(cluster.gateway_address, prompts, answers, rate)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(steady_s)
    begin_s = load.now_s
    parts = await roll(cluster, load)
    end_s = load.now_s
    load.stop()
    await running
    return load, begin_s, end_s, parts


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of sorted values do not exceed."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def report(load: Load, begin_s: float, end_s: float, warm_up_s: float) -> dict[str, float]:
    """Figures of the steady and of the restarting part."""
    figures = {"requests": float(len(load.sent)), "failed": float(sum(bool(r.failure) for r in load.sent))}
    for name, (begin, end) in {"steady": (warm_up_s, begin_s), "restart": (begin_s, end_s)}.items():
        ttfts = load.ttfts_s(begin, end)
        figures |= {f"{name}_{p}_s": percentile(ttfts, float(p[1:])) for p in ("p50", "p90", "p99")}
        figures |= {f"{name}_max_s": ttfts[-1], f"{name}_requests": float(len(ttfts))}
    return figures | {"p99_ratio": figures["restart_p99_s"] / figures["steady_p99_s"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefill", type=int, default=2, help="prefill workers (default 2)")
    parser.add_argument("--decode", type=int, default=2, help="decode workers (default 2)")
    parser.add_argument("--both", type=int, default=0, help="co-located workers instead (default 0)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default 20)")
    parser.add_argument("--in", type=int, default=32, dest="num_in", help="prompt tokens (default 32)")
    parser.add_argument("--out", type=int, default=8, dest="num_out", help="generated tokens (default 8)")
    parser.add_argument("--steady-s", type=float, default=30.0, help="load before the restart (default 30 s)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default 1)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    apart = (0, 0) if args.both else (args.prefill, args.decode)
    flags = ["--threads", str(args.threads)]
    with LocalCluster(
        prefill=apart[0],
        decode=apart[1],
        both=args.both,
        prefill_args=flags,
        decode_args=flags,
        both_args=flags,
    ) as cluster:
        corpus = max(varied_prompts(models.fetch()), key=len)
        prompts = [corpus[at : at + args.num_in] for at in range(NUM_PROMPTS)]
        load, begin_s, end_s, parts = asyncio.run(
            measure(cluster, prompts, args.num_out, args.rate, args.steady_s)
        )
        with Client(cluster.gateway_address) as client:
            wait_for("no block held", lambda: hold_nothing(client, cluster.workers), 5.0)
    figures = report(load, begin_s, end_s, min(5.0, args.steady_s / 2))
    for request in load.sent:
        if request.failure:
            print(f"due at {request.due_s:.2f} s: {request.failure}")
    for name in ("steady", "restart"):
        print(
            f"{name:8} {figures[f'{name}_requests']:.0f} requests, TTFT p50 / p90 / p99 / max "
            + " / ".join(f"{1e3 * figures[f'{name}_{p}_s']:.0f}" for p in ("p50", "p90", "p99", "max"))
            + " ms"
        )
    print(
        f"{figures['failed']:.0f} of {figures['requests']:.0f} requests failed; p99 TTFT while restarting is "
        f"{figures['p99_ratio']:.2f} x its steady value (at most {MAX_RATIO:g})"
    )
    if args.json:
        facts = {"environment": environment(), "arguments": vars(args) | {"json": str(args.json)}}
        args.json.write_text(json.dumps(facts | {"figures": figures, "parts": parts}, indent=1) + "\n")
    drained = not any(200 in part["old_probe"][1:] for part in parts)  # type: ignore[index]
    if not drained:
        print("a worker's readiness probe said 200 again while it drained")
    return 0 if not figures["failed"] and figures["p99_ratio"] <= MAX_RATIO and drained else 1


if __name__ == "__main__":
    sys.exit(main())
