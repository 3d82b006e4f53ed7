"""Flags that say what to send and how to judge it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from loadtest.arrivals import ArrivalProcess
from loadtest.lengths import FORMS
from loadtest.measures import Targets
from loadtest.scenario import Scenario

_DEFAULTS = {entry.name: entry.default for entry in fields(Scenario)}


def add_scenario_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a Scenario is made of."""
    parser.add_argument(
        "target", help="http://host:port (OpenAI-compatible) or grpc://host:port (a Baton gateway)"
    )
    _flag(parser, "--model", "name to ask for (default: the only one)")
    _flag(parser, "--api", "HTTP: which API", choices=("completions", "chat"))
    _flag(parser, "--seed", "of every draw", type=int)
    _flag(parser, "--timeout", "give a request up after this, s", "timeout_s", type=float)
    _flag(parser, "--temperature", "0 is greedy", type=float)
    parser.add_argument(
        "--stop-at-eos", action="store_true", help="let answers end before their planned length"
    )

    when = parser.add_argument_group("when requests are sent (one of --concurrency, --rate, --trace)")
    _flag(when, "--concurrency", "closed loop: so many at a time", type=int)
    _flag(when, "--rate", "open loop: requests a second, whatever the server does", type=float)
    _flag(when, "--arrivals", "how gaps are drawn", choices=[kind.value for kind in ArrivalProcess])
    _flag(when, "--burstiness", "coefficient of variation of gamma's gaps; 1 is Poisson", type=float)
    _flag(when, "--ramp-to", "change the rate to this over the duration", type=float)
    _flag(when, "--trace", "replay: Azure .csv or Mooncake .jsonl", metavar="FILE")
    _flag(when, "--time-scale", "multiply the trace's times; 0.5 doubles its rate", type=float)
    _flag(when, "--length-scale", "multiply the trace's lengths, shared prefixes too", type=float)
    _flag(when, "--max-input", "cut longer prompts, tokens; 0: no limit", type=int)
    _flag(when, "--max-output", "cut longer answers, tokens; 0: no limit", type=int)
    _flag(when, "--duration", "send for so long, s", "duration_s", type=float)
    _flag(when, "--requests", "send so many", type=int)
    _flag(when, "--warmup", "send, but do not measure, what is due before this, s", "warmup_s", type=float)

    what = parser.add_argument_group("what is sent")
    _flag(what, "--input", f"tokens of a prompt: {FORMS}")
    _flag(what, "--output", "tokens of an answer, likewise")
    _flag(what, "--lengths", "draw both from a trace's rows, without its times", metavar="FILE")
    _flag(what, "--corpus", "cut prompts from the texts of a file or folder, not from random token ids")
    _flag(what, "--chars-per-token", "of the corpus", type=float)
    _flag(what, "--first-token", "lowest random token id", type=int)
    _flag(what, "--last-token", "highest random token id", type=int)
    _flag(what, "--distinct", "repeat prompts after so many; 0: each is its own", type=int)
    _flag(what, "--prefix-tokens", "leading tokens that prompts share", type=int)
    _flag(what, "--prefix-groups", "among how many prefixes", type=int)
    _flag(what, "--turns", "requests of a session, each prompt longer than the one before", type=int)
    _flag(what, "--think", "from an answer to the session's next request, s", "think_s", type=float)

    clients = parser.add_argument_group("ill-behaved clients")
    _flag(clients, "--cancel-share", "share that hangs up, 0 to 1", type=float)
    _flag(clients, "--slow-share", "share that reads slowly, 0 to 1", type=float)
    _flag(clients, "--slow-delay", "how long those wait after each read, s", "slow_delay_s", type=float)


def add_judgement_flags(parser: argparse.ArgumentParser) -> None:
    """Add targets, processes and where the result goes."""
    judge = parser.add_argument_group("measuring")
    judge.add_argument("--target-ttft", type=float, default=1.0, metavar="S", help="of goodput (default: 1)")
    judge.add_argument(
        "--target-tpot", type=float, default=0.05, metavar="S", help="of goodput (default: 0.05)"
    )
    judge.add_argument("--processes", type=int, default=1, help="generator processes (default: 1)")
    judge.add_argument(
        "--registry",
        default="",
        metavar="HOST:PORT",
        help="gRPC address of a Baton gateway to ask about workers and blocks (default: a grpc:// target)",
    )
    judge.add_argument("--out", type=Path, default=Path("loadtest-result"), help="stem of the result's files")
    judge.add_argument("--name", default="", help="what to call it (default: the stem's name)")
    judge.add_argument("--quiet", action="store_true", help="no live progress")


def scenario_of(args: argparse.Namespace, **changes: float) -> Scenario:
    """Return the scenario that the flags describe.

    Raises:
        UsageError: they contradict each other.
    """
    values = {entry.name: getattr(args, entry.name) for entry in fields(Scenario)}
    return Scenario(**{**values, **changes})


def targets_of(args: argparse.Namespace) -> Targets:
    """Return the targets of goodput."""
    return Targets(args.target_ttft, args.target_tpot)


def registry_of(args: argparse.Namespace) -> str:
    """Return whom to ask about workers; empty: nobody."""
    target: str = args.target
    return args.registry or (target.removeprefix("grpc://") if target.startswith("grpc://") else "")


def _flag(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    name: str,
    text: str,
    field: str = "",
    **options: object,
) -> None:
    """Add the flag of a scenario's field, with the field's default."""
    field = field or name.removeprefix("--").replace("-", "_")
    default = _DEFAULTS[field]
    shown = f" (default: {default})" if default and "default" not in text else ""
    if "type" in options:
        options.setdefault("metavar", "N" if options["type"] is int else "X")
    parser.add_argument(name, dest=field, default=default, help=(text + shown).replace("%", "%%"), **options)  # type: ignore[arg-type]
