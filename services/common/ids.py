"""Names of processes."""

from __future__ import annotations

import secrets
import socket


def new_incarnation() -> str:
    """Return an id that no earlier or later start of any process has, 16 hex digits."""
    return secrets.token_hex(8)


def new_id() -> str:
    """Return an opaque id, 32 hex digits, that cannot be guessed."""
    return secrets.token_hex(16)


def default_worker_id(role: str, port: int) -> str:
    """Return a name that stays the same when the worker restarts at the same port."""
    return f"{role}-{socket.gethostname()}-{port}"
