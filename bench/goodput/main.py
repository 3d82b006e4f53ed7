"""Goodput of prefill + decode beside co-located workers, on as many GPUs: `python -m bench.goodput`.

Each cluster has real processes behind one gateway. Requests come at random (Poisson) whatever the servers
do, with the lengths of a trace (load "conversation") and 4,000 tokens in, 200 out ("long"); every cluster
gets the same requests at the same times. Goodput is the rate per GPU at which 90 % still meet a target of
TTFT and one of TPOT, linear between two measured rates. Of a ladder of rates those are measured, by
bisection, that tell most about the goodput at all the targets.

Every answer must have all its tokens, no request may fail but by a refusal, no KV block may be left, and a
few greedy prompts are asked alone (twice: equal) and in the middle of each load. The status is 1 if anything
is wrong. A process that dies, or a rate at which most requests fail, ends that load on that cluster.

`--budget` bounds the time, and each load on each cluster gets an equal part of it; `--plan` prints how far
that goes, `--only 1p1d conversation` chooses, and `--have` takes the points of earlier calls and goes on from
them. The file is written after every point. On two GPUs:

    python -m bench.goodput --shape llama-3.1-8b --trace azure_conv.csv --out goodput

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
from bench.goodput.cluster import Serving
from bench.goodput.options import loads_of, parser, targets_of
from bench.goodput.page import chart, results_page
from bench.goodput.plan import Load, parts, plan_lines
from bench.goodput.report import goodputs, markdown
from bench.goodput.results import Results, read_results
from bench.goodput.session import Session
from bench.goodput.shapes import SHAPES, write_shape
from loadtest.environment import environment
from loadtest.measures import Targets
from tests.support.byte_tokenizer import write_byte_tokenizer

_LIKE_VLLM = "llama-3.1-8b"  # the shape that the reference's figures are of


def main(argv: Sequence[str]) -> int:
    """Run it; returns 1 if anything was wrong."""
    begun = time.monotonic()
    args = parser(__doc__ or "").parse_args(argv)
    loads, targets = loads_of(args), targets_of(args)
    results = read_results(args.have)
    planned = parts(args.topologies, loads, args.only)
    wrong: list[str] = []
    if not args.report:
        print("\n".join(plan_lines(planned, args.start_s, args.budget)), flush=True)
    if args.plan:
        return 0
    if not args.report:
        results.runs.append(
            {"environment": _environment(), "command": shlex.join(argv), "settings": _settings(args)}
        )
        with tempfile.TemporaryDirectory(prefix="baton-goodput-") as scratch:
            session = Session(
                serving=_serving(args, Path(scratch)),
                planned=planned,
                targets=targets,
                share=args.share,
                results=results,
                start_s=args.start_s,
                end_s=begun + args.budget,
                logs=args.logs or Path(scratch),
                on_point=lambda: results.write(_file(args.out, "json")),
                say=lambda text: print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True),
            )
            session.run()
            wrong = session.wrong
    if results.points:
        _write(args, results, loads, targets)
        print(markdown(results, targets, args.share, beside_vllm=args.shape == _LIKE_VLLM))
    for text in wrong:
        print(f"WRONG  {text}", file=sys.stderr)
    return 1 if wrong else 0


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
        warm_batch=args.warm_batch,
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
    results.write(_file(args.out, "json"))
    titles = {load.name: load.title for load in loads}
    beside_vllm = args.shape == _LIKE_VLLM
    shown = results_page(results, titles, targets, args.share, beside_vllm=beside_vllm)
    _file(args.out, "html").write_text(shown, encoding="utf-8")
    if args.charts:
        args.charts.mkdir(parents=True, exist_ok=True)
        for load, _, name in dict.fromkeys(
            (load, "", name) for load, _, name in goodputs(results, list(targets), args.share)
        ):
            file = args.charts / f"goodput-{load}-{name.replace(' / ', '-').replace(' ', '')}.svg"
            file.write_text(chart(results, load, name, beside_vllm=beside_vllm), encoding="utf-8")


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")
