"""`baton certs`: an authority and certificates for a cluster, in one folder."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from baton.cli.options import Options, at_least

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("folder", metavar="DIR", help="where the files go; none is overwritten")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="name or address by which clients reach the gateway, beside this machine's; may be repeated",
    )
    Options(parser, "certs").value(
        "--days", "365", "how long the services' certificates are valid", at_least(1)
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from baton.certificates import make_certificates

    folder = Path(args.folder).expanduser()
    hosts = dict.fromkeys([*LOCAL_HOSTS, socket.gethostname(), *args.host])
    make_certificates(folder, list(hosts), args.days)
    print(
        f"{folder}: ca.pem for clients; server, gateway and worker certificates for {args.days} days\n"
        f"try them: baton up --certs {folder}\n"
        f"keep {folder / 'ca.key'} away from the services: it signs whatever they believe"
    )
    return 0
