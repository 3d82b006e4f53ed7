"""Flags, and the loads and targets that they describe."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bench.goodput.plan import Load, Topology
from bench.goodput.report import target_name
from bench.goodput.shapes import SHAPES
from loadtest.measures import Targets

_CONVERSATION = (6, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22)
_LONG = (1.8, 2.2, 2.7, 3.1, 3.4, 3.7, 4, 4.3, 4.6, 5, 5.5, 6)
# (TTFT, s; TPOT, ms)
_TARGETS = ("1/20", "0.5/15", "0.5/10")


def parser(text: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(
        prog="python -m bench.goodput", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument_group("what is served").add_argument
    add(
        "--shape",
        choices=sorted(SHAPES),
        default="",
        help="random weights of this shape, drawn where it is served",
    )
    add("--model", default="", help="instead of it: a directory or a name (default: the default model)")
    add("--tokenizer", default="", metavar="DIR", help="where tokenizer.json is (default: beside the model)")
    add("--backend", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    add("--gpus", type=int, nargs="+", default=[0, 1], help="that workers get by turns (default: 0 1)")
    add(
        "--topologies", type=Topology.parse, nargs="+", metavar="T",
        default=[Topology.parse("1p1d"), Topology.parse("2b")],
        help="clusters: 1p1d is 1 prefill + 1 decode, 2b two co-located workers (default: both)",
    )  # fmt: skip
    for name in ("gateway", "worker", "prefill", "decode", "both"):
        add(
            f"--{name}-args",
            type=shlex.split,
            default=[],
            metavar="FLAGS",
            help=f"more flags: --{name}-args='--x 1'",
        )
    add("--gateway-processes", type=int, default=0, help="(default: one for 16 cores)")

    add = made.add_argument_group("what is sent").add_argument
    add(
        "--trace",
        default="",
        metavar="FILE",
        help="lengths of the load conversation; without it there is none",
    )
    add("--length-scale", type=float, default=1.0, help="of the trace's lengths (default: 1)")
    add(
        "--max-input", type=int, default=0, help="cut longer prompts of the trace, tokens (default: no limit)"
    )
    add(
        "--max-output",
        type=int,
        default=0,
        help="cut longer answers of the trace, tokens (default: no limit)",
    )
    add("--input", default="4000", help="prompts of the load long (default: 4000)")
    add("--output", default="200", help="answers of the load long (default: 200)")
    add(
        "--conversation-rates",
        type=float,
        nargs="+",
        default=list(_CONVERSATION),
        metavar="R",
        help=f"per GPU, of which some are measured (default: {' '.join(map(str, _CONVERSATION))})",
    )
    add(
        "--long-rates",
        type=float,
        nargs="+",
        default=list(_LONG),
        metavar="R",
        help=f"likewise (default: {' '.join(map(str, _LONG))})",
    )
    add("--warmup", type=float, default=3.0, help="seconds at each rate that do not count (default: 3)")
    add("--window", type=float, default=0.0, help="seconds that do (default: 15; 20 of the load long)")
    add("--cooldown", type=float, default=2.0, help="seconds after it, under load still (default: 2)")
    add("--timeout", type=float, default=60.0, help="give a request up after so many seconds (default: 60)")
    add(
        "--warm-batch",
        type=int,
        default=128,
        help="decode batches up to this are run before anything is measured (default: 128)",
    )
    add("--generators", type=int, default=0, help="processes that send (default: one for 4 cores, at most 8)")

    add = made.add_argument_group("how it is judged and cut into parts").add_argument
    add(
        "--targets",
        nargs="+",
        default=list(_TARGETS),
        metavar="S/MS",
        help=f"TTFT/TPOT (default: {' '.join(_TARGETS)})",
    )
    add("--share", type=float, default=0.9, help="of the requests that must meet them (default: 0.9)")
    add("--only", nargs="+", default=[], metavar="NAME", help="clusters and loads, such as 1p1d conversation")
    add("--have", type=Path, nargs="+", default=[], metavar="JSON", help="earlier results, to go on from")
    add("--plan", action="store_true", help="print what would be done in the time, and end")
    add("--report", action="store_true", help="measure nothing: put the results of --have together")
    add("--budget", type=float, default=540.0, help="begin nothing that would end later, s (default: 540)")
    add("--start-s", type=float, default=30.0, help="expected time of a start and its warm-up (default: 30)")
    add(
        "--start-timeout",
        type=float,
        default=120.0,
        help="give a start up after so many seconds (default: 120)",
    )
    add("--logs", type=Path, help="folder for the processes' logs (default: a temporary one)")
    add(
        "--out", type=Path, default=Path("goodput"), help="stem of the .json and the .html (default: goodput)"
    )
    add("--charts", type=Path, metavar="DIR", help="write SVG charts for a document here")
    return made


def loads_of(args: argparse.Namespace) -> list[Load]:
    """Return the loads that the flags describe."""
    times = {"warmup_s": args.warmup, "cooldown_s": args.cooldown, "timeout_s": args.timeout}
    loads = []
    if args.trace:
        loads.append(
            Load(
                "conversation",
                f"lengths of {Path(args.trace).name}"
                + ("" if args.length_scale == 1 else f" x {args.length_scale:g}"),
                tuple(args.conversation_rates),
                lengths=args.trace,
                length_scale=args.length_scale,
                max_input=args.max_input,
                max_output=args.max_output,
                window_s=args.window or 15.0,
                **times,
            )
        )
    loads.append(
        Load(
            "long",
            f"{args.input} tokens in, {args.output} out",
            tuple(args.long_rates),
            args.input,
            args.output,
            window_s=args.window or 20.0,
            **times,
        )
    )
    return loads


def targets_of(args: argparse.Namespace) -> dict[str, Targets]:
    """Return the targets by their names."""
    found = [
        Targets(float(ttft), float(tpot) / 1000)
        for ttft, _, tpot in (text.partition("/") for text in args.targets)
    ]
    return {target_name(targets): targets for targets in found}
