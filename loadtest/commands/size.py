"""`loadtest size`: how many workers of each kind a load wants."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.errors import UsageError
from loadtest.measures import Targets
from loadtest.percentiles import of_values
from loadtest.result import read_json
from loadtest.sizing.cluster import Cluster
from loadtest.sizing.load import mean_rate, superpose
from loadtest.sizing.profile import Profile
from loadtest.sizing.recommend import CLEAR_GAIN, Judged, gain, recommend
from loadtest.sizing.simulation import Simulated
from loadtest.traces import TraceRow, TraceScale, read_trace


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--profile",
        type=Path,
        nargs="+",
        required=True,
        metavar="JSON",
        help="of `loadtest profile`; several of one cluster: their mean",
    )
    parser.add_argument("--trace", type=Path, required=True, help="Azure .csv or Mooncake .jsonl")
    parser.add_argument("--time-scale", type=float, default=1.0, help="multiply the trace's times")
    parser.add_argument("--length-scale", type=float, default=1.0, help="multiply the trace's lengths")
    parser.add_argument("--max-input", type=int, default=0, help="cut longer prompts, tokens; 0: no limit")
    parser.add_argument("--max-output", type=int, default=0, help="cut longer answers, tokens; 0: no limit")
    parser.add_argument("--duration", type=float, default=0.0, help="only its first seconds, after scaling")
    parser.add_argument("--copies", type=int, default=1, help="so many of the trace at once (default: 1)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="split N workers, or not")
    parser.add_argument(
        "--predict",
        default="",
        metavar="CLUSTER",
        help="simulate P:D prefill and decode workers, or co-located ones: 2b, or 2b/512 with steps of 512",
    )
    parser.add_argument(
        "--beside", type=Path, help="with --predict: a measured result's .json to compare with"
    )
    parser.add_argument("--target-ttft", type=float, default=1.0, metavar="S", help="default: 1")
    parser.add_argument("--target-tpot", type=float, default=0.05, metavar="S", help="default: 0.05")
    parser.add_argument(
        "--share", type=float, default=0.9, help="of requests that must meet both (default: 0.9)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if bool(args.workers) == bool(args.predict):
        raise UsageError("size: give either --workers or --predict")
    if args.workers == 1:
        raise UsageError("workers: at least 2, one of each kind")
    profile, rows = Profile.mean([Profile.read(path) for path in args.profile]), _load(args)
    targets = Targets(args.target_ttft, args.target_tpot)
    console = Console(highlight=False)
    console.print(f"{len(rows)} requests, {mean_rate(rows):.3g} a second; profile: {profile.measured_on}")
    begun = time.monotonic()
    if args.predict:
        figures = _predict(args, console, profile, rows, targets)
    else:
        figures = _recommend(args, console, profile, rows, targets)
    console.print(f"[dim]simulated in {time.monotonic() - begun:.1f} s[/]")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def predicted(done: Simulated, targets: Targets) -> dict[str, float]:
    """Return the figures of a simulation that a run measures too, in seconds and shares."""
    ttft = of_values([job.ttft_s or 0.0 for job in done.jobs])
    tpot = of_values([job.tpot_s for job in done.jobs if job.output_tokens > 1])
    last_s = max(job.end_s or 0.0 for job in done.jobs)
    return {
        "ttft_mean": ttft.mean,
        "ttft_p50": ttft.at(50).value,
        "ttft_p90": ttft.at(90).value,
        "tpot_mean": tpot.mean,
        "tpot_p50": tpot.at(50).value,
        "tpot_p90": tpot.at(90).value,
        "output_rate": sum(job.output_tokens for job in done.jobs) / last_s,
        "attainment": done.attainment(targets),
    }


def _load(args: argparse.Namespace) -> list[TraceRow]:
    scale = TraceScale(args.time_scale, args.length_scale, args.max_input, args.max_output)
    rows = read_trace(args.trace, scale)
    if args.duration:
        rows = [row for row in rows if row.at_s < args.duration]
    if len(rows) < 2:
        raise UsageError("trace: fewer than two requests")
    return superpose(rows, args.copies) if args.copies > 1 else rows


def _predict(
    args: argparse.Namespace, console: Console, profile: Profile, rows: list[TraceRow], targets: Targets
) -> dict[str, object]:
    cluster = Cluster.parse(args.predict, profile)
    figures = predicted(cluster.simulate(rows, profile), targets)
    found = _measured(read_json(args.beside)) if args.beside else {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "predicted", *(("measured", "off by") if found else ())):
        table.add_column(title, justify="left" if not title else "right")
    for name, value in figures.items():
        cells = [name, _show(name, value)]
        if name in found:
            cells += [
                _show(name, found[name]),
                f"{100 * (value / found[name] - 1):+.1f} %" if found[name] else "",
            ]
        table.add_row(*cells)
    console.print(table)
    return {"predicted": figures, "measured": found}


def _recommend(
    args: argparse.Namespace, console: Console, profile: Profile, rows: list[TraceRow], targets: Targets
) -> dict[str, object]:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("workers", "req/s", "per worker", "met at load", "TTFT p90", "TPOT p90"):
        table.add_column(title, justify="left" if title == "workers" else "right", no_wrap=True)
    with console.status("simulating") as status:

        def on_judged(one: Judged) -> None:
            status.update(f"{one.cluster}: {one.max_rate:.3g} requests a second")

        tried = recommend(rows, profile, targets, args.workers, args.share, on_judged)
    for one in tried:
        figures = predicted(one.at_load, targets)
        table.add_row(
            str(one.cluster),
            f"{one.max_rate:.3g}",
            f"{one.max_rate / one.cluster.workers:.3g}",
            f"{100 * one.attainment:.1f} %",
            _show("ttft", figures["ttft_p90"]),
            _show("tpot", figures["tpot_p90"]),
        )
    console.print(table)
    best, more = tried[0], gain(tried) if tried[0].max_rate else 0.0
    if not best.max_rate:
        console.print("no cluster of so many workers meets the targets, at any rate")
    else:
        console.print(
            f"[bold]{best.cluster}[/]: {best.max_rate:.3g} requests a second with {100 * args.share:.0f} % "
            f"within {args.target_ttft:g} s and {1000 * args.target_tpot:g} ms a token"
        )
        console.print(_verdict(more))
    return {
        "splits": [
            {**asdict(one.cluster), "max_rate": one.max_rate, "attainment": one.attainment} for one in tried
        ],
        "gain": more,
    }


def _verdict(more: float) -> str:
    """Say whether to take prefill and decode apart, where `more` is what that multiplies the rate by."""
    if more == math.inf:
        return "Taking prefill and decode apart pays: co-located workers meet these targets at no rate."
    how = f"the best split carries {more:.2f} x what as many co-located workers do"
    if more >= CLEAR_GAIN:
        return f"Taking prefill and decode apart pays: {how}."
    if more > 1 / CLEAR_GAIN:
        return f"It makes no clear difference: {how}. Those are simpler; streams of a split are evener."
    return f"Taking prefill and decode apart does not pay: {how}."


def _measured(result: Mapping[str, object]) -> dict[str, float]:
    measures = result.get("measures")
    if not isinstance(measures, dict):
        raise UsageError("beside: not the result of a run")
    found = {"output_rate": measures["output_rate"], "attainment": measures["attainment"]}
    for name in ("ttft", "tpot"):
        found[f"{name}_mean"] = measures[name]["mean"]
        for entry in measures[name]["percentiles"]:
            found[f"{name}_p{entry['level']:g}"] = entry["value"]
    return {name: float(value) for name, value in found.items() if value is not None}


def _show(name: str, value: float) -> str:
    if name == "attainment":
        return f"{100 * value:.1f} %"
    if name == "output_rate":
        return f"{value:.1f} tok/s"
    return f"{1000 * value:.1f} ms"
