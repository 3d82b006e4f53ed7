"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from html import escape

from loadtest.percentiles import Distribution, Percentile
from loadtest.progress import latencies
from loadtest.record import Record
from loadtest.report.run_plots import run_plots
from loadtest.report.style import messages, page, table, tile
from loadtest.result import Result
from loadtest.scenario import Scenario

_HEAD = ["ms", "mean", "p50", "p90", "p95", "p99", "max", "values"]


def run_page(result: Result, records: Sequence[Record]) -> str:
    """Return the whole page of a run."""
    counted = [record for record in records if record.planned_s >= result.scenario.warmup_s]
    scenario = result.scenario
    known = {**result.environment, **result.workers}
    facts = " · ".join(f"{key} {value}" for key, value in known.items())
    body = [
        f"<h1>{escape(result.name)}</h1>",
        f'<p class="sub">{escape(describe(scenario))}</p>',
        f'<div class="tiles">{_tiles(result)}</div>',
        messages(result.failures, "bad"),
        messages(result.warnings, "warn"),
        "<h2>Over the run</h2>",
        f'<div class="plots">{run_plots(counted, result.samples, result.measures.targets)}</div>',
        "<h2>Latencies</h2>",
        _latency_table(result),
        '<p class="note">From the planned time of each request. Small figures: 95 % confidence bounds. '
        "Requests that were cancelled or read slowly on purpose are not in these.</p>",
        _errors(result),
        "<h2>What was sent</h2>",
        table(["setting", "value"], _settings(scenario)),
        f"<footer>{escape(facts)}</footer>",
    ]
    return page(f"{result.name} · load test", "\n".join(body))


def describe(scenario: Scenario) -> str:
    """Return a load in a line."""
    if scenario.trace:
        how = f"replay of {scenario.trace.rpartition('/')[2]}, times × {scenario.time_scale:g}"
    elif scenario.concurrency:
        how = f"closed loop, {scenario.concurrency} at a time"
    else:
        how = f"open loop, {scenario.rate:g} requests/s, {scenario.arrivals} arrivals"
        how += f", to {scenario.ramp_to:g}/s" if scenario.ramp_to else ""
    lengths = f"{scenario.input} in, {scenario.output} out"
    if scenario.lengths:
        lengths = f"lengths of {scenario.lengths.rpartition('/')[2]}"
    return f"{scenario.target} · {how}" + ("" if scenario.trace else f" · {lengths}")


def _tiles(result: Result) -> str:
    measures = result.measures
    tiles = []
    if measures.goodput is not None and measures.attainment is not None and measures.targets is not None:
        kind = "good" if measures.attainment >= 0.9 else "warn"
        tiles.append(tile("goodput", f"{measures.goodput:.2f}", "req/s"))
        tiles.append(
            tile(
                f"≤ {1000 * measures.targets.ttft_s:g} / {1000 * measures.targets.tpot_s:g} ms",
                f"{100 * measures.attainment:.1f}",
                "%",
                kind,
            )
        )
    tiles += [
        tile("TTFT p50 / p99", *_pair(measures.ttft)),
        tile("TPOT p50 / p99", *_pair(measures.tpot)),
        tile("output", f"{measures.output_rate:.0f}", "tokens/s"),
        tile("answered", str(measures.outcomes["ok"]), f"of {measures.requests}"),
    ]
    if errors := measures.outcomes["error"]:
        tiles.append(tile("failed", str(errors), "", "bad"))
    if result.verification is not None:
        wrong = len(result.verification.mismatches)
        tiles.append(
            tile("wrong answers", str(wrong), f"of {result.verification.answers}", "bad" if wrong else "good")
        )
    if result.blocks_held is not None:
        held = sum(result.blocks_held.values())
        tiles.append(tile("KV blocks left", str(held), "", "bad" if held else "good"))
    return "".join(tiles)


def _latency_table(result: Result) -> str:
    rows = []
    for name, distribution in latencies(result.measures).items():
        if not distribution.count:
            continue
        cells = "".join(
            f"<td>{1000 * entry.value:.1f}{_bounds(entry)}</td>" for entry in distribution.percentiles
        )
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{1000 * distribution.mean:.1f}</td>{cells}"
            f"<td>{1000 * distribution.max:.1f}</td><td>{distribution.count}</td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    return (
        f'<div class="sheet"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _errors(result: Result) -> str:
    if not result.measures.errors:
        return ""
    rows = [[reason, str(count)] for reason, count in result.measures.errors.items()]
    return "<h2>Failures by reason</h2>" + table(["reason", "requests"], rows)


def _settings(scenario: Scenario) -> list[list[str]]:
    """Return the fields that differ from their defaults."""
    rows = []
    for entry in fields(scenario):
        value = getattr(scenario, entry.name)
        if value != entry.default:
            rows.append([entry.name.replace("_", " "), str(value)])
    return rows


def _bounds(entry: Percentile) -> str:
    low = "–" if entry.low is None else f"{1000 * entry.low:.1f}"
    high = "–" if entry.high is None else f"{1000 * entry.high:.1f}"
    return f'<div class="note">{low} … {high}</div>'


def _pair(distribution: Distribution) -> tuple[str, str]:
    """Return p50 and p99 as one short figure, and its unit."""
    p50, p99 = distribution.at(50).value, distribution.at(99).value
    if p99 >= 10.0:
        return f"{p50:.1f} / {p99:.1f}", "s"
    return f"{1000 * p50:.0f} / {1000 * p99:.0f}", "ms"
