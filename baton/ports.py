"""Ports of this machine that are free now."""

from __future__ import annotations

import contextlib
import random
import socket

LOOPBACK = "127.0.0.1"
# Below those that systems give to outgoing connections: one of these could be taken before a service that
# is starting listens on it.
_CANDIDATES = range(10_000, 32_768)

_draw = random.SystemRandom()  # a seeded one would give tests that run at once the same ports


def free_ports(*wanted: int) -> tuple[int, ...]:
    """Return the ports, each 0 replaced by one that is free now."""
    with contextlib.ExitStack() as stack:
        return tuple(port or _hold(stack, 1) for port in wanted)


def free_range(count: int) -> int:
    """Return the first of `count` consecutive ports that are free now."""
    with contextlib.ExitStack() as stack:
        return _hold(stack, count)


def _hold(stack: contextlib.ExitStack, count: int) -> int:
    """Bind free ports until the stack is unwound; returns the first."""
    while True:
        first = _draw.choice(_CANDIDATES[: -count + 1 or None])
        try:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind((LOOPBACK, port))
        except OSError:
            continue
        return first
