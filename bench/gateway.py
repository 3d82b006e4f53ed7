"""What the gateway adds to each token, and what it costs beside bare servers.

    python -m bench.gateway [--streams 128] [--rate 30] [--seconds 8] [--rounds 3]

A decode worker without a model gives every stream --rate tokens a second over DecodeService, all tokens of a
step at once; the real gateway hands them to as many streams, over gRPC and as server-sent events. Delays go
from the worker's emission of a step to the moment when the kernel has the token at the client's socket, so a
slow client does not count. Added: what that takes through the gateway more than from the worker directly,
quantile by quantile. Messages per CPU-second are those delivered over the CPU time of the serving process;
bare servers send messages of the same size at the same pace, in the same rounds. Every token must arrive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.gateway_parts.bare import MESSAGE
from bench.gateway_parts.child import Child
from bench.gateway_parts.client import (
    Arrivals,
    quantile,
    read_direct,
    read_echo,
    read_emit,
    read_grpc,
    read_sse,
)
from tests.support.byte_tokenizer import write_byte_tokenizer

Read = Callable[[], Awaitable[list[Arrivals]]]
# While requests begin and end, a server does more than stream.
BEGIN_S, END_S = 1.5, 0.5
LEAST_SHARE = 0.6
MOST_ADDED_MS = {0.5: 2.0, 0.99: 10.0}


@dataclass
class Result:
    """One server under one load, all rounds together.

    Attributes:
        shares: of each round, messages per CPU-second over those of the server beside it.
        delays_ms: from emission to the client's kernel; sorted.
    """

    messages: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    shares: list[float] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)

    @property
    def per_cpu_s(self) -> float:
        return self.messages / self.cpu_s

    def add(self, other: Result) -> None:
        """Add a round."""
        self.messages += other.messages
        self.cpu_s += other.cpu_s
        self.wall_s += other.wall_s
        self.delays_ms = sorted(self.delays_ms + other.delays_ms)

    def delay(self, share: float) -> float:
        """Return a quantile of the delays, ms."""
        return quantile(self.delays_ms, share)


class Bench:
    """One round after another.

    Args:
        folder: for the model's files and the worker's notes.
    Attributes:
        results: by name of what served.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._streams: int = args.streams
        self._rate: float = args.rate
        self._seconds: float = args.seconds
        self._count = int(args.rate * args.seconds)
        self._model = write_byte_tokenizer(folder / "model")
        self._notes = folder / "notes.json"
        self.results: dict[str, Result] = {}

    def round(self) -> None:
        """Measure everything once."""
        self._direct()
        grpc, sse = self._gateway("gRPC"), self._gateway("SSE")
        echo = self._bare("echo", "gRPC, echo")
        self._bare("emit", "gRPC, emitting only")
        uvicorn = self._bare("sse", "uvicorn")
        self.results["gateway, gRPC"].shares.append(grpc.per_cpu_s / echo.per_cpu_s)
        self.results["gateway, SSE"].shares.append(sse.per_cpu_s / uvicorn.per_cpu_s)

    def _direct(self) -> None:
        with self._worker("") as worker:
            address = worker.ready()["address"]
            self._run("worker, direct", worker, lambda: read_direct(address, self._streams, self._count))
        self._note_delays("worker, direct")

    def _gateway(self, protocol: str) -> Result:
        flags = ("--model", str(self._model), "--model-name", "bench", "--log-level", "error")
        with Child("services.gateway.main", *flags, "--grpc-port", "0", "--http-port", "0") as gateway:
            facts = gateway.ready()
            reads: dict[str, Read] = {
                "gRPC": lambda: read_grpc(facts["address"], self._streams, self._count),
                "SSE": lambda: read_sse(facts["http_address"], self._streams, self._count),
            }
            with self._worker(facts["address"]) as worker:
                worker.ready()
                result = self._run(f"gateway, {protocol}", gateway, reads[protocol])
        self._note_delays(f"gateway, {protocol}")
        return result

    def _bare(self, kind: str, name: str) -> Result:
        with Child("bench.gateway_parts.bare", kind, str(self._rate), str(self._count)) as server:
            address = server.ready()["address"]
            reads: dict[str, Read] = {
                "echo": lambda: read_echo(address, self._streams, MESSAGE, self._rate, self._count),
                "emit": lambda: read_emit(address, self._streams),
                "sse": lambda: read_sse(address, self._streams, self._count),
            }
            return self._run(f"bare {name}", server, reads[kind])

    def _worker(self, gateway: str) -> Child:
        return Child("bench.gateway_parts.worker", gateway, str(self._rate), str(self._notes))

    def _run(self, name: str, server: Child, read: Read) -> Result:
        """Run one load, and count while all streams run; SystemExit if a token is missing."""
        marks: list[tuple[float, float]] = []

        async def run() -> list[Arrivals]:
            reading = asyncio.ensure_future(read())
            for pause_s in (BEGIN_S, self._seconds - BEGIN_S - END_S):
                await asyncio.sleep(pause_s)
                marks.append((time.monotonic(), server.cpu_s))
            return await reading

        self._arrivals = uvloop.run(run())
        counts = {len(stream.tokens) for stream in self._arrivals}
        if counts != {self._count}:
            raise SystemExit(f"{name}: streams had {sorted(counts)} tokens, not {self._count}")
        (begin, cpu_begin), (end, cpu_end) = marks
        messages = sum(begin <= came < end for stream in self._arrivals for came in stream.messages)
        result = Result(messages, cpu_end - cpu_begin, end - begin)
        for stream in self._arrivals:
            result.delays_ms += _delays_ms(stream.sent, stream.tokens)
        self.results.setdefault(name, Result()).add(result)
        return result

    def _note_delays(self, name: str) -> None:
        """Add the delays of the last run, from what the worker noted at its end."""
        told = json.loads(self._notes.read_text())
        delays_ms: list[float] = []
        for stream, arrivals in enumerate(self._arrivals):
            first = told["first_steps"][str(stream)]
            emitted = told["times"][first : first + self._count - 1]
            delays_ms += _delays_ms(emitted, arrivals.tokens[1:])  # the first token is prefill's
        self.results[name].add(Result(delays_ms=delays_ms))


def _delays_ms(sent: list[float], arrived: list[float]) -> list[float]:
    """Return delays, but for the stream's beginning."""
    if not sent:
        return []
    begin = sent[0] + BEGIN_S
    return [1000 * (came - went) for went, came in zip(sent, arrived, strict=True) if went > begin]


def report(results: dict[str, Result]) -> list[str]:
    """Print the table; returns what is missed."""
    missed = []
    direct = results["worker, direct"]
    print("| | messages per CPU-second | of bare (rounds) | CPU of one core | delay, p50 / p99, ms | added |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        cells = [name, f"{result.per_cpu_s:,.0f}", "", f"{100 * result.cpu_s / result.wall_s:.0f} %", "", ""]
        if result.delays_ms:
            cells[4] = " / ".join(f"{result.delay(share):.2f}" for share in MOST_ADDED_MS)
        if result.shares:
            bare = results["bare gRPC, echo" if "gRPC" in name else "bare uvicorn"]
            share = result.per_cpu_s / bare.per_cpu_s
            rounds = ", ".join(f"{100 * share:.0f}" for share in result.shares)
            cells[2] = f"{100 * share:.0f} % ({rounds})"
            added = {share: result.delay(share) - direct.delay(share) for share in MOST_ADDED_MS}
            cells[5] = " / ".join(f"{ms:.2f}" for ms in added.values())
            if share < LEAST_SHARE:
                missed.append(f"{name}: below {100 * LEAST_SHARE:.0f} % of the bare server")
            missed += [f"{name}: p{100 * q:.0f} too slow" for q, ms in added.items() if ms > MOST_ADDED_MS[q]]
        print(f"| {' | '.join(cells)} |")
    return missed


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--rate", type=float, default=30.0, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(args, Path(name))
        for _ in range(args.rounds):
            bench.round()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip()}: {args.streams} streams x {args.rate:g} tokens/s\n")
    missed = report(bench.results)
    print("\n" + ("; ".join(missed) or "all targets met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
