"""The plots of one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from loadtest.leftovers import WorkerSample
from loadtest.measures import Targets, ordinary
from loadtest.record import Outcome, Record
from loadtest.report.plot import Plot, Points
from loadtest.report.style import COLOURS

_BINS = 60
_MOST_DOTS = 1500
_LEVELS = ((50, "c0"), (90, "c2"), (99, "c1"))


def run_plots(records: Sequence[Record], samples: Sequence[WorkerSample], targets: Targets | None) -> str:
    """Return all plots that the records have something for."""
    fair = [record for record in ordinary(records) if record.token_s]
    if not fair:
        return ""
    plots = [
        over_time(
            "Time to first token",
            "TTFT, ms",
            [(record.planned_s, 1000 * (record.ttft_s or 0)) for record in fair],
            1000 * targets.ttft_s if targets else None,
        )
    ]
    gaps = [(at, 1000 * gap) for record in fair for at, gap in _gap_times(record)]
    if gaps:
        plots.append(
            over_time("Gaps between tokens", "ITL, ms", gaps, 1000 * targets.tpot_s if targets else None)
        )
        plots.append(scatter(fair, targets))
    plots += [shares(fair), flow(records)]
    if samples:
        plots.append(
            workers("KV blocks in use", "% of the pool", samples, lambda sample: 100 * sample.kv_share)
        )
        plots.append(
            workers("Requests in each worker", "running", samples, lambda sample: float(sample.running))
        )
    return "".join(plot.render() for plot in plots)


def over_time(title: str, name: str, points: Points, target: float | None) -> Plot:
    """Return percentiles of what happened in each of up to 60 spans of the run."""
    end = max(at for at, _ in points)
    width = max(end / min(_BINS, max(6, len(points) // 10)), 1e-3)
    bins: dict[int, list[float]] = defaultdict(list)
    for at, value in points:
        bins[int(at / width)].append(value)
    lines = {
        level: [((which + 0.5) * width, float(np.percentile(bins[which], level))) for which in sorted(bins)]
        for level, _ in _LEVELS
    }
    top = max(max(y for _, y in line) for line in lines.values())
    low = min(min(y for _, y in line) for line in lines.values())
    is_wide = low > 0 and top / low > 30
    plot = Plot(title, "time, s", name, x_high=end, y_high=top, y_low=low if is_wide else None)
    plot.band(lines[50], lines[99], "c0")
    if target is not None:
        plot.mark_y(target, "target")
    for level, colour in _LEVELS:
        plot.line(lines[level], colour, f"p{level}")
    return plot


def scatter(records: Sequence[Record], targets: Targets | None) -> Plot:
    """Return TTFT against TPOT, a dot each request."""
    known = [
        (1000 * record.ttft_s, 1000 * record.tpot_s, record)
        for record in records
        if record.ttft_s and record.tpot_s
    ]
    known = known[:: max(1, len(known) // _MOST_DOTS)]
    xs, ys = [x for x, _, _ in known] or [1.0], [y for _, y, _ in known] or [1.0]
    plot = Plot(
        "Each request: first token against pace",
        "TTFT, ms",
        "TPOT, ms",
        x_low=min(xs),
        x_high=max(xs),
        y_high=max(ys),
    )
    met = [(x, y) for x, y, record in known if targets is None or targets.met_by(record)]
    missed = [(x, y) for x, y, record in known if targets is not None and not targets.met_by(record)]
    plot.dots(met, "c2 faint", "met both targets" if targets else "requests")
    if missed:
        plot.dots(missed, "c1 faint", "missed one")
    if targets is not None:
        plot.mark_x(1000 * targets.ttft_s, "TTFT target")
        plot.mark_y(1000 * targets.tpot_s, "TPOT target")
    return plot


def shares(records: Sequence[Record]) -> Plot:
    """Return which share of the requests was faster than what."""
    curves = [
        ("TTFT", "c0", [1000 * record.ttft_s for record in records if record.ttft_s]),
        ("TPOT", "c2", [1000 * record.tpot_s for record in records if record.tpot_s]),
        ("E2E", "c3", [1000 * record.e2e_s for record in records if record.outcome is Outcome.OK]),
    ]
    curves = [curve for curve in curves if curve[2]]
    values = [value for _, _, part in curves for value in np.percentile(part, (1, 100)).tolist()]
    plot = Plot(
        "Share of requests at most so slow",
        "ms",
        "%",
        x_low=max(min(values), 0.1),
        x_high=max(values),
        y_high=100 / 1.05,
    )
    for name, colour, part in curves:
        levels = np.linspace(0, 100, 101)
        found = np.percentile(part, levels)
        plot.line(list(zip(found.tolist(), levels.tolist(), strict=True)), colour, name)
    return plot


def flow(records: Sequence[Record]) -> Plot:
    """Return what came in, what went out, and what was under way."""
    end = max(record.end_s for record in records)
    bins = min(_BINS, max(6, len(records) // 3))
    width = max(end / bins, 1e-3)
    edges = np.arange(bins + 1) * width

    def rate(times: Iterable[float]) -> Points:
        counts = np.histogram(list(times), edges)[0] / width
        return list(zip((edges[:-1] + width / 2).tolist(), counts.tolist(), strict=True))

    came = rate(record.planned_s for record in records)
    answered = rate(record.end_s for record in records if record.outcome is Outcome.OK)
    failed = rate(record.end_s for record in records if record.outcome is Outcome.ERROR)
    begun, ended = np.sort([r.planned_s for r in records]), np.sort([r.end_s for r in records])
    waiting = np.searchsorted(begun, edges, side="right") - np.searchsorted(ended, edges, side="right")
    top = max(max(y for _, y in (*came, *answered)), float(waiting.max()))
    plot = Plot("Load", "time, s", "requests/s, and requests", x_high=end, y_high=top)
    in_flight = list(zip(edges.tolist(), waiting.tolist(), strict=True))
    plot.band([(x, 0.0) for x, _ in in_flight], in_flight, "c3")
    plot.line(in_flight, "c3", "in flight")
    plot.line(came, "c0", "due, /s")
    plot.line(answered, "c2", "answered, /s")
    if any(y for _, y in failed):
        plot.line(failed, "c5", "failed, /s")
    return plot


def workers(
    title: str, name: str, samples: Sequence[WorkerSample], value: Callable[[WorkerSample], float]
) -> Plot:
    """Return one figure of each worker over time."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        lines[sample.worker].append((sample.at_s, value(sample)))
    plot = Plot(
        title,
        "time, s",
        name,
        x_high=max(sample.at_s for sample in samples),
        y_high=max(y for line in lines.values() for _, y in line),
    )
    for which, (worker, line) in enumerate(sorted(lines.items())):
        step = max(1, len(line) // 400)
        plot.line(line[::step], COLOURS[which % len(COLOURS)], worker)
    return plot


def _gap_times(record: Record) -> list[tuple[float, float]]:
    return [
        (after, after - before) for before, after in zip(record.token_s, record.token_s[1:], strict=False)
    ]
