"""Check and measure everything on this machine's GPUs: `python -m bench.gpu_session --out DIR`.

Parts run side by side on the GPUs that there are, each within its time; what fails does not stop the rest.
The directory gets session.json with all outcomes, and session.tar.gz with logs and the files of benches. The
status is 1 if a part failed or was late, or was skipped for want of time or GPUs. `--list` shows the parts;
docs/gpu_session.md says more; `make gpu-session` is all of them.

    python -m bench.gpu_session --out out --limit-s 570 --parts kernels memcheck racecheck invariance
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cuda_step import SHAPES
from bench.gpu_session.driver import Outcome, Part, run_parts
from bench.gpu_session.parts import Inputs, all_parts, choose
from loadtest.environment import environment

NEEDED = (
    "pytest",
    "pytest_asyncio",
    "pytest_timeout",
    "cupy",
    "grpc",
    "google.protobuf",
    "zmq",
    "xxhash",
    "rich",
)
ROOT = Path(__file__).resolve().parent.parent.parent


def count_gpus() -> int:
    """GPUs of this machine, 0 without a driver; asked in a way that makes no context here."""
    if shutil.which("nvidia-smi") is None:
        return 0
    run = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in run.stdout.splitlines())


def missing() -> list[str]:
    """Packages that parts need and that are not here; better told now than by each part in its time."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def write_shapes(folder: Path) -> Path:
    """Directories with a config.json and random weights, by name."""
    for name, config in SHAPES.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "random_weights.json").write_text('{"seed": 0}')
    return folder


def main(argv: Sequence[str]) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, help="directory for what comes out; made if need be")
    add("--parts", nargs="+", default=[], metavar="NAME", help="only these, in this order (default: all)")
    add("--list", action="store_true", help="show the parts and how long they take, and end")
    add("--limit-s", type=float, default=7200.0, help="end after so many seconds (default: two hours)")
    add("--gpus", type=int, default=-1, help="use so many (default: all that nvidia-smi shows)")
    add("--rounds", type=int, default=3, help="of each of the engine's workloads (default: 3)")
    add("--fa3", type=Path, help="FlashAttention-3's library, as a peer of the attention kernels")
    add("--trace", type=Path, help="request lengths for the part goodput, which is left out without")
    args = parser.parse_args(argv)
    if not args.list and args.out is None:
        parser.error("--out is needed")
    with tempfile.TemporaryDirectory(prefix="baton-gpu-session-") as scratch:
        shapes = write_shapes(Path(scratch))
        out = (args.out or Path(scratch) / "out").resolve()
        logs = out / "logs"
        parts = all_parts(Inputs(shapes, logs, args.fa3, args.trace, args.rounds))
        try:
            chosen = choose(parts, args.parts) if args.parts else parts
        except ValueError as error:
            parser.error(str(error))
        if args.list:
            for part in chosen:
                print(f"{part.name:26} {part.gpus} GPU {part.expected_s:5.0f} s, at most {part.limit_s:.0f}")
            return 0
        if absent := missing():
            parser.error(f"not installed here: {', '.join(absent)}")
        logs.mkdir(parents=True, exist_ok=True)
        gpus = count_gpus() if args.gpus < 0 else args.gpus
        print(
            f"{len(chosen)} parts on {gpus} GPUs, {sum(part.expected_s for part in chosen):.0f} s one by one",
            flush=True,
        )
        return _run(chosen, gpus, out, logs, args.limit_s)


def _run(parts: Sequence[Part], gpus: int, out: Path, logs: Path, limit_s: float) -> int:
    begun = time.monotonic()
    ended: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        ended.append(outcome)
        print(f"== {outcome.name}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)
        for line in outcome.lines:
            print(f"   {line}", flush=True)
        # After each part: whoever ends this process early has what is there.
        document = {"environment": environment(), "gpus": gpus, "parts": [asdict(one) for one in ended]}
        (out / "session.json").write_text(json.dumps(document, indent=1) + "\n")

    run_parts(parts, gpus, logs, ROOT, limit_s, tell)
    with tarfile.open(out / "session.tar.gz", "w:gz") as archive:
        archive.add(logs, "session")
    shutil.rmtree(logs)
    bad = [one for one in ended if not one.is_good]
    told = ", ".join(f"{one.name} {one.status}" for one in bad) or "all passed"
    print(f"{len(ended) - len(bad)} of {len(ended)} parts passed in {time.monotonic() - begun:.0f} s: {told}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
