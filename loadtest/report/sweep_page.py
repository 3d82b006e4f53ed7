"""The page of a sweep: goodput against the targets' tightness, and what each rate did."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtest.measures import Targets
from loadtest.report.plot import Plot
from loadtest.report.run_page import describe
from loadtest.report.style import COLOURS, messages, page, table, tile
from loadtest.scenario import Scenario
from loadtest.sweep import Probe


def sweep_page(
    name: str,
    scenario: Scenario,
    targets: Targets,
    share: float,
    goodput: dict[float, float],
    probes: Sequence[Probe],
    warnings: list[str],
) -> str:
    """Return the whole page of a sweep."""
    aim = f"TTFT {1000 * targets.ttft_s:g} ms, TPOT {1000 * targets.tpot_s:g} ms, met by {100 * share:g} %"
    plots = [
        _goodput(goodput),
        _attainment(goodput, probes, share),
        _latency(probes, "ttft", "Time to first token", "TTFT, ms", 1000 * targets.ttft_s),
        _latency(probes, "tpot", "Time per token", "TPOT, ms", 1000 * targets.tpot_s),
    ]
    rows = [
        [
            f"{probe.rate:.3f}",
            f"{100 * probe.attainment[1.0]:.1f} %",
            f"{100 * probe.bounds[1.0][0]:.0f} … {100 * probe.bounds[1.0][1]:.0f}",
            *(f"{1000 * probe.measures.ttft.at(level).value:.0f}" for level in (50, 99)),
            *(f"{1000 * probe.measures.tpot.at(level).value:.1f}" for level in (50, 99)),
            f"{1000 * probe.measures.worst_gap.at(99).value:.1f}",
            f"{probe.measures.output_rate:.0f}",
            str(probe.measures.outcomes["error"]),
        ]
        for probe in probes
    ]
    head = [
        "requests/s",
        "met",
        "95 % bounds",
        "TTFT p50",
        "p99, ms",
        "TPOT p50",
        "p99, ms",
        "worst gap p99",
        "tokens/s",
        "failed",
    ]
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="sub">{escape(describe(scenario))} · {escape(aim)}</p>',
        '<div class="tiles">',
        *(
            tile(f"scale {scale:g}", f"{rate:.2f}", "req/s", "good" if scale == 1.0 else "")
            for scale, rate in goodput.items()
        ),
        "</div>",
        messages(warnings, "warn"),
        f'<h2>Goodput</h2><div class="plots">{"".join(plot.render() for plot in plots)}</div>',
        "<h2>Runs</h2>",
        table(head, rows),
    ]
    return page(f"{name} · sweep", "\n".join(body))


def _goodput(goodput: dict[float, float]) -> Plot:
    plot = Plot(
        "Goodput against the tightness of the targets",
        "scale of both targets (1: as given, less: tighter)",
        "requests/s",
        x_high=max(goodput),
        y_high=max(goodput.values()),
    )
    plot.line(list(goodput.items()), "c2", "goodput")
    return plot


def _attainment(goodput: dict[float, float], probes: Sequence[Probe], share: float) -> Plot:
    plot = Plot(
        "Share of requests that met the targets",
        "requests/s",
        "%",
        x_high=max(probe.rate for probe in probes),
        y_high=100 / 1.05,
    )
    plot.mark_y(100 * share, "wanted")
    for which, scale in enumerate(goodput):
        points = [(probe.rate, 100 * probe.attainment[scale]) for probe in probes]
        colour = COLOURS[which % len(COLOURS)]
        if scale == 1.0:
            low, high = ([(probe.rate, 100 * probe.bounds[scale][end]) for probe in probes] for end in (0, 1))
            plot.band(low, high, colour)
        plot.line(points, colour, f"× {scale:g}")
    return plot


def _latency(probes: Sequence[Probe], field: str, title: str, name: str, target: float) -> Plot:
    lines = {
        level: [(probe.rate, 1000 * getattr(probe.measures, field).at(level).value) for probe in probes]
        for level in (50, 99)
    }
    values = [y for line in lines.values() for _, y in line if y > 0] or [1.0]
    plot = Plot(
        title,
        "requests/s",
        name,
        x_high=max(probe.rate for probe in probes),
        y_low=min(values),
        y_high=max(values),
    )
    plot.mark_y(target, "target")
    plot.line(lines[50], "c0", "p50")
    plot.line(lines[99], "c1", "p99")
    return plot
