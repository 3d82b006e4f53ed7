"""Ports of this machine that are free now."""

from __future__ import annotations

import contextlib
import socket

LOOPBACK = "127.0.0.1"


def free_ports(*wanted: int) -> tuple[int, ...]:
    """Return the ports, each 0 replaced by one that is free now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            if port == 0:
                probe = stack.enter_context(socket.socket())
                probe.bind((LOOPBACK, 0))
                port = probe.getsockname()[1]
            ports.append(port)
        return tuple(ports)


def free_range(count: int) -> int:
    """Return the first of `count` consecutive ports that are free now."""
    while True:
        with contextlib.ExitStack() as stack:
            first = 0
            try:
                for index in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind((LOOPBACK, first and first + index))
                    first = first or probe.getsockname()[1]
            except (OSError, OverflowError):
                continue
            return first
