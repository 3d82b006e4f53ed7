"""The command: `baton loadtest COMMAND`, or `python -m loadtest COMMAND`.

Statuses: 0 done, 1 the run failed or found a wrong answer or a lost block, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from loadtest.errors import LoadTestError, UsageError

COMMANDS = {
    "run": "send one load, measure it, and write JSON, JSONL and a page",
    "sweep": "find the highest rate that meets the targets, by bisection",
    "compare": "set two results side by side",
    "profile": "measure what the workers of a live cluster need for their work",
    "size": "find by simulation how many workers of each kind a load wants",
}
_EXAMPLES = """examples:
  baton loadtest run grpc://127.0.0.1:7000 --rate 4 --duration 60 --input 256 --output 64
  baton loadtest run http://127.0.0.1:8000 --concurrency 8 --requests 200 --verify 50
  baton loadtest run http://127.0.0.1:8000 --trace conv.csv --time-scale 4 --max-input 1024 --duration 600
  baton loadtest sweep grpc://127.0.0.1:7000 --duration 60 --target-ttft 0.5 --target-tpot 0.015
  baton loadtest compare before.json after.json
  baton loadtest profile grpc://127.0.0.1:7000 --out profile.json
  baton loadtest size --profile profile.json --trace conv.csv --workers 8 --target-ttft 0.5

`baton loadtest COMMAND --help` lists the flags. Latencies count from the planned time of each request."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m loadtest") -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Load tests of OpenAI-compatible endpoints and of Baton, as their clients see them.",
        epilog=_EXAMPLES.replace("baton loadtest", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = arguments[0] if arguments else ""
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            importlib.import_module(f"loadtest.commands.{name}").add_flags(command)
    args = parser.parse_args(arguments)
    try:
        status: int = importlib.import_module(f"loadtest.commands.{args.command}").run(args)
    except UsageError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    except LoadTestError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
