"""`loadtest run`: one load, measured, checked and written down."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from rich.console import Console

from baton.errors import RequestError
from loadtest.environment import environment
from loadtest.errors import LoadTestError, UsageError
from loadtest.health import warnings
from loadtest.leftovers import blocks_held, served_by
from loadtest.measures import measure
from loadtest.options import add_judgement_flags, add_scenario_flags, registry_of, scenario_of, targets_of
from loadtest.progress import LiveProgress, show
from loadtest.report.run_page import run_page
from loadtest.result import Result, write_json, write_records
from loadtest.run import Run
from loadtest.run import run as run_load
from loadtest.scenario import Scenario
from loadtest.verify import Verification, verify

MIN_WIDTH = 110  # a cut figure is worse than a wrapped line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_scenario_flags(parser)
    add_judgement_flags(parser)
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--verify",
        type=int,
        nargs="?",
        const=1_000_000,
        default=0,
        metavar="N",
        help="ask at most N of the prompts again, alone, and compare: a different answer fails the run",
    )
    checks.add_argument(
        "--verify-salt",
        default="loadtest-verify",
        metavar="SALT",
        help="cache_salt of those; empty for servers that know none (default: loadtest-verify)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    scenario = scenario_of(args)
    if args.verify and scenario.temperature:
        raise UsageError("verify: needs greedy answers (--temperature 0)")
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    with LiveProgress(console, scenario, args.processes, enabled=not args.quiet) as live:
        done = asyncio.run(
            run_load(
                scenario,
                processes=args.processes,
                keep_answers=args.verify > 0,
                registry=registry_of(args),
                on_progress=live.update,
            )
        )
        live.say("checking the answers" if args.verify else "")
        result = asyncio.run(_judge(args, scenario, done))
    stem: Path = args.out
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_records(stem.with_name(stem.name + ".jsonl"), done.records)
    write_json(stem.with_name(stem.name + ".json"), result)
    page = stem.with_name(stem.name + ".html")
    page.write_text(run_page(result, done.records), encoding="utf-8")
    show(console, result)
    console.print(f"written: {stem}.json, .jsonl, .html", highlight=False)
    return 1 if result.failures else 0


async def _judge(args: argparse.Namespace, scenario: Scenario, done: Run) -> Result:
    registry = registry_of(args)
    held: dict[str, int] | None = None
    workers: dict[str, str] = {}
    verification: Verification | None = None
    notes = warnings(done.healths)
    try:
        if registry:
            held, workers = await blocks_held(registry), await served_by(registry)
        if args.verify:
            verification = await verify(
                scenario, done.records, most_prompts=args.verify, salt=args.verify_salt
            )
    except (RequestError, LoadTestError) as error:
        notes.append(f"a check could not be made: {error}")
    window_s = scenario.duration_s if scenario.is_open_loop and not scenario.trace else 0.0
    measures = measure(
        done.records,
        targets=targets_of(args),
        warmup_s=scenario.warmup_s,
        window_s=window_s or None,
    )
    return Result(
        name=args.name or args.out.name,
        scenario=scenario,
        measures=measures,
        started_unix_s=done.started_unix_s,
        wall_s=done.wall_s,
        environment=environment(),
        workers=workers,
        healths=done.healths,
        warnings=notes,
        verification=verification,
        blocks_held=held,
        samples=done.samples,
    )
