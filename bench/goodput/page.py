"""The results as one page that loads nothing from elsewhere, and as charts for a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from bench.goodput.point import Point
from bench.goodput.report import VLLM, goodputs, head, table_rows
from bench.goodput.results import Results
from bench.svg import Curve, line_chart
from loadtest.measures import Targets
from loadtest.report.plot import Plot
from loadtest.report.style import COLOURS, messages, page, table, tile

_REFERENCE = "vLLM 0.26"


def results_page(
    results: Results,
    titles: Mapping[str, str],
    targets: Mapping[str, Targets],
    share: float,
    *,
    beside_vllm: bool,
) -> str:
    """Return the page.

    Args:
        titles: load -> what it is, for people.
        beside_vllm: draw the reference's shares too; only where model and GPU are the same.
    """
    names = list(targets)
    found = goodputs(results, names, share)
    body = ["<h1>Goodput</h1>", f'<p class="sub">{escape(_subtitle(results, share))}</p>', _notes(results)]
    for load in results.loads:
        body.append(f"<h2>{escape(titles.get(load, load))}</h2>")
        tiles = [
            tile(f"{topology}, {name}", str(found[load, topology, name]), "req/s")
            for name in names
            for topology in results.topologies
            if (load, topology, name) in found
        ]
        plots = [_shares(results, load, name, share, beside_vllm) for name in names]
        plots += [_latency(results, load, name) for name in ("ttft", "tpot", "worst_gap")]
        body.append(f'<div class="tiles">{"".join(tiles)}</div>')
        body.append(f'<div class="plots">{"".join(plot.render() for plot in plots)}</div>')
        body.append(table(head(names), table_rows(results, load, names)))
    return page("Goodput", "\n".join(body))


def chart(results: Results, load: str, targets: str, *, beside_vllm: bool) -> str:
    """Return one load's shares over the rate as an SVG."""
    curves = [
        Curve(topology, [(point.rate, 100 * point.share(targets)) for point in results.of(topology, load)])
        for topology in results.topologies
        if results.of(topology, load)
    ]
    if beside_vllm and targets in VLLM.get(load, {}):
        curves.append(Curve(_REFERENCE, [(rate, 100 * share) for rate, share in VLLM[load][targets]]))
    return line_chart(curves, "requests/s per GPU", f"% of requests within {targets}", y_max=100.0)


def _subtitle(results: Results, share: float) -> str:
    said = []
    for entry in results.runs:
        environment = entry["environment"]
        assert isinstance(environment, dict)
        where = environment.get("gpu") or environment.get("cpu", "")
        said.append(f"{environment['time'][:16]} · {where} · commit {environment.get('commit', 'unknown')}")
    return f"requests/s per GPU at which {100 * share:g} % are within TTFT / TPOT · " + "; ".join(said)


def _notes(results: Results) -> str:
    found = [
        f"{point.topology} {point.load} at {point.rate:g}/s per GPU: {text}"
        for point in results.points.values()
        for text in point.warnings
    ]
    return messages(found, "warn")


def _most_rate(results: Results, load: str) -> float:
    return max(point.rate for point in results.points.values() if point.load == load)


def _shares(results: Results, load: str, targets: str, share: float, beside_vllm: bool) -> Plot:
    plot = Plot(
        f"Within {targets}",
        "requests/s per GPU",
        "% of requests",
        x_high=_most_rate(results, load),
        y_high=100 / 1.05,
    )
    plot.mark_y(100 * share, "wanted")
    for colour, topology in zip(COLOURS, results.topologies, strict=False):
        points = results.of(topology, load)
        bounds = [(point.rate, *point.bounds(targets)) for point in points]
        plot.band(
            [(rate, 100 * low) for rate, low, _ in bounds],
            [(rate, 100 * high) for rate, _, high in bounds],
            colour,
        )
        plot.line([(point.rate, 100 * point.share(targets)) for point in points], colour, topology)
    if beside_vllm and targets in VLLM.get(load, {}):
        reference = [(rate, 100 * met) for rate, met in VLLM[load][targets]]
        plot.line(reference, COLOURS[-1], _REFERENCE, dashed=True)
    return plot


def _latency(results: Results, load: str, name: str) -> Plot:
    title = {"ttft": "Time to first token", "tpot": "Time per token", "worst_gap": "Worst gap in a stream"}[
        name
    ]
    points = {topology: results.of(topology, load) for topology in results.topologies}
    values = [
        value for line in points.values() for value in _values(line, name, "p50") + _values(line, name, "p99")
    ]
    positive = [value for value in values if value > 0] or [1.0]
    plot = Plot(
        f"{title}: p99 (dashed: p50)",
        "requests/s per GPU",
        "ms",
        x_high=_most_rate(results, load),
        y_low=min(positive),
        y_high=max(positive),
    )
    for colour, (topology, line) in zip(COLOURS, points.items(), strict=False):
        rates = [point.rate for point in line]
        plot.line(list(zip(rates, _values(line, name, "p99"), strict=True)), colour, topology)
        plot.line(list(zip(rates, _values(line, name, "p50"), strict=True)), colour, dashed=True)
    return plot


def _values(points: Sequence[Point], name: str, level: str) -> list[float]:
    return [point.ms(name, level) for point in points]
