"""What the gateway adds to each token, and what it costs beside bare servers.

    python -m bench.gateway [--streams 128] [--rate 30] [--seconds 10]

A decode worker without a model gives every stream --rate tokens a second over DecodeService; the real
gateway hands them to as many clients, over gRPC and as server-sent events. All tokens of a step come at
once, so each waits for those before it, with a bare server too: added is what the gateway takes longer,
from the emission of a step to the client's reading the token, both hops over loopback counted. Messages per
CPU-second are those delivered over the CPU time of the serving process, as the kernel counts it; bare
servers send messages of the same size at the same pace, in the same run. Every token must arrive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.gateway_parts.bare import MESSAGE
from bench.gateway_parts.client import Arrivals, quantile, read_echo, read_emit, read_grpc, read_sse
from tests.support.byte_tokenizer import write_byte_tokenizer

Read = Callable[[], Awaitable[list[Arrivals]]]
# While requests begin and end, the gateway does more than stream.
BEGIN_S, END_S = 1.5, 0.5


class Child:
    """A process that says when it is ready."""

    def __init__(self, module: str, *argv: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ready(self) -> dict[str, str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts: dict[str, str] = json.loads(line)
            return facts
        raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")

    @property
    def cpu_s(self) -> float:
        """CPU time so far, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@dataclass
class Result:
    """One server under one load."""

    name: str
    messages: float
    cpu_s: float
    wall_s: float
    arrivals: list[Arrivals]

    @property
    def per_cpu_s(self) -> float:
        return self.messages / self.cpu_s


def measure(name: str, child: Child, read: Read, per_stream: int, seconds: float) -> Result:
    """Run one load, and count while all streams run; SystemExit if a token is missing."""
    marks: list[tuple[float, float]] = []

    async def run() -> list[Arrivals]:
        reading = asyncio.ensure_future(read())
        for pause_s in (BEGIN_S, seconds - BEGIN_S - END_S):
            await asyncio.sleep(pause_s)
            marks.append((time.monotonic(), child.cpu_s))
        return await reading

    arrivals = uvloop.run(run())
    (begin, cpu_begin), (end, cpu_end) = marks
    cpu_s, wall_s = cpu_end - cpu_begin, end - begin
    messages = sum(begin <= came < end for stream in arrivals for came in stream.messages)
    counts = {len(stream.tokens) for stream in arrivals}
    if counts != {per_stream}:
        raise SystemExit(f"{name}: streams had {sorted(counts)} tokens, not {per_stream}")
    return Result(name, messages, cpu_s, wall_s, arrivals)


def added_ms(result: Result, notes: Path) -> list[float]:
    """Return, sorted, the time from each token's emission to its arrival; the first second is left out."""
    told = json.loads(notes.read_text())
    times, first_steps = told["times"], told["first_steps"]
    begin = min(stream.tokens[0] for stream in result.arrivals) + BEGIN_S
    added = []
    for stream, arrivals in enumerate(result.arrivals):
        first = first_steps[str(stream)]
        for index, arrived in enumerate(arrivals.tokens[1:]):  # the first token is prefill's
            emitted = times[first + index]
            if emitted > begin:
                added.append(1000 * (arrived - emitted))
    return sorted(added)


def bare_ms(result: Result) -> list[float]:
    """Return, sorted, the same of a bare server's messages."""
    begin = min(stream.tokens[0] for stream in result.arrivals) + BEGIN_S
    return sorted(
        1000 * (came - sent)
        for stream in result.arrivals
        for came, sent in zip(stream.tokens, stream.sent, strict=True)
        if sent > begin
    )


def through_gateway(
    protocol: str, model: Path, args: argparse.Namespace, folder: Path
) -> tuple[Result, list[float]]:
    """Measure the gateway under one protocol."""
    count = int(args.rate * args.seconds)
    gateway = Child(
        "services.gateway.main", "--model", str(model), "--model-name", "bench", "--grpc-port", "0",
        "--http-port", "0", "--log-level", "error",
    )  # fmt: skip
    notes = folder / f"{protocol}.json"
    try:
        facts = gateway.ready()
        worker = Child("bench.gateway_parts.worker", facts["address"], str(args.rate), str(notes))
        try:
            worker.ready()
            reads: dict[str, Read] = {
                "gRPC": lambda: read_grpc(facts["address"], args.streams, count),
                "SSE": lambda: read_sse(facts["http_address"], args.streams, count),
            }
            result = measure(f"gateway, {protocol}", gateway, reads[protocol], count, args.seconds)
        finally:
            worker.stop()
    finally:
        gateway.stop()
    return result, added_ms(result, notes)


def bare(kind: str, args: argparse.Namespace) -> Result:
    """Measure a bare server."""
    count = int(args.rate * args.seconds)
    child = Child("bench.gateway_parts.bare", "sse" if kind == "SSE" else "grpc", str(args.rate), str(count))
    try:
        address = child.ready()["address"]
        reads: dict[str, Read] = {
            "echo": lambda: read_echo(address, args.streams, MESSAGE, args.rate, count),
            "emit": lambda: read_emit(address, args.streams),
            "SSE": lambda: read_sse(address, args.streams, count),
        }
        return measure(f"bare {kind}", child, reads[kind], count, args.seconds)
    finally:
        child.stop()


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--rate", type=float, default=30.0, help="tokens a second of each stream")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_byte_tokenizer(folder / "model")
        grpc_result, grpc_added = through_gateway("gRPC", model, args, folder)
        echo, emit = bare("echo", args), bare("emit", args)
        sse_result, sse_added = through_gateway("SSE", model, args, folder)
        sse = bare("SSE", args)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip()}: {args.streams} streams x {args.rate:g} tokens/s")
    print("\n| | messages per CPU-second | of bare | CPU of one core | emitted to read, p50 / p99 | added |")
    print("|---|---|---|---|---|---|")
    missed = []
    for result, delays, beside, base in (
        (grpc_result, grpc_added, echo, bare_ms(emit)), (echo, [], None, []), (emit, bare_ms(emit), None, []),
        (sse_result, sse_added, sse, bare_ms(sse)), (sse, bare_ms(sse), None, []),
    ):  # fmt: skip
        share = f"{100 * result.per_cpu_s / beside.per_cpu_s:.0f} %" if beside else ""
        p50, p99 = (quantile(delays, at) for at in (0.5, 0.99)) if delays else (0.0, 0.0)
        delay = f"{p50:.2f} / {p99:.2f} ms" if delays else ""
        more50, more99 = (
            p50 - quantile(base, 0.5) if base else 0.0,
            p99 - quantile(base, 0.99) if base else 0.0,
        )
        added = f"{more50:.2f} / {more99:.2f} ms" if base else ""
        busy = f"{100 * result.cpu_s / result.wall_s:.0f} %"
        print(f"| {result.name} | {result.per_cpu_s:,.0f} | {share} | {busy} | {delay} | {added} |")
        if beside and result.per_cpu_s < 0.6 * beside.per_cpu_s:
            missed.append(f"{result.name}: below 60 % of {beside.name}")
        if more50 > 2 or more99 > 10:
            missed.append(f"{result.name}: adds more than 2 ms p50 or 10 ms p99")
    print("\n" + ("; ".join(missed) or "all targets met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
