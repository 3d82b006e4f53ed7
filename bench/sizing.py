"""`baton loadtest size` beside real runs: what it predicts for three traces, and what a cluster then did.

    python -m bench.sizing --traces DIR --out DIR

One prefill and one decode worker of one thread each. Every run is verified: a wrong answer fails the bench.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from baton.cluster import LocalCluster


@dataclass(frozen=True, slots=True)
class Case:
    """A trace and how it is made to fit this machine."""

    name: str
    file: str
    time_scale: float
    length_scale: float
    max_input: int = 1024
    max_output: int = 256


CASES = (
    Case("Azure conversation", "azure_llm_2023_conv.csv", 1.0, 0.1),
    Case("Azure code", "azure_llm_2023_code.csv", 0.5, 0.05),
    Case("Mooncake conversation", "mooncake_conversation_trace.jsonl", 2.5, 0.03),
)
TARGET_TTFT, TARGET_TPOT = "1.0", "0.06"
WITHIN = 0.15


def main() -> int:
    """Run all; returns 1 if a mean is off by more than 15 %."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True, help="folder with the three traces")
    parser.add_argument("--out", type=Path, required=True, help="folder for profile, results and figures")
    parser.add_argument("--duration", type=float, default=90.0, help="seconds of each trace")
    parser.add_argument("--profile", type=Path, help="one measured before")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    profile: Path = args.profile or args.out / "profile.json"
    flags = ["--threads", "1"]
    rows = []
    with LocalCluster(prefill=1, decode=1, prefill_args=flags, decode_args=flags) as cluster:
        target = f"grpc://{cluster.gateway_address}"
        if args.profile is None:
            # The two share this machine.
            loadtest("profile", target, "--together", "--out", str(profile))
        for case in CASES:
            rows.append(measure(case, target, profile, args))
    print("\n| trace | requests | figure | predicted | measured | off by |\n|---|---|---|---|---|---|")
    worst = 0.0
    for case, requests, predicted, measured in rows:
        for name in ("ttft_mean", "tpot_mean", "output_rate"):
            off = predicted[name] / measured[name] - 1
            worst = max(worst, abs(off))
            cells = [case.name, str(requests), name, show(name, predicted), show(name, measured)]
            print("| " + " | ".join([*cells, f"{100 * off:+.1f} %"]) + " |")
    return 1 if worst > WITHIN else 0


def measure(
    case: Case, target: str, profile: Path, args: argparse.Namespace
) -> tuple[Case, int, dict[str, float], dict[str, float]]:
    """Replay one trace, then let `size` predict it and split eight workers."""
    stem = args.out / case.file.partition(".")[0]
    load = [
        *("--trace", str(args.traces / case.file), "--time-scale", str(case.time_scale)),
        *("--length-scale", str(case.length_scale), "--duration", str(args.duration)),
        *("--max-input", str(case.max_input), "--max-output", str(case.max_output)),
    ]
    judged = ["--target-ttft", TARGET_TTFT, "--target-tpot", TARGET_TPOT]
    # A seed of its own: prompts must not be cached from the run before.
    seed = ["--seed", str(100 + CASES.index(case))]
    loadtest("run", target, *load, *judged, *seed, "--verify", "20", "--out", str(stem), "--quiet")
    sized = ["size", "--profile", str(profile), *load, *judged]
    prediction = stem.with_name(stem.name + "-predicted.json")
    loadtest(*sized, "--predict", "1:1", "--beside", f"{stem}.json", "--json", str(prediction))
    loadtest(*sized, "--workers", "8", "--json", f"{stem}-split.json")
    figures = json.loads(prediction.read_text(encoding="utf-8"))
    requests = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))["measures"]["requests"]
    return case, requests, figures["predicted"], figures["measured"]


def loadtest(*arguments: str) -> None:
    """Run a command of the harness, as a user would; a failure ends the bench."""
    print(f"$ baton loadtest {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "loadtest", *arguments], check=True)


def show(name: str, figures: dict[str, float]) -> str:
    """Return a figure for people."""
    return f"{figures[name]:.1f} tok/s" if name == "output_rate" else f"{1000 * figures[name]:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
