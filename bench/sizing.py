"""`baton loadtest size` beside real runs: what it predicts for three traces, and what a cluster then did.

    python -m bench.sizing --traces DIR --out DIR

One prefill and one decode worker of one thread each. Every run is verified: a wrong answer fails the bench.
A machine's speed drifts by more in a quarter of an hour than predictions may be off, and a queue doubles what
it drifts; so the cluster is profiled before and after each run, and predicted by the mean of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
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
    Case("Azure conversation", "azure_llm_2023_conv.csv", 1.2, 0.1),
    Case("Azure code", "azure_llm_2023_code.csv", 1.5, 0.08),
    Case("Mooncake conversation", "mooncake_conversation_trace.jsonl", 3.0, 0.02),
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
    parser.add_argument("--duration", type=float, default=150.0, help="seconds of each trace")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    flags = ["--threads", "1"]
    rows = []
    with LocalCluster(prefill=1, decode=1, prefill_args=flags, decode_args=flags) as cluster:
        target = f"grpc://{cluster.gateway_address}"
        profiles = [profile(target, 0, args.out)]
        for number, case in enumerate(CASES, start=1):
            replay(case, target, args)
            profiles.append(profile(target, number, args.out))
            rows.append(predict(case, profiles[-2:], args))
    print("\n| trace | requests | figure | predicted | measured | off by |\n|---|---|---|---|---|---|")
    worst = 0.0
    for case, requests, predicted, measured in rows:
        for name in ("ttft_mean", "tpot_mean", "output_rate"):
            off = predicted[name] / measured[name] - 1
            worst = max(worst, abs(off))
            cells = [case.name, str(requests), name, show(name, predicted), show(name, measured)]
            print("| " + " | ".join([*cells, f"{100 * off:+.1f} %"]) + " |")
    return 1 if worst > WITHIN else 0


def profile(target: str, number: int, out: Path) -> Path:
    """Measure what a worker of each kind needs now; the two share this machine."""
    file = out / f"profile-{number}.json"
    # A seed of its own each time: prompts must not be cached.
    loadtest("profile", target, "--together", "--seed", str(number + 1), "--out", str(file))
    return file


def replay(case: Case, target: str, args: argparse.Namespace) -> None:
    """Replay one trace."""
    how = ["--seed", str(100 + CASES.index(case)), "--verify", "20", "--quiet"]
    loadtest("run", target, *flags_of(case, args), *how, "--out", stem(case, args))


def predict(
    case: Case, profiles: Sequence[Path], args: argparse.Namespace
) -> tuple[Case, int, dict[str, float], dict[str, float]]:
    """Let `size` predict that run, and split eight workers, or not, for its load."""
    sized = ["size", "--profile", *map(str, profiles), *flags_of(case, args)]
    measured, prediction = Path(stem(case, args) + ".json"), Path(stem(case, args) + "-predicted.json")
    loadtest(*sized, "--predict", "1:1", "--beside", str(measured), "--json", str(prediction))
    loadtest(*sized, "--workers", "8", "--json", stem(case, args) + "-split.json")
    figures = json.loads(prediction.read_text(encoding="utf-8"))
    requests = json.loads(measured.read_text(encoding="utf-8"))["measures"]["requests"]
    return case, requests, figures["predicted"], figures["measured"]


def stem(case: Case, args: argparse.Namespace) -> str:
    """Return what the names of a case's files begin with."""
    return str(args.out / case.file.partition(".")[0])


def flags_of(case: Case, args: argparse.Namespace) -> list[str]:
    """Return the flags of a load and its targets, which `run` and `size` have in common."""
    return [
        *("--trace", str(args.traces / case.file), "--time-scale", str(case.time_scale)),
        *("--length-scale", str(case.length_scale), "--duration", str(args.duration)),
        *("--max-input", str(case.max_input), "--max-output", str(case.max_output)),
        *("--target-ttft", TARGET_TTFT, "--target-tpot", TARGET_TPOT),
    ]


def loadtest(*arguments: str) -> None:
    """Run a command of the harness, as a user would; a failure ends the bench."""
    print(f"$ baton loadtest {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "loadtest", *arguments], check=True)


def show(name: str, figures: dict[str, float]) -> str:
    """Return a figure for people."""
    return f"{figures[name]:.1f} tok/s" if name == "output_rate" else f"{1000 * figures[name]:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
