"""Goodput of prefill + decode beside co-located workers, on as many GPUs: `python -m bench.goodput`.

Each cluster has real processes behind one gateway. Requests come at random (Poisson) whatever the servers
do, with the lengths of a trace (load "conversation") and 4,000 tokens in, 200 out ("long"), at a ladder of
rates per GPU; every cluster gets the same requests at the same times. Goodput is the rate at which 90 % still
meet a target of TTFT and one of TPOT, linear between two measured rates.

Every answer must have all its tokens, no request may fail but by a refusal, no KV block may be left, and a
few greedy prompts are asked alone (twice: equal) and in the middle of each load. The status is 1 if anything
is wrong. A process that dies, or a rate at which most requests fail, ends the bench with the end of the logs.

It runs in parts: `--plan` prints them with their times, `--only 1p1d conversation` chooses, `--budget` bounds
the time, and `--have` takes the points of earlier calls, which are not measured again. The file is written
after every point. On two GPUs:

    python -m bench.goodput --shape llama-3.1-8b --trace azure_conv.csv --only 1p1d --out goodput

Without one: --backend cpu --shape tiny --conversation-rates 2 4 --window 5 ...
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from baton import models
from baton.errors import ClusterError
from bench.goodput.cluster import Measured, Serving, started
from bench.goodput.options import loads_of, parser, targets_of
from bench.goodput.page import chart, results_page
from bench.goodput.plan import Load, Step, Topology, plan_lines, steps
from bench.goodput.report import goodputs, markdown
from bench.goodput.results import Results, read_results
from bench.goodput.shapes import SHAPES, write_shape
from loadtest.environment import environment
from loadtest.measures import Targets
from tests.support.byte_tokenizer import write_byte_tokenizer


def main(argv: Sequence[str]) -> int:
    """Run it; returns 1 if anything was wrong."""
    begun = time.monotonic()
    args = parser(__doc__ or "").parse_args(argv)
    loads, targets = loads_of(args), targets_of(args)
    results = read_results(args.have)
    planned = steps(args.topologies, loads, args.only, results.points)
    print("\n".join(plan_lines(planned, args.start_s)), flush=True)
    if args.plan:
        return 0
    wrong: list[str] = []
    if planned and not args.report:
        results.runs.append(
            {"environment": _environment(), "command": shlex.join(argv), "settings": _settings(args)}
        )
        with tempfile.TemporaryDirectory(prefix="baton-goodput-") as scratch:
            bench = _Bench(args, Path(scratch), loads, targets, results, begun)
            try:
                for topology in dict.fromkeys(step.topology for step in planned):
                    bench.run(topology, [step for step in planned if step.topology == topology])
            except ClusterError as error:
                wrong.append(str(error))
            wrong += bench.wrong
    if results.points:
        _write(args, results, loads, targets)
        print(markdown(results, targets, args.share))
    for text in wrong:
        print(f"WRONG  {text}", file=sys.stderr)
    return 1 if wrong else 0


class _Bench:
    """One call's measuring; `wrong` says what must not be."""

    def __init__(
        self,
        args: argparse.Namespace,
        scratch: Path,
        loads: Sequence[Load],
        targets: dict[str, Targets],
        results: Results,
        begun: float,
    ) -> None:
        self._args = args
        self._scratch = scratch
        self._loads = loads
        self._targets = targets
        self._results = results
        self._begun = begun
        self._serving = _serving(args, scratch)
        self.wrong: list[str] = []

    def run(self, topology: Topology, planned: Sequence[Step]) -> None:
        """Start a cluster and measure its steps."""
        if not self._fits(self._args.start_s + planned[0].load.usual_s):
            print(f"{topology.name}: left out, --budget would not last", flush=True)
            return
        begun = time.monotonic()
        with started(self._serving, topology, self._args.logs or self._scratch) as cluster:
            self._say(f"{topology.title}: ready after {time.monotonic() - begun:.1f} s")
            measured = Measured(self._serving, topology, cluster, self._targets, len(self._results.runs) - 1)
            wanted = {step.load for step in planned}
            alone = measured.warm_up([load for load in self._loads if load in wanted])
            if alone.equal != alone.asked:
                self.wrong.append(
                    f"{topology.name}: {alone.asked - alone.equal} of {alone.asked} prompts, asked alone "
                    "twice, got two answers"
                )
            self._say(f"warm; {alone.equal} of {alone.asked} prompts asked alone got the same answer twice")
            for load in dict.fromkeys(step.load for step in planned):
                self._ladder(measured, [step for step in planned if step.load == load])

    def _ladder(self, measured: Measured, planned: Sequence[Step]) -> None:
        for number, step in enumerate(planned):
            if not self._fits(step.load.usual_s):
                rates = ", ".join(f"{left.rate:g}" for left in planned[number:])
                self._say(f"{step.load.name}: left out {rates}: --budget would not last")
                return
            point = measured.measure(step)
            self._results.add(point)
            self._results.write(self._args.out.with_name(self._args.out.name + ".json"))
            shares = {name: point.share(name) for name in self._targets}
            self._say(
                f"{step.topology.name} {step.load.name} at {step.rate:g}: "
                + ", ".join(f"{100 * share:.1f} % within {name}" for name, share in shares.items())
                + f"; TTFT {point.ms('ttft', 'p50'):.0f} / {point.ms('ttft', 'p99'):.0f}, "
                f"TPOT {point.ms('tpot', 'p50'):.1f} / {point.ms('tpot', 'p99'):.1f}, "
                f"worst gap {point.ms('worst_gap', 'p50'):.1f} / {point.ms('worst_gap', 'p99'):.1f} ms; "
                f"{point.requests} requests, {point.failed} failed, "
                f"{point.refused} refused, {point.given_up} given up; "
                f"{point.agreement.equal} of {point.agreement.asked} answers as alone; {point.wall_s:.0f} s"
            )
            for text in point.warnings:
                self._say(f"  warning: {text}")
            self.wrong += point.wrong(exact=self._serving.exact)
            if max(shares.values()) < self._args.stop_below and number + 1 < len(planned):
                self._say(f"{step.load.name}: higher rates left out: every target is missed by far")
                return

    def _fits(self, seconds: float) -> bool:
        return bool(time.monotonic() - self._begun + seconds <= self._args.budget)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begun:5.0f} s] {text}", flush=True)


def _serving(args: argparse.Namespace, scratch: Path) -> Serving:
    if args.shape:
        model = str(write_shape(args.shape, scratch / "model"))
        vocab_size = SHAPES[args.shape]["vocab_size"]
        assert isinstance(vocab_size, int)
        tokenizer = str(write_byte_tokenizer(scratch / "tokenizer", vocab_size=vocab_size))
    else:
        model = str(models.resolve(args.model or models.DEFAULT_MODEL, models.show_progress))
        tokenizer = args.tokenizer
    is_cpu = args.backend == "cpu"
    cores = len(os.sched_getaffinity(0))
    return Serving(
        model=model,
        tokenizer=tokenizer,
        gpus=() if is_cpu else tuple(args.gpus),
        gateway_processes=args.gateway_processes or max(1, cores // 16),
        gateway_args=tuple(args.gateway_args),
        worker_args=("--backend", args.backend, *args.worker_args),
        role_args={role: tuple(getattr(args, f"{role}_args")) for role in ("prefill", "decode", "both")},
        generators=args.generators or max(1, min(8, cores // 4)),
        start_timeout_s=args.start_timeout,
        exact=is_cpu or "--batch-invariant" in args.worker_args,
    )


def _environment() -> dict[str, str]:
    facts = environment()
    # A copy of the tree, as on a borrowed machine, does not know its own commit.
    facts["commit"] = os.environ.get("BATON_COMMIT") or facts.get("commit", "unknown")
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
            facts["gpu"] = "; ".join(out.splitlines())
    return facts


def _settings(args: argparse.Namespace) -> dict[str, object]:
    names = ("shape", "model", "backend", "gpus", "gateway_processes", "generators")
    flags = ("gateway_args", "worker_args", "prefill_args", "decode_args", "both_args")
    return {name: getattr(args, name) for name in (*names, *flags)}


def _write(
    args: argparse.Namespace, results: Results, loads: Sequence[Load], targets: dict[str, Targets]
) -> None:
    stem: Path = args.out
    results.write(stem.with_name(stem.name + ".json"))
    titles = {load.name: load.title for load in loads}
    beside_vllm = args.shape == "llama-3.1-8b"
    shown = results_page(results, titles, targets, args.share, beside_vllm=beside_vllm)
    stem.with_name(stem.name + ".html").write_text(shown, encoding="utf-8")
    if args.charts:
        args.charts.mkdir(parents=True, exist_ok=True)
        for load, _, name in dict.fromkeys(
            (load, "", name) for load, _, name in goodputs(results, list(targets), args.share)
        ):
            file = args.charts / f"goodput-{load}-{name.replace(' / ', '-').replace(' ', '')}.svg"
            file.write_text(chart(results, load, name, beside_vllm=beside_vllm), encoding="utf-8")
