"""`loadtest profile`: what a worker of each kind needs for its work."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from loadtest.sizing.calibrate import Calibration


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("target", help="grpc://host:port of a gateway with one prefill and one decode worker")
    parser.add_argument("--most-input", type=int, default=1024, help="longest prompt tried (default: 1024)")
    parser.add_argument(
        "--together",
        action="store_true",
        help="the two share a machine: measure also how each slows the other one down",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of the prompts; another one if this cluster was measured before (default: 1)",
    )
    parser.add_argument("--out", type=Path, default=Path("profile.json"), help="file (default: profile.json)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    console = Console(highlight=False)
    with console.status("measuring") as status:
        calibration = Calibration(
            args.target, args.most_input, together=args.together, seed=args.seed, say=status.update
        )
        profile = asyncio.run(calibration.measure())
    profile.write(args.out)
    for name, value in asdict(profile).items():
        shown = f"{1000 * value:.4f} ms" if name.endswith("_s") else str(value)
        console.print(f"{name:22} {shown}")
    console.print(f"written: {args.out}")
    return 0
