"""What the terminal shows: the run while it lasts, and its figures at the end."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtest.measures import Measures
from loadtest.percentiles import Distribution
from loadtest.result import Result
from loadtest.run import Progress
from loadtest.scenario import Scenario

_RECENT = 200


class LiveProgress:
    """One line that is kept up to date while a run lasts."""

    def __init__(self, console: Console, scenario: Scenario, processes: int, *, enabled: bool) -> None:
        self._scenario = scenario
        self._latest = [Progress()] * processes
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._start = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if enabled else None

    def update(self, which: int, progress: Progress) -> None:
        """Take the progress of one generator."""
        self._latest[which] = progress
        self._recent.extend(progress.ttfts_s)
        if self._live is not None:
            self._live.update(self._line(), refresh=True)

    def say(self, text: str) -> None:
        """Show something else than progress."""
        if self._live is not None and text:
            self._live.update(Text(text, style="dim"), refresh=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self) -> Text:
        elapsed = time.monotonic() - self._start
        latest = self._latest
        errors = sum(entry.error for entry in latest)
        line = Text(f"{elapsed:6.0f} s", style="bold")
        if self._scenario.duration_s:
            line.append(f" of {self._scenario.duration_s:.0f}", style="dim")
        line.append(f"   sent {sum(entry.sent for entry in latest)}")
        line.append(f"   in flight {sum(entry.in_flight for entry in latest)}")
        line.append(f"   answered {sum(entry.ok for entry in latest)}", style="green")
        if cancelled := sum(entry.cancelled for entry in latest):
            line.append(f"   cancelled {cancelled}", style="dim")
        line.append(f"   failed {errors}", style="red" if errors else "dim")
        line.append(f"   {sum(entry.tokens for entry in latest) / max(elapsed, 0.1):.0f} tokens/s")
        if self._recent:
            p50, p99 = np.percentile(self._recent, (50, 99))
            line.append(f"   TTFT {1000 * p50:.0f} / {1000 * p99:.0f} ms", style="cyan")
        return line


def show(console: Console, result: Result) -> None:
    """Print the figures of a run."""
    measures = result.measures
    console.print(latency_table(measures))
    for line in summary_lines(measures):
        console.print(line, highlight=False)
    if result.verification is not None:
        checked = result.verification
        style = "green" if checked.is_right else "bold red"
        console.print(
            f"verified {checked.answers} answers to {checked.prompts} prompts: "
            f"{len(checked.mismatches)} differ",
            style=style,
            highlight=False,
        )
    if result.blocks_held is not None and not any(result.blocks_held.values()):
        console.print(
            f"no KV block left on {len(result.blocks_held)} workers", style="green", highlight=False
        )
    for text in result.failures:
        console.print(f"FAILED: {text}", style="bold red", highlight=False)
    for text in result.warnings:
        console.print(f"warning: {text}", style="yellow", highlight=False)


def latency_table(measures: Measures) -> Table:
    """Return the latencies in milliseconds, p99 with its bounds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ms")
    for title in ("mean", "p50", "p90", "p95", "p99", "p99 bounds", "max", "values"):
        table.add_column(title, justify="right")
    for name, distribution in latencies(measures).items():
        if distribution.count:
            table.add_row(name, *_cells(distribution))
    return table


def latencies(measures: Measures) -> dict[str, Distribution]:
    """Return the latency distributions by the name that people call them."""
    return {
        "TTFT": measures.ttft,
        "ITL": measures.itl,
        "TPOT": measures.tpot,
        "E2E": measures.e2e,
        "worst gap": measures.worst_gap,
        "first gap": measures.first_gap,
        "queue (server)": measures.queue,
        "hand-off (server)": measures.exposed,
    }


def summary_lines(measures: Measures) -> list[str]:
    """Return the other figures, a line each subject."""
    outcomes = measures.outcomes
    lines = [
        f"{measures.requests} requests in {measures.span_s:.1f} s: {outcomes['ok']} answered, "
        f"{outcomes['cancelled']} cancelled, {outcomes['error']} failed",
        f"{measures.request_rate:.2f} answers/s, {measures.output_rate:.1f} tokens/s out, "
        f"{measures.input_rate:.1f} tokens/s in"
        + (f", {100 * measures.cached_share:.1f} % cached" if measures.cached_share is not None else ""),
    ]
    if measures.targets is not None and measures.goodput is not None:
        lines.append(
            f"goodput {measures.goodput:.2f} requests/s: {100 * (measures.attainment or 0):.1f} % met "
            f"TTFT {1000 * measures.targets.ttft_s:g} ms and TPOT {1000 * measures.targets.tpot_s:g} ms"
        )
    lines.extend(f"  {count} × {reason}" for reason, count in measures.errors.items())
    return lines


def _cells(distribution: Distribution) -> list[str]:
    p99 = distribution.at(99)
    low = "–" if p99.low is None else f"{1000 * p99.low:.1f}"
    high = "–" if p99.high is None else f"{1000 * p99.high:.1f}"
    values = [distribution.mean, *(distribution.at(level).value for level in (50, 90, 95, 99))]
    return [
        *(f"{1000 * value:.1f}" for value in values),
        f"{low} … {high}",
        f"{1000 * distribution.max:.1f}",
        str(distribution.count),
    ]
