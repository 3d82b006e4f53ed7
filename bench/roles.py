"""Co-located workers beside prefill + decode on this CPU: as many processes, as many threads, in turn.

    python -m bench.roles [--rounds 3] [--json out.json]

One cluster has a prefill and a decode worker, the other two co-located ones; both are up all the time, and
the one that is not asked does nothing. Prompts of 128 tokens, 64 out, greedy, through the gateway over gRPC,
1, 8 and 32 at a time; fresh prompts each round, the same for both. Answers are compared: they must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton import models
from baton.cluster import LocalCluster
from baton.generation import Answer
from bench.cluster import Prompts
from loadtest.environment import environment
from tests.support.traffic import complete_all

NUM_IN, NUM_OUT = 128, 64
COUNTS = {1: 2, 8: 16, 32: 32}


def answer(cluster: LocalCluster, prompts: list[list[int]], at_once: int) -> tuple[list[list[int]], float]:
    """Answer prompts; tokens, and tokens a second."""
    options = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_OUT}
    start = time.perf_counter()
    answers = asyncio.run(complete_all(cluster.gateway_address, prompts, at_once=at_once, **options))
    rate = len(prompts) * NUM_OUT / (time.perf_counter() - start)
    for one in answers:
        if not isinstance(one, Answer):
            raise one
    return [list(one.token_ids) for one in answers if isinstance(one, Answer)], rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default 1)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    flags = ["--threads", str(args.threads)]
    prompts = Prompts(models.fetch(progress=models.show_progress))
    rates: dict[int, dict[str, list[float]]] = {n: {"apart": [], "both": []} for n in COUNTS}
    with (
        LocalCluster(prefill=1, decode=1, prefill_args=flags, decode_args=flags) as apart,
        LocalCluster(prefill=0, decode=0, both=2, both_args=flags) as both,
    ):
        clusters = {"apart": apart, "both": both}
        for cluster in clusters.values():
            answer(cluster, prompts.take(4, NUM_IN), 4)
        for round_ in range(args.rounds):
            for at_once, count in COUNTS.items():
                batch = prompts.take(count, NUM_IN)
                given = {}
                for name in sorted(clusters, reverse=bool(round_ % 2)):
                    given[name], rate = answer(clusters[name], batch, at_once)
                    rates[at_once][name].append(rate)
                if given["apart"] != given["both"]:
                    raise SystemExit("the two clusters give different answers")
    table = Table(
        "at a time", "prefill + decode, tok/s", "2 co-located, tok/s", "ratio", title="128 in / 64 out"
    )
    figures = {}
    for at_once, found in rates.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        ratio = statistics.median(b / a for a, b in zip(found["apart"], found["both"], strict=True))
        figures[at_once] = medians | {"ratio": ratio}
        table.add_row(str(at_once), f"{medians['apart']:.1f}", f"{medians['both']:.1f}", f"{ratio:.2f}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
