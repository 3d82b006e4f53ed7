"""`loadtest sweep`: goodput, and how it depends on the targets."""

from __future__ import annotations

import argparse
import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from baton.errors import RequestError
from loadtest.environment import environment
from loadtest.errors import UsageError
from loadtest.health import warnings
from loadtest.leftovers import blocks_held, served_by
from loadtest.measures import Targets, measure
from loadtest.options import add_judgement_flags, add_scenario_flags, registry_of, scenario_of, targets_of
from loadtest.progress import LiveProgress
from loadtest.report.sweep_page import sweep_page
from loadtest.result import write_json
from loadtest.run import run as run_load
from loadtest.scenario import Scenario
from loadtest.sweep import SCALES, Bounds, Probe, sweep

_SEEDS_APART = 1000


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All that a sweep found.

    Attributes:
        goodput: scale of the targets -> requests/s.
        workers: worker -> what it is; empty: nobody was asked.
        blocks_held: worker -> KV blocks in use after the last run; None: nobody was asked.
        warnings: what the reader must know before believing the figures.
    """

    name: str
    scenario: Scenario
    targets: Targets
    bounds: Bounds
    goodput: dict[float, float]
    probes: list[Probe]
    environment: dict[str, str]
    warnings: list[str]
    workers: dict[str, str]
    blocks_held: dict[str, int] | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_scenario_flags(parser)
    add_judgement_flags(parser)
    search = parser.add_argument_group("search (--rate is where it begins)")
    search.add_argument("--share", type=float, default=0.9, help="that must meet the targets (default: 0.9)")
    search.add_argument("--precision", type=float, default=0.05, help="of the rate, relative (default: 0.05)")
    search.add_argument("--max-rate", type=float, default=1000.0, help="try no more, requests/s")
    search.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(SCALES),
        metavar="X",
        help=f"of the targets (default: {' '.join(map(str, SCALES))})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.trace or args.concurrency or args.ramp_to:
        raise UsageError("sweep: needs an open loop by rate, without trace, concurrency and ramp")
    args.rate = args.rate or 1.0
    if not args.duration_s:
        raise UsageError("sweep: needs --duration, the length of each run")
    targets, console = targets_of(args), Console()
    scales = sorted({*args.scales, 1.0})
    notes: list[str] = []
    number = itertools.count()

    async def probe(rate: float) -> Probe:
        # Prompts of its own: those of the run before are in the servers' prefix caches.
        seed = args.seed + _SEEDS_APART * next(number)
        scenario = scenario_of(args, rate=rate, seed=seed)
        with LiveProgress(console, scenario, args.processes, enabled=not args.quiet) as live:
            done = await run_load(
                scenario, processes=args.processes, registry=registry_of(args), on_progress=live.update
            )
        notes.extend(f"at {rate:.3g}/s, {text}" for text in warnings(done.healths))
        found = {
            scale: measure(
                done.records,
                targets=targets.scaled(scale),
                warmup_s=scenario.warmup_s,
                window_s=scenario.duration_s,
            )
            for scale in scales
        }
        attainment = {scale: measures.attainment or 0.0 for scale, measures in found.items()}
        bounds = {scale: measures.attainment_bounds or (0.0, 1.0) for scale, measures in found.items()}
        made = Probe(rate, attainment, bounds, found[1.0])
        p99 = made.measures.ttft.at(99).value, made.measures.tpot.at(99).value
        console.print(
            f"{rate:8.3f} requests/s  {100 * attainment[1.0]:5.1f} % met "
            f"({100 * bounds[1.0][0]:.0f} to {100 * bounds[1.0][1]:.0f})   "
            f"p99 TTFT {1000 * p99[0]:.0f} ms, TPOT {1000 * p99[1]:.1f} ms",
            highlight=False,
        )
        return made

    limits = Bounds(start=args.rate, most=args.max_rate, precision=args.precision, share=args.share)
    goodput, probes = asyncio.run(sweep(probe, scales, limits))
    workers, held = asyncio.run(_ask(registry_of(args), notes))
    result = SweepResult(
        name=args.name or args.out.name,
        scenario=scenario_of(args),
        targets=targets,
        bounds=limits,
        goodput=goodput,
        probes=probes,
        environment=environment(),
        warnings=notes,
        workers=workers,
        blocks_held=held,
    )
    stem: Path = args.out
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_name(stem.name + ".json"), result)
    page = sweep_page(result.name, result.scenario, targets, args.share, goodput, probes, notes)
    stem.with_name(stem.name + ".html").write_text(page, encoding="utf-8")
    for scale, rate in goodput.items():
        scaled = targets.scaled(scale)
        console.print(
            f"goodput {rate:8.3f} requests/s at TTFT {1000 * scaled.ttft_s:g} ms, TPOT "
            f"{1000 * scaled.tpot_s:g} ms (scale {scale:g})",
            style="bold" if scale == 1.0 else "",
            highlight=False,
        )
    for text in notes:
        console.print(f"warning: {text}", style="yellow", highlight=False)
    console.print(f"written: {stem}.json, .html", highlight=False)
    left = {worker: blocks for worker, blocks in (held or {}).items() if blocks}
    if left:
        told = ", ".join(f"{worker} {blocks}" for worker, blocks in left.items())
        console.print(f"FAILED: KV blocks left: {told}", style="bold red", highlight=False)
    return 1 if left else 0


async def _ask(registry: str, notes: list[str]) -> tuple[dict[str, str], dict[str, int] | None]:
    """Return who served, and the blocks that they hold."""
    if not registry:
        return {}, None
    try:
        return await served_by(registry), await blocks_held(registry)
    except RequestError as error:
        notes.append(f"a check could not be made: {error}")
        return {}, None
