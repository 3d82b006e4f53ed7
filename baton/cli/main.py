"""Entry of the `baton` command: finds the subcommand, and turns errors into one line and a status.

Statuses: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from baton.errors import BatonError

COMMANDS = {
    "up": "start a local cluster: a gateway and its workers",
    "down": "stop the cluster of the last `baton up`",
    "generate": "answer one prompt and print the figures",
    "chat": "talk with the model",
    "status": "show workers, KV use and queues",
    "models": "list models, or fetch the default one",
    "demo": "start a cluster, ask one question, print answer and figures, stop",
    "certs": "make certificates for a cluster, in one folder",
    "keys": "create, list and revoke the API keys of a gateway",
    "loadtest": "measure a cluster under load (baton loadtest --help)",
    "bench": "measure the engine alone: baton bench engine (--help for its flags)",
    "serve": "run one service: baton serve gateway|prefill|decode|both|vault (--help for its flags)",
}
SERVICES = ("gateway", "prefill", "decode", "both", "vault")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["serve"]:
            return _serve(arguments[1:])
        if arguments[:1] == ["loadtest"]:
            # The harness is a client of its own; importing it here would bind the two together.
            harness = importlib.import_module("loadtest.main")
            return int(harness.main(arguments[1:], prog="baton loadtest"))
        if arguments[:1] == ["bench"]:
            return _bench(arguments[1:])
        return _run(arguments)
    except BatonError as error:
        print(f"baton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `baton status | head`
        sys.stderr.close()
        return 1


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="baton",
        description="Disaggregated prefill and decode serving of large language models.",
        epilog="Every flag is an environment variable too; `baton COMMAND --help` names it.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = arguments[0] if arguments else ""
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen and name != "serve":
            importlib.import_module(f"baton.cli.{name}").add_flags(command)
    args = parser.parse_args(arguments)
    args.arguments = arguments
    status: int = importlib.import_module(f"baton.cli.{args.command}").run(args)
    return status


def _bench(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="baton bench", description="Measure a part of Baton by itself.")
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    parts.add_parser("engine", add_help=False, help="five workloads, offline, beside the machine's floor")
    parser.parse_args(arguments[:1])
    # It imports the engine, which the command itself does not know.
    status: int = importlib.import_module("bench.engine.main").main(arguments[1:])
    return status


def _serve(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in SERVICES:
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        print(f"usage: baton serve {{{','.join(SERVICES)}}} [flags]", file=sys.stderr)
        return 0 if asked_for_help else 2
    # A service's imports are heavy and its own: nothing of it is loaded before it is asked for.
    status: int = importlib.import_module(f"services.{arguments[0]}.main").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
