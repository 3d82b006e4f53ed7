"""`baton demo` (make run): a whole cluster, one question, the answer and what it cost."""

from __future__ import annotations

import argparse

from baton import runs
from baton.cli.generate import print_stream
from baton.cli.options import Options
from baton.cli.up import add_cluster_flags, start_cluster
from baton.client import Client
from baton.ports import LOOPBACK

QUESTION = "What is the capital of France?"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    options = Options(parser, "demo")
    add_cluster_flags(options)
    options.value("--question", QUESTION, "what to ask", metavar="TEXT")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    run = runs.Run()
    try:
        cluster = start_cluster(args, run, LOOPBACK, 0, 0)
        try:
            with Client(cluster.gateway_address) as client:
                print(f"\n> {args.question}")
                turns = [{"role": "user", "content": args.question}]
                _, figures = print_stream(client.chat(turns, max_tokens=128, temperature=0.0))
        finally:
            cluster.stop()
    finally:
        run.close()
    print("", *figures, sep="\n")
    return 0
