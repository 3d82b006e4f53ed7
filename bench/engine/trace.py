"""A trace of some steps that Perfetto (ui.perfetto.dev) opens: the phases of each step, and GPU kernels.

The phases are spans on the engine's thread: schedule, launch, wait (for the device), commit, publish.
They are taken around the parts of a running EngineLoop, which knows nothing of it. Kernels come from
torch.profiler, on the same clock.
"""

from __future__ import annotations

import collections
import functools
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypedDict, TypeVar

import torch

from bench.engine.floor import StepWork
from engine.engine import Engine
from engine.step import PendingStep, SchedulerOutput, StepResult

PHASES = ("schedule", "launch", "wait", "commit", "publish")
P = ParamSpec("P")
R = TypeVar("R")


class TraceEvent(TypedDict, total=False):
    """One event of Chrome's trace format; times in microseconds."""

    name: str
    cat: str
    ph: str
    ts: float
    dur: float
    pid: int | str
    tid: int | str
    args: dict[str, object]


class StepTrace:
    """Records `num_steps` steps of an engine, from step `first` after `attach` on.

    Attributes:
        spans: of the phases, ns since the epoch.
        work: of each step launched.
    """

    def __init__(self, first: int, num_steps: int, *, kernels: bool) -> None:
        self._begin, self._end = first, first + num_steps
        self._step = 0
        self._profiler = _kernel_profiler() if kernels else None
        self.spans: list[tuple[str, int, int, dict[str, object]]] = []
        self.work: list[StepWork] = []
        self._kernels: list[TraceEvent] = []

    @contextmanager
    def attached(self, engine: Engine) -> Iterator[None]:
        """Watch an idle engine."""
        loop = engine._loop
        scheduler, runner, publish = loop.scheduler, loop._runner, loop._publish
        schedule, commit, launch = scheduler.schedule, scheduler.commit, runner.launch

        def traced_schedule() -> SchedulerOutput:
            self._advance()
            return self._timed("schedule", schedule)()

        def traced_launch(output: SchedulerOutput) -> PendingStep:
            chunks = sum(row.num_tokens > 1 for row in output.rows)
            facts: dict[str, object] = {"step": output.step, "rows": len(output.rows)}
            facts |= {"tokens": output.num_tokens, "chunks": chunks}
            if self._begin <= self._step < self._end:
                self.work.append(work_of(output))
            return _TracedStep(self, self._timed("launch", launch, facts)(output))

        scheduler.schedule = traced_schedule  # type: ignore[method-assign]
        scheduler.commit = self._timed("commit", commit)  # type: ignore[method-assign]
        runner.launch = traced_launch  # type: ignore[method-assign]
        loop._publish = self._timed("publish", publish)
        try:
            yield
        finally:
            scheduler.schedule, scheduler.commit = schedule, commit  # type: ignore[method-assign]
            runner.launch, loop._publish = launch, publish  # type: ignore[method-assign]
            self._stop()

    def write(self, path: Path) -> None:
        """Write the trace; a name that ends in .gz: compressed (Perfetto opens both)."""
        events: list[TraceEvent] = [
            {"name": "process_name", "ph": "M", "pid": "engine", "args": {"name": "baton engine"}},
            {"name": "thread_name", "ph": "M", "pid": "engine", "tid": 1, "args": {"name": "steps"}},
        ]
        start = min((begin for _, begin, _, _ in self.spans), default=0)
        for name, begin, end, facts in self.spans:
            ts, dur = (begin - start) / 1e3, (end - begin) / 1e3
            span: TraceEvent = {"name": name, "cat": "step", "ph": "X", "ts": ts, "dur": dur}
            events.append(span | {"pid": "engine", "tid": 1, "args": facts})
        for kernel in self._kernels:
            events.append(kernel | {"ts": kernel["ts"] - start / 1e3})
        data = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    def phase_table(self) -> list[tuple[str, float, float]]:
        """Return (phase, median ms, total ms) over the recorded steps, in the order of a step."""
        rows = []
        for phase in PHASES:
            times = [(end - begin) / 1e6 for name, begin, end, _ in self.spans if name == phase]
            if times:
                rows.append((phase, statistics.median(times), sum(times)))
        return rows

    def part_table(self) -> dict[str, float]:
        """Return the kernels' ms by part of a step; those of products are cuBLAS's or ours."""
        times = dict.fromkeys(("products", "attention_decode", "attention_prefill", "other"), 0.0)
        for name, _, total_ms in self.kernel_table():
            times[_part(name)] += total_ms
        return times

    def kernel_table(self) -> list[tuple[str, int, float]]:
        """Return (kernel, launches, total ms), longest first."""
        times: dict[str, list[float]] = collections.defaultdict(list)
        for kernel in self._kernels:
            times[re.sub(r"<.*|\(.*", "", kernel["name"]).removeprefix("void ")[-60:]].append(kernel["dur"])
        rows = [(name, len(values), sum(values) / 1e3) for name, values in times.items()]
        return sorted(rows, key=lambda row: -row[2])

    @property
    def wall_ms(self) -> float:
        """From the first recorded span to the end of the last."""
        if not self.spans:
            return 0.0
        return (max(end for _, _, end, _ in self.spans) - self.spans[0][1]) / 1e6

    def timed_wait(self, pending: PendingStep) -> StepResult:
        """Wait for a step, as the phase "wait"."""
        return self._timed("wait", pending.wait)()

    def _timed(
        self, name: str, call: Callable[P, R], facts: dict[str, object] | None = None
    ) -> Callable[P, R]:
        @functools.wraps(call)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            begin = time.time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                if self._begin <= self._step < self._end:
                    self.spans.append((name, begin, time.time_ns(), facts or {}))

        return timed

    def _advance(self) -> None:
        """Begin a step; on the engine's thread."""
        self._step += 1
        if self._step == self._begin and self._profiler is not None:
            self._profiler.start()
        elif self._step == self._end:
            self._stop()

    def _stop(self) -> None:
        if self._profiler is None or self._step < self._begin:
            return
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "kernels.json"
            self._profiler.export_chrome_trace(str(path))
            data = json.loads(path.read_bytes())
        self._profiler = None
        base_us = data.get("baseTimeNanoseconds", 0) / 1e3
        for event in data["traceEvents"]:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                kept: TraceEvent = {key: event[key] for key in ("name", "cat", "ph", "ts", "dur")}  # type: ignore[assignment]
                stream = event.get("args", {}).get("stream", 0)
                self._kernels.append(
                    kept | {"ts": kept["ts"] + base_us, "pid": "device", "tid": f"stream {stream}"}
                )


def work_of(output: SchedulerOutput) -> StepWork:
    """What a step computes."""
    decodes = [row for row in output.rows if row.num_tokens == 1]
    chunks = [row for row in output.rows if row.num_tokens > 1]
    return StepWork(
        tokens=output.num_tokens,
        sampled=sum(row.sample for row in output.rows),
        read_tokens=sum(row.start + 1 for row in decodes),
        pairs=sum(row.num_tokens * row.start + row.num_tokens * (row.num_tokens + 1) // 2 for row in chunks),
    )


def _part(kernel: str) -> str:
    for part in ("attention_decode", "attention_prefill"):
        if part in kernel:
            return part
    return "products" if re.search(r"nvjet|gemm|cutlass|splitK|linear_rows", kernel) else "other"


class _TracedStep:
    def __init__(self, trace: StepTrace, pending: PendingStep) -> None:
        self._trace = trace
        self._pending = pending
        self.layers = pending.layers
        self.is_over = pending.is_over

    def wait(self) -> StepResult:
        return self._trace.timed_wait(self._pending)


def _kernel_profiler() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
