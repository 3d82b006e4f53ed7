"""`baton down`: stops the cluster of the last `baton up`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from baton import runs
from baton.cli.options import Options
from baton.errors import ClusterError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    Options(parser, "down").value("--timeout-s", "60", "fail if it takes longer, seconds", float)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    cluster = runs.current()
    if cluster is None:
        print("no cluster is up", file=sys.stderr)
        return 0
    os.kill(cluster.pid, signal.SIGTERM)
    deadline = time.monotonic() + args.timeout_s
    while runs.current() == cluster:
        if time.monotonic() > deadline:
            raise ClusterError(f"the cluster (pid {cluster.pid}) still runs after {args.timeout_s:g} s")
        time.sleep(0.05)
    print("stopped", file=sys.stderr)
    return 0
