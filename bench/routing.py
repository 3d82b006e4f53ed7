"""Routing on recorded traffic, simulated: `python -m bench.routing --traces DIR`.

8 prefill and 8 decode workers serve a Mooncake trace; see routing_simulation.py for what is
real in it. DIR holds mooncake_conversation_trace.jsonl and mooncake_synthetic_trace.jsonl
(https://github.com/kvcache-ai/Mooncake, FAST25-release/traces; Apache-2.0). Policies differ
in the choice alone:

    round robin    in turn
    affinity       the longest cached prefix, whatever the load
    load           Baton's routing, told of no cached prefix
    baton          Baton's routing

Caches are unbounded, or each holds a tenth of the trace's distinct blocks, or all together do; said
with each is how busy the prefill workers would be with that shared cache, above 100 % queues only grow.
Printed: prompt tokens found in prefill's caches, as a share of all and of what one cache would
have found that is as large as all of them and sees every prompt in order; the hottest worker's
computed tokens over the mean; time to the first token; for decode, tokens that need not be sent,
and the hottest worker's generated tokens over the mean.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.routing_simulation import (
    BLOCK_SIZE,
    NUM_WORKERS,
    Outcome,
    PickDecode,
    PickPrefill,
    Simulation,
    TracePrompt,
)
from services.gateway.routing import DecodeFacts, PrefillFacts, pick_decode, pick_prefill

TRACES = ("conversation", "synthetic")
# Blocks of a worker's cache, of the distinct blocks of a trace.
SIZES: dict[str, Callable[[int], int]] = {
    "unbounded": lambda distinct: 2 * distinct,
    "a tenth each": lambda distinct: distinct // 10,
    "a tenth together": lambda distinct: distinct // 10 // NUM_WORKERS,
}


def in_turn(workers: Sequence[DecodeFacts | PrefillFacts], num_tokens: int) -> int:
    return min(range(len(workers)), key=lambda i: workers[i].last_pick)


def longest_prefix(workers: Sequence[DecodeFacts | PrefillFacts], num_tokens: int) -> int:
    return max(range(len(workers)), key=lambda i: (workers[i].cached_tokens, -workers[i].last_pick))


def decode_by_load(workers: Sequence[DecodeFacts], num_tokens: int) -> int:
    return pick_decode([replace(worker, cached_tokens=0) for worker in workers], num_tokens)


def prefill_by_load(workers: Sequence[PrefillFacts], num_tokens: int) -> int:
    return pick_prefill([replace(worker, cached_tokens=0) for worker in workers], num_tokens)


POLICIES: dict[str, tuple[PickDecode, PickPrefill]] = {
    "round robin": (in_turn, in_turn),
    "affinity": (longest_prefix, longest_prefix),
    "load": (decode_by_load, prefill_by_load),
    "baton": (pick_decode, pick_prefill),
}


def read_trace(path: Path) -> list[TracePrompt]:
    """Read a Mooncake trace; only full blocks can be cached, so a partial one at the end is dropped."""
    prompts = []
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            ids = row["hash_ids"][: row["input_length"] // BLOCK_SIZE]
            names = tuple(block_id.to_bytes(16, "little") for block_id in ids)
            at_s = row["timestamp"] / 1000
            prompts.append(TracePrompt(at_s, row["input_length"], row["output_length"], names))
    return prompts


def shared_hits(prompts: Sequence[TracePrompt], num_blocks: int) -> int:
    """Return the tokens that one least-recently-used cache for all prompts would find."""
    cache: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for prompt in prompts:
        found = sum(1 for _ in itertools.takewhile(cache.__contains__, prompt.names))
        hits += min(found * BLOCK_SIZE, prompt.num_tokens - 1)
        # The tail first, so that a prefix outlives what follows it, as in the engine.
        for name in reversed(prompt.names):
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > num_blocks:
            cache.popitem(last=False)
    return hits


def busy_share(prompts: Sequence[TracePrompt], hits: int, tokens_per_s: float) -> float:
    """Return the share of the trace's time for which the prefill workers compute."""
    span_s = prompts[-1].at_s - prompts[0].at_s
    return (sum(prompt.num_tokens for prompt in prompts) - hits) / (span_s * tokens_per_s * NUM_WORKERS)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def show(policy: str, outcome: Outcome, tokens: int, shared: int) -> None:
    print(
        f"| {policy:<11} | {outcome.prefill_hits / tokens:6.1%} | {outcome.prefill_hits / shared:6.1%} "
        f"| {outcome.prefill_hottest:5.2f} | {percentile(outcome.ttft_s, 0.5):6.2f} "
        f"| {percentile(outcome.ttft_s, 0.99):7.2f} | {outcome.decode_hits / tokens:6.1%} "
        f"| {outcome.decode_hits / shared:6.1%} | {outcome.decode_hottest:5.2f} |"
    )


def progress_of(label: str) -> Callable[[float], None]:
    """Return what shows a share done on a terminal, and nothing elsewhere."""

    def show_share(share: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{label} {share:4.0%} ", end="\r", file=sys.stderr, flush=True)

    return show_share


def run(
    name: str,
    prompts: Sequence[TracePrompt],
    tokens_per_s: float,
    sizes: Sequence[str],
    policies: Sequence[str],
) -> None:
    """Print one trace's tables."""
    tokens = sum(prompt.num_tokens for prompt in prompts)
    distinct = len({block for prompt in prompts for block in prompt.names})
    for caches in sizes:
        num_blocks = SIZES[caches](distinct)
        shared = shared_hits(prompts, num_blocks * NUM_WORKERS)
        print(
            f"\n{name}: {len(prompts)} prompts, {distinct} blocks, caches: {caches}; "
            f"one shared cache finds {shared / tokens:.1%}, which leaves workers "
            f"{busy_share(prompts, shared, tokens_per_s):.0%} busy\n"
        )
        print(
            "| policy      | prefill hits | of shared | hottest | TTFT p50, s | p99 "
            "| decode hits | of shared | hottest |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for policy in policies:
            simulation = Simulation(prompts, num_blocks, tokens_per_s, *POLICIES[policy])
            show(policy, simulation.run(progress_of(f"{name}, {caches}, {policy}")), tokens, shared)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate routing on the Mooncake traces.")
    parser.add_argument("--traces", default=os.environ.get("BATON_TRACES", ""), help="or BATON_TRACES")
    parser.add_argument("--trace", choices=TRACES, action="append", help="default: both")
    parser.add_argument("--caches", choices=list(SIZES), action="append", help="default: all")
    parser.add_argument("--policy", choices=list(POLICIES), action="append", help="default: all")
    parser.add_argument("--tokens-per-s", type=float, default=5000.0, help="of one prefill worker")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    for name in args.trace or TRACES:
        path = Path(args.traces) / f"mooncake_{name}_trace.jsonl"
        if not args.traces or not path.is_file():
            print(f"skipped: {path.name} is not in --traces (or BATON_TRACES), which is {args.traces!r}")
            continue
        sizes = args.caches or list(SIZES)
        run(name, read_trace(path), args.tokens_per_s, sizes, args.policy or list(POLICIES))
    print(
        f"\n{time.monotonic() - started:.0f} s; each prefill worker computes {args.tokens_per_s:.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
