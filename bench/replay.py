"""Azure's conversation trace against a local cluster for ten minutes; some clients hang up or read slowly.

    python -m bench.replay --trace azure_llm_2023_conv.csv --out DIR

One gateway, two prefill and two decode workers of one thread each; times and lengths are scaled to fit two
cores. Every answer is compared with what its prompt gets alone. Fails on a wrong answer, on an error that is
no refusal, and on a KV block that is left. With Chromium it takes a picture of the report too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from baton.cluster import LocalCluster

REFUSALS = {"QUEUE_FULL", "OUT_OF_BLOCKS", "RATE_LIMITED"}


def main() -> int:
    """Run it; returns 1 if it failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="stem of the report's files")
    parser.add_argument("--duration", type=float, default=600.0, help="seconds (default: 600)")
    parser.add_argument("--time-scale", type=float, default=5.0)
    parser.add_argument("--length-scale", type=float, default=0.15)
    parser.add_argument(
        "--verify", type=int, default=1_000_000, metavar="N", help="at most N prompts (default: all)"
    )
    args = parser.parse_args()
    threads = ["--threads", "1"]
    with LocalCluster(prefill=2, decode=2, prefill_args=threads, decode_args=threads) as cluster:
        status = subprocess.run(
            [
                *(sys.executable, "-m", "loadtest", "run", f"grpc://{cluster.gateway_address}"),
                *("--trace", str(args.trace), "--duration", str(args.duration)),
                *("--time-scale", str(args.time_scale), "--length-scale", str(args.length_scale)),
                *("--cancel-share", "0.05", "--slow-share", "0.02", "--verify", str(args.verify)),
                *("--target-ttft", "1", "--target-tpot", "0.1", "--seed", "22"),
                *("--name", "Azure conversation, 2 prefill + 2 decode", "--out", str(args.out), "--quiet"),
            ]
        ).returncode
    measures = json.loads(args.out.with_name(args.out.name + ".json").read_text(encoding="utf-8"))["measures"]
    errors = {reason: count for reason, count in measures["errors"].items() if reason not in REFUSALS}
    print(f"errors that are no refusals: {errors or 'none'}")
    picture(args.out.with_name(args.out.name + ".html"), args.out.with_name(args.out.name + ".png"))
    return 1 if status or errors else 0


def picture(page: Path, to: Path) -> None:
    """Show a page to Chromium, if there is one, and keep what it looks like."""
    browser = shutil.which("chromium")
    if browser is None:
        print("no Chromium: no picture")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = window.new_page(viewport={"width": 1100, "height": 1400})
        view.goto(page.resolve().as_uri())
        view.screenshot(path=to)
        window.close()


if __name__ == "__main__":
    sys.exit(main())
