"""`baton status`: the workers, their KV pools and their queues."""

from __future__ import annotations

import argparse
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from baton.cli.figures import size
from baton.cli.options import Options, open_client
from baton.v1 import registry_pb2

MIN_WIDTH = 125


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    options = Options(parser, "status")
    options.address()
    options.switch("--watch", "show it again every second, until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)  # a cut figure is worse than a wrapped line
    with open_client(args) as client:
        if not args.watch:
            console.print(status_view(client.workers(), client.address))
            return 0
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(status_view(client.workers(), client.address), refresh=True)
                time.sleep(1.0)


def status_view(cluster: registry_pb2.ListWorkersResponse, address: str) -> Group:
    """Return the cluster as a table under a line about the gateway."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("worker", "role", "address", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("KV used", "running", "waiting", "to do", "tokens/s", "hits", "moved"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("over", no_wrap=True)
    for worker in sorted(cluster.workers, key=lambda worker: (worker.info.role, worker.info.worker_id)):
        info, load = worker.info, worker.load
        queried = load.prefix_query_tokens
        table.add_row(
            info.worker_id,
            registry_pb2.WorkerRole.Name(info.role).removeprefix("WORKER_ROLE_").lower(),
            info.address,
            "draining" if worker.draining else f"seen {worker.silent_ms} ms ago",
            f"{load.used_blocks}/{info.num_blocks}",
            str(load.running),
            str(load.waiting),
            str(load.pending_tokens),
            f"{load.tokens_per_s:.1f}",
            f"{100 * load.prefix_hit_tokens / queried:.0f} %" if queried else "–",
            size(load.transferred_bytes),
            ", ".join(load.transports),
        )
    head = (
        f"gateway {address}: {cluster.gateway_in_flight} in flight, {cluster.gateway_waiting} waiting, "
        f"{len(cluster.workers)} workers"
    )
    return Group(head, table)
